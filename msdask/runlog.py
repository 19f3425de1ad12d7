"""The record of a run as JSON values: machine, versions, and what became of every slide. It lies outside the store."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msdask import __version__
from msdask.errors import MsdaskError
from msdask.outcome import ExtractionReport

__all__ = ["machine", "run_record", "versions", "write_log"]

RECORD = 1
"""Version of the record's layout."""

_PROGRAMS = ("dask", "distributed", "numpy", "tensorstore", "tifffile", "xarray", "zarr")


def run_record(report: ExtractionReport) -> dict[str, Any]:
    """A run as JSON values.

    Returns
    -------
    record : "record" (version of this layout), "msdask", "started" (UTC), "seconds", "store", "sets", "engine",
        "machine", "versions", "totals" (slides by state, patches) and "slides", one a slide and set: the fields of
        `SlideOutcome`
    """
    states = [o.state for o in report.outcomes]
    return {
        "record": RECORD,
        "msdask": __version__,
        "started": report.started,
        "seconds": round(report.seconds, 3),
        "store": report.store,
        "sets": list(report.sets),
        "engine": dict(report.engine),
        "machine": machine(),
        "versions": versions(),
        "totals": {state: states.count(state) for state in ("complete", "present", "failed")}
        | {"patches": report.patches},
        "slides": [
            {**asdict(o), "seconds": round(o.seconds, 3), "counts": {k: int(v) for k, v in o.counts.items()}}
            for o in report.outcomes
        ],
    }


def write_log(path: str | os.PathLike[str], report: ExtractionReport) -> Path:
    """Write a run's record as a JSON file; returns its path."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(report.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise MsdaskError(f"cannot write '{target}': {error.strerror or error}; the run itself is done") from error
    return target


def machine() -> dict[str, Any]:
    """Where the client runs: host, system, processor cores, memory in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory": memory,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that make the bytes."""
    found = {"Python": platform.python_version()}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a frozen program has no metadata
            found[name] = "unknown"
    return found
