"""How many processes, and threads in each, a run gets on this machine: a rule of cores, memory and work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from msdask.engines.machine import Machine

__all__ = ["Plan", "Work", "choose_plan", "nothing", "threads_of_task", "worker_memory"]

MOST_THREADS = 4
"""Threads of one process at most: more of them wait for the interpreter's lock (measured in docs/cluster.md)."""
FEW_CORES = 4
"""With fewer, one process has as many threads as there are cores, and loses little by it on a few slides."""
MANY_SLIDES = 4
"""From so many slides a core on, processes do them beside each other on few cores, too: what begins and ends a slide
holds the interpreter's lock (32 slides of 4,096 px on 2 cores: 1.6 to 1.8 s, with two threads 2.0 to 2.2)."""
SMALL_SLIDE = 0.2
"""Seconds of work a slide, on average, below which most of it holds the interpreter's lock.

Two threads then take longer than one (28 and 22 ms a slide of 1,500 x 2,000 px), and two processes less (13 ms);
docs/cluster.md.
"""
SMALL_SECONDS = 10.0
"""Work that one thread does in less is done before processes are worth their start."""
SECONDS_PER_WORKER = 2.0
"""Work that a process must have to be worth its start."""
AT_HAND = 0.2
"""Share of these two where the process that workers are forked from is there: 30 ms instead of 2 s, and what they look
up first."""
SHARE_OF_MEMORY = 0.8
"""Of what is free when a run begins; the rest is for the file system's cache and for others."""
_PROCESS_MEMORY = 768 * 2**20
"""The interpreter with all libraries (332 MiB), shared tiles (64 MiB), mask, tables, and what making a mask needs."""
_THREAD_MEMORY = 16 * 2**20
_IN_HAND = 4 * 2**20


def nothing() -> None:
    """What makes a worker process ready that needs nothing."""


@dataclass(frozen=True)
class Work:
    """What a run has to do, as far as that is known before it begins, and what worker processes need for it.

    Attributes
    ----------
    slides : how many
    seconds : that one thread would need, roughly
    patch_bytes : of one patch, or of one tuple
    prepare : called in every worker process before its first task; a function that can be pickled
    refusal : why the work can be done in this process only; empty where another one can do it
    """

    slides: int = 1
    seconds: float = 0.0
    patch_bytes: int = 0
    prepare: Callable[[], object] = nothing
    refusal: str = ""


@dataclass(frozen=True)
class Plan:
    """Where the blocks of a run are computed.

    Attributes
    ----------
    kind : threads of this process, or worker processes
    workers : processes; 1 for threads
    threads : of this process; or of each worker at most, where fewer tasks than workers are there to be done
    reason : why, in a sentence
    """

    kind: Literal["threads", "processes"]
    workers: int
    threads: int
    reason: str

    def __str__(self) -> str:
        """The plan in a line.

        >>> print(Plan("processes", 16, 4, "16 cores"))
        16 worker processes of 1 to 4 threads: 16 cores
        """
        if self.kind == "threads":
            return f"{self.threads} thread{'s' if self.threads > 1 else ''} of this process: {self.reason}"
        return f"{self.workers} worker processes of 1 to {self.threads} threads: {self.reason}"


def choose_plan(machine: Machine, work: Work, *, must_end: bool = False, at_hand: bool = False) -> Plan:
    """The rule: threads on few cores and for small work; else a process for each core, as memory and work allow.

    Many slides, and several small ones, have processes on two cores, too.

    Parameters
    ----------
    machine, work : where, and what
    must_end : a time limit is set, which only a process can be held to
    at_hand : worker processes can be forked at once, see `msdask.engines.origin`

    Examples
    --------
    >>> large = Work(slides=1, seconds=600)
    >>> choose_plan(Machine(cores=16, memory=64 * 2**30), large).workers
    16
    >>> choose_plan(Machine(cores=2, memory=64 * 2**30), large).kind
    'threads'
    """
    each = worker_memory(work.patch_bytes)
    fitting = int(SHARE_OF_MEMORY * machine.memory // each)
    share = AT_HAND if at_hand else 1.0
    small, per_worker = share * SMALL_SECONDS, share * SECONDS_PER_WORKER
    has_small_slides = work.seconds < SMALL_SLIDE * work.slides
    wanted = math.ceil(work.seconds / per_worker)
    known = (
        f"{machine.cores} cores, {machine.memory / 2**30:.1f} GiB of memory free, {work.slides} slides, "
        f"about {work.seconds:,.0f} s of one thread's work"
    )
    if refusal := machine.refusal or work.refusal:
        why = refusal
    elif must_end:
        workers = max(1, min(machine.cores, fitting, max(wanted, 1)))
        return Plan(
            "processes", workers, _threads(machine), f"{known}; a time limit needs processes, which can be ended"
        )
    elif machine.cores == 1:
        why = f"fewer than {FEW_CORES} cores"
    elif machine.cores < FEW_CORES and not has_small_slides and work.slides < MANY_SLIDES * machine.cores:
        why = f"fewer than {FEW_CORES} cores, and fewer than {MANY_SLIDES} slides for each"
    elif work.seconds < small:
        why = f"less than {small:g} s of work, so that starting processes would cost more than it brings"
    elif fitting < 2:
        why = f"no memory for two worker processes of {each / 2**30:.1f} GiB"
    else:
        workers = min(machine.cores, fitting, max(2, wanted))
        limits = {
            machine.cores: "one for each core",
            fitting: f"as many as have {each / 2**30:.1f} GiB each",
            max(2, wanted): f"one for each {per_worker:g} s of work",
        }
        return Plan("processes", workers, _threads(machine), f"{known}; {limits[workers]}")
    if has_small_slides:
        return Plan("threads", 1, 1, f"{known}; {why}; two threads would wait for each other")
    return Plan("threads", 1, _threads(machine), f"{known}; {why}")


def threads_of_task(cores: int, tasks_at_once: int, most: int) -> int:
    """Threads of a task: the cores are shared by the tasks that run at once.

    >>> [threads_of_task(16, tasks, MOST_THREADS) for tasks in (1, 5, 8, 16, 100)]
    [4, 3, 2, 1, 1]
    """
    return max(1, min(most, cores // max(1, tasks_at_once)))


def worker_memory(patch_bytes: int) -> int:
    """Bytes that a worker process may need, by the formula of docs/reading.md with all of its threads."""
    return _PROCESS_MEMORY + MOST_THREADS * (_THREAD_MEMORY + 3 * max(_IN_HAND, patch_bytes))


def _threads(machine: Machine) -> int:
    return max(1, min(MOST_THREADS, machine.cores))
