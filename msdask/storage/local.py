"""Folders of this machine, or of a file system that it has mounted."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Self

__all__ = ["LocalFolders", "PutAt", "local"]

PutAt = Callable[[int, Sequence[bytes | memoryview]], None]
"""Writes parts, one behind the other, from an offset on."""

_MOST_PARTS = 1024
"""Pieces of one gathered write: the least that POSIX systems of today take."""
_SYNC_THREADS = 16
_SYNC_FILE_RANGE_WRITE = 2
_LARGE = 2**20
"""Bytes from which on a file is worth a word to the disk."""
_CHANGED_MEANWHILE = {errno.ENOTEMPTY, errno.ENOENT}
_PAUSES = (0.01, 0.1, 0.5, 2.0, 5.0, None)
"""s between tries to remove a folder that files are still put into; None: the last try."""


@dataclass(frozen=True, slots=True)
class _LocalFile:
    """See `msdask.storage.places.OpenFile`."""

    handle: int

    # The file closes itself: a generator for that takes as long as opening it.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self.handle)

    def read_end(self, length: int) -> tuple[bytes, int]:
        """See `OpenFile.read_end`."""
        size = os.fstat(self.handle).st_size
        return os.pread(self.handle, length, max(0, size - length)), size

    def read_into(self, offset: int, parts: Sequence[memoryview]) -> int:
        """See `OpenFile.read_into`: into place, without a copy."""
        return os.preadv(self.handle, parts, offset)


class LocalFolders:
    """Folders of this machine, or of a file system that it has mounted."""

    requests = 1

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with open(path, "rb") as stream:
            return stream.read()

    def opened(self, path: str, *, whole: bool = False) -> _LocalFile:
        """See `Storage.opened`."""
        return _LocalFile(os.open(path, os.O_RDONLY))

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return os.path.getsize(path)

    def write(self, path: str, parts: Sequence[bytes | memoryview], *, sync: bool = False) -> None:
        """Write under a temporary name, gathered from the parts without joining them, and rename."""
        with self.placed(path, sync=sync) as put_at:
            put_at(0, parts)

    @contextmanager
    def placed(self, path: str, size: int | None = None, *, sync: bool = False) -> Iterator[PutAt]:
        """See `Storage.placed`: pieces go straight to their places in a file under a temporary name."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            yield partial(_write_at, handle)
            if sync:
                os.fsync(handle)
            elif os.fstat(handle).st_size >= _LARGE:
                _begin_writing_out(handle)
        except BaseException:
            os.close(handle)
            os.unlink(part)
            raise
        os.close(handle)
        os.replace(part, path)

    def folders(self, path: str) -> list[str]:
        """See `Storage.folders`; links are none: what lies elsewhere is no part of a store."""
        if not os.path.isdir(path):
            return []
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))

    def names(self, path: str) -> list[str]:
        """See `Storage.names`."""
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def is_folder(self, path: str) -> bool:
        """See `Storage.is_folder`; an empty folder is one too."""
        return os.path.isdir(path)

    def is_taken(self, path: str) -> bool:
        """See `Storage.is_taken`; what others are writing at this moment does not count yet."""
        if not os.path.isdir(path):
            return os.path.lexists(path)
        return any(not name.endswith(".part") for name in os.listdir(path))

    def links(self, path: str) -> list[str]:
        """See `Storage.links`."""
        if os.path.islink(path):
            return [path]
        found = (os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files))
        return sorted(name for name in found if os.path.islink(name))

    def replace_tree(self, source: str, target: str) -> None:
        """See `Storage.replace_tree`: two renames, with what was there set aside beside `source` between them."""
        aside = os.path.join(os.path.dirname(source), f".{os.path.basename(source)}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.lexists(target):
            os.rename(target, aside)
        os.rename(source, target)
        for folder in (os.path.dirname(target), os.path.dirname(source)):
            _sync_one(folder)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # what others build there stays
            os.removedirs(os.path.dirname(source))

    def size_below(self, path: str) -> int:
        """See `Storage.size_below`."""
        return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, files in os.walk(path) for name in files)

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        Path(path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """See `Storage.remove_tree`; waits a few seconds for somebody who was stopped and still puts files there."""
        for pause in _PAUSES:
            try:
                shutil.rmtree(path)
            except OSError as error:
                was_never_there = error.errno == errno.ENOENT and error.filename == path
                if pause is None or was_never_there or error.errno not in _CHANGED_MEANWHILE:
                    raise
                time.sleep(pause)
            else:
                return

    def remove_leftovers(self, path: str) -> None:
        """See `Storage.remove_leftovers`; TensorStore, which wrote in older versions, renames `<name>.__lock`."""
        for folder, _, files in os.walk(path):
            for name in files:
                if name.endswith((".__lock", ".part")):
                    Path(folder, name).unlink(missing_ok=True)

    def state(self, path: str) -> tuple[int, int]:
        """See `Storage.state`: time of the last change, ns, and inode."""
        found = os.stat(path)
        return found.st_mtime_ns, found.st_ino

    def sync(self, path: str) -> None:
        """Flush every file and directory below `path` to disk: once a slide, before its commit.

        Side by side, since a file system then commits many in one go: 0.02 s instead of 0.2 s for a slide of 50 files.
        """
        names = [os.path.join(folder, name) for folder, _, files in os.walk(path) for name in (*files, ".")]
        # A share of them a thread: a task a file takes longer than the file where the disk is quick.
        deque(_sync_pool().map(_sync_all, [names[k::_SYNC_THREADS] for k in range(_SYNC_THREADS)]), maxlen=0)


@cache
def _sync_pool() -> ThreadPoolExecutor:
    """Threads that wait for the disk, for all slides of this process."""
    return ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="msdask-sync")


_LOCAL = LocalFolders()


def local() -> LocalFolders:
    """Folders of this machine."""
    return _LOCAL


def _write_at(handle: int, offset: int, parts: Sequence[bytes | memoryview]) -> None:
    """One gathered write, or as many as it takes."""
    for first in range(0, len(parts), _MOST_PARTS):
        some = parts[first : first + _MOST_PARTS]
        size = sum(map(len, some))
        done = os.pwritev(handle, some, offset)
        if done < size:  # a signal or a full disk: the rest, which raises if there is no room
            rest = memoryview(b"".join(some))[done:]
            while rest:
                written = os.pwrite(handle, rest, offset + size - len(rest))
                rest = rest[written:]
        offset += size


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call that lets the disk begin; None elsewhere."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


def _begin_writing_out(handle: int) -> None:
    """Let the disk begin with a file, so that the sync before the commit has less to wait for: a hint, which may fail.

    Errors of the disk stay for that sync to find.
    """
    function = _sync_file_range()
    if function is not None:
        function(handle, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _sync_all(paths: Sequence[str]) -> None:
    for path in paths:
        _sync_one(path)


def _sync_one(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
