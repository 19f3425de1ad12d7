"""One writer a slide: locks beside the store, in `<store>.locks/`, with an owner and a heartbeat; none blocks for ever.

In a folder the kernel's flock decides, and lets go when the process ends, however it ends. In object storage, and where
flock does not reach other machines of a shared file system, the owner's document decides: it is renewed by a
heartbeat, and a lock that was not renewed for `stale_after` seconds is taken over. Ages are differences of the
storage's own clock, so machines need not agree on the time.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from msdask.errors import LockedError, StoreError, UnreachableError
from msdask.storage import places
from msdask.storage.lock_owner import as_document, is_dead, parsed, shown, this_owner
from msdask.storage.patience import PassingError

try:
    import fcntl
except ImportError:  # Windows has no flock; there the owner's document is the lock
    fcntl = None  # type: ignore[assignment]

__all__ = ["ENDING", "STALE_AFTER", "SlideLock", "held", "lock_folder", "slide_lock"]

ENDING = ".lock"
"""Of a lock's file."""

STALE_AFTER = 60.0
"""s without a heartbeat after which a lock is taken over, unless its owner is known to be dead before."""
_BEATS = 4
"""Heartbeats in that time: a few may fail."""
_SHORTEST_INTERVAL = 0.01
_JOIN_SECONDS = 10
"""The last heartbeat may wait for a server."""
_TRIES = 5
_RELEASE_SECONDS = 10.0
"""That letting go may wait for a server: a lock that stays is taken over all the same."""
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without flock answer."""


@contextmanager
def slide_lock(store: str, set_name: str, slide_id: str, *, stale_after: float = STALE_AFTER) -> Iterator[SlideLock]:
    """Hold the right to write one slide of one patch set.

    Parameters
    ----------
    store : path or URL
    set_name, slide_id : what is to be written
    stale_after : s without a heartbeat after which another writer's lock counts as left behind; the same for all
        writers of a store

    Yields
    ------
    lock : ask its `check()` before a step that must not be done twice, such as a commit

    Raises
    ------
    LockedError
        Another writer holds it; the message says who.
    StoreError
        The lock cannot be made; or, at the end, it was lost meanwhile.
    """
    what = f"slide '{slide_id}' of '{set_name}' in '{store}'"
    with held(places.join(lock_folder(store, set_name), f"{slide_id}{ENDING}"), what, stale_after=stale_after) as lock:
        yield lock


def lock_folder(store: str, set_name: str) -> str:
    """Where the locks of a patch set are: beside the store."""
    return places.join(f"{places.location(store).rstrip('/')}.locks", set_name)


@contextmanager
def held(path: str, what: str, *, stale_after: float = STALE_AFTER) -> Iterator[SlideLock]:
    """Hold the lock at a path; `what` it is for goes into errors. Yields and raises as `slide_lock`."""
    kind: type[_FileLock] | type[_ObjectLock] = _ObjectLock if places.is_remote(path) else _FileLock
    lock = SlideLock(what, kind(path, what, stale_after), stale_after)
    _heart().add(lock)
    try:
        yield lock
        lock.check()
    finally:
        _heart().remove(lock)
        lock.release()


class _Backend(Protocol):
    """A lock that is held in one kind of storage."""

    def renew(self, *, seconds: float | None) -> str | None:
        """Say that the owner lives; where a server does not answer, again for so many seconds (None: `patience`).

        Returns who holds the lock instead, or None. OSError: it could not be said.
        """
        ...

    def release(self) -> None:
        """Let go of it, if it is still held."""
        ...


class SlideLock:
    """A lock that is held. Thread-safe."""

    def __init__(self, what: str, backend: _Backend, stale_after: float) -> None:
        self.interval = max(_SHORTEST_INTERVAL, stale_after / _BEATS)
        self._what, self._backend, self._stale_after = what, backend, stale_after
        self._renewed = time.monotonic()
        self._lost = ""
        self._is_released = False
        self._mutex = threading.Lock()

    def beat(self) -> None:
        """Say that the owner lives, unless that is under way; done by this module every `interval` seconds."""
        if self._mutex.acquire(blocking=False):
            try:
                self._renew(self.interval / 3)
            finally:
                self._mutex.release()

    def _renew(self, seconds: float | None) -> None:
        if self._is_released:
            return
        begun = time.monotonic()
        try:
            other = self._backend.renew(seconds=seconds)
        except OSError as error:
            silent = time.monotonic() - self._renewed
            if silent > self._stale_after:
                self._lost = f"it could not be renewed for {silent:.0f} s ({error})"
            return
        if other is None:
            self._renewed, self._lost = begun, ""
        else:
            self._lost = f"it was taken over by {other}"

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises
        ------
        StoreError
            It was lost: this process stood still for too long, or could not reach the storage.
        """
        with self._mutex:
            self._renew(None)
        if self._lost:
            raise StoreError(
                f"{self._what}: the lock of this run was lost, {self._lost}: the slide is left to the other writer; "
                "run the same command again if there is none"
            )

    def release(self) -> None:
        """Let go of it; never raises."""
        with self._mutex, suppress(OSError):
            self._is_released = True
            self._backend.release()


class _FileLock:
    """A lock file: flock, and the owner's document in it, whose time is the heartbeat."""

    def __init__(self, path: str, what: str, stale_after: float) -> None:
        self._path = Path(path)
        self._owner = this_owner()
        self._handle, has_flock = _open_locked(self._path, what)
        # The one before lets go of a file that it has removed: who waited at its door holds a lock that nobody else
        # sees.
        while not _is_at(self._handle, self._path):
            os.close(self._handle)
            self._handle, has_flock = _open_locked(self._path, what)
        try:
            found = parsed(os.pread(self._handle, 4096, 0))
            # Of this kernel: it is dead, or flock would have said so. Of another: flock may not reach there.
            ended = (has_flock and found.get("boot") == self._owner["boot"]) or is_dead(found)
            if found and not ended and self._age() < stale_after:
                raise LockedError(_refusal(what, found, stale_after))
            self._write()
        except BaseException:
            os.close(self._handle)
            raise

    def _write(self) -> None:
        # Through a handle that is closed again: network file systems show others what was written at a close.
        with self._path.open("r+b") as stream:
            stream.truncate(0)
            stream.write(as_document(self._owner))

    def _age(self) -> float:
        """Seconds since the last heartbeat, both times from the file system's clock."""
        probe = self._path.with_name(f"{self._path.name}.{self._owner['token']}.part")
        try:
            probe.touch()
            return probe.stat().st_mtime - os.fstat(self._handle).st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def renew(self, *, seconds: float | None) -> str | None:
        if not _is_at(self._handle, self._path):
            return "somebody who removed its file"
        found = parsed(self._path.read_bytes())
        if found.get("token") != self._owner["token"]:
            return shown(found)
        os.utime(self._path)
        return None

    def release(self) -> None:
        try:
            if self.renew(seconds=0) is None:
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._handle)


def _open_locked(path: Path, what: str) -> tuple[int, bool]:
    """(handle of the lock file, which must be closed; whether it is locked, or flock does not work there)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"cannot make the lock '{path}': {error.strerror}; choose an output that is writable"
        ) from error
    has_flock = fcntl is not None
    if has_flock:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = parsed(os.pread(handle, 4096, 0))
            os.close(handle)
            raise LockedError(_refusal(what, owner)) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                os.close(handle)
                raise StoreError(f"cannot lock '{path}': {error.strerror}") from error
            has_flock = False
    return handle, has_flock


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that its path leads to now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


class _ObjectLock:
    """An object that only one can create, and only the one who knows its version can replace."""

    def __init__(self, path: str, what: str, stale_after: float) -> None:
        self._path, self._bucket = path, places.bucket(path)
        self._owner = this_owner()
        self._beat = 0
        try:
            self._tag = self._acquire(what, stale_after)
        except PassingError as error:
            raise UnreachableError(f"cannot make the lock '{path}' now: {error}") from error
        except OSError as error:
            raise StoreError(f"cannot make the lock '{path}': {error}; choose an output that is writable") from error

    def _acquire(self, what: str, stale_after: float) -> str:
        found: dict[str, Any] = {}
        for _ in range(_TRIES):
            tag = self._bucket.put_if_absent(self._path, self._document())
            if tag is not None:
                return tag
            try:
                data, state = self._bucket.read_state(self._path)
            except FileNotFoundError:  # let go of in this moment
                continue
            found = parsed(data)
            if found.get("token") == self._owner["token"]:  # ours: the first answer was lost, and the request repeated
                return state.tag
            if not is_dead(found) and self._age(state.modified.timestamp()) < stale_after:
                break
            tag = self._bucket.replace_if(self._path, self._document(), state.tag)
            if tag is not None:
                return tag
        raise LockedError(_refusal(what, found, stale_after))

    def _document(self) -> bytes:
        self._beat += 1  # equal documents would have equal tags
        return as_document({**self._owner, "beat": self._beat})

    def _age(self, modified: float) -> float:
        """Seconds since the last heartbeat, both times from the server's clock."""
        probe = f"{self._path}.{self._owner['token']}.part"
        try:
            self._bucket.write(probe, [b"now"])
            return self._bucket.object_state(probe).modified.timestamp() - modified
        finally:
            self._bucket.remove(probe)

    def renew(self, *, seconds: float | None) -> str | None:
        tag = self._bucket.replace_if(self._path, self._document(), self._tag, seconds=seconds)
        if tag is None:
            try:
                data, state = self._bucket.read_state(self._path, seconds=seconds)
            except FileNotFoundError:
                return "somebody who removed it"
            found = parsed(data)
            if found.get("token") != self._owner["token"]:
                return shown(found)
            tag = state.tag  # ours: the answer to an earlier request was lost
        self._tag = tag
        return None

    def release(self) -> None:
        # A fresh heartbeat first: nobody takes the lock over between it and the removal.
        if self.renew(seconds=_RELEASE_SECONDS) is None:
            self._bucket.remove(self._path, seconds=_RELEASE_SECONDS)


class _Heart:
    """One thread a process that has all locks renewed that it holds, as long as it holds any.

    Each is renewed in a thread of its own: a server that does not answer for one must not cost the others.
    """

    def __init__(self) -> None:
        self._locks: dict[SlideLock, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, lock: SlideLock) -> None:
        """Renew a lock from now on."""
        with self._changed:
            self._locks[lock] = time.monotonic() + lock.interval
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="msdask-heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, lock: SlideLock) -> None:
        """Renew it no more."""
        with self._changed:
            self._locks.pop(lock, None)
            last = None if self._locks else self._thread
            self._changed.notify()
        if last is not None:
            last.join(_JOIN_SECONDS)

    def _beat(self) -> None:
        while True:
            with self._changed:
                if not self._locks:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [lock for lock, at in self._locks.items() if at <= now]
                if not due:
                    self._changed.wait(min(self._locks.values()) - now)
                    continue
                for lock in due:
                    self._locks[lock] = now + lock.interval
            for lock in due:
                threading.Thread(target=lock.beat, name="msdask-beat", daemon=True).start()


@lru_cache(maxsize=1)
def _heart_of(process: int) -> _Heart:
    return _Heart()


def _heart() -> _Heart:
    return _heart_of(os.getpid())  # a forked child has none of its parent's threads


def _refusal(what: str, owner: dict[str, Any], stale_after: float | None = None) -> str:
    wait = f" (a lock without a sign of life for {stale_after:g} s is taken over)" if stale_after is not None else ""
    return f"{what} is being written by {shown(owner)}: wait for it, or stop it{wait}"
