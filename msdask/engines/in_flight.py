"""Many jobs through one engine: a few at a time, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from msdask.engines.engine import Engine
from msdask.storage.patience import interrupt

__all__ = ["run_jobs"]

_MOST_JOBS = 256
"""Threads of the client at most; an engine asks for fewer."""
_LOOK = 1.0
"""Seconds between two looks at how many jobs the engine wants in flight: a cluster grows while none comes back."""

T = TypeVar("T")


def run_jobs(engine: Engine, jobs: Sequence[T], work: Callable[[int, T], object]) -> None:
    """Call ``work(order, job)`` for every job, for as many at once as the engine has in flight.

    Parameters
    ----------
    engine : that `work` uses; it is stopped when `work` raises, or when the run is interrupted
    jobs : in the order in which they begin
    work : on one job; in the caller's thread where the engine has one job in flight, else in a thread of its own
    """
    if engine.jobs_in_flight == 1:
        for order, job in enumerate(jobs):
            work(order, job)
        return
    waiting = iter(enumerate(jobs))
    running: set[Future[object]] = set()
    pool = ThreadPoolExecutor(_MOST_JOBS, thread_name_prefix="msdask-slide")
    try:
        while True:
            most = min(_MOST_JOBS, engine.jobs_in_flight)
            while len(running) < most and (following := next(waiting, None)) is not None:
                running.add(pool.submit(work, *following))
            if not running:
                return
            done, running = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    except BaseException:
        engine.stop()
        interrupt()  # what waits for a server that does not answer would hold the pool for minutes
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
