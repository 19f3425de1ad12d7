"""Worker processes of this machine, as a Dask cluster of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["local_cluster"]


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """A client of so many single-threaded worker processes on this machine, dashboard and all on 127.0.0.1.

    Whoever reaches a scheduler can run code on its workers, and every user of a machine reaches its loopback: this one
    answers only to who has the key that was made for it, which never leaves the memory of its processes. The client is
    nobody's default.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    settings = {
        # Each loss comes straight back to the engine, which counts the tries.
        "distributed.scheduler.allowed-failures": 0,
        # So long after a worker has died dask looks whether it is there, and gives its place up for good if it is not:
        # also where it was back and has died again since. A nanny that starts it again must not be ended for that.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=Security.temporary(),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
