"""The live workers of a cluster: which job is near which of them, and what is out on them."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msdask.engines.engine import JobTrace

__all__ = ["BLOCKS_PER_THREAD", "MOST_JOBS", "Workers"]

BLOCKS_PER_THREAD = 3
"""Blocks that are out for each thread of a worker: one that runs, one that follows without a pause, one on its way."""

WORKERS_PER_JOB = 2
"""Workers that a job's tasks are sent to where there are enough jobs: what they share is read by few."""

MOST_JOBS = 128
"""Jobs in flight, whatever the size of the cluster: each costs the client a thread."""

MOST_AHEAD = 1024
"""Blocks that are out on all workers together only so that a cluster sees work for more of them."""

_UNKNOWN_SECONDS = 0.5
"""What a step of which none has come back is taken to need; dask's own guess, too."""
_NEWS = 0.3
"""Weight of the last one in the mean of how long a step takes."""


class Workers:
    """Says where a task may be sent, and when: few are out at once, lower orders first, each near its job's workers.

    Pure bookkeeping: it never talks to a cluster. It is told which workers are alive and which tasks are back.

    A cluster that grows with its work sees only what is out. Where it may grow (`update`), as much is out as keeps the
    threads that are there busy for some seconds; and where there is no worker, a few tasks are, for any that comes.

    Parameters
    ----------
    jobs : how many there will be; with fewer than workers, a job has more of them
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = max(1, jobs)
        self._threads: dict[str, int] = {}
        self._ahead = 0.0
        self._more_jobs = 0
        self._near: Counter[str] = Counter()
        self._out: dict[object, frozenset[str]] = {}
        self._steps: dict[object, str] = {}
        self._seconds: dict[str, float] = {}
        self._blocks: set[object] = set()
        self._queue: Counter[int] = Counter()
        self._reserved: str | None = None
        self._one_alone = threading.Lock()
        self._changed = threading.Condition()
        self._end: BaseException | None = None

    @property
    def alive(self) -> dict[str, int]:
        """Address -> threads of the live workers."""
        return self._threads

    @property
    def spread(self) -> int:
        """How many workers a job is near."""
        count = len(self._threads)
        return min(count, max(WORKERS_PER_JOB, -(-2 * count // self._jobs), -(-2 * count // MOST_JOBS)))

    @property
    def jobs_in_flight(self) -> int:
        """Jobs at once: two for each group of workers, so that one may begin or end while the other's blocks run.

        And some more where a cluster that may grow has not seen work enough to do so.
        """
        return min(MOST_JOBS, max(2, 2 * -(-len(self._threads) // max(1, self.spread)) + self._more_jobs))

    def update(self, workers: Mapping[str, int], *, ahead: float = 0.0) -> None:
        """These are alive now, with so many threads each.

        Parameters
        ----------
        workers : address -> threads
        ahead : seconds of work that shall be out for each thread, for a cluster that may grow; 0: a few blocks will do
        """
        with self._changed:
            if self._threads != workers or self._ahead != ahead:
                self._threads, self._ahead = dict(workers), ahead
                self._changed.notify_all()
            self._weigh()

    def end(self, reason: BaseException) -> None:
        """From now on whoever asks gets `reason`."""
        with self._changed:
            self._end = self._end or reason
            self._changed.notify_all()

    @property
    def is_someone_alone(self) -> bool:
        """Whether a worker is kept free of all other tasks: they must go nowhere but where they were sent."""
        return self._reserved is not None

    def check(self) -> None:
        """Raise the reason of `end`, if there was one."""
        if self._end is not None:
            raise self._end

    def place(self, token: object, trace: JobTrace, *, step: str = "", held: int | None = None) -> list[str] | None:
        """Where a task may be sent to, once there is room: to any worker if to none; it is out until `release(token)`.

        Parameters
        ----------
        token : names the task
        trace : of its job
        step : what kind of task it is
        held : blocks of this job that are out; with some, None comes back instead of waiting. None: the task is no
            block, and is always admitted
        """
        with self._changed:
            self._queue[trace.order] += 1
            try:
                while True:
                    self.check()
                    where = self._open_to(trace)
                    is_open = where or (not self._threads and self._reserved is None)
                    if is_open and (held is None or self._has_room(trace, step, held)):
                        self._out[token], self._steps[token] = frozenset(where), step
                        if held is not None:
                            self._blocks.add(token)
                        return where
                    if held:
                        return None
                    self._changed.wait()
            finally:
                self._queue[trace.order] -= 1
                if not self._queue[trace.order]:
                    del self._queue[trace.order]
                self._changed.notify_all()

    def release(self, token: object) -> None:
        """A task is back."""
        with self._changed:
            self._out.pop(token, None)
            self._steps.pop(token, None)
            self._blocks.discard(token)
            self._changed.notify_all()

    def took(self, step: str, seconds: float) -> None:
        """A task of this kind has run for so long."""
        with self._changed:
            mean = self._seconds.get(step, seconds)
            self._seconds[step] = mean + _NEWS * (seconds - mean)

    def job_done(self, trace: JobTrace) -> None:
        """A job needs its workers no more."""
        with self._changed:
            self._weigh()
            self._near.subtract(trace.near)
            trace.near.clear()

    @contextmanager
    def alone(self, look: Callable[[], object] = lambda: None) -> Iterator[str]:
        """A worker that nothing else of ours is on: what dies there is to blame itself.

        Parameters
        ----------
        look : asks the cluster who is alive: a worker that has just died must not be chosen
        """
        with self._one_alone:
            try:
                worker = ""
                # What has made a worker free may have killed it, and that may not be known yet.
                while worker not in self._threads:
                    worker = self._reserve()
                    look()
                yield worker
            finally:
                with self._changed:
                    self._reserved = None
                    self._changed.notify_all()

    def _reserve(self) -> str:
        """Keep others off the worker with the fewest tasks, and wait until it has none."""
        with self._changed:
            while True:
                self.check()
                busy = Counter(address for where in self._out.values() for address in where)
                worker = min(self._threads, key=lambda address: busy[address], default=None)
                self._reserved = worker
                # A task whose own workers are gone may be sent to any other one, this one too.
                has_strays = any(not where & self._threads.keys() for where in self._out.values())
                if worker is not None and not busy[worker] and not has_strays:
                    return worker
                self._changed.wait()

    def _weigh(self) -> None:
        """One more job in flight where too little work is out, one less where there is enough."""
        out = sum(self._seconds.get(step, _UNKNOWN_SECONDS) for step in self._steps.values())
        is_short = out < self._ahead * max(1, sum(self._threads.values()))
        self._more_jobs = min(MOST_JOBS, self._more_jobs + 1) if is_short else max(0, self._more_jobs - 1)

    def _has_room(self, trace: JobTrace, step: str, held: int) -> bool:
        # without a worker as much as for one
        own, whole = max(1, sum(self._threads[a] for a in trace.near)), max(1, sum(self._threads.values()))
        wanted = math.ceil(self._ahead / max(1e-3, self._seconds.get(step, _UNKNOWN_SECONDS)))
        each = max(BLOCKS_PER_THREAD, min(wanted, MOST_AHEAD // whole))
        return held < each * own and len(self._blocks) < each * whole and trace.order <= min(self._queue)

    def _open_to(self, trace: JobTrace) -> list[str]:
        """The job's workers that are alive, made up to their number; without the one that is reserved."""
        for address in [a for a in trace.near if a not in self._threads]:
            trace.near.remove(address)
            self._near[address] -= 1
        while len(trace.near) < self.spread:
            others = (a for a in self._threads if a not in trace.near)
            nearest = min(others, key=lambda address: self._near[address])
            trace.near.append(nearest)
            self._near[nearest] += 1
        free = [a for a in trace.near if a != self._reserved]
        return free or [a for a in self._threads if a != self._reserved]
