"""The work on one slide of a run: its steps go to the engine, and what happens is told to the listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from msdask.engines.engine import BlockFunction, Engine, JobTrace
from msdask.errors import MsdaskError
from msdask.progress.events import BlockWritten, Listener, Outcome, SlideBegun, SlideDone, Waiting, Warned

__all__ = ["SlideWork", "reason", "slide_work"]

J = TypeVar("J")
P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("msdask.engines")


class SlideWork:
    """A slide's job in an engine, with the listeners of its run.

    Parameters
    ----------
    engine : runs the steps
    trace : of the slide's job
    tell : called with every event
    slide_id, sets : which slide, for which patch sets
    """

    def __init__(self, engine: Engine, trace: JobTrace, tell: Listener, slide_id: str, sets: tuple[str, ...]) -> None:
        self._engine = engine
        self.trace = trace
        self._tell = tell
        self._slide_id, self._sets = slide_id, sets
        trace.warn, trace.waits = self.warn, self._waits

    @property
    def workers(self) -> tuple[str, ...]:
        """Workers of a cluster that were at it, and those that died over it."""
        return tuple(sorted(self.trace.workers))

    def call(self, label: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One step; `label` is "step: what"."""
        return self._engine.call(label, self.trace, function, *args, **kwargs)

    def run(
        self,
        step: str,
        set_name: str,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        *,
        magnifications: int = 1,
    ) -> int:
        """Blocks of the slide in one patch set of so many magnifications; the patches or tuples that were written."""
        counts: list[int] = []

        def written(block: int, patches: int) -> None:
            counts.append(patches)
            self._tell(BlockWritten(self._slide_id, set_name, block, patches, magnifications))

        self._engine.run(f"{step}: {set_name}/{self._slide_id}", self.trace, function, job, blocks, written)
        return sum(counts)

    def warn(self, message: str) -> None:
        """Tell of something that does not stop the work."""
        self._tell(Warned(self._slide_id, message))

    def _waits(self, reason: str) -> None:
        """Tell why the run cannot go on for the moment; an empty reason: it does again."""
        if reason:  # also where nobody listens: a run without a word looks like one that hangs
            _log.warning("%s", reason)
        self._tell(Waiting(reason))

    def done(self, outcomes: Iterable[Outcome]) -> None:
        """Tell what became of the slide."""
        self._tell(SlideDone(self._slide_id, self._sets, self.trace.order, tuple(outcomes)))


@contextmanager
def slide_work(engine: Engine, tell: Listener, order: int, slide_id: str, sets: Sequence[str]) -> Iterator[SlideWork]:
    """Begin the work on a slide; the caller ends it with `SlideWork.done`."""
    with engine.job(order) as trace:
        tell(SlideBegun(slide_id, tuple(sets)))
        yield SlideWork(engine, trace, tell, slide_id, tuple(sets))


def reason(error: Exception) -> str:
    """Why a slide failed: errors that are raised on purpose speak for themselves, others are named."""
    return str(error) if isinstance(error, (MsdaskError, OSError)) else f"{type(error).__name__}: {error}"
