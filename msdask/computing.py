"""Computing in this process what msdask computes for itself: never on a cluster that happens to be dask's default."""

from __future__ import annotations

import dask

__all__ = ["in_process"]

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
