"""The seam between what is computed and where: what an engine has to do, and the types that it shares with its callers.

A job is whatever travels: a few kilobytes that say where things lie. A block is a number. An engine knows nothing else
of them, so that extraction, inference on whole slides and experiments run on the same few methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ["BlockFunction", "Engine", "JobTrace", "Stopped"]

P = ParamSpec("P")
T = TypeVar("T")
J = TypeVar("J", contravariant=True)


class BlockFunction(Protocol[J]):
    """Does one block of a job; may do it in parts on a pool. Doing it twice must change nothing."""

    def __call__(self, job: J, block: int, *, pool: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
        """How much it was: the patches of a block, say."""
        ...


class Stopped(BaseException):
    """The run was asked to stop; what is written stays written. No error of a job: `except Exception` lets it pass."""


@dataclass
class JobTrace:
    """One job on its way through an engine: its place in the order, and what became of it.

    Attributes
    ----------
    order : jobs of a lower number go first
    tries : how often the unluckiest of its tasks was tried
    workers : where its tasks ran, and where they died
    near : workers that its tasks are sent to
    warn : is told, in a sentence, when a task of the job is tried again
    waits : of the first of all jobs is told why none can go on for the moment; with an empty text that they do again
    """

    order: int = 0
    tries: int = 1
    workers: set[str] = field(default_factory=set)
    near: list[str] = field(default_factory=list)
    warn: Callable[[str], object] = lambda message: None
    waits: Callable[[str], object] = lambda reason: None


class Engine(Protocol):
    """Runs the work of jobs. Called from several threads at once, one a job in flight.

    `PlainEngine` defines what is right: every other engine gives the same results, errors and calls of `on_block`, only
    in another order, and the same bytes.
    """

    @property
    def jobs_in_flight(self) -> int:
        """How many jobs are worked on at once now; bounds memory whatever their number. 1: in the caller's thread."""
        ...

    def job(self, order: int) -> AbstractContextManager[JobTrace]:
        """Begin a job: its tasks are run within."""
        ...

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One function, where the data can be read; `label` is "step: what"."""
        ...

    def run(
        self,
        label: str,
        trace: JobTrace,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int, int], object],
    ) -> None:
        """``function(job, block)`` for every block; `on_block` gets each block's number and what it returned.

        The first error ends the job's other blocks and is raised when none of them is running any more.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What it is, for the report of the run; JSON values."""
        ...

    def stop(self) -> None:
        """Begin nothing more: from now on `call` and `run` raise Stopped."""
        ...

    def close(self) -> None:
        """Release what the engine made."""
        ...
