"""Blocks of jobs on a Dask cluster: near few workers, bounded in number, and again elsewhere when a worker is lost."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from msdask.engines.at_work import Came, at_work
from msdask.engines.engine import BlockFunction, J, JobTrace, P, Stopped, T
from msdask.engines.growth import seconds_ahead
from msdask.engines.workers import MOST_JOBS, Workers
from msdask.errors import MsdaskError, WorkerLostError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["ClusterEngine"]

_LOOK = 1.0
"""Seconds between two looks at who is alive."""


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """A function to be run on a worker; itself what the workers' bookkeeping knows it by."""

    label: str
    trace: JobTrace
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> str:
        """What kind of task it is."""
        return self.label.partition(": ")[0]


class _Lost(Exception):
    """A task was lost with its worker."""


class _Stranded(_Lost):
    """A task was sent to workers that were gone when it came, and has not run."""


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
    patience : seconds without any worker after which everything that is left fails
    """

    def __init__(
        self,
        client: Client,
        *,
        jobs: int = MOST_JOBS,
        tries: int = 3,
        timeout: float | None = None,
        patience: float = 600.0,
    ) -> None:
        self._client = client
        self._tries = max(1, tries)
        self._timeout = timeout
        self._patience = patience
        self._name = uuid.uuid4().hex[:6]
        self._numbers = itertools.count()
        self._workers = Workers(jobs)
        self._out: dict[Future[Any], list[str]] = {}
        self._stranded: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
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
        try:
            yield trace
        finally:
            self._workers.job_done(trace)

    def call(self, label: str, trace: JobTrace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function, on a worker."""
        task = _Task(label, trace, function, args, kwargs)
        result: T
        while True:
            future = self._send(task, self._workers.place(task, trace, step=task.step) or [])
            try:
                result = self._result(future, task)
                return result
            except _Stranded:
                continue
            except _Lost:
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
        waiting = deque(_Task(f"{label}/{block}", trace, function, (job, block)) for block in blocks)
        lost: list[_Task] = []
        out: dict[Future[Any], _Task] = {}
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
                except _Stranded:
                    waiting.append(task)
                except _Lost:
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
        self._workers.end(Stopped())
        with self._lock:
            out = list(self._out)
        self._client.cancel(out)

    def close(self) -> None:
        """Stop looking at the cluster; the client belongs to the caller."""
        self._closed.set()
        self._watcher.join()

    def _send(self, task: _Task, where: list[str], *, elsewhere: bool = True) -> Future[Any]:
        """Send a task to workers; with `elsewhere`, idle ones that are not among them may take it."""
        # What stands before the first "-" is what the dashboard groups by, and the scheduler never forgets a group:
        # steps, of which there are few, and never slides.
        future: Future[Any] = self._client.submit(
            # As one object: dask would look for futures and collections in every argument.
            partial(at_work, task.function, self._timeout, task.args, task.kwargs),
            key=f"{task.step}-{self._name}.{next(self._numbers)}/{task.label.partition(': ')[2]}",
            workers=where or None,
            # sent to a worker that has just died, it would come to the one that is kept for a task alone
            allow_other_workers=bool(where) and elsewhere and not self._workers.is_someone_alone,
            priority=-task.trace.order,
            pure=False,
        )
        with self._lock:
            self._out[future] = where
        return future

    def _next(self, ready: queue.SimpleQueue[Future[Any]]) -> Future[Any]:
        """The next one that is done; raises why where everything was ended."""
        while True:
            with suppress(queue.Empty):
                return ready.get(timeout=_LOOK)
            self._workers.check()

    def _result(self, future: Future[Any], task: _Task, worker: str | None = None) -> Any:
        """What a task gave; with `worker`, of one that may run there only.

        Raises
        ------
        _Lost
            It was lost with its worker, or had no memory.
        """
        from distributed import CancelledError, KilledWorker

        trace = task.trace
        try:
            came = self._came(future, worker)
        except KilledWorker as error:
            trace.workers.add(error.last_worker.address)
            raise _Lost from error
        except CancelledError as error:
            self._workers.check()
            raise (_Stranded if future.key in self._stranded else _Lost) from error
        trace.workers.add(came.worker)
        if isinstance(came.error, MemoryError):
            raise _Lost from came.error
        if came.error is not None:
            raise came.error
        self._workers.took(task.step, came.seconds)
        return came.value

    def _came(self, future: Future[Any], worker: str | None) -> Came:
        """What came back; looks meanwhile whether anything still can."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        # A `result` with a time limit that ends while it is fetched would cancel what others are just fetching.
        while not (future.done() or done.wait(_LOOK)):
            self._workers.check()
            if worker is not None and worker not in self._workers.alive:
                raise _Lost
        came: Came = future.result()
        return came

    def _run_alone(self, task: _Task) -> Any:
        """A task that was lost before, on a worker of its own.

        Raises
        ------
        WorkerLostError
            That died as well, each time.
        """
        trace, how = task.trace, "died"
        for number in range(2, self._tries + 1):
            trace.tries = max(trace.tries, number)
            trace.warn(
                f"'{task.label}' was lost with its worker: it is tried again, alone (try {number} of {self._tries})"
            )
            with self._workers.alone(self._look) as worker:
                started = time.monotonic()
                future = self._send(replace(task, label=f"{task.label}, try {number}"), [worker], elsewhere=False)
                try:
                    return self._result(future, task, worker)
                except _Lost:
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

    def _forget(self, future: Future[Any], task: _Task | None = None) -> None:
        """Let go of a task's future, and of its place among those that are out."""
        with self._lock:
            self._out.pop(future, None)
            self._stranded.discard(future.key)
        if not future.done():
            future.cancel()
        future.release()
        if task is not None:
            self._workers.release(task)

    def _look(self) -> dict[str, int]:
        """See who takes tasks now: address -> threads."""
        workers: Mapping[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        alive = {a: int(w["nthreads"]) for a, w in workers.items() if w.get("status", "running") == "running"}
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
        stranded = [f for f in waiting if f.key not in running and not f.done()]
        self._stranded.update(str(f.key) for f in stranded)
        self._client.cancel(stranded)

    def _watch(self) -> None:
        """Keep the workers up to date; end everything where the cluster is gone."""
        since = time.monotonic()
        while not self._closed.wait(_LOOK):
            try:
                alive = self._look()
                self._free_stranded(alive)
            except Exception:  # whatever it is: the scheduler does not answer
                alive = {}
            if alive:
                since = time.monotonic()
            elif time.monotonic() - since > self._patience or self._client.status in ("closed", "closing"):
                self._workers.end(
                    MsdaskError(
                        f"the cluster has had no worker for {time.monotonic() - since:.0f} s, or its scheduler is "
                        "gone: start them, then run the same command again"
                    )
                )
                return
