"""Object storage, S3 (any server that speaks its protocol) and Google's, through obstore; imported only when needed."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import GCSStore, S3Store

from msdask.errors import StoreError
from msdask.storage.bucket_errors import as_os_error, has_status, is_whole_answer
from msdask.storage.local import PutAt
from msdask.storage.patience import PassingError, patience, persist

__all__ = ["Bucket", "ObjectState", "connect"]

T = TypeVar("T")

_TIMEOUT = "120s"
"""Of one request: a shard of 64 MiB may be on its way for a while."""
_QUICK_TIMEOUT = "10s"
"""Of a request about a lock: a few hundred bytes, and an answer that comes too late is worth nothing."""
_NO_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}
"""Of clients of this module: `persist` repeats requests, by one policy, and says so."""
_MANY = 1000
_NO_SUCH_RANGE = 416
_DEFAULT_REGION = "us-east-1"
_MIN_BUCKET_NAME = 3


@dataclass(frozen=True, slots=True)
class ObjectState:
    """One version of an object.

    Attributes
    ----------
    tag : names the version (ETag; a generation on gs://)
    modified : time of its last write by the server's clock
    size : bytes
    """

    tag: str
    modified: datetime
    size: int


def connect(scheme: str, name: str, options: Mapping[str, Any]) -> Bucket:
    """The bucket, with one client a process and setting.

    The settings are `options` before the environment (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION,
    AWS_DEFAULT_REGION); credentials are the environment's alone.
    """
    if len(name) < _MIN_BUCKET_NAME:
        raise StoreError(f"'{scheme}://{name}': the name of a bucket has 3 letters or more; check the URL")
    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "GOOGLE_"))))
    return _connect(scheme, name, tuple(sorted(options.items())), environment)


@lru_cache(maxsize=32)
def _connect(
    scheme: str, name: str, options: tuple[tuple[str, Any], ...], environment: tuple[tuple[str, str], ...]
) -> Bucket:
    return Bucket(scheme, name, _Settings.of(dict(options), dict(environment)))


@dataclass(frozen=True, slots=True)
class _Settings:
    endpoint: str | None
    region: str
    is_anonymous: bool
    """Whether requests are not signed."""

    @classmethod
    def of(cls, options: Mapping[str, Any], environment: Mapping[str, str]) -> _Settings:
        def first(*names: str) -> str | None:
            return next((environment[name] for name in names if environment.get(name)), None)

        endpoint = options.get("endpoint") or first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        region = options.get("region") or first("AWS_REGION", "AWS_DEFAULT_REGION") or _DEFAULT_REGION
        return cls(endpoint, region, bool(options.get("anonymous")))


@dataclass(frozen=True, slots=True)
class _Object:
    """See `msdask.storage.places.OpenFile`: each read is one request, unless the object was fetched `whole`."""

    bucket: Bucket
    path: str
    whole: bytes | None

    def read_end(self, length: int) -> tuple[bytes, int]:
        """See `OpenFile.read_end`."""
        if self.whole is None:
            return self.bucket.read_end(self.path, length)
        return self.whole[-length:], len(self.whole)

    def read_into(self, offset: int, parts: Sequence[memoryview]) -> int:
        """See `OpenFile.read_into`."""
        size, done = sum(part.nbytes for part in parts), 0
        data = memoryview(self.bucket.read_range(self.path, offset, size) if self.whole is None else self.whole)
        data = data[offset if self.whole is not None else 0 :]
        for part in parts:
            some = data[done : done + part.nbytes]
            part.cast("B")[: len(some)] = some
            done += len(some)
        return done


class Bucket:
    """See `msdask.storage.Storage`; and what only object storage has: writes that depend on what is there."""

    requests = 16

    def __init__(self, scheme: str, name: str, settings: _Settings) -> None:
        self.scheme, self.name, self._settings = scheme, name, settings
        self._store = self._client("", _TIMEOUT)
        self._quick = self._client("", _QUICK_TIMEOUT)

    def client(self, prefix: str) -> S3Store | GCSStore:
        """A client of obstore for everything below `prefix`, for others: it repeats requests for as long as we do."""
        pauses = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2}
        retries = {"max_retries": _MANY, "retry_timeout": timedelta(seconds=min(patience(), 1e6)), "backoff": pauses}
        return self._client(prefix, _TIMEOUT, retries)

    def _client(self, prefix: str, timeout: str, retries: Any = _NO_RETRIES) -> S3Store | GCSStore:
        settings = self._settings
        allow_http = self.scheme == "s3" and (settings.endpoint or "").startswith("http://")
        options: Any = {"timeout": timeout, "connect_timeout": "10s", "allow_http": allow_http}
        if self.scheme == "gs":
            return GCSStore(self.name, prefix=prefix or None, client_options=options, retry_config=retries)
        return S3Store(
            self.name,
            prefix=prefix or None,
            endpoint=settings.endpoint,
            region=settings.region,
            skip_signature=settings.is_anonymous,
            client_options=options,
            retry_config=retries,
        )

    def key(self, path: str) -> str:
        """What the bucket calls the object at a path."""
        return path[len(f"{self.scheme}://{self.name}/") :]

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        return self._read(self._store, path)[0]

    def _read(self, store: Any, path: str, seconds: float | None = None) -> tuple[bytes, Any]:
        """An object and its facts. Asked for as a range: only then an answer says how long the whole is."""
        key = self.key(path)

        def request() -> tuple[bytes, Any]:
            try:
                found = obstore.get(store, key, options={"range": {"offset": 0}})
            except exceptions.BaseError as error:
                if not (has_status(error, _NO_SUCH_RANGE) or is_whole_answer(error)):
                    raise
                facts = obstore.head(store, key)
                if int(facts["size"]) == 0:  # servers refuse a range of nothing
                    return b"", facts
                try:
                    found = obstore.get(store, key, options=self._if_still(self._tag(facts)))
                except exceptions.PreconditionError as changed:
                    raise PassingError("it was replaced while it was read") from changed
                return _whole(bytes(found.bytes()), int(facts["size"])), facts
            return _whole(bytes(found.bytes()), int(found.meta["size"])), found.meta

        return self._ask(path, request, seconds=seconds)

    def read_range(self, path: str, offset: int, size: int, *, version: ObjectState | None = None) -> bytes:
        """`size` bytes from `offset`, fewer only where the object ends; one request.

        Parameters
        ----------
        version : that must be there still; None takes any

        Raises
        ------
        OSError
            Also where another version is there.
        """
        if size <= 0:
            return b""

        def request() -> bytes:
            options: Any = {"range": (offset, offset + size)}
            if version is not None:
                options |= self._if_still(version.tag)
            try:
                found = obstore.get(self._store, self.key(path), options=options)
            except (exceptions.PreconditionError, FileNotFoundError) as error:
                if version is None or (isinstance(error, FileNotFoundError) and self.scheme == "s3"):
                    raise
                raise OSError(f"'{path}' was replaced while it was read: run again") from error
            total = int(found.meta["size"])
            if version is not None and total != version.size:
                raise PassingError(f"the server says that it has {total} bytes, and said {version.size} before")
            return _whole(bytes(found.bytes()), min(size, total - offset))

        return self._ask(path, request)

    def _if_still(self, tag: str) -> Any:
        """Options of a GET that is answered only if this version is there."""
        return {"if_match": tag} if self.scheme == "s3" else {"version": tag}

    @contextmanager
    def opened(self, path: str, *, whole: bool = False) -> Iterator[_Object]:
        """See `Storage.opened`."""
        yield _Object(self, path, self.read(path) if whole else None)

    def read_end(self, path: str, length: int) -> tuple[bytes, int]:
        """See `OpenFile.read_end`."""

        def request() -> tuple[bytes, int]:
            try:
                found = obstore.get(self._store, self.key(path), options={"range": {"suffix": length}})
            except exceptions.BaseError as error:
                if not (has_status(error, _NO_SUCH_RANGE) or is_whole_answer(error)):
                    raise
                if int(obstore.head(self._quick, self.key(path))["size"]) == 0:  # servers refuse a range of nothing
                    return b"", 0
                raise
            size = int(found.meta["size"])
            return _whole(bytes(found.bytes()), min(length, size)), size

        return self._ask(path, request)

    def read_state(self, path: str, *, seconds: float | None = None) -> tuple[bytes, ObjectState]:
        """A small object and its version, as one."""
        data, facts = self._read(self._quick, path, seconds)
        return data, self._state(facts)

    def object_state(self, path: str) -> ObjectState:
        """An object's version."""
        return self._state(self._ask(path, lambda: obstore.head(self._quick, self.key(path))))

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return self.object_state(path).size

    def write(self, path: str, parts: Sequence[bytes | memoryview], *, sync: bool = False) -> None:
        """See `Storage.write`; one PUT."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._ask(path, lambda: obstore.put(self._store, self.key(path), data, use_multipart=False))

    @contextmanager
    def placed(self, path: str, size: int | None) -> Iterator[PutAt]:
        """See `Storage.placed`: pieces are put together in memory, then sent in one PUT."""
        whole, lock = io.BytesIO(), threading.Lock()

        def put_at(offset: int, parts: Sequence[bytes | memoryview]) -> None:
            with lock:
                whole.seek(offset)
                whole.writelines(parts)

        yield put_at
        self.write(path, [whole.getbuffer()])

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Write a small object unless there is one: the tag of the version written, or None.

        None also where the answer to a first request was lost: look whether what is there is one's own.
        """
        with suppress(exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return self._tag(self._ask(path, lambda: obstore.put(self._quick, self.key(path), data, mode="create")))
        return None

    def replace_if(self, path: str, data: bytes, tag: str, *, seconds: float | None = None) -> str | None:
        """Replace one version of a small object: the new version's tag, or None if another one is there by now."""
        version: Any = {"e_tag": tag} if self.scheme == "s3" else {"version": tag}
        with suppress(exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
            found = self._ask(
                path, lambda: obstore.put(self._quick, self.key(path), data, mode=version), seconds=seconds
            )
            return self._tag(found)
        return None

    def folders(self, path: str) -> list[str]:
        """See `Storage.folders`."""
        found = self._ask(path, lambda: obstore.list_with_delimiter(self._store, self.key(path)))
        return sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in found["common_prefixes"])

    def names(self, path: str) -> list[str]:
        """Names of the objects and folders directly below `path`."""
        found = self._ask(path, lambda: obstore.list_with_delimiter(self._store, self.key(path)))
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return [key.rstrip("/").rsplit("/", 1)[-1] for key in keys]

    def is_folder(self, path: str) -> bool:
        """See `Storage.is_folder`."""
        return self._ask(
            path, lambda: any(len(some) > 0 for some in obstore.list(self._store, self.key(path), chunk_size=1))
        )

    def is_taken(self, path: str) -> bool:
        """See `Storage.is_taken`."""
        return self.is_folder(path)

    def size_below(self, path: str) -> int:
        """See `Storage.size_below`."""

        def request() -> int:
            return sum(int(entry["size"]) for some in obstore.list(self._store, self.key(path)) for entry in some)

        return self._ask(path, request)

    def remove(self, path: str, *, seconds: float | None = None) -> None:
        """See `Storage.remove`."""
        with suppress(FileNotFoundError):
            self._ask(path, lambda: obstore.delete(self._quick, self.key(path)), seconds=seconds)

    def remove_tree(self, path: str) -> None:
        """See `Storage.remove_tree`."""

        def request() -> None:
            for some in obstore.list(self._store, self.key(path)):
                obstore.delete(self._store, [str(entry["path"]) for entry in some])

        self._ask(path, request)

    def links(self, path: str) -> list[str]:
        """See `Storage.links`: there are none."""
        return []

    def replace_tree(self, source: str, target: str) -> None:
        """See `Storage.replace_tree`: copies that the server makes, all documents' own last."""
        self.remove(f"{target}/zarr.json")
        begin, goal = self.key(source), self.key(target)
        names = [key[len(begin) :] for key in self._keys_below(source)]
        for stale in sorted({key[len(goal) :] for key in self._keys_below(target)} - set(names)):
            self.remove(target + stale)
        with ThreadPoolExecutor(self.requests) as pool:
            rest = [name for name in names if name != "/zarr.json"]
            deque(pool.map(lambda name: self._copy(source + name, target + name), rest), maxlen=0)
        self._copy(f"{source}/zarr.json", f"{target}/zarr.json")
        self.remove_tree(source)

    def _keys_below(self, path: str) -> list[str]:
        def request() -> list[str]:
            found = obstore.list(self._store, f"{self.key(path)}/")
            return [str(entry["path"]) for some in found for entry in some]

        return self._ask(path, request)

    def _copy(self, source: str, target: str) -> None:
        self._ask(source, lambda: obstore.copy(self._store, self.key(source), self.key(target)))

    def remove_leftovers(self, path: str) -> None:
        """Nothing: a PUT that was interrupted leaves nothing."""

    def state(self, path: str) -> tuple[int, int]:
        """See `Storage.state`: a digest of the ETag, and the time of the last write, s."""
        found = self.object_state(path)
        digest = hashlib.sha256(found.tag.encode()).digest()
        return int.from_bytes(digest[:8], "big"), int(found.modified.timestamp())

    def sync(self, path: str) -> None:
        """Nothing: a PUT that was answered is stored."""

    def _state(self, meta: Any) -> ObjectState:
        return ObjectState(self._tag(meta), meta["last_modified"], int(meta["size"]))

    def _tag(self, meta: Any) -> str:
        return str(meta["e_tag"] if self.scheme == "s3" else meta["version"])

    def _ask(self, path: str, request: Callable[[], T], *, seconds: float | None = None) -> T:
        """Make a request, repeated while the server cannot answer; Python's own errors in place of obstore's."""

        def once() -> T:
            try:
                return request()
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise  # answers to what was asked
            except PassingError as error:
                raise PassingError(f"'{path}': {error}") from error
            except (exceptions.BaseError, FileNotFoundError) as error:
                raise as_os_error(path, error, server=self._settings.endpoint) from error

        return persist(f"{self.scheme}://{self.name}", once, seconds=seconds)


def _whole(data: bytes, expected: int) -> bytes:
    """`data`, if it is as long as the server said: proxies cut answers short without an error."""
    if len(data) != max(0, expected):
        raise PassingError(f"the server sent {len(data)} of {max(0, expected)} bytes")
    return data
