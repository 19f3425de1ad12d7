"""What a worker process of this machine does: one task after another from its parent's socket, until that is closed.

And what the process does that it is forked from: it has everything imported, and one thread.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

from msdask.engines.deadline import deadline
from msdask.engines.portable import portable
from msdask.engines.software import Software, software

__all__ = ["FORK", "PARTS", "Answer", "Ready", "Request", "fork_on_request", "has_one_thread", "work"]

FORK = "fork"
"""Asks the process that workers are forked from for one; the number of one asks for how that has ended."""

IDLE = 300.0
"""Seconds for which the process that workers are forked from waits for a next run."""
PARTS = 8
"""Into so many parts a block is cut where it has several threads: a few for each, as some parts take longer."""


class Request(NamedTuple):
    """A task as it travels.

    Attributes
    ----------
    function, args, kwargs : what to call
    is_block : it may be done in parts on a pool
    threads : that it may use
    timeout : seconds, or None; then the process ends itself
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    is_block: bool
    threads: int
    timeout: float | None


class Ready(NamedTuple):
    """What a process says first.

    Attributes
    ----------
    software : the msdask that it runs
    seconds : that making it ready took
    may_fork : it has one thread, so that a copy of it is whole
    """

    software: Software
    seconds: float
    may_fork: bool


class Answer(NamedTuple):
    """What came of it: a value, or an error that the function raised."""

    value: Any
    error: Exception | None = None


def work(handle: int) -> None:
    """Answer requests from the other end of a socket that this process has inherited, until the parent is gone."""
    parent = Connection(handle)
    if not _made_ready(parent):
        return
    while True:
        try:
            request = parent.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # what travels cannot be opened here
            answer = Answer(None, portable(error))
        else:
            answer = _answered(request)
        if not _sent(parent, answer):
            return


def fork_on_request(handle: int) -> None:
    """Fork a worker for each socket that comes, and say how one has ended, until the parent is gone.

    Or until nothing was asked for `IDLE` seconds while there is no worker: it is kept for a next run, not for ever.
    """
    parent = Connection(handle)
    if not _made_ready(parent):
        return
    workers = 0
    while workers or parent.poll(IDLE):
        try:
            request = parent.recv()
            if request == FORK:
                answer = _forked(parent, recv_handle(parent))
                workers += answer.error is None
            else:
                answer = Answer(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]))
                workers -= 1
            parent.send(answer)
        except (EOFError, OSError):
            return


def _forked(parent: Connection, handle: int) -> Answer:
    """The number of a worker that has this socket."""
    try:
        number = os.fork()
    except OSError as error:
        return Answer(None, error)
    if number == 0:
        parent.close()
        code = 1
        try:
            work(handle)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(handle)
    return Answer(number)


def _made_ready(parent: Connection) -> bool:
    """Call what comes first, a function without arguments: what travels is imported with it; whether anyone hears."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who lets running blocks end
    began = time.monotonic()
    try:
        prepare = parent.recv()
        prepare()
        return _sent(parent, Answer(Ready(software(), time.monotonic() - began, has_one_thread())))
    except EOFError:
        return False
    except Exception as error:
        _sent(parent, Answer(None, portable(error)))
        return False


def has_one_thread() -> bool:
    """Whether this process has no thread of any library; where that cannot be seen, it is taken to have some."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _answered(request: Request) -> Answer:
    import dask

    options = dict(request.kwargs)
    if request.is_block and request.threads > 1:
        options |= {"pool": _pool(request.threads), "parts": PARTS}
    # What a task computes with dask has the task's threads, not one for each core in every process.
    scheduler = "threads" if request.threads > 1 else "synchronous"
    try:
        with dask.config.set(scheduler=scheduler, num_workers=request.threads), deadline(request.timeout):
            return Answer(request.function(*request.args, **options))
    except Exception as error:
        return Answer(None, portable(error))


def _sent(parent: Connection, answer: Answer) -> bool:
    """Whether anyone is there to hear it."""
    try:
        parent.send(answer)
    except OSError:
        return False
    except Exception as error:  # a value that cannot travel; nothing of it was sent
        return _sent(parent, Answer(None, portable(error)))
    return True


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="msdask-part")
