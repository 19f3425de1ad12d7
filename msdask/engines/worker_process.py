"""Worker processes of this machine as their parent sees them: started over a socket each, asked, ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

from msdask.engines.origin import Origin, OriginGone, Spawned, kept_origin, kill
from msdask.engines.plan import nothing
from msdask.engines.software import OtherSoftwareError, software
from msdask.engines.worker_main import Answer, Ready, Request
from msdask.errors import MsdaskError

__all__ = ["WorkerGone", "WorkerProcess", "WorkerStarter", "why_none"]


def why_none() -> str:
    """Why no worker processes can be started here; empty where they can."""
    if os.name != "posix":
        return "worker processes need Linux or macOS"
    return "" if sys.executable else "this program has no Python interpreter of its own that could be started"


class WorkerGone(Exception):
    """A worker process ended before it answered.

    Attributes
    ----------
    was_killed : by SIGKILL, as the system does where memory is short
    """

    def __init__(self, how: str, *, was_killed: bool) -> None:
        super().__init__(how)
        self.was_killed = was_killed


class WorkerStarter:
    """Starts worker processes: forked from one that has imported everything, where that has one thread; else anew.

    Forking takes some hundredths of a second, and what is imported is in memory once.

    Parameters
    ----------
    prepare : called in every process first, or in the one that they are forked from
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._lock = threading.RLock()
        self._origin: Origin | None = None
        self._forks = sys.platform == "linux"
        self._starting: set[Spawned] = set()
        self._is_closed = False

    def start(self) -> WorkerProcess:
        """A worker process that is ready.

        Raises
        ------
        MsdaskError
            It cannot run msdask, or runs another one: its source was changed since this process began.
        """
        with self._lock:
            forked = self._forked() if self._forks else None
        if forked is not None:
            return forked
        process = Spawned("work", self._prepare)
        self._until_ready(process)
        return WorkerProcess(process.number, process.connection, process.kill, process.ended)

    def _forked(self) -> WorkerProcess | None:
        """A fork, or None where forking is not safe here."""
        origin = self._origin = self._origin or kept_origin(self._prepare) or self._new_origin()
        if origin is None:
            return None
        try:
            number, connection = origin.fork()
        except OriginGone:
            origin.end()
            self._origin = None
            return self._forked()
        connection.send(nothing)
        worker = WorkerProcess(number, connection, partial(kill, number), partial(origin.code, number))
        _ready(connection, worker.ended)
        return worker

    def _new_origin(self) -> Origin | None:
        process = Spawned("fork_on_request", self._prepare)
        self._forks = self._until_ready(process).may_fork
        if self._forks:
            return Origin(process, self._prepare)
        Origin(process, self._prepare).end()
        return None

    def _until_ready(self, process: Spawned) -> Ready:
        self._starting.add(process)
        if self._is_closed:
            process.kill()
        try:
            return _ready(process.connection, process.ended)
        finally:
            self._starting.discard(process)

    def cancel(self) -> None:
        """End what is not ready yet, and start nothing more."""
        self._is_closed = True
        for process in list(self._starting):
            process.kill()

    def close(self) -> None:
        """Leave the process that workers are forked from to the next run, once they have ended."""
        self.cancel()
        if self._origin is not None:
            self._origin.keep()
            self._origin = None


class WorkerProcess:
    """A worker process that is ready. It listens on no port: the one way to it is the socket that it has inherited.

    Parameters
    ----------
    number : of the process
    connection : to it
    kill : ends it
    ended : waits for its end; its code
    """

    def __init__(
        self, number: int, connection: Connection, kill: Callable[[], object], ended: Callable[[], int]
    ) -> None:
        self.name = f"process {number}"
        self._connection, self._kill, self._ended = connection, kill, ended
        self._code: int | None = None
        self._lock = threading.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet; of one that was asked nothing."""
        return self._code is None and not self._connection.poll()  # it says nothing unasked: what comes is the end

    def ask(self, request: Request) -> Answer:
        """Have it do something.

        Raises
        ------
        WorkerGone
            It died over it.
        """
        try:
            self._connection.send(request)
        except OSError:
            raise _gone(self.ended()) from None
        return _heard(self._connection, self.ended)

    def kill(self) -> None:
        """End it now, whatever it does; the store bears that at any moment."""
        with self._lock:  # the number of one that has ended may be another's
            if self._code is None:
                self._kill()

    def ended(self) -> int:
        """End it, if it has not yet, and say its code; negative: a signal."""
        self.kill()  # one whose socket is closed is about to end, with the code that it has
        with self._lock:
            if self._code is None:
                self._code = self._ended()
            return self._code

    def close(self) -> None:
        """End it, and let go of it."""
        self.ended()
        self._connection.close()


def _heard(connection: Connection, ended: Callable[[], int]) -> Answer:
    try:
        answer: Answer = connection.recv()
    except (EOFError, OSError):
        raise _gone(ended()) from None
    return answer


def _gone(code: int) -> WorkerGone:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return WorkerGone(how, was_killed=code == -signal.SIGKILL)


def _ready(connection: Connection, ended: Callable[[], int]) -> Ready:
    """Wait until a process can be asked."""
    try:
        answer = _heard(connection, ended)
    except WorkerGone as gone:
        raise MsdaskError(f"a worker process could not be started: it {gone}; its own words are on stderr") from gone
    if answer.error is not None:
        raise answer.error
    ready: Ready = answer.value
    if ready.software != software():
        raise OtherSoftwareError({"worker processes of this machine": str(ready.software)}, software())
    return ready
