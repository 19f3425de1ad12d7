"""What became of the slides of a run: for a terminal, as a table, as HTML and as a JSON record."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd

from msdask._version import __version__
from msdask.progress.counting import counted
from msdask.progress.events import Event, Outcome, RunBegun, RunDone, SlideDone
from msdask.progress.machine import machine, versions

__all__ = ["Recorder", "Report"]

RECORD = 1
"""Version of the JSON record's layout."""

SomeOutcome = TypeVar("SomeOutcome", bound=Outcome, covariant=True)


@dataclass(frozen=True, slots=True)
class Report(Generic[SomeOutcome]):
    """Outcomes of one run, in the order of its slides.

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
    outcomes: tuple[SomeOutcome, ...]
    seconds: float = 0.0
    started: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)

    states: ClassVar[tuple[str, ...]] = ()
    """The states that an outcome of this kind of run may have, in the order in which they are counted."""

    @property
    def failed(self) -> tuple[SomeOutcome, ...]:
        """Outcomes of the slides that failed."""
        return tuple(o for o in self.outcomes if o.state == "failed")

    @property
    def failures(self) -> dict[str, str]:
        """``<set>/<slide>`` -> reason, of those that failed."""
        return {f"{o.set_name}/{o.slide_id}": o.reason for o in self.failed}

    @property
    def patches(self) -> int:
        """Patches that were written by this run; tuples, where the sets have several magnifications."""
        return sum(o.patches for o in self.outcomes)

    @property
    def is_complete(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def to_frame(self) -> pd.DataFrame:
        """One row a slide and set."""
        columns = None if self.outcomes else list(Outcome("", "", "").row())
        return pd.DataFrame([o.row() for o in self.outcomes], columns=columns)

    def record(self) -> dict[str, Any]:
        """The run as JSON values.

        Returns
        -------
        record : "record" (version of this layout), "msdask", "started" (UTC), "seconds", "store", "sets", "engine",
            "machine", "versions", "totals" (slides by state, patches) and "slides", one a slide and set: the fields of
            the outcome
        """
        return {
            "record": RECORD,
            "msdask": __version__,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "store": self.store,
            "sets": list(self.sets),
            "engine": dict(self.engine),
            "machine": machine(),
            "versions": versions(),
            "totals": {**self._totals(), "patches": self.patches},
            "slides": [_rounded(asdict(o)) for o in self.outcomes],
        }

    def to_json(self) -> str:
        """The run as a JSON document: machine, versions, what it ran on, every slide's state. Not for the store."""
        return json.dumps(self.record(), indent=1, ensure_ascii=False)

    def summary(self) -> str:
        """A sentence for a terminal."""
        states = ", ".join(f"{count} {state}" for state, count in self._totals().items() if count) or "no slides"
        rate = f", {self.patches / self.seconds:,.0f}/s" if self.patches and self.seconds > 0 else ""
        return f"{states}; {self.counted()} written in {self.seconds:.1f} s{rate}"

    def counted(self) -> str:
        """What was written, in words: patches, or tuples."""
        return counted((o.patches, o.magnifications) for o in self.outcomes)

    def _totals(self) -> dict[str, int]:
        found = Counter(o.state for o in self.outcomes)
        return {state: found[state] for state in self.states}

    def _repr_html_(self) -> str:
        return f"<p>{self.summary()}</p>{self.to_frame().to_html(index=False)}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}


class Recorder:
    """A listener that keeps what the report of a run is made of."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._done: dict[int, tuple[Outcome, ...]] = {}
        self._begun = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Keep what an event says."""
        if isinstance(event, RunBegun):
            self._begun = time.perf_counter()
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._facts |= {"store": event.store, "sets": event.sets, "started": started}
        elif isinstance(event, SlideDone):
            self._done[event.order] = event.outcomes
        elif isinstance(event, RunDone):
            self._facts |= {"engine": event.engine, "seconds": time.perf_counter() - self._begun}

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes so far, in the order of the slides."""
        return tuple(outcome for order in sorted(self._done) for outcome in self._done[order])

    def facts(self) -> dict[str, Any]:
        """The fields of a `Report`."""
        return {**self._facts, "outcomes": self.outcomes}
