"""Files behind URLs, read by byte ranges: neighbouring ranges in one request, a few requests at a time, never whole."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msdask.errors import StoreError, UnreachableError
from msdask.storage import places
from msdask.storage.patience import PassingError, is_passing, persist

__all__ = [
    "READ_AHEAD",
    "ObjectSource",
    "RemoteSource",
    "UrlSource",
    "coalesce",
    "is_url_folder",
    "names_at_url",
    "open_url",
]

READ_AHEAD = 32 << 20
"""Bytes that one reader asks for at once, before it needs them."""
_GAP = 64 << 10
"""Bytes between two ranges that cost less to read than another request does."""
_MOST = 8 << 20
"""Bytes of one request: several are in flight, and one that fails costs no more."""
_MOST_HELD = 256 << 20
_REQUESTS = 8
T = TypeVar("T")


def coalesce(
    ranges: Sequence[tuple[int, int]], *, gap: int = _GAP, most: int = _MOST
) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Ranges that lie close to each other, put together.

    Parameters
    ----------
    ranges : (offset, size), in any order, repeated or overlapping
    gap : bytes between two ranges below which they are read as one
    most : bytes of one request, unless a single range is larger

    Returns
    -------
    requests : (offset, size, ranges inside), by offset

    >>> coalesce([(0, 10), (1000, 10), (20, 5)], gap=100)
    [(0, 25, [(0, 10), (20, 5)]), (1000, 10, [(1000, 10)])]
    """
    requests: list[tuple[int, int, list[tuple[int, int]]]] = []
    for offset, size in sorted(set(ranges)):
        if requests:
            start, length, inside = requests[-1]
            end = max(start + length, offset + size)
            if offset - (start + length) < gap and end - start <= most:
                requests[-1] = (start, end - start, [*inside, (offset, size)])
                continue
        requests.append((offset, size, [(offset, size)]))
    return requests


class RemoteSource:
    """A `ByteSource` where a read is a request to a server. Subclasses give `path`, `size` and `_fetch`."""

    path: str
    size: int
    reads_ahead = True

    def __init__(self) -> None:
        self._is_closed = False
        self._held: OrderedDict[tuple[int, int], tuple[bytes, int]] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def _fetch(self, offset: int, size: int) -> bytes:
        """One request, repeated while it fails in a way that may pass; the range lies inside the file. OSError."""
        raise NotImplementedError

    def read(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read`; what was prefetched costs no request."""
        size = min(size, self.size - offset)
        if self._is_closed:
            raise UnreachableError(f"'{self.path}': it was closed before it was read")
        if size <= 0:
            return b""
        held = self._take((offset, size))
        return self._fetched((offset, size)) if held is None else held

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `ByteSource.read_many`; close ones in one request, several requests at a time."""
        self.prefetch(ranges)
        return [self.read(offset, size) for offset, size in ranges]

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read ranges that will be asked for soon, exactly as given, and hold each until it was."""
        if self._is_closed:
            return
        inside = [(offset, min(size, self.size - offset)) for offset, size in ranges]
        wanted = [(offset, size) for offset, size in inside if offset >= 0 and size > 0]
        requests = coalesce(wanted)
        uses: dict[tuple[int, int], int] = {}
        for key in wanted:
            uses[key] = uses.get(key, 0) + 1
        for (start, _, parts), data in zip(requests, self._fetch_all(requests), strict=True):
            for offset, size in parts:
                part = data[offset - start : offset - start + size]
                if len(part) == size:
                    self._hold((offset, size), part, uses[offset, size])

    def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Let go of (offset, size) ranges that were prefetched, each for one use."""
        for offset, size in ranges:
            self._take((offset, min(size, self.size - offset)))

    def state(self) -> tuple[int, ...] | None:
        """See `ByteSource.state`: a server is asked only for bytes."""
        return None

    def close(self) -> None:
        """See `ByteSource.close`."""
        self._is_closed = True
        with self._lock:
            self._held.clear()
            self._held_bytes = 0

    def _fetch_all(self, requests: Sequence[tuple[int, int, Any]]) -> list[bytes]:
        if len(requests) < 2:
            return [self._fetched(request) for request in requests]
        with ThreadPoolExecutor(min(_REQUESTS, len(requests)), thread_name_prefix="msdask-request") as pool:
            return list(pool.map(self._fetched, requests))

    def _fetched(self, request: tuple[int, int] | tuple[int, int, Any]) -> bytes:
        offset, size = request[:2]
        try:
            data = self._fetch(offset, size)
        except OSError as error:
            raise UnreachableError(f"cannot be read now: {_named(self.path, error)}") from error
        if len(data) != size:
            raise UnreachableError(f"cannot be read now: '{self.path}' gave {len(data)} of {size} bytes at {offset}")
        return data

    def _hold(self, key: tuple[int, int], data: bytes, uses: int) -> None:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                self._held_bytes += len(data)
            self._held[key] = (data, uses + (held[1] if held else 0))
            # what a block that failed has left behind goes first
            while self._held_bytes > _MOST_HELD:
                self._held_bytes -= len(self._held.popitem(last=False)[1][0])

    def _take(self, key: tuple[int, int]) -> bytes | None:
        with self._lock:
            held = self._held.pop(key, None)
            if held is None:
                return None
            data, uses = held
            if uses > 1:
                self._held[key] = (data, uses - 1)
            else:
                self._held_bytes -= len(data)
            return data


class UrlSource(RemoteSource):
    """A file behind any fsspec URL (http, s3, gs, memory ...)."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.path = url
        self._fs, self._key = _file_system(url)
        info = persist(_server(url), lambda: _asked(lambda: self._fs.info(self._key)))
        if info.get("type") == "directory":
            raise IsADirectoryError(url)
        if info.get("size") is None:
            raise OSError("the server does not say how large the file is")
        self.size = int(info["size"])

    def _fetch(self, offset: int, size: int) -> bytes:
        return persist(_server(self.path), lambda: self._fetch_once(offset, size))

    def _fetch_once(self, offset: int, size: int) -> bytes:
        data: bytes = _asked(lambda: self._fs.cat_file(self._key, start=offset, end=offset + size))
        if len(data) > size:  # a server that ignores Range sends everything
            raise OSError(
                f"asked for {size} bytes at {offset}, the server sent {len(data)}: it does not serve byte ranges"
            )
        if len(data) < size:
            raise PassingError(f"the server sent {len(data)} of {size} bytes at {offset}")
        return data


class ObjectSource(RemoteSource):
    """A file in object storage (s3, gs), by the settings of `msdask.storage`; one version of it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.path = url
        try:
            self._bucket = places.bucket(url)
        except StoreError as error:
            raise ValueError(str(error)) from error
        self._version = self._bucket.object_state(url)
        self.size = self._version.size

    def _fetch(self, offset: int, size: int) -> bytes:
        return self._bucket.read_range(self.path, offset, size, version=self._version)


def open_url(url: str) -> RemoteSource:
    """The file behind a URL.

    Raises
    ------
    FileNotFoundError
        There is none.
    OSError
        It cannot be reached now.
    ValueError
        Nothing here knows such URLs, or what they need is not installed.
    """
    return ObjectSource(url) if places.is_remote(url) else UrlSource(url)


def is_url_folder(url: str) -> bool:
    """Whether something lies below a URL; False where nothing here knows such URLs.

    Raises
    ------
    OSError
        It cannot be said now.
    """
    try:
        if places.is_remote(url):
            return places.at(url).is_folder(url)
        file_system, key = _file_system(url)
    except (ValueError, StoreError):
        return False
    return persist(_server(url), lambda: _asked(lambda: bool(file_system.isdir(key))))


def names_at_url(url: str) -> list[str]:
    """Names of what lies directly below a URL; raises OSError."""
    try:
        if places.is_remote(url):
            return places.bucket(url).names(url)
        file_system, key = _file_system(url)
    except (ValueError, StoreError) as error:
        raise OSError(str(error)) from error
    found = persist(_server(url), lambda: _asked(lambda: file_system.ls(key, detail=False)))
    return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in found]


def _file_system(url: str) -> tuple[Any, str]:
    """What fsspec reads a URL with, and its name there.

    Raises
    ------
    ValueError
        fsspec knows no such URLs, or what they need is not installed.
    """
    import fsspec

    try:
        file_system, key = fsspec.core.url_to_fs(url)
    except (ImportError, KeyError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    return file_system, key


def _server(url: str) -> str:
    """A URL as it may be shown: what follows the question mark may be a signature."""
    return url.split("?", 1)[0]


def _named(path: str, error: OSError) -> str:
    """What an error says, with the file's name in front, unless that is in it."""
    shown = _server(path)
    return str(error) if shown in str(error) else f"'{shown}': {error}"


def _asked(request: Callable[[], T]) -> T:
    """The answer to a request through fsspec; Python's own errors in place of those of the clients behind it."""
    try:
        return request()
    except _url_errors() as error:
        raise _as_os_error(error) from error


def _url_errors() -> tuple[type[BaseException], ...]:
    """What fsspec and the clients behind it raise; theirs only where they are loaded."""
    errors: list[type[BaseException]] = [OSError, ValueError, KeyError, ImportError, RuntimeError]
    for module, name in (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _as_os_error(error: BaseException) -> OSError:
    """An error of fsspec or of a client behind it; PassingError where the same request may be answered later."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        cause = _as_os_error(error.__cause__)  # fsspec says of every URL that cannot be asked that it is missing
        if not isinstance(cause, FileNotFoundError):
            return cause
    status = getattr(error, "status", None)
    if isinstance(status, int):
        text = f"{status} {getattr(error, 'message', '')}".strip()
        if status in (404, 410):
            return FileNotFoundError(text)
        if status in (401, 403):
            return PermissionError(f"access denied ({text}); check that the URL may be read, and its signature")
        return PassingError(f"the server says: {text}") if is_passing(status) else OSError(f"the server says: {text}")
    is_answer = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, ImportError))
    if not is_answer and _is_of_network(error):
        return PassingError(f"no answer from the server: {type(error).__name__}: {error}")
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


def _is_of_network(error: BaseException) -> bool:
    """Whether an error says that a server could not be reached, or that its answer broke off."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(
        module in sys.modules and isinstance(error, getattr(sys.modules[module], name))
        for module, name in (("aiohttp", "ClientConnectionError"), ("aiohttp", "ClientPayloadError"))
    )
