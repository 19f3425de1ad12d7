"""Computing in this process what msdask computes for itself: never on a cluster that happens to be dask's default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import dask
from dask.system import CPU_COUNT

__all__ = ["in_process", "side_by_side"]

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
