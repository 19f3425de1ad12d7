"""Where blocks are computed: a thread pool here, or a Dask cluster. The same functions on either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from dask.system import CPU_COUNT

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterEngine", "Engine", "Stopped", "ThreadEngine"]

P = ParamSpec("P")
T = TypeVar("T")
J = TypeVar("J", contravariant=True)


class BlockFunction(Protocol[J]):
    """Reads, measures and writes one block; may read it in parts on a pool."""

    def __call__(self, job: J, block: int, *, readers: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
        """Number of patches of the block."""
        ...


class Stopped(Exception):
    """The run was asked to stop; what is written stays written."""


class Engine(Protocol):
    """Runs a slide's work. Called from several threads at once, one a slide in flight."""

    slides_in_flight: int
    """How many slides are worked on at once; bounds memory whatever the cohort's size."""

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One function, where the slides can be read."""
        ...

    def run(
        self,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int], None],
        *,
        label: str,
    ) -> None:
        """``function(job, block)`` for every block; `on_block` gets what each returns, its number of patches.

        The first error ends the slide's other blocks and is raised.
        """
        ...

    def stop(self) -> None:
        """Begin no further block."""
        ...

    def close(self) -> None:
        """Release what the engine made."""
        ...


class ThreadEngine:
    """Blocks on a pool of threads of this process: decoders, cv2 and TensorStore release the GIL."""

    slides_in_flight = 2

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or CPU_COUNT
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="msdask-block")
        self._readers = ThreadPoolExecutor(self.threads, thread_name_prefix="msdask-read")
        self._stop = threading.Event()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
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
    ) -> None:
        """All blocks of a slide on the shared pool."""
        # With few blocks, whole blocks would leave threads idle: each is then read by all of them.
        parts = 4 * self.threads if self.threads > 1 and len(blocks) < 4 * self.threads else 1

        def one(block: int) -> int:
            if self._stop.is_set():
                raise Stopped
            count = function(job, block, readers=self._readers, parts=parts)
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

    def stop(self) -> None:
        """Begin no further block; those that run are finished."""
        self._stop.set()

    def close(self) -> None:
        """End the pool's threads."""
        self._pool.shutdown(wait=True)
        self._readers.shutdown(wait=True)


class ClusterEngine:
    """Blocks on the workers of a Dask cluster, which must reach slides and store by the same paths."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        self.slides_in_flight = max(2, min(32, 2 * workers))

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, on a worker."""
        if self._stop.is_set():
            raise Stopped
        result: T = self._client.submit(function, *args, pure=False, **kwargs).result()
        return result

    def run(
        self,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int], None],
        *,
        label: str,
    ) -> None:
        """All blocks of a slide as tasks of the cluster, one each."""
        from distributed import as_completed as as_done

        if self._stop.is_set():
            raise Stopped
        futures = self._client.map(function, [job] * len(blocks), list(blocks), pure=False, key=label)
        try:
            for future in as_done(futures):
                on_block(int(future.result()))
                if self._stop.is_set():
                    raise Stopped
        finally:
            self._client.cancel([f for f in futures if not f.done()])

    def stop(self) -> None:
        """Cancel what has not begun."""
        self._stop.set()

    def close(self) -> None:
        """The client belongs to the caller."""
