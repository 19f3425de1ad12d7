"""What became of every slide of a run, and its record as JSON, which lies outside the store."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from msdask._version import __version__
from msdask.extraction.machine import machine, versions
from msdask.storage.files import write_file

__all__ = ["ExtractionReport", "SlideOutcome", "run_record", "write_log"]

RECORD = 1
"""Version of the record's layout."""


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """One slide in one patch set.

    Attributes
    ----------
    state : "complete" (written now), "present" (was complete before) or "failed"
    reason : why it failed
    counts : candidates, selected, kept, labeled, filled
    patches : written by this run
    seconds : of this run, from the plan's end to the commit; other slides may have run at the same time
    warnings : about scale and mask
    tries : how often the unluckiest of its tasks was tried; above 1 only on a cluster that loses workers
    workers : of a cluster, that worked on it, and those that died over it
    """

    slide_id: str
    path: str
    set_name: str
    state: Literal["complete", "present", "failed"]
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    patches: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    tries: int = 1
    workers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtractionReport:
    """Outcomes of one call of `extract`, in the order of the slides.

    Attributes
    ----------
    store : path
    sets : names of the patch sets
    outcomes : one a slide and set
    seconds : of the whole call
    started : when, UTC, ISO 8601
    engine : what it ran on: kind, threads, workers, scheduler
    """

    store: str
    sets: tuple[str, ...]
    outcomes: tuple[SlideOutcome, ...]
    seconds: float
    started: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Slide id -> reason, of the slides that failed."""
        return {o.slide_id: o.reason for o in self.outcomes if o.state == "failed"}

    @property
    def patches(self) -> int:
        """Patches (tuples) written by this call."""
        return sum(o.patches for o in self.outcomes)

    @property
    def is_complete(self) -> bool:
        """Whether every slide is complete now."""
        return not self.failures

    def to_frame(self) -> pd.DataFrame:
        """One row a slide and set."""
        rows = [
            {"slide_id": o.slide_id, "set": o.set_name, "state": o.state, "reason": o.reason, **o.counts}
            | {"written": o.patches, "seconds": round(o.seconds, 3), "warnings": "; ".join(o.warnings), "path": o.path}
            | {"tries": o.tries, "workers": ", ".join(o.workers)}
            for o in self.outcomes
        ]
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """The run as a JSON document: machine, versions, what it ran on, every slide's state. Not for the store."""
        return json.dumps(run_record(self), indent=1, ensure_ascii=False)

    def summary(self) -> str:
        """A sentence for a terminal."""
        states = [o.state for o in self.outcomes]
        parts = [f"{states.count(s)} {s}" for s in ("complete", "present", "failed") if s in states]
        rate = f", {self.patches / self.seconds:,.0f} patches/s" if self.patches and self.seconds > 0 else ""
        return f"{', '.join(parts)}; {self.patches:,} patches written in {self.seconds:.1f} s{rate}"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary()}</p>{self.to_frame().to_html(index=False)}"


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
    return write_file(path, report.to_json() + "\n", advice="give another path; the run itself is done")
