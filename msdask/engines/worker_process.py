"""A worker process of this machine as its parent sees it: started over a socket, asked, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from msdask.engines.software import OtherSoftwareError, software
from msdask.engines.worker_main import Answer, Request
from msdask.errors import MsdaskError

__all__ = ["WorkerGone", "WorkerProcess", "why_none"]

_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from msdask.engines.worker_main import main; main(int(sys.argv[1]))"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Libraries that would start a thread for each core in every process."""
_DYING = 10.0
"""Seconds in which a process whose socket is closed has ended."""


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


class WorkerProcess:
    """A process that imports msdask and never the program that started it: it needs no `__main__` guard.

    It listens on no port: the one way to it is a socket pair that it inherits. It belongs to no terminal, so that
    Ctrl-C comes to the parent alone, and ends when the parent does.

    Parameters
    ----------
    prepare : called in it first
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                # -P: what lies in the working directory must not be imported before the path is the parent's.
                [sys.executable, "-P", "-c", _MAIN, str(there.fileno()), *sys.path],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**dict.fromkeys(_ONE_THREAD, "1"), **os.environ},
                process_group=0,
            )
        self._connection = Connection(here.detach())
        self._connection.send(prepare)

    @property
    def name(self) -> str:
        """For messages and records."""
        return f"process {self._process.pid}"

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def ready(self) -> float:
        """Wait until it can be asked; the seconds that making it ready took.

        Raises
        ------
        MsdaskError
            It cannot run msdask, or runs another one: its source was changed since this process began.
        """
        try:
            answer = self._answer()
        except WorkerGone as gone:
            raise MsdaskError(
                f"a worker process could not be started: it {gone}; its own words are on stderr"
            ) from gone
        if answer.error is not None:
            raise answer.error
        found, seconds = answer.value
        if found != software():
            raise OtherSoftwareError({self.name: str(found)}, software())
        return float(seconds)

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
            raise self._gone() from None
        return self._answer()

    def _answer(self) -> Answer:
        try:
            answer: Answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        return answer

    def _gone(self) -> WorkerGone:
        try:
            code = self._process.wait(_DYING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return WorkerGone(how, was_killed=code == -signal.SIGKILL)

    def kill(self) -> None:
        """End it now, whatever it does; the store bears that at any moment."""
        self._process.kill()

    def close(self) -> None:
        """End it, and let go of it."""
        self.kill()
        self._process.wait()
        self._connection.close()
