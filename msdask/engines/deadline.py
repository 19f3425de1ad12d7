"""A deadline for work that may hang in native code: the process ends itself, even where Python cannot run any more."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deadline"]

_lock = threading.Lock()
_ends: dict[object, float] = {}


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Work that has to end within `seconds`, else this process prints its threads' tracebacks and exits with code 1.

    For worker processes that someone watches and starts again. A thread that hangs in a library cannot be stopped in
    any gentler way: faulthandler's watchdog needs no GIL.
    """
    if seconds is None:
        yield
        return
    token = object()
    with _lock:
        _ends[token] = time.monotonic() + seconds
        _arm()
    try:
        yield
    finally:
        with _lock:
            del _ends[token]
            _arm()


def _arm() -> None:
    """Faulthandler has one alarm a process: the first of all deadlines."""
    if _ends:
        left = max(0.001, min(_ends.values()) - time.monotonic())
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)
    else:
        faulthandler.cancel_dump_traceback_later()
