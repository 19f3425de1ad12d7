"""Blocks on worker processes of this machine: no scheduler, no port, and each process has one task at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dask.system import CPU_COUNT

from msdask.engines.engine import BlockFunction, J, JobTrace, P, Stopped, T
from msdask.engines.plan import MOST_THREADS, nothing
from msdask.engines.task_queue import Batch, Task, TaskQueue
from msdask.engines.worker_main import Answer, Request
from msdask.engines.worker_process import WorkerGone, WorkerProcess, WorkerStarter
from msdask.errors import MsdaskError, WorkerLostError

__all__ = ["ProcessEngine"]

MOST_JOBS = 128
"""Jobs in flight at most: each costs the caller a thread."""
GRACE = 10.0
"""Seconds that running tasks have to end once the run was stopped; then their processes are ended."""

_log = logging.getLogger("msdask.engines")


class ProcessEngine:
    """Runs every task in one of some worker processes; where tasks are fewer than cores, each has several threads.

    A process that dies (killed, out of memory, beyond `timeout`) takes one task with it, which is thereby to blame. It
    is tried again in a fresh process; after a lack of memory, while nothing else runs.

    Parameters
    ----------
    workers : processes
    threads : of a process at most, whatever the cores; None: its share of them
    most : threads of a process at most that share the cores
    tries : of a task before its job fails with WorkerLostError
    timeout : seconds that a task may take; then its process ends itself. None: any
    prepare : called in every process before its first task; a function that can be pickled
    why : reason for this choice, for the record of the run
    """

    def __init__(
        self,
        workers: int,
        threads: int | None = None,
        *,
        tries: int = 3,
        timeout: float | None = None,
        most: int = MOST_THREADS,
        prepare: Callable[[], object] = nothing,
        why: str = "",
    ) -> None:
        self._threads = threads or max(1, min(most, CPU_COUNT))
        self._tries, self._timeout, self._why = tries, timeout, why
        self._starter = WorkerStarter(prepare)
        self._queue = TaskQueue(CPU_COUNT if threads is None else workers * threads, workers, self._threads)
        self._processes: list[WorkerProcess | None] = [None] * workers
        self._lock = threading.Lock()
        self._is_closed = False
        self._grace: threading.Timer | None = None
        self._servers = [
            threading.Thread(target=self._serve, args=(number,), name=f"msdask-worker-{number}", daemon=True)
            for number in range(workers)
        ]
        for server in self._servers:
            server.start()

    @property
    def jobs_in_flight(self) -> int:
        """Two for each process, so that one may begin or end while the other's blocks run."""
        return min(MOST_JOBS, 2 * len(self._processes))

    @contextmanager
    def job(self, order: int) -> Iterator[JobTrace]:
        """A job, whose tasks go where its first ones went."""
        trace = JobTrace(order)
        try:
            yield trace
        finally:
            self._queue.forget(trace)

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, in a worker process."""
        results: list[T] = []
        batch = Batch(trace)
        self._run(batch, [Task(label, batch, function, args, kwargs)], lambda task, value: results.append(value))
        return results[0]

    def run(
        self,
        label: str,
        trace: JobTrace,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int, int], object],
    ) -> None:
        """Every block as a task of its own."""
        batch = Batch(trace)
        tasks = [Task(f"{label}/{block}", batch, function, (job, block), is_block=True) for block in blocks]
        self._run(batch, tasks, lambda task, count: on_block(task.args[1], count))

    def _run(self, batch: Batch, tasks: Sequence[Task], on_value: Callable[[Task, Any], object]) -> None:
        """Wait for all tasks of a batch; after the first error, or when ended from outside, for those that run."""
        self._queue.put(tasks)
        left, failure = len(tasks), None
        try:
            while left:
                task, came = batch.back.get()
                left -= 1
                error = came if isinstance(came, BaseException) else came.error
                if error is None and isinstance(came, Answer):
                    on_value(task, came.value)
                elif failure is None:
                    failure = error
                    left -= self._queue.drop(batch)
        except BaseException:  # the job's lock is let go of after this: nothing may still be running then
            left -= self._queue.drop(batch)
            for _ in range(left):
                batch.back.get()
            raise
        if failure is not None:
            raise failure

    def facts(self) -> dict[str, Any]:
        """Kind, number of processes, and threads of each at most."""
        facts = {"kind": "processes", "workers": len(self._processes), "threads": self._threads}
        return facts | ({"why": self._why} if self._why else {})

    def stop(self) -> None:
        """Begin nothing more; what runs has some seconds to end."""
        self._queue.end(Stopped())
        with self._lock:
            if self._grace is None and not self._is_closed:
                self._grace = threading.Timer(GRACE, self._kill)
                self._grace.daemon = True
                self._grace.start()

    def close(self) -> None:
        """End the processes."""
        self._queue.end(Stopped())
        with self._lock:
            self._is_closed = True
            if self._grace is not None:
                self._grace.cancel()
        self._starter.cancel()
        self._kill()
        for server in self._servers:
            server.join()
        self._starter.close()

    def _kill(self) -> None:
        with self._lock:
            for process in self._processes:
                if process is not None:
                    process.kill()

    def _serve(self, number: int) -> None:
        """Give one worker process its tasks, and another process to the place of one that has died."""
        try:
            self._start(number)
            while (taken := self._queue.take(number)) is not None:
                task, threads = taken
                try:
                    came = self._asked(number, task, threads)
                finally:
                    self._queue.done(task)
                if came is not None:
                    task.batch.back.put((task, came))
        except BaseException as error:  # without processes nothing can go on
            self._queue.end(error)
        finally:
            process = self._processes[number]
            if process is not None:
                process.close()

    def _start(self, number: int) -> WorkerProcess:
        """A fresh process in a place."""
        began = time.monotonic()
        try:
            process = self._starter.start()
        except OSError as error:
            raise MsdaskError(f"a worker process could not be started: {error}; use fewer of them") from error
        except MsdaskError:
            if self._is_closed:
                raise Stopped from None
            raise
        with self._lock:
            if not self._is_closed:
                self._processes[number] = process
                _log.debug("%s was ready after %.2f s", process.name, time.monotonic() - began)
                return process
        process.close()
        raise Stopped

    def _asked(self, number: int, task: Task, threads: int) -> Answer | BaseException | None:
        """What came of a task; None where it waits to be tried again."""
        trace = task.batch.trace
        try:
            process = self._processes[number]
            if process is None or not process.is_alive:
                if process is not None:
                    process.close()
                process = self._start(number)
            request = Request(task.function, task.args, task.kwargs, task.is_block, threads, self._timeout)
            trace.workers.add(process.name)
            began = time.monotonic()
            answer = process.ask(request)
        except WorkerGone as gone:
            late = self._timeout is not None and time.monotonic() - began >= self._timeout
            how = f"took longer than timeout={self._timeout:g} s" if late else str(gone)
            return self._lost(task, how, is_memory=gone.was_killed)
        except (Exception, Stopped) as error:  # the task cannot travel, or no process can be started
            return error
        if isinstance(answer.error, MemoryError):
            return self._lost(task, "had no memory left", is_memory=True)
        return answer

    def _lost(self, task: Task, how: str, *, is_memory: bool) -> Answer | BaseException | None:
        """Let a task that was lost wait for another try, or give it up."""
        if self._queue.is_ended:
            return Stopped()
        trace = task.batch.trace
        if task.tries < self._tries and not task.batch.is_over:
            task.tries += 1
            task.is_alone = task.is_alone or is_memory
            trace.tries = max(trace.tries, task.tries)
            trace.warn(
                f"'{task.label}' was lost with its worker, which {how}: it is tried again, alone "
                f"(try {task.tries} of {self._tries})"
            )
            try:
                self._queue.put([task])
            except BaseException as error:
                return error
            return None
        where = ", ".join(sorted(trace.workers))
        hint = (
            "give it more time, or look at the file"
            if "timeout" in how
            else "a crash in a native library, or more memory than there is; what the process said is on stderr"
        )
        return WorkerLostError(
            f"'{task.label}' was given up after {task.tries} tries: the worker {how} each time it ran ({where}); {hint}"
        )
