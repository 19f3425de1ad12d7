"""A task on its way through a cluster: what it is, how it may be lost, and what came of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msdask.engines.at_work import Came
from msdask.engines.engine import JobTrace

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["LOOK", "Lost", "Stranded", "Task", "fetch"]

LOOK = 1.0
"""Seconds between two looks at whether what is waited for can still come."""
_FETCH = 60.0
"""Seconds in which a small result that is there can be fetched; then it is computed again."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A function to be run on a worker; itself what the workers' bookkeeping knows it by."""

    label: str
    trace: JobTrace
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """What kind of task it is."""
        return self.label.partition(": ")[0]


class Lost(Exception):
    """A task was lost with its worker."""


class Stranded(Lost):
    """A task has not run: its workers were gone when it came, or could not take it, or dask knows of it no more."""


def fetch(future: Future[Any], look: Callable[[], object]) -> Came:
    """What came back.

    Parameters
    ----------
    future : of the task
    look : called from time to time while it is waited for; raises where it can not come any more

    Raises
    ------
    Stranded
        It was cancelled, or its result could not be fetched.
    """
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    # A `result` with a time limit that ends while it is fetched would cancel what others are just fetching.
    while not (future.done() or done.wait(LOOK)):
        look()
    try:
        came: Came = future.result(_FETCH)
    except (Exception, asyncio.CancelledError) as error:
        if future.status == "error":
            raise
        look()
        raise Stranded from error
    return came
