"""How long a request to a server is repeated: one policy for every client, and one line that says what is waited for.

A server that is busy, restarted or out of reach for a moment answers later; what it says for good (no such object, no
permission) is not asked again.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from msdask.errors import SpecError

__all__ = ["PATIENCE", "PassingError", "interrupt", "is_passing", "patience", "persist"]

T = TypeVar("T")

PATIENCE = 180.0
"""s that a request is repeated before it fails; the environment variable MSDASK_PATIENCE overrides it."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_QUIET = 2.0
"""s of waiting that nobody needs to be told of."""
_SAY_EVERY = 30.0
_ASK_AGAIN = {408, 425, 429}
_FOR_GOOD = {501, 505}
"""Of the 5xx: what the server cannot do at all."""

_log = logging.getLogger("msdask.storage")
_said: dict[str, float] = {}
_said_lock = threading.Lock()
_interrupts = 0
_interrupted = threading.Condition()


class PassingError(OSError):
    """A request failed in a way that may pass: the same request later may be answered."""


def is_passing(status: int) -> bool:
    """Whether an HTTP status says that the same request may be answered later."""
    return status in _ASK_AGAIN or (500 <= status < 600 and status not in _FOR_GOOD)


def patience(default: float | None = None) -> float:
    """Seconds that something is waited for: MSDASK_PATIENCE, or `default`, by default `PATIENCE`.

    Raises
    ------
    SpecError
        MSDASK_PATIENCE is no number of seconds.
    """
    text = os.environ.get("MSDASK_PATIENCE", "")
    try:
        seconds = float(text) if text else PATIENCE if default is None else default
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise SpecError(f"MSDASK_PATIENCE={text!r}: expected seconds, such as {PATIENCE:g}")
    return seconds


def persist(server: str, request: Callable[[], T], *, seconds: float | None = None) -> T:
    """Make a request, again and again while it fails in a way that may pass.

    Parameters
    ----------
    server : what is waited for, in the line that says so
    request : raises PassingError where it may be repeated
    seconds : how long; None means `patience()`

    Raises
    ------
    PassingError
        It still failed when the time was over, or waiting was interrupted; says for how long it was tried.
    """
    begun, interrupts = time.monotonic(), _interrupts
    limit = patience() if seconds is None else seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return request()
        except PassingError as error:
            waited = time.monotonic() - begun
            if waited >= limit:
                hint = f"; tried for {waited:.0f} s (MSDASK_PATIENCE says how long)" if limit else ""
                raise PassingError(f"{error}{hint}") from error
            if waited > _QUIET:
                _say(server, f"waiting for {server} ({waited:.0f} s so far, giving up after {limit:g} s): {error}")
            # Many clients that were turned away together should not come back together.
            if _pause(min(pause * random.uniform(0.5, 1.0), limit - waited), interrupts):
                raise PassingError(f"{error}; interrupted after {waited:.0f} s") from error
        pause = min(2 * pause, _LONGEST_PAUSE)


def interrupt() -> None:
    """End all waiting of this process at once, for a run that is to stop; later requests are repeated as before."""
    global _interrupts
    with _interrupted:
        _interrupts += 1
        _interrupted.notify_all()


def _pause(seconds: float, interrupts: int) -> bool:
    """Wait; whether there was another `interrupt` since there had been so many."""
    with _interrupted:
        return _interrupted.wait_for(lambda: _interrupts != interrupts, seconds)


def _say(server: str, line: str) -> None:
    """Say a line once in a while for each server, however many threads wait for it."""
    now = time.monotonic()
    with _said_lock:
        if now - _said.get(server, -_SAY_EVERY) < _SAY_EVERY:
            return
        _said[server] = now
    _log.warning("%s", line)
