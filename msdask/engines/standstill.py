"""A cluster that does nothing: why, when that is said, and when it has been waited for long enough."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dask.utils import format_bytes

from msdask.engines.growth import asks_for_workers
from msdask.storage.patience import patience

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterState", "Standstill", "cluster_state", "longest_wait", "unreachable"]

SAY_AFTER = 15.0
"""Seconds in which nothing comes back before it is said why."""
PATIENCE = 600.0
"""Seconds in which nothing comes back before a run ends."""
QUEUE_PATIENCE = 86_400.0
"""The same, where workers have been asked for and have not come: a queue may take hours."""
_ANSWER = 10.0
"""Seconds that a scheduler has to answer."""


def unreachable() -> tuple[type[Exception], ...]:
    """What a client raises that cannot reach its scheduler, or is closed."""
    from distributed.client import ClosedClientError

    return OSError, RuntimeError, ClosedClientError


class ClusterState(NamedTuple):
    """What a cluster is at one moment.

    Attributes
    ----------
    workers : address -> threads, of those that take tasks; None where nobody could be asked
    paused : addresses of those that take none for want of memory
    why : nothing can go on, as the end of "the cluster does nothing: ..."; empty where it can
    """

    workers: dict[str, int] | None
    paused: frozenset[str]
    why: str


def cluster_state(client: Client) -> ClusterState:
    """Ask the scheduler who is there."""
    scheduler: Any = client.scheduler
    if scheduler is None:
        return ClusterState(None, frozenset(), "its client is closed")
    try:
        # `Client.scheduler_info` gives what the client keeps, which a timer of its own replaces by one without workers.
        workers = client.sync(scheduler.identity, n_workers=-1, callback_timeout=_ANSWER)["workers"]
    except unreachable():
        return ClusterState(None, frozenset(), f"its scheduler at {scheduler.address} does not answer")
    status = {address: str(worker.get("status", "running")) for address, worker in workers.items()}
    running = {a: int(workers[a]["nthreads"]) for a, s in status.items() if s == "running"}
    paused = frozenset(a for a, s in status.items() if s == "paused")
    return ClusterState(running, paused, "" if running else _why(workers, status, asks_for_workers(client)))


def _why(workers: Mapping[str, Any], status: Mapping[str, str], are_asked: bool) -> str:
    """Why none of these workers takes a task."""
    if not workers and are_asked:
        return "it has no workers yet, those that were asked for have not come (do their jobs wait in a queue?)"
    if not workers:
        return (
            "it has no workers, and none are known to be on their way (cluster.scale(4), or `dask worker`, starts some)"
        )
    counts = Counter(status.values())
    if set(counts) != {"paused"}:
        return f"none of its {len(workers)} workers takes tasks: {dict(counts)}"
    limit = format_bytes(min(int(worker.get("memory_limit", 0)) for worker in workers.values()))
    return (
        f"all its workers are paused, {len(workers)} of {len(workers)}, since their memory is full (limit {limit}): "
        "give them more, or fewer threads a worker"
    )


def longest_wait(client: Client) -> float:
    """Seconds that a cluster that does nothing is waited for: MSDASK_PATIENCE, or what suits the cluster."""
    return patience(QUEUE_PATIENCE if asks_for_workers(client) else PATIENCE)


class Standstill:
    """Keeps the time in which nothing has come back although there is work.

    Parameters
    ----------
    clock : seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._heard = clock()
        self._results = -1
        self._said = ""
        self._is_still = False

    @property
    def seconds(self) -> float:
        """How long nothing could come back."""
        return self._clock() - self._since if self._is_still else 0.0

    @property
    def quiet(self) -> float:
        """How long nothing has come back, whether it could or not."""
        return self._clock() - self._heard

    def seen(self, why: str, results: int, longest: float) -> Literal["", "say", "over", "end"]:
        """What is to be done now.

        Parameters
        ----------
        why : nothing can go on; empty where it can, or where there is nothing to do
        results : how many have come back so far
        longest : seconds after which it ends

        Returns
        -------
        what : "say" why, once for each reason; it is "over"; or "end"
        """
        if results != self._results:
            self._heard, self._results, why = self._clock(), results, ""
        if why and not self._is_still:
            self._since = self._clock()
        self._is_still = bool(why)
        if not why:
            was_said, self._said = self._said, ""
            return "over" if was_said else ""
        if self.seconds >= longest:
            return "end"
        if self.seconds >= SAY_AFTER and why != self._said:
            self._said = why
            return "say"
        return ""
