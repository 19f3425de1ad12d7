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

__all__ = ["PATIENCE", "PassingError", "patience", "persist"]

T = TypeVar("T")

PATIENCE = 180.0
"""s that a request is repeated before it fails; the environment variable MSDASK_PATIENCE overrides it."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_QUIET = 2.0
"""s of waiting that nobody needs to be told of."""
_SAY_EVERY = 30.0

_log = logging.getLogger("msdask.storage")
_said: dict[str, float] = {}
_said_lock = threading.Lock()


class PassingError(OSError):
    """A request failed in a way that may pass: the same request later may be answered."""


def patience() -> float:
    """Seconds that a request is repeated: MSDASK_PATIENCE, or `PATIENCE`."""
    text = os.environ.get("MSDASK_PATIENCE", "")
    try:
        return max(0.0, float(text)) if text else PATIENCE
    except ValueError:
        raise OSError(f"MSDASK_PATIENCE={text!r}: expected seconds, such as 180") from None


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
        It still failed when the time was over; says for how long it was tried, and what to set.
    """
    begun = time.monotonic()
    limit = patience() if seconds is None else seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return request()
        except PassingError as error:
            waited = time.monotonic() - begun
            if waited >= limit:
                hint = f"; tried for {waited:.0f} s (MSDASK_PATIENCE)" if limit else ""
                raise PassingError(f"{error}{hint}") from error
            if waited > _QUIET:
                _say(server, f"waiting for {server}: {error} ({waited:.0f} s; giving up after {limit:g} s)")
        # Many clients that were turned away together should not come back together.
        time.sleep(min(pause * random.uniform(0.5, 1.0), max(0.0, limit - waited)))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _say(server: str, line: str) -> None:
    """Say a line once in a while for each server, however many threads wait for it."""
    now = time.monotonic()
    with _said_lock:
        if now - _said.get(server, -_SAY_EVERY) < _SAY_EVERY:
            return
        _said[server] = now
    _log.warning("%s", line)
