"""The process that workers are forked from: it has everything imported, and one thread; and how any process is started.

A run that has ended leaves its own for the next one, which so begins at once. A program that only runs msdask, as the
command line does, forks it from itself before it has a second thread: then nothing is imported twice.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Protocol

from msdask.engines.worker_main import FORK, Answer, fork_on_request, has_one_thread

__all__ = ["Origin", "OriginGone", "Spawned", "fork_from_here", "have_one_thread", "is_at_hand", "kept_origin", "kill"]

_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from msdask.engines.worker_main import {0}; {0}(int(sys.argv[1]))"
_ONE_THREAD = {
    # Libraries that would start a thread for each core in every process,
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    # and pyarrow's, which pandas imports, with one that tidies up: a process that is forked must have no other thread.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class OriginGone(Exception):
    """It has ended: the system ended it, or somebody, or nobody has asked it for long."""


class Process(Protocol):
    """A process that was started over a socket."""

    number: int
    connection: Connection

    def kill(self) -> None:
        """End it now."""

    def ended(self) -> int:
        """The code with which it has ended, once it has; negative: a signal."""


class Spawned:
    """A process of this interpreter that runs a function of `worker_main` on one end of a socket.

    It imports msdask and never the program that started it, which so needs no `__main__` guard. It belongs to no
    terminal: Ctrl-C comes to the parent alone. It ends when the parent does.

    Parameters
    ----------
    function : its name
    prepare : called there first
    """

    def __init__(self, function: str, prepare: Callable[[], object]) -> None:
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                # -P: what lies in the working directory must not be imported before the path is the parent's.
                [sys.executable, "-P", "-c", _MAIN.format(function), str(there.fileno()), *sys.path],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**_ONE_THREAD, **os.environ},
                process_group=0,
            )
        self.number = self._process.pid
        self.connection = Connection(here.detach())
        self.connection.send(prepare)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def ended(self) -> int:
        """The code with which it has ended, once it has; negative: a signal."""
        return self._process.wait()


class _Forked:
    """A copy of this process that runs `fork_on_request`; may be made while this process has one thread."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        sys.stdout.flush()  # what is not yet written would be written by the copy, too
        sys.stderr.flush()
        here, there = socket.socketpair()
        self.number = os.fork()
        if self.number == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = 1
            try:
                here.close()
                os.setpgid(0, 0)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                fork_on_request(there.detach())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        there.close()
        self.connection = Connection(here.detach())
        with suppress(BrokenPipeError):  # it has failed already, which whoever waits for its answer sees
            self.connection.send(prepare)

    def kill(self) -> None:
        kill(self.number)

    def ended(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


class Origin:
    """A process that forks workers, which is ready.

    Parameters
    ----------
    process : which runs `fork_on_request`
    prepare : what has been called in it: it is of use to runs that ask for the same
    """

    def __init__(self, process: Process, prepare: Callable[[], object]) -> None:
        self._process = process
        self._prepare = pickle.dumps(prepare)
        self._lock = threading.Lock()

    def fork(self) -> tuple[int, Connection]:
        """A worker's number, and the way to it; what it is told to call first comes after what was called here.

        Raises
        ------
        OriginGone
        OSError
            No further process can be made.
        """
        here, there = socket.socketpair()
        with here, there, self._lock:
            try:
                self._process.connection.send(FORK)
                send_handle(self._process.connection, there.fileno(), self._process.number)
                answer: Answer = self._process.connection.recv()
            except (EOFError, OSError) as error:
                raise OriginGone from error
            if answer.error is not None:
                raise answer.error
            return answer.value, Connection(here.detach())

    def code(self, number: int) -> int:
        """The code with which a worker has ended, once it has; negative: a signal."""
        with self._lock:
            try:
                self._process.connection.send(number)
                answer: Answer = self._process.connection.recv()
            except (EOFError, OSError):  # nobody is left who knows
                return -signal.SIGKILL
            return int(answer.value)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended; it says nothing unasked."""
        return not self._process.connection.closed and not self._process.connection.poll()

    def is_for(self, prepare: Callable[[], object]) -> bool:
        """Whether it is what a run with this needs: the same readers and settings."""
        return self.is_alive and self._prepare == pickle.dumps(prepare)

    def end(self) -> None:
        """End it, and let go of it."""
        self._process.kill()
        self._process.ended()
        self._process.connection.close()

    def keep(self) -> None:
        """Leave it for the next run of this program; it ends with the program, or when nothing has come for long."""
        with _kept_lock:
            if self.is_alive and not _kept:
                _kept.append((os.getpid(), self))
                return
        self.end()


_kept: list[tuple[int, Origin]] = []
"""What the last run has left, one at most, and of which process: a fork of that has no right to it."""
_kept_lock = threading.Lock()


def kept_origin(prepare: Callable[[], object]) -> Origin | None:
    """The one that an earlier run has left, if it is what this one needs; it is then the caller's alone."""
    with _kept_lock:
        while _kept:
            owner, origin = _kept.pop()
            if owner == os.getpid():
                if origin.is_for(prepare):
                    return origin
                origin.end()
    return None


def is_at_hand(prepare: Callable[[], object]) -> bool:
    """Whether `kept_origin` would give one."""
    with _kept_lock:
        return any(owner == os.getpid() and origin.is_for(prepare) for owner, origin in _kept)


def have_one_thread() -> None:
    """Let libraries that are imported from here on start no threads, as far as nobody has asked for some."""
    for name, value in _ONE_THREAD.items():
        os.environ.setdefault(name, value)


def fork_from_here(prepare: Callable[[], object]) -> bool:
    """Fork an origin from this process for its next run; whether that was possible: on Linux, with one thread.

    For a program that only runs msdask: all that it has open is open in the workers, too.

    Parameters
    ----------
    prepare : called in it first
    """
    if sys.platform != "linux" or not has_one_thread():
        return False
    process = _Forked(prepare)
    try:
        answer: Answer = process.connection.recv()
        is_ready = answer.error is None  # the run's own try will say what is wrong
    except (EOFError, OSError):
        is_ready = False
    origin = Origin(process, prepare)
    if is_ready:
        origin.keep()
    else:
        origin.end()
    return is_ready


def kill(number: int) -> None:
    """End a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
