"""Where bytes come from: one small interface over local files and URLs, read by offset from any thread."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from msdask.errors import MsdaskError, SlideError, UnreachableError
from msdask.storage.places import at, is_remote, is_url
from msdask.storage.ranges import RemoteSource, is_url_folder, names_at_url, open_url

__all__ = [
    "ByteSource",
    "LocalSource",
    "SourceFile",
    "fingerprint",
    "is_folder",
    "names",
    "object_version",
    "open_source",
    "parser_file",
]

_MIB = 1 << 20
_SAMPLE = 64 << 10
_SAMPLES = 64
_NO_SUCH_NAME = {errno.ENAMETOOLONG, errno.ELOOP}


class ByteSource(Protocol):
    """A file whose bytes can be read by offset. Thread-safe.

    Attributes
    ----------
    path : as given by the user, or the URL
    size : bytes
    reads_ahead : whether a read is a request to a server, and `prefetch` saves most of them
    """

    path: str
    size: int
    reads_ahead: bool

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer only where the file ended when it was opened.

        Raises
        ------
        UnreachableError
            The bytes cannot be read now: the disk fails, the server does not answer, the file was cut or replaced
            since it was opened, or the source is closed. It is no OSError, so that no parser takes it for damage.
        """
        ...

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (offset, size) ranges, in their order."""
        ...

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read (offset, size) ranges that will be asked for soon, where that saves requests; raises like `read`."""
        ...

    def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Let go of ranges that were prefetched, each for one use."""
        ...

    def state(self) -> tuple[int, ...] | None:
        """Numbers that change when its bytes are written; None where nobody says."""
        ...

    def close(self) -> None:
        """Release the file; reading afterwards raises UnreachableError."""
        ...


class LocalSource:
    """A local file, read by pread: no shared position, and a file cut while open is an error: mmap would kill."""

    reads_ahead = False
    _release = staticmethod(os.close)  # `os` itself may be gone when the interpreter ends

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read`."""
        size = min(size, self.size - offset)  # nothing is allocated by a size that only a header claims
        if size <= 0:
            return b""
        if self._descriptor < 0:
            raise UnreachableError(f"'{self.path}': it was closed before it was read")
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size:  # network file systems and reads above 2 GiB may give less at a time
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise UnreachableError(
                f"'{self.path}': {size} bytes at {offset} cannot be read now ({error.strerror or error}); check the "
                "disk or the network file system, and run again"
            ) from error
        if len(data) < size:
            raise UnreachableError(
                f"'{self.path}' was cut short while it was open: {len(data)} of {size} bytes at {offset} are left; "
                "copy it again"
            )
        return data

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `ByteSource.read_many`."""
        return [self.read(offset, size) for offset, size in ranges]

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: a local file's bytes are all at hand."""

    def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing."""

    def state(self) -> tuple[int, ...] | None:
        """See `ByteSource.state`: size, time of the last change (which nobody can set back), time of the last write."""
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return None
        return found.st_size, found.st_ctime_ns, found.st_mtime_ns

    def close(self) -> None:
        """See `ByteSource.close`."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._release(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


class SourceFile(io.RawIOBase):
    """A ByteSource with a file position, for parsers that want a file object. Not thread-safe.

    Attributes
    ----------
    failure : of the first read that failed
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0
        self.failure: UnreachableError | None = None
        self.name = source.path

    @classmethod
    def buffered(cls, source: ByteSource) -> io.BufferedReader:
        """A buffered file over `source`; blocks are larger where a read is a request to a server."""
        return cls(source).buffer()

    def buffer(self) -> io.BufferedReader:
        """The file behind a buffer."""
        return io.BufferedReader(self, buffer_size=256 << 10 if self._source.reads_ahead else 16 << 10)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position, bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; beyond the end is allowed and reads nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}, before the file's start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; the number of bytes that there were."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Everything from the position to the end."""
        data = self._read(self._source.size)
        self._position += len(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(self._position, size)
        except UnreachableError as error:
            self.failure = self.failure or error
            raise


@contextmanager
def parser_file(source: ByteSource) -> Iterator[io.BufferedReader]:
    """A file for a parser. A read that failed is raised at the end, whatever the parser has made of it.

    Parsers go on without what they cannot read, or take it for damage: tifffile leaves out directories and tags.

    Raises
    ------
    UnreachableError
        A part that the parser asked for cannot be read now.
    """
    raw = SourceFile(source)
    try:
        yield raw.buffer()
    except Exception as error:
        if raw.failure is not None:
            raise raw.failure from error
        raise
    if raw.failure is not None:
        raise raw.failure


def open_source(
    path: str | os.PathLike[str], *, kind: str = "slide", error: type[MsdaskError] = SlideError
) -> LocalSource | RemoteSource:
    """Open a path or URL for reading by offset.

    Parameters
    ----------
    path : local path, or a URL: s3:// and gs:// through obstore, all others through fsspec
    kind : what the file is to the user, for messages: "slide", "mask"
    error : class to raise

    Raises
    ------
    error
        The file is missing, a directory, empty, or of a kind that nothing here opens; names the path and what to do.
    UnreachableError
        It cannot be read now: no permission, no answer from its server, a disk that fails.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise error(f"{kind} {text!r}: expected a path or URL as text")
    try:
        source: LocalSource | RemoteSource
        if is_url(text):
            source = open_url(text)
        else:
            # a pipe would block at open, before anything could be said about it
            mode = os.stat(text).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(text)
            if not stat.S_ISREG(mode):
                raise error(f"{kind} {text!r}: is not a regular file; copy it to one first")
            source = LocalSource(text)
    except (FileNotFoundError, NotADirectoryError) as failure:
        raise error(f"{kind} {text!r}: no such file; check the path") from failure
    except IsADirectoryError as failure:
        raise error(f"{kind} {text!r}: is a directory, expected one file; give the path of a file in it") from failure
    except (OSError, ValueError) as failure:
        # ValueError: a NUL in the path, a URL that nothing here knows
        if isinstance(failure, ValueError) or failure.errno in _NO_SUCH_NAME:
            raise error(f"{kind} {text!r}: cannot be opened ({failure}); check the path") from failure
        raise UnreachableError(
            f"{kind} {text!r}: cannot be opened now ({failure}); check that it may be read, and run again"
        ) from failure
    if source.size == 0:
        source.close()
        raise error(f"{kind} {text!r}: the file is empty (0 bytes); copy it again")
    return source


def is_folder(path: str) -> bool:
    """Whether a path or URL leads to a folder.

    Raises
    ------
    UnreachableError
        Its server cannot be asked now.
    """
    try:
        return is_url_folder(path) if is_url(path) else os.path.isdir(path)
    except OSError as error:
        raise UnreachableError(f"'{path}': cannot be looked at now ({error})") from error


def object_version(path: str) -> tuple[int, int] | None:
    """Two numbers that change when an object in object storage is replaced; None for a folder, and for all else.

    Raises
    ------
    UnreachableError
        Its server cannot be asked now.
    """
    if not is_remote(path):
        return None
    try:
        return at(path).state(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreachableError(f"'{path}': cannot be looked at now ({error})") from error


def names(path: str) -> list[str]:
    """Names of what lies directly in a folder, sorted.

    Raises
    ------
    OSError
        It cannot be listed.
    """
    return sorted(names_at_url(path) if is_url(path) else os.listdir(path))


_known: WeakKeyDictionary[ByteSource, tuple[tuple[int, ...], str]] = WeakKeyDictionary()
"""Fingerprints of open sources, with the state that they had before they were read."""


def fingerprint(source: ByteSource, directories: Iterable[tuple[int, int]] = (), *, extra: Iterable[bytes] = ()) -> str:
    """Identity of a file's content without reading all of it, the same locally and over a URL.

    Of a source that says that it has not changed it is computed once.

    SHA-256 over the size, the directories (or the first KiB where there are none), `extra`, the first and last MiB,
    and 64 ranges of 64 KiB at offsets that depend on the size alone.

    Parameters
    ----------
    source : the file
    directories : (offset, size) of the file's directories, such as a TIFF's IFDs
    extra : facts already read from the file, such as the byte counts of its tiles

    Returns
    -------
    digest : 64 hexadecimal digits

    Raises
    ------
    UnreachableError
        The bytes cannot be read now.
    """
    state = source.state()
    if state is not None and (known := _known.get(source)) is not None and known[0] == state:
        return known[1]
    size = source.size
    ranges = [*directories] or [(0, 1024)]
    ranges += [(0, _MIB), (max(0, size - _MIB), _MIB)]
    for index in range(_SAMPLES):
        # a hash and not a random generator, whose stream a new version of a library may change
        draw = hashlib.sha256(f"msdask fingerprint 1 {size} {index}".encode()).digest()
        ranges.append((int.from_bytes(draw[:8], "big") % max(1, size - _SAMPLE + 1), _SAMPLE))
    digest = hashlib.sha256(f"{size}".encode())
    for fact in extra:
        digest.update(len(fact).to_bytes(8, "big") + fact)
    if size <= sum(length for _, length in ranges):  # a small file: its ranges overlap
        whole = memoryview(source.read(0, size))
        parts: Iterable[bytes | memoryview] = (whole[start : start + length] for start, length in ranges)
    else:
        parts = source.read_many(ranges)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    found = digest.hexdigest()
    if state is not None:
        _known[source] = state, found
    return found
