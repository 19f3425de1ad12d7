"""Where blocks are computed: a thread pool here, or a Dask cluster. The same graph on either."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

from dask.callbacks import Callback
from dask.system import CPU_COUNT
from dask.threaded import get as threaded_get

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterEngine", "Engine", "Stopped", "ThreadEngine"]

P = ParamSpec("P")
T = TypeVar("T")


class Stopped(Exception):
    """The run was asked to stop; what is written stays written."""


class Engine(Protocol):
    """Runs a slide's work. Called from several threads at once, one a slide in flight."""

    slides_in_flight: int
    """How many slides are worked on at once; bounds memory whatever the cohort's size."""

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One function, where the slides can be read."""
        ...

    def run(self, graph: Mapping[Any, Any], keys: Sequence[Any], on_block: Callable[[int], None]) -> None:
        """All blocks of a slide; `on_block` gets each block's number of patches."""
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
        self._stop = threading.Event()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, in the caller's own thread."""
        if self._stop.is_set():
            raise Stopped
        return function(*args, **kwargs)

    def run(self, graph: Mapping[Any, Any], keys: Sequence[Any], on_block: Callable[[int], None]) -> None:
        """All blocks of a slide on the shared pool."""
        wanted = set(keys)

        def before(key: Any, dsk: Any, state: Any) -> None:
            if self._stop.is_set():
                raise Stopped

        def after(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
            if key in wanted:
                on_block(int(result))

        # Given as an argument: dask's `with Callback` is one global set, and several slides run at once.
        callbacks = [Callback(pretask=before, posttask=after)._callback]
        threaded_get(
            cast("dict[Any, Any]", graph), list(keys), pool=self._pool, num_workers=self.threads, callbacks=callbacks
        )

    def stop(self) -> None:
        """Begin no further block; those that run are finished."""
        self._stop.set()

    def close(self) -> None:
        """End the pool's threads."""
        self._pool.shutdown(wait=True)


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

    def run(self, graph: Mapping[Any, Any], keys: Sequence[Any], on_block: Callable[[int], None]) -> None:
        """All blocks of a slide as tasks of the cluster."""
        from distributed import as_completed

        if self._stop.is_set():
            raise Stopped
        futures = self._client.get(graph, list(keys), sync=False)
        try:
            for future in as_completed(futures):
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
