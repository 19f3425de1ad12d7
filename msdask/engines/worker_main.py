"""What a worker process of this machine does: one task after another from its parent's socket, until that is closed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from msdask.engines.deadline import deadline
from msdask.engines.portable import portable
from msdask.engines.software import software

__all__ = ["PARTS", "Answer", "Request", "main", "serve"]

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


class Answer(NamedTuple):
    """What came of it: a value, or an error that the function raised."""

    value: Any
    error: Exception | None = None


def main(handle: int) -> None:
    """Serve the other end of a socket that this process has inherited."""
    serve(Connection(handle))


def serve(parent: Connection) -> None:
    """Make this process ready, say which msdask it runs, and answer requests until the parent is gone.

    What comes first is a function without arguments, which makes it ready: what travels is imported with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who lets running blocks end
    began = time.monotonic()
    try:
        prepare = parent.recv()
        prepare()
        first = Answer((software(), time.monotonic() - began))
    except EOFError:
        return
    except Exception as error:
        first = Answer(None, portable(error))
    try:
        _send(parent, first)
        while True:
            try:
                request = parent.recv()
            except (EOFError, OSError):
                return
            except Exception as error:  # what travels cannot be opened here
                _send(parent, Answer(None, portable(error)))
                continue
            _send(parent, _answered(request))
    except OSError:  # nobody is there to hear it
        return


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


def _send(parent: Connection, answer: Answer) -> None:
    try:
        parent.send(answer)
    except OSError:
        raise
    except Exception as error:  # a value that cannot travel; nothing of it was sent
        parent.send(Answer(None, portable(error)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="msdask-part")
