"""Where blocks of jobs are computed: a thread pool here, or a Dask cluster (`dask_cluster`); one interface for both.

A job is whatever travels: a few kilobytes that say where things lie. A block is a number. An engine knows nothing else
of them, so that extraction, inference on whole slides and experiments run on the same few methods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

from dask.system import CPU_COUNT

__all__ = ["BlockFunction", "Engine", "JobTrace", "Stopped", "ThreadEngine"]

P = ParamSpec("P")
T = TypeVar("T")
J = TypeVar("J", contravariant=True)


class BlockFunction(Protocol[J]):
    """Does one block of a job; may do it in parts on a pool. Doing it twice must change nothing."""

    def __call__(self, job: J, block: int, *, pool: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
        """How much it was, for the progress bar: the patches of a block, say."""
        ...


class Stopped(Exception):
    """The run was asked to stop; what is written stays written."""


@dataclass
class JobTrace:
    """One job on its way through an engine: its place in the order, and what became of it.

    Attributes
    ----------
    order : jobs of a lower number go first
    tries : how often the unluckiest of its tasks was tried
    workers : where its tasks ran, and where they died
    near : workers that its tasks are sent to
    """

    order: int = 0
    tries: int = 1
    workers: set[str] = field(default_factory=set)
    near: list[str] = field(default_factory=list)


class Engine(Protocol):
    """Runs the work of jobs. Called from several threads at once, one a job in flight."""

    @property
    def jobs_in_flight(self) -> int:
        """How many jobs are worked on at once now; bounds memory whatever their number."""
        ...

    def job(self, order: int) -> AbstractContextManager[JobTrace]:
        """Begin a job: its tasks are run within."""
        ...

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One function, where the data can be read; `label` is "step: what"."""
        ...

    def run(
        self,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int], None],
        *,
        label: str,
        trace: JobTrace | None = None,
    ) -> None:
        """``function(job, block)`` for every block; `on_block` gets what each returns.

        The first error ends the job's other blocks and is raised when none of them is running any more.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What it is, for the run report; JSON values."""
        ...

    def stop(self) -> None:
        """Begin no further block."""
        ...

    def close(self) -> None:
        """Release what the engine made."""
        ...


class ThreadEngine:
    """Blocks on a pool of threads of this process: decoders, cv2 and TensorStore release the GIL."""

    @property
    def jobs_in_flight(self) -> int:
        """Two, so that one may begin or end while the other's blocks run."""
        return 2

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or CPU_COUNT
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="msdask-block")
        self._parts_pool = ThreadPoolExecutor(self.threads, thread_name_prefix="msdask-part")
        self._stop = threading.Event()

    @contextmanager
    def job(self, order: int) -> Iterator[JobTrace]:
        """A job; threads are all alike."""
        yield JobTrace(order)

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, in the caller's own thread."""
        if self._stop.is_set():
            raise Stopped
        return function(*args, **kwargs)

    def run(
        self,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int], None],
        *,
        label: str,
        trace: JobTrace | None = None,
    ) -> None:
        """All blocks of a job on the shared pool."""
        parts = self._parts(len(blocks))

        def one(block: int) -> int:
            if self._stop.is_set():
                raise Stopped
            count = function(job, block, pool=self._parts_pool, parts=parts)
            on_block(count)
            return count

        futures = [self._pool.submit(one, block) for block in blocks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            # The slide's lock is let go of after this: nothing may still be writing then.
            wait([future for future in futures if not future.cancelled()])
        for future in futures:
            if not future.cancelled():
                future.result()

    def _parts(self, blocks: int) -> int:
        """Into how many parts a block is cut: whole ones leave threads idle where there are few, and at the end."""
        if self.threads == 1:
            return 1
        return max(1, min(4 * self.threads, -(-16 * self.threads // max(1, blocks))))

    def facts(self) -> dict[str, Any]:
        """Kind and number of threads."""
        return {"kind": "threads", "threads": self.threads}

    def stop(self) -> None:
        """Begin no further block; those that run are finished."""
        self._stop.set()

    def close(self) -> None:
        """End the pool's threads."""
        self._pool.shutdown(wait=True)
        self._parts_pool.shutdown(wait=True)
