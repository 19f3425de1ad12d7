"""One block after another, in the caller's own thread: the engine that defines what is right, and one to debug with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msdask.engines.engine import BlockFunction, J, JobTrace, P, Stopped, T

__all__ = ["PlainEngine"]


class PlainEngine:
    """Runs everything where it is called: no pool, no other thread, nothing at once."""

    jobs_in_flight = 1

    def __init__(self) -> None:
        self._is_stopped = False

    @contextmanager
    def job(self, order: int) -> Iterator[JobTrace]:
        """A job; there is nothing to prepare."""
        yield JobTrace(order)

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, now and here."""
        if self._is_stopped:
            raise Stopped
        return function(*args, **kwargs)

    def run(
        self,
        label: str,
        trace: JobTrace,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int, int], object],
    ) -> None:
        """One block after another."""
        for block in blocks:
            on_block(block, self.call(label, trace, function, job, block))

    def facts(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": "plain"}

    def stop(self) -> None:
        """Begin nothing more."""
        self._is_stopped = True

    def close(self) -> None:
        """Nothing to release."""
