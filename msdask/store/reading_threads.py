"""The threads of a process that read patches, and how the patches of a batch are dealt to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dask.system import CPU_COUNT

from msdask.errors import StoreError

__all__ = ["FORK_REASON", "PATCHES_A_TASK", "Begun", "Part", "reading_pool", "start"]

FORK_REASON = (
    "a process that is forked inherits locks and queues of threads that do not exist in it, so that reads abort or "
    "hang; use num_workers=0 (reads run on threads anyway), or start workers by 'forkserver' or 'spawn'"
)

PATCHES_A_TASK = 16
"""Large enough that threads are not woken for nothing, small enough that a batch spreads over them."""

_state: dict[str, Any] = {"pool": None, "is_forked": False}


@dataclass(frozen=True, slots=True)
class Part:
    """Patches of one array that one thread reads, not begun yet.

    Attributes
    ----------
    patches : how many
    waits : whether the thread waits for a server meanwhile, so that it should have nothing else to do
    read : reads them to their places
    """

    patches: int
    waits: bool
    read: Callable[[], None]


Begun = Part | Future[None]
"""Patches that are to be read, or that are on their way."""


def reading_pool() -> ThreadPoolExecutor:
    """The threads of this process that read and decode patches.

    Raises
    ------
    StoreError
        This process was forked from one that had begun to read.
    """
    if _state["is_forked"]:
        raise StoreError(f"this process was forked from one that had begun to read patches: {FORK_REASON}")
    if _state["pool"] is None:
        # More threads than cores, so that a disk has several requests to work on.
        _state["pool"] = ThreadPoolExecutor(min(16, max(4, CPU_COUNT)), thread_name_prefix="msdask-read")
    return _state["pool"]


def _after_fork() -> None:
    _state["is_forked"] = _state["is_forked"] or _state["pool"] is not None


os.register_at_fork(after_in_child=_after_fork)


def start(begun: Iterable[Begun]) -> list[Future[None]]:
    """Deal what is not on its way yet to the threads of this process.

    A random batch has one or two patches of each slide of a cohort. Each of them as a task of its own costs as much as
    reading it, so several share one.

    Parameters
    ----------
    begun : parts to read, and futures of others, which are handed on

    Returns
    -------
    futures : the patches are there when every one is done; each raises what a read raised
    """
    futures: list[Future[None]] = []
    together: list[Part] = []
    patches = 0
    for one in begun:
        if isinstance(one, Future):
            futures.append(one)
        elif one.waits or one.patches >= PATCHES_A_TASK:
            futures.append(reading_pool().submit(one.read))
        else:
            together.append(one)
            patches += one.patches
            if patches >= PATCHES_A_TASK:
                futures.append(reading_pool().submit(_read_all, together))
                together, patches = [], 0
    if together:
        futures.append(reading_pool().submit(_read_all, together))
    return futures


def _read_all(parts: list[Part]) -> None:
    for part in parts:
        part.read()
