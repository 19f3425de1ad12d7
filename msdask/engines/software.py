"""Which msdask a process runs, by version and source: workers with another one would write other pixels."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, NamedTuple

from msdask._version import __version__
from msdask.errors import MsdaskError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["OtherSoftwareError", "Software", "other_workers", "software"]

_ASKING = 10.0
"""Seconds that workers have to say what they run; who says nothing is asked again with each task."""


class Software(NamedTuple):
    """An msdask: its version, and what its source hashes to."""

    version: str
    source: str

    def __str__(self) -> str:
        return f"{self.version} ({self.source[:8]})"


class OtherSoftwareError(MsdaskError):
    """Workers run another msdask than the client.

    Parameters
    ----------
    others : address of a worker -> what it runs
    own : what the client runs
    """

    def __init__(self, others: Mapping[str, str], own: Software) -> None:
        self.others, self._own = dict(others), own
        by_found: dict[str, list[str]] = {}
        for worker, found in sorted(others.items()):
            by_found.setdefault(found, []).append(worker)
        listed = "; ".join(
            f"{found} on {', '.join(workers[:3])}" + (f" and {len(workers) - 3} more" if workers[3:] else "")
            for found, workers in by_found.items()
        )
        super().__init__(
            f"the client runs msdask {own}, but workers of the cluster another one: {listed}. They might write other "
            "pixels: install the same everywhere (version, and hash of the source), then start these workers again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.others, self._own)


@lru_cache(maxsize=1)
def software() -> Software:
    """The msdask of this process; its source is read once.

    The hash is of the contents of all .py files by their names within the package: the same for an installed copy, a
    checkout and an archive.
    """
    digest = hashlib.sha256()
    for name, file in sorted(_sources(files("msdask"), "")):
        contents = file.read_bytes()
        digest.update(f"{name} {len(contents)}\n".encode() + contents)
    return Software(__version__, digest.hexdigest())


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield f"{prefix}{entry.name}", entry


def other_workers(client: Client) -> dict[str, str]:
    """Address of every worker that runs another msdask than this process -> what it runs; they are asked now."""
    others: dict[str, str] = {}
    for worker, found in _answers(client).items():
        if isinstance(found, OSError):  # gone, or busy: each task asks again
            continue
        if isinstance(found, Exception):  # too old to know the question
            others[worker] = f"{_version(client, worker)} ({found})"
        elif found != software():
            others[worker] = str(found)
    return others


def _answers(client: Client) -> dict[str, Software | Exception]:
    """What each worker says that it runs; nothing of those that have not answered in time."""
    answers: dict[str, Software | Exception] = {}

    def ask() -> None:
        with suppress(OSError):  # without a scheduler nothing is run either
            answers.update(client.run(software, on_error="return"))

    asking = threading.Thread(target=ask, name="msdask-ask", daemon=True)
    asking.start()
    asking.join(_ASKING)
    return dict(answers)


def _version(client: Client, worker: str) -> str:
    """Version of the msdask of a worker that cannot say it itself."""
    found: Any = client.get_versions(packages=["msdask"])
    return str(found["workers"].get(worker, {}).get("packages", {}).get("msdask") or "none")
