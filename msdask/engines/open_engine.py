"""The engine that a caller's options mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msdask.engines.engine import Engine
from msdask.engines.plain import PlainEngine
from msdask.engines.threads import ThreadEngine
from msdask.errors import SpecError

if TYPE_CHECKING:
    from distributed import Client as Client

__all__ = ["open_engine"]


@contextmanager
def open_engine(
    client: Client | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    jobs: int,
    tries: int = 3,
    timeout: float | None = None,
) -> Iterator[Engine]:
    """Open the engine for a run: the client's cluster, worker processes of its own, threads, or none of these.

    Parameters
    ----------
    client : of a Dask cluster
    workers : processes to start on this machine
    threads : of a pool in this process; None means all cores, 0 means no pool: all in the caller's thread
    jobs : how many there will be
    tries, timeout : as for `ClusterEngine`

    Raises
    ------
    SpecError
        The options contradict each other.
    """
    if sum(option is not None for option in (client, workers, threads)) > 1:
        raise SpecError("client, workers and threads are three ways to run: give one of them")
    if timeout is not None and client is None and workers is None:
        raise SpecError("timeout needs workers or a client: what hangs in a thread of this process cannot be ended")
    if tries < 1 or (workers is not None and workers < 1) or (timeout is not None and timeout <= 0):
        raise SpecError(f"tries={tries}, workers={workers}, timeout={timeout}: expected more than 0")
    if threads is not None and threads < 0:
        raise SpecError(f"threads={threads}: expected a number of threads, or 0 for the caller's own")
    with ExitStack() as stack:
        engine: Engine
        if threads == 0:
            engine = PlainEngine()
        elif client is None and workers is None:
            engine = ThreadEngine(threads)
        else:
            from msdask.engines.dask_cluster import ClusterEngine
            from msdask.engines.local_workers import local_cluster

            client = client or stack.enter_context(local_cluster(workers or 1))
            engine = ClusterEngine(client, jobs=jobs, tries=tries, timeout=timeout)
        stack.callback(engine.close)
        yield engine
