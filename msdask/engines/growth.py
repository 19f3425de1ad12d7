"""Whether more workers may come to a cluster, and how much work it must see to ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask
from dask.utils import parse_timedelta

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["asks_for_workers", "seconds_ahead"]


def seconds_ahead(client: Client) -> float:
    """Seconds of work that shall be out for each thread: 0 for a cluster that is as large as it was told to be.

    Dask's adaptive scaling asks for as many workers as would do what the scheduler knows of within its
    `target-duration`: with twice that for each thread it asks for twice the threads. Who made the scheduler of a client
    that has an address only is not known: it may grow, too.
    """
    from distributed import SpecCluster

    adaptive = getattr(client.cluster, "_adaptive", None)
    if isinstance(client.cluster, SpecCluster) and adaptive is None:
        return 0.0
    stated = getattr(adaptive, "target_duration", None) or dask.config.get("distributed.adaptive.target-duration", "5s")
    return 2 * float(parse_timedelta(stated))


def asks_for_workers(client: Client) -> bool:
    """Whether the client's cluster has asked somebody else for workers, a queue or an orchestrator, who brings them."""
    from distributed import LocalCluster, SpecCluster

    cluster = client.cluster
    if cluster is None or isinstance(cluster, LocalCluster):
        return False
    is_adaptive = getattr(cluster, "_adaptive", None) is not None
    return is_adaptive or bool(cluster.plan) or not isinstance(cluster, SpecCluster)
