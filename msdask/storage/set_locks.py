"""One maker of a patch set: who makes, replaces or removes it is alone with it, and with its writers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from msdask.errors import LockedError
from msdask.storage import places
from msdask.storage.locks import ENDING, held, lock_folder, slide_lock

__all__ = ["PATIENCE", "set_lock", "wait_for_set"]

PATIENCE = 60.0
"""s that one waits for another to make or remove a set."""
_SET = f"_set{ENDING}"
"""Ids of slides begin otherwise."""
_POLL = 0.05


@contextmanager
def set_lock(store: str, set_name: str, *, alone: bool = False, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the right to make, replace or remove a patch set; waits for whoever holds it.

    Whoever writes a slide takes its lock first and then sees, by `wait_for_set`, that nobody holds the set's. Whoever
    replaces a set takes its lock first and then sees that nobody writes a slide. One of two always sees the other.

    Parameters
    ----------
    store : path or URL
    set_name : of the patch set
    alone : nobody may be writing a slide of it
    patience : s to wait for another one

    Raises
    ------
    LockedError
        Another one holds it for longer; `alone`, and a slide is being written: the message says by whom.
    """
    folder, what = lock_folder(store, set_name), f"patch set '{set_name}' in '{store}'"
    with ExitStack() as stack:
        end = time.monotonic() + patience
        while True:
            try:
                stack.enter_context(held(places.join(folder, _SET), what))
                break
            except LockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL)
        if alone:
            for name in places.at(folder).names(folder):
                if name.endswith(ENDING) and name != _SET:
                    with slide_lock(store, set_name, name[: -len(ENDING)]):
                        pass
        yield


def wait_for_set(store: str, set_name: str, *, patience: float = PATIENCE) -> None:
    """Wait until nobody makes, replaces or removes a patch set; raises like `set_lock`."""
    folder = lock_folder(store, set_name)
    if _SET in places.at(folder).names(folder):
        with set_lock(store, set_name, patience=patience):
            pass
