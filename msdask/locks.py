"""One writer a slide: locks beside the store, in `<store>.locks/`, that end with the process that holds them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msdask.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock; there the file itself is the lock
    fcntl = None  # type: ignore[assignment]

__all__ = ["slide_lock"]


@contextmanager
def slide_lock(store: str, set_name: str, slide_id: str) -> Iterator[None]:
    """Hold the right to write one slide of one patch set.

    The kernel lets go of it when the process ends, however it ends: nothing stale stays behind.

    Raises
    ------
    StoreError
        Another writer holds it (the message says who), or the lock file cannot be made.
    """
    path = Path(f"{store.rstrip('/')}.locks", set_name, f"{slide_id}.lock")
    what = f"slide '{slide_id}' of '{set_name}' in '{store}'"
    handle = _acquire(path, what)
    # The one before lets go of a file that it has removed: who waited at its door holds a lock that nobody else sees.
    while not _is_at(handle, path):
        os.close(handle)
        handle = _acquire(path, what)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _acquire(path: Path, what: str) -> int:
    """A handle of the lock file, locked; it must be closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"cannot make the lock '{path}': {error.strerror}; choose an output that is writable"
        ) from error
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 1000, 0).decode(errors="replace") or "unknown"
            os.close(handle)
            raise StoreError(f"{what} is being written by {owner}: wait for it, or stop it") from None
    return handle


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that its path leads to now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
