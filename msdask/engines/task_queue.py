"""Tasks that wait for worker processes: which one a worker takes next, and with how many threads."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msdask.engines.engine import JobTrace
from msdask.engines.plan import threads_of_task
from msdask.engines.worker_main import Answer

__all__ = ["Batch", "Task", "TaskQueue"]


@dataclass(eq=False)
class Batch:
    """Tasks that somebody waits for together.

    Attributes
    ----------
    trace : of their job
    back : what came of each
    is_over : nobody needs those that have not begun
    """

    trace: JobTrace
    back: queue.SimpleQueue[tuple[Task, Answer | BaseException]] = field(default_factory=queue.SimpleQueue)
    is_over: bool = False


@dataclass(eq=False)
class Task:
    """A function to be called in a worker process, and how often that was tried."""

    label: str
    batch: Batch
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_block: bool = False
    tries: int = 1
    is_alone: bool = False


class TaskQueue:
    """Gives each worker its next task: of a job that it has at hand, else of one that nobody has begun, else any.

    Among these the one of the lowest order. So slides are done beside each other, each by the worker that has it open,
    and workers without one of their own help with the blocks of the first. Pure bookkeeping.

    Parameters
    ----------
    cores : of the machine
    workers : how many there are
    threads : that one of them may use at most
    """

    def __init__(self, cores: int, workers: int, threads: int) -> None:
        self._cores, self._workers, self._threads = cores, workers, threads
        self._waiting: defaultdict[int, deque[Task]] = defaultdict(deque)
        self._alone: deque[Task] = deque()
        self._seen: defaultdict[int, set[int]] = defaultdict(set)
        self._running: set[Task] = set()
        self._end: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def is_ended(self) -> bool:
        """Whether nothing is given out any more."""
        return self._end is not None

    def put(self, tasks: Iterable[Task]) -> None:
        """Let tasks wait for a worker; one that is to run alone waits until nothing else runs.

        Raises
        ------
        BaseException
            The reason of `end`.
        """
        with self._changed:
            if self._end is not None:
                raise self._end
            for task in tasks:
                (self._alone if task.is_alone else self._waiting[task.batch.trace.order]).append(task)
            self._changed.notify_all()

    def take(self, worker: int) -> tuple[Task, int] | None:
        """The next task of a worker and its threads, once there is one; None when everything has ended."""
        with self._changed:
            while self._end is None:
                if (task := self._next(worker)) is not None:
                    self._running.add(task)
                    self._seen[task.batch.trace.order].add(worker)
                    waiting = sum(map(len, self._waiting.values()))
                    at_once = 1 if task.is_alone else len(self._running) + waiting
                    return task, threads_of_task(self._cores, min(self._workers, at_once), self._threads)
                self._changed.wait()
            return None

    def done(self, task: Task) -> None:
        """A task runs no more."""
        with self._changed:
            self._running.discard(task)
            self._changed.notify_all()

    def drop(self, batch: Batch) -> int:
        """Forget what waits of a batch; how many that were. What comes back to wait again later is refused."""
        with self._changed:
            batch.is_over = True
            dropped = 0
            for tasks in (self._waiting[batch.trace.order], self._alone):
                mine = [task for task in tasks if task.batch is batch]
                dropped += len(mine)
                for task in mine:
                    tasks.remove(task)
            self._changed.notify_all()
            return dropped

    def forget(self, trace: JobTrace) -> None:
        """A job is done."""
        with self._changed:
            self._waiting.pop(trace.order, None)
            self._seen.pop(trace.order, None)

    def end(self, reason: BaseException) -> None:
        """Give `reason` to whoever waits, and to whoever comes."""
        with self._changed:
            self._end = self._end or reason
            for task in [*(t for tasks in self._waiting.values() for t in tasks), *self._alone]:
                task.batch.back.put((task, self._end))
            self._waiting.clear()
            self._alone.clear()
            self._changed.notify_all()

    def _next(self, worker: int) -> Task | None:
        if any(task.is_alone for task in self._running) or (self._alone and self._running):
            return None
        if self._alone:
            return self._alone.popleft()
        orders = sorted(order for order, tasks in self._waiting.items() if tasks)
        own = (order for order in orders if worker in self._seen.get(order, ()))
        fresh = (order for order in orders if not self._seen.get(order))
        chosen = next(own, next(fresh, next(iter(orders), None)))
        return None if chosen is None else self._waiting[chosen].popleft()
