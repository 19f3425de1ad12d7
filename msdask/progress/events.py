"""What happens in a run over many slides, told as small events to whoever listens.

A run tells `RunBegun` first and `RunDone` last. Between them every slide has one `SlideBegun`, then its `BlockWritten`
and `Warned` in any order, then one `SlideDone`; events of several slides mix. `Waiting` is of no slide, and comes
between any of them. A run that is interrupted stops telling.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "BlockWritten",
    "Event",
    "Listener",
    "Listeners",
    "Outcome",
    "RunBegun",
    "RunDone",
    "SlideBegun",
    "SlideDone",
    "Waiting",
    "Warned",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide in one patch set.

    Attributes
    ----------
    slide_id, set_name : which slide, in which patch set
    state : "failed", or a word of the run's own for what was done
    reason : why it failed, or what to know of it
    patches : written by this run; tuples, where the set has several magnifications
    magnifications : of the set: with several, what is counted are tuples
    """

    slide_id: str
    set_name: str
    state: str
    reason: str = ""
    patches: int = 0
    magnifications: int = 1

    def row(self) -> dict[str, Any]:
        """The outcome as a row of a table."""
        return {
            "slide_id": self.slide_id,
            "set": self.set_name,
            "state": self.state,
            "reason": self.reason,
            "written": self.patches,
        }


@dataclass(frozen=True, slots=True)
class RunBegun:
    """A run begins: "extract", "repair" or "export"; so many pairs of `SlideBegun` and `SlideDone` will follow."""

    action: str
    store: str
    sets: tuple[str, ...]
    slides: int


@dataclass(frozen=True, slots=True)
class SlideBegun:
    """Work on a slide begins, for these patch sets."""

    slide_id: str
    sets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockWritten:
    """A block of a slide is written into a patch set: so many patches, or tuples of so many magnifications."""

    slide_id: str
    set_name: str
    block: int
    patches: int
    magnifications: int = 1


@dataclass(frozen=True, slots=True)
class Warned:
    """There is something to know of a slide, in a sentence, and the work goes on."""

    slide_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The run as a whole cannot go on for the moment, and why; with an empty reason: it goes on again."""

    reason: str


@dataclass(frozen=True, slots=True)
class SlideDone:
    """Work on a slide has ended for these patch sets, well or not.

    Attributes
    ----------
    order : place of the slide in the run, from 0
    outcomes : one a patch set; none where a repair found nothing to do
    """

    slide_id: str
    sets: tuple[str, ...]
    order: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class RunDone:
    """Every slide of a run is done; `engine` is what it ran on: kind, threads, workers, scheduler."""

    engine: Mapping[str, Any] = field(default_factory=dict)


Event: TypeAlias = RunBegun | SlideBegun | BlockWritten | Warned | Waiting | SlideDone | RunDone

Listener: TypeAlias = Callable[[Event], object]
"""Whatever can be called with an event."""


class Listeners:
    """Tells several listeners of every event, one event at a time, from whichever thread it happens in.

    A listener that raises an error loses nothing of the run: its first error becomes a warning, and it is told of the
    next event like all others.
    """

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Tell every listener of an event."""
        with self._lock:
            for number, listener in enumerate(self._listeners):
                try:
                    listener(event)
                except Exception as error:
                    self._report(number, listener, event, error)

    def _report(self, number: int, listener: Listener, event: Event, error: Exception) -> None:
        if number in self._reported:
            return
        self._reported.add(number)
        text = (
            f"the listener {listener!r} raised {type(error).__name__}: {error}, at {type(event).__name__}; the run "
            "goes on, and further errors of this listener are not shown"
        )
        with suppress(UserWarning):  # where warnings are made errors, this one must not end the run either
            warnings.warn(text, UserWarning, stacklevel=3)
