"""The engine that a caller's options mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msdask.engines.engine import Engine
from msdask.engines.machine import this_machine
from msdask.engines.origin import is_at_hand
from msdask.engines.plain import PlainEngine
from msdask.engines.plan import Plan, Work, choose_plan
from msdask.engines.processes import ProcessEngine
from msdask.engines.threads import ThreadEngine
from msdask.engines.worker_process import why_none
from msdask.errors import SpecError

if TYPE_CHECKING:
    from distributed import Client as Client

__all__ = ["check_options", "default_plan", "open_engine"]


_SMALL = Work()
"""Too little for processes."""


def check_options(
    client: Client | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    timeout: float | None = None,
) -> None:
    """Make sure that the options of `open_engine` make sense, before anything is written.

    Raises
    ------
    SpecError
        One is out of range, or they contradict each other.
    """
    if client is not None and (workers is not None or threads is not None):
        raise SpecError("client, and workers or threads, are two ways to run: give one of them")
    if timeout is not None and client is None and workers is None and threads is not None:
        raise SpecError(
            f"timeout={timeout:g} needs workers or a client: what hangs in a thread of this process cannot be ended"
        )
    for name, value in (("tries", tries), ("workers", workers)):
        if value is not None and value < 1:
            raise SpecError(f"{name}={value}: expected a whole number, at least 1")
    if timeout is not None and timeout <= 0:
        raise SpecError(f"timeout={timeout:g}: expected seconds, more than 0")
    if threads is not None and threads < (0 if workers is None else 1):
        raise SpecError(f"threads={threads}: expected a number of threads, or, without workers, 0 for the caller's own")


@contextmanager
def open_engine(
    client: Client | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    jobs: int,
    tries: int = 3,
    timeout: float | None = None,
    work: Work = _SMALL,
) -> Iterator[Engine]:
    """Open the engine for a run: a client's cluster, worker processes, threads, none of these, or what suits the work.

    Parameters
    ----------
    client : of a Dask cluster
    workers : processes to start on this machine
    threads : of a pool in this process, 0 means no pool: all in the caller's thread; with `workers`, of each at most
    jobs : how many there will be
    tries, timeout : as for `ClusterEngine`; with a time limit the default are processes
    work : for the default, see `choose_plan`, and for worker processes of this machine

    Raises
    ------
    SpecError
        The options contradict each other.
    """
    check_options(client, workers=workers, threads=threads, tries=tries, timeout=timeout)
    with ExitStack() as stack:
        engine: Engine
        if client is not None:
            from msdask.engines.dask_cluster import ClusterEngine

            engine = ClusterEngine(client, jobs=jobs, tries=tries, timeout=timeout)
        elif threads == 0:
            engine = PlainEngine()
        elif threads is not None and workers is None:
            engine = ThreadEngine(threads)
        elif workers is not None:
            if refusal := work.refusal or why_none():
                raise SpecError(f"workers={workers}: {refusal}; leave workers out, or give a client of a Dask cluster")
            engine = ProcessEngine(workers, threads, tries=tries, timeout=timeout, prepare=work.prepare)
        else:
            plan = default_plan(work, timeout=timeout)
            if plan.kind == "threads":
                engine = ThreadEngine(plan.threads, why=plan.reason)
            else:
                engine = ProcessEngine(
                    plan.workers, tries=tries, timeout=timeout, prepare=work.prepare, most=plan.threads, why=plan.reason
                )
        stack.callback(engine.close)
        yield engine


def default_plan(work: Work, *, timeout: float | None = None) -> Plan:
    """What work is done on here where nobody says it.

    Parameters
    ----------
    work : to be done
    timeout : as for `open_engine`

    Raises
    ------
    SpecError
        A time limit is set, and this process can start no other that could be held to it.
    """
    refusal = work.refusal or why_none()
    if refusal and timeout is not None:
        raise SpecError(f"timeout={timeout:g} needs worker processes, and {refusal}: leave it out, or give a client")
    at_hand = is_at_hand(work.prepare)
    return choose_plan(this_machine(refusal), work, must_end=timeout is not None, at_hand=at_hand)
