"""Computing in this process what msdask computes for itself: never on a cluster that happens to be dask's default."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import dask
from dask.system import CPU_COUNT

__all__ = ["in_process", "large_blocks_kept", "side_by_side"]

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
