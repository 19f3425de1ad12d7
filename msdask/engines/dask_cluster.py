"""Blocks of jobs on a Dask cluster: near few workers, bounded in number, and again elsewhere when a worker is lost."""

from __future__ import annotations

import itertools
import pickle
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from msdask.engines.at_work import parcel
from msdask.engines.cluster_task import LOOK, Lost, Stranded, Task, fetch
from msdask.engines.engine import BlockFunction, J, JobTrace, P, Stopped, T
from msdask.engines.growth import seconds_ahead
from msdask.engines.software import OtherSoftwareError, other_workers, software
from msdask.engines.standstill import (
    SAY_AFTER,
    ClusterState,
    Standstill,
    cluster_state,
    longest_wait,
    unreachable,
)
from msdask.engines.workers import MOST_JOBS, Workers
from msdask.errors import MsdaskError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["ClusterEngine"]

_GONE = ("closed", "closing")
_AGAIN = "see that it has workers and that its scheduler answers, then run the same command again"
_UNOPENED = (ImportError, AttributeError, TypeError)
"""What dask says where a worker with another msdask, or none, could not open a task; a task's own errors are values."""


class ClusterEngine:
    """Runs tasks on the workers of a Dask cluster, which must reach the data by the same paths.

    A task whose worker dies (killed, out of memory, beyond `timeout`) is run again elsewhere: by the scheduler as often
    as its `allowed-failures` says, then from here, alone on a worker, so that its neighbours are not blamed with it.

    Parameters
    ----------
    client : connected; it stays the caller's
    jobs : how many there will be
    tries : of a task before its job fails with WorkerLostError
    timeout : seconds that a task may take; then its worker process ends itself (a nanny starts it again). None: any
    patience : seconds in which the cluster can do nothing after which all that is left fails; None: `longest_wait`
    """

    def __init__(
        self,
        client: Client,
        *,
        jobs: int = MOST_JOBS,
        tries: int = 3,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> None:
        self._client = client
        self._tries = max(1, tries)
        self._timeout = timeout
        self._patience = patience
        self._name = uuid.uuid4().hex[:6]
        self._numbers = itertools.count()
        self._workers = Workers(jobs)
        self._out: dict[Future[Any], list[str]] = {}
        self._refused: dict[str, str] = {}
        self._traces: list[JobTrace] = []
        self._results = 0
        self._state = ClusterState(None, frozenset(), "")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        if others := other_workers(client):
            raise OtherSoftwareError(others, software())
        self._look()
        self._watcher = threading.Thread(target=self._watch, name="msdask-watch", daemon=True)
        self._watcher.start()

    @property
    def jobs_in_flight(self) -> int:
        """Grows and shrinks with the cluster."""
        return self._workers.jobs_in_flight

    @contextmanager
    def job(self, order: int) -> Iterator[JobTrace]:
        """A job, near the workers that have the fewest."""
        trace = JobTrace(order)
        self._traces.append(trace)
        try:
            yield trace
        finally:
            self._traces.remove(trace)
            self._workers.job_done(trace)

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, on a worker."""
        task = Task(label, trace, function, args, kwargs)
        result: T
        while True:
            future = self._send(task, self._workers.place(task, trace, step=task.step) or [])
            try:
                result = self._result(future, task)
                return result
            except Stranded:
                continue
            except Lost:
                break
            finally:
                self._forget(future, task)
        result = self._run_alone(task)
        return result

    def run(
        self,
        label: str,
        trace: JobTrace,
        function: BlockFunction[J],
        job: J,
        blocks: Sequence[int],
        on_block: Callable[[int, int], object],
    ) -> None:
        """Every block as a task of its own; a few for each thread of the job's workers are out at once."""
        waiting = deque(Task(f"{label}/{block}", trace, function, (job, block)) for block in blocks)
        lost: list[Task] = []
        out: dict[Future[Any], Task] = {}
        ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        failure: Exception | None = None
        try:
            while out or ((waiting or lost) and failure is None):
                if lost and not out:
                    task = lost.pop()
                    on_block(task.args[1], self._run_alone(task))
                    continue
                while waiting and not lost and failure is None:
                    where = self._workers.place(waiting[0], trace, step=waiting[0].step, held=len(out))
                    if where is None:
                        break
                    task = waiting.popleft()
                    future = self._send(task, where)
                    out[future] = task
                    future.add_done_callback(ready.put)
                future = self._next(ready)
                task = out.pop(future)
                try:
                    on_block(task.args[1], self._result(future, task))
                except Stranded:
                    waiting.append(task)
                except Lost:
                    lost.append(task)
                except Exception as error:  # no other block of the job may still be running when it is let go of
                    failure = failure or error
                finally:
                    self._forget(future, task)
        finally:  # where it was ended from outside
            for future, task in out.items():
                self._forget(future, task)
        if failure is not None:
            raise failure

    def facts(self) -> dict[str, Any]:
        """Scheduler, and workers and threads there are now."""
        workers = self._workers.alive
        address = self._client.scheduler.address if self._client.scheduler is not None else ""
        return {"kind": "cluster", "scheduler": address, "workers": len(workers), "threads": sum(workers.values())}

    def stop(self) -> None:
        """Cancel what has not begun."""
        self._end(Stopped())

    def _end(self, reason: BaseException) -> None:
        """Whoever waits for something gets `reason`, now."""
        self._workers.end(reason)
        with self._lock:
            out = list(self._out)
        with suppress(*unreachable()):
            self._client.cancel(out)

    def close(self) -> None:
        """Stop looking at the cluster; the client belongs to the caller."""
        self._closed.set()
        self._watcher.join()

    def _send(self, task: Task, where: list[str], *, elsewhere: bool = True) -> Future[Any]:
        """Send a task to workers; with `elsewhere`, idle ones that are not among them may take it."""
        try:
            future = self._submit(task, where, elsewhere)
        except BaseException:
            self._workers.release(task)
            raise
        with self._lock:
            self._out[future] = where
        return future

    def _submit(self, task: Task, where: list[str], elsewhere: bool) -> Future[Any]:
        if self._client.status in _GONE:
            raise self._gone()
        future: Future[Any] = self._client.submit(
            # As one object: dask would look for futures and collections in every argument.
            partial(pickle.loads, parcel(task.function, task.args, task.kwargs, timeout=self._timeout)),
            # What stands before the first "-" is what the dashboard groups by, and the scheduler never forgets a group:
            # steps, of which there are few, and never slides.
            key=f"{task.step}-{self._name}.{next(self._numbers)}/{task.label.partition(': ')[2]}",
            workers=where or None,
            # sent to a worker that has just died, it would come to the one that is kept for a task alone
            allow_other_workers=bool(where) and elsewhere and not (self._workers.is_someone_alone or self._refused),
            priority=-task.trace.order,
            pure=False,
        )
        return future

    def _next(self, ready: queue.SimpleQueue[Future[Any]]) -> Future[Any]:
        """The next one that is done; raises why where everything was ended."""
        while True:
            with suppress(queue.Empty):
                return ready.get(timeout=LOOK)
            self._workers.check()

    def _result(self, future: Future[Any], task: Task, worker: str | None = None) -> Any:
        """What a task gave; with `worker`, of one that may run there only.

        Raises
        ------
        Lost
            It was lost with its worker, or had no memory.
        """
        from distributed import KilledWorker

        trace = task.trace
        try:
            came = fetch(future, partial(self._check, worker))
        except KilledWorker as error:
            trace.workers.add(error.last_worker.address)
            raise Lost from error
        except _UNOPENED as error:
            if self._refuse(other_workers(self._client), trace):
                raise Stranded from error
            raise
        if isinstance(came.error, OtherSoftwareError):
            self._refuse(came.error.others, trace)
            raise Stranded from came.error
        self._results += 1
        trace.workers.add(came.worker)
        if isinstance(came.error, MemoryError):
            raise Lost from came.error
        if came.error is not None:
            raise came.error
        self._workers.took(task.step, came.seconds)
        return came.value

    def _refuse(self, others: Mapping[str, str], trace: JobTrace) -> bool:
        """Send nothing any more to workers that run another msdask; without any other one, everything ends.

        Returns
        -------
        are_any : whether there were any
        """
        with self._lock:
            news = {worker: found for worker, found in others.items() if worker not in self._refused}
            self._refused.update(news)
        if news:
            reason = OtherSoftwareError(news, software())
            if not self._look():
                self._end(reason)
            trace.warn(f"a worker that has come gets no work: {reason}")
        return bool(others)

    def _check(self, worker: str | None) -> None:
        """Raise why nothing comes any more, or that the only worker that a task may run on is gone."""
        self._workers.check()
        if worker is not None and worker not in self._workers.alive:
            raise Lost

    def _run_alone(self, task: Task) -> Any:
        """A task that was lost before, on a worker of its own.

        Raises
        ------
        WorkerLostError
            That died as well, each time.
        """
        trace, how, number = task.trace, "died", 2
        while number <= self._tries:
            trace.tries = max(trace.tries, number)
            trace.warn(
                f"'{task.label}' was lost with its worker: it is tried again, alone (try {number} of {self._tries})"
            )
            with self._workers.alone(self._look) as worker:
                started = time.monotonic()
                future = self._send(replace(task, label=f"{task.label}, try {number}"), [worker], elsewhere=False)
                try:
                    return self._result(future, task, worker)
                except Stranded:
                    continue
                except Lost:
                    number += 1
                    trace.workers.add(worker)
                    late = self._timeout is not None and time.monotonic() - started >= self._timeout
                    how = f"took longer than timeout={self._timeout:g} s" if late else "died"
                finally:
                    self._forget(future)
        where = ", ".join(sorted(trace.workers)) or "unknown"
        hint = (
            "give it more time, or look at the file"
            if how != "died"
            else "a crash in a native library or more memory than a worker has, see the logs of the workers"
        )
        raise WorkerLostError(
            f"'{task.label}' was given up after {self._tries} tries: the worker {how} each time it ran ({where}); "
            f"{hint}"
        )

    def _forget(self, future: Future[Any], task: Task | None = None) -> None:
        """Let go of a task's future, and of its place among those that are out."""
        with self._lock:
            self._out.pop(future, None)
        if not future.done():
            future.cancel()
        future.release()
        if task is not None:
            self._workers.release(task)

    def _look(self) -> dict[str, int]:
        """See who takes tasks now: address -> threads."""
        self._state = cluster_state(self._client)
        if self._state.workers is None:
            return self._workers.alive
        alive = {a: threads for a, threads in self._state.workers.items() if a not in self._refused}
        self._workers.update(alive, ahead=seconds_ahead(self._client))
        return alive

    def _free_stranded(self, alive: Mapping[str, int]) -> None:
        """Take back what dask would never run.

        A task whose workers are all gone when it comes, with no other there, waits for them alone: workers that come
        later do not get it, although it may run anywhere.
        """
        with self._lock:
            waiting = [f for f, where in self._out.items() if where and not f.done() and not alive.keys() & set(where)]
        if not waiting:
            return
        running = {key for keys in self._client.processing().values() for key in keys}
        self._client.cancel([f for f in waiting if f.key not in running and not f.done()])

    def _watch(self) -> None:
        """Keep the workers up to date; say why where the cluster does nothing, and end everything in the end."""
        still = Standstill()
        while not self._closed.wait(LOOK):
            alive = self._look()
            why = self._state.why
            with suppress(*unreachable()):
                self._free_stranded(alive)
                why = why or (self._why_left(self._state.paused) if still.quiet > SAY_AFTER else "")
            if self._client.status in _GONE:
                self._end(self._gone())
                return
            longest = longest_wait(self._client) if self._patience is None else self._patience
            told = f"the cluster does nothing for {still.seconds:.0f} s: {why}"
            match still.seen(why if self._traces else "", self._results, longest):
                case "say":
                    self._tell(f"{told}; it is waited for, {longest:g} s at most (MSDASK_PATIENCE)")
                case "over":
                    self._tell("")
                case "end":
                    self._end(MsdaskError(f"{told}; MSDASK_PATIENCE={longest:g} s are over: {_AGAIN}"))
                    return

    def _gone(self) -> MsdaskError:
        return MsdaskError(f"the client of the cluster is {self._client.status}, its scheduler may be gone: {_AGAIN}")

    def _why_left(self, paused: frozenset[str]) -> str:
        """Why nothing comes back although there are workers: all that is out may lie on those that are paused."""
        with self._lock:
            left = {str(future.key) for future in self._out if not future.done()}
        if not left or not paused:
            return ""
        where = self._client.processing()
        held = {str(key) for worker in paused for key in where.get(worker, ())}
        listed = ", ".join(sorted(paused)[:3])
        return (
            f"what is left lies on workers that are paused, since their memory is full ({listed})"
            if left <= held
            else ""
        )

    def _tell(self, reason: str) -> None:
        """Tell the first job that is at work why nothing goes on."""
        for trace in self._traces[:1]:
            trace.waits(reason)
