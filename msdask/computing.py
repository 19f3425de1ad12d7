"""Computing in this process what msdask computes for itself: never on a cluster that happens to be dask's default."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import dask
from dask.system import CPU_COUNT

__all__ = ["Beside", "ahead", "in_process", "large_blocks_kept", "opencv_threads", "quick_switches", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

_ONE_THREAD = ("sync", "synchronous", "single-threaded")


def in_process() -> str:
    """Name of the dask scheduler for what msdask computes for itself: "threads", or "synchronous" where dask is set so.

    A client of a cluster makes itself the default of every `compute` in its process, whether it has workers or not.

    Examples
    --------
    >>> import dask.array
    >>> dask.array.ones(3).sum().compute(scheduler=in_process()).item()
    3.0
    """
    chosen = dask.config.get("scheduler", None)
    return "synchronous" if isinstance(chosen, str) and chosen.lower() in _ONE_THREAD else "threads"


def side_by_side(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``function(item)`` for each item, on as many threads as dask has in this process; results in order.

    For what lets go of the interpreter's lock, and does not depend on what else runs. The first error is raised.

    Examples
    --------
    >>> side_by_side(abs, [-1, 2])
    [1, 2]
    """
    threads = int(dask.config.get("num_workers", None) or CPU_COUNT)
    if len(items) < 2 or threads < 2 or in_process() == "synchronous":
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="msdask-compute") as pool:
        return list(pool.map(function, items))


@contextmanager
def opencv_threads() -> Iterator[None]:
    """OpenCV has the threads meanwhile that dask was given in this process, if these are more than it has.

    A worker process gives it one, as there is a process for each core; a task that none runs beside may have several.
    """
    import cv2

    before, given = cv2.getNumThreads(), dask.config.get("num_workers", None)
    if given is None or int(given) <= before or in_process() == "synchronous":
        yield
        return
    cv2.setNumThreads(int(given))
    try:
        yield
    finally:
        cv2.setNumThreads(before)


_SWITCH_SECONDS: Final = 0.0005
_switchers, _switch_seconds_before = 0, 0.0
_switchers_lock = threading.Lock()


@contextmanager
def quick_switches() -> Iterator[None]:
    """Threads of this process ask for the interpreter's lock ten times as often meanwhile.

    For native calls of some tens of microseconds on several threads: whoever comes back from one may wait for the lock
    as long as Python's switch interval, which is 5 ms. With 0.5 ms the blocks of a slide take 0.95 to 0.96 of their
    time on two threads (at 40x, 20x and as tuples, 2 cores). A setting of the program that is smaller stays, and its
    own comes back at the end.
    """
    global _switchers, _switch_seconds_before
    with _switchers_lock:
        _switchers += 1
        if _switchers == 1:
            _switch_seconds_before = sys.getswitchinterval()
            sys.setswitchinterval(min(_switch_seconds_before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        with _switchers_lock:
            _switchers -= 1
            if _switchers == 0:
                sys.setswitchinterval(_switch_seconds_before)


class Beside:
    """Calls that another thread makes, one after the other, while this one goes on; their results are dropped.

    Where dask is set to one thread, this thread makes them.

    For what lets go of the interpreter's lock. The first error of a call is raised here by a later call or at the
    end; there it goes before an error of the block, which came after it.

    Parameters
    ----------
    most : how many calls may wait or run; a further one waits for the first of them

    Examples
    --------
    >>> found = []
    >>> with Beside() as thread:
    ...     thread.call(found.append, 1)
    >>> found
    [1]
    """

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="msdask-beside")
        self._waiting: deque[Future[Any]] = deque()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Have ``function(*arguments, **options)`` called."""
        if in_process() == "synchronous":
            function(*arguments, **options)
            return
        while len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *arguments, **options))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for all calls."""
        with self._pool:
            while self._waiting:
                self._waiting.popleft().result()


_NO_MORE: Final = object()


def ahead(items: Iterable[T], *, count: int = 2) -> Iterator[T]:
    """The same items, made on another thread, some of them before they are asked for; an error comes in its place.

    For what lets go of the interpreter's lock while it makes an item. Where dask is set to one thread, none is made
    before.

    Examples
    --------
    >>> list(ahead(range(3)))
    [0, 1, 2]
    """
    if in_process() == "synchronous":
        yield from items
        return
    iterator: Iterator[Any] = iter(items)
    item: Any
    with ThreadPoolExecutor(1, thread_name_prefix="msdask-ahead") as pool:
        waiting = deque(pool.submit(next, iterator, _NO_MORE) for _ in range(count))
        while (item := waiting.popleft().result()) is not _NO_MORE:
            waiting.append(pool.submit(next, iterator, _NO_MORE))
            yield item


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_KEPT = 2**30
_USUAL = 32 * 2**20
"""Bytes up to which glibc comes to keep blocks by itself."""
_users = 0
_users_lock = threading.Lock()


@contextmanager
def large_blocks_kept() -> Iterator[None]:
    """Memory of large blocks stays with the process meanwhile, so that the next one of its size is there at once.

    glibc gives what is larger than 32 MiB back to the system, which has to clear every page of it anew. A network's
    layers on the CPU are so large: a U-Net of 8 filters on 1,260 px takes 0.7 s of processor time instead of 1.2. Of
    the main thread only: blocks of others are too large for their heaps. Without glibc nothing is done.
    """
    global _users
    library = _glibc()
    if library is None:
        yield
        return
    with _users_lock:
        _users += 1
        if _users == 1:
            library.mallopt(_MMAP_THRESHOLD, _KEPT)
            library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        with _users_lock:
            _users -= 1
            if _users == 0:
                library.mallopt(_MMAP_THRESHOLD, _USUAL)
                library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
                library.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process, if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
