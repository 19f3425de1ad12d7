"""Object storage, S3 (any server that speaks its protocol) and Google's, through obstore; imported only when needed."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import GCSStore, S3Store

from msdask.errors import StoreError
from msdask.storage.local import PutAt

__all__ = ["Bucket", "ObjectState", "connect"]

_TIMEOUT = "120s"
"""Of one request: a shard of 64 MiB may be on its way for a while."""
_RETRIES: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}
_DEFAULT_REGION = "us-east-1"
_MIN_BUCKET_NAME = 3


@dataclass(frozen=True, slots=True)
class ObjectState:
    """One version of an object.

    Attributes
    ----------
    tag : names the version (ETag; a generation on gs://)
    modified : time of its last write by the server's clock
    """

    tag: str
    modified: datetime


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
        self._store = self.client("")

    def client(self, prefix: str) -> S3Store | GCSStore:
        """A client of obstore for everything below `prefix`."""
        settings = self._settings
        if self.scheme == "gs":
            return GCSStore(self.name, prefix=prefix or None, client_options={"timeout": _TIMEOUT})
        allow_http = (settings.endpoint or "").startswith("http://")
        return S3Store(
            self.name,
            prefix=prefix or None,
            endpoint=settings.endpoint,
            region=settings.region,
            skip_signature=settings.is_anonymous,
            client_options={"allow_http": allow_http, "timeout": _TIMEOUT, "connect_timeout": "10s"},
            retry_config=_RETRIES,
        )

    def key(self, path: str) -> str:
        """What the bucket calls the object at a path."""
        return path[len(f"{self.scheme}://{self.name}/") :]

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with self._errors(path):
            return bytes(obstore.get(self._store, self.key(path)).bytes())

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only where the object ends; one request."""
        with self._errors(path):
            return bytes(obstore.get_range(self._store, self.key(path), start=offset, length=size))

    @contextmanager
    def opened(self, path: str, *, whole: bool = False) -> Iterator[_Object]:
        """See `Storage.opened`."""
        yield _Object(self, path, self.read(path) if whole else None)

    def read_end(self, path: str, length: int) -> tuple[bytes, int]:
        """See `OpenFile.read_end`."""
        with self._errors(path):
            try:
                found = obstore.get(self._store, self.key(path), options={"range": {"suffix": length}})
                return bytes(found.bytes()), int(found.meta["size"])
            except exceptions.BaseError:
                if self.size(path) == 0:  # servers refuse a range of nothing
                    return b"", 0
                raise

    def read_state(self, path: str) -> tuple[bytes, ObjectState]:
        """An object and its version, as one."""
        with self._errors(path):
            found = obstore.get(self._store, self.key(path))
            return bytes(found.bytes()), self._state(found.meta)

    def object_state(self, path: str) -> ObjectState:
        """An object's version."""
        with self._errors(path):
            return self._state(obstore.head(self._store, self.key(path)))

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        with self._errors(path):
            return int(obstore.head(self._store, self.key(path))["size"])

    def write(self, path: str, parts: Sequence[bytes | memoryview], *, sync: bool = False) -> None:
        """See `Storage.write`; one PUT."""
        with self._errors(path):
            obstore.put(self._store, self.key(path), b"".join(parts), use_multipart=False)

    @contextmanager
    def placed(self, path: str, size: int) -> Iterator[PutAt]:
        """See `Storage.placed`: pieces are put together in memory, then sent in one PUT."""
        whole = memoryview(bytearray(size))

        def put_at(offset: int, parts: Sequence[bytes | memoryview]) -> None:
            for part in parts:
                whole[offset : offset + len(part)] = part
                offset += len(part)

        yield put_at
        with self._errors(path):
            obstore.put(self._store, self.key(path), whole, use_multipart=False)

    def put_if_absent(self, path: str, data: bytes) -> str | None:
        """Write an object unless there is one: the tag of the version written, or None."""
        with self._errors(path):
            try:
                return self._tag(obstore.put(self._store, self.key(path), data, mode="create"))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return None

    def replace_if(self, path: str, data: bytes, tag: str) -> str | None:
        """Replace one version of an object: the new version's tag, or None if another one is there by now."""
        version: Any = {"e_tag": tag} if self.scheme == "s3" else {"version": tag}
        with self._errors(path):
            try:
                return self._tag(obstore.put(self._store, self.key(path), data, mode=version))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
                return None

    def folders(self, path: str) -> list[str]:
        """See `Storage.folders`."""
        with self._errors(path):
            found = obstore.list_with_delimiter(self._store, self.key(path))
            return sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in found["common_prefixes"])

    def names(self, path: str) -> list[str]:
        """Names of the objects and folders directly below `path`."""
        with self._errors(path):
            found = obstore.list_with_delimiter(self._store, self.key(path))
            keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
            return [key.rstrip("/").rsplit("/", 1)[-1] for key in keys]

    def is_folder(self, path: str) -> bool:
        """See `Storage.is_folder`."""
        with self._errors(path):
            return any(len(some) > 0 for some in obstore.list(self._store, self.key(path), chunk_size=1))

    def is_taken(self, path: str) -> bool:
        """See `Storage.is_taken`."""
        return self.is_folder(path)

    def size_below(self, path: str) -> int:
        """See `Storage.size_below`."""
        with self._errors(path):
            return sum(int(entry["size"]) for some in obstore.list(self._store, self.key(path)) for entry in some)

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        with self._errors(path), suppress(FileNotFoundError):
            obstore.delete(self._store, self.key(path))

    def remove_tree(self, path: str) -> None:
        """See `Storage.remove_tree`."""
        with self._errors(path):
            for some in obstore.list(self._store, self.key(path)):
                obstore.delete(self._store, [str(entry["path"]) for entry in some])

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
        with self._errors(path):
            found = obstore.list(self._store, f"{self.key(path)}/")
            return [str(entry["path"]) for some in found for entry in some]

    def _copy(self, source: str, target: str) -> None:
        with self._errors(source):
            obstore.copy(self._store, self.key(source), self.key(target))

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
        return ObjectState(self._tag(meta), meta["last_modified"])

    def _tag(self, meta: Any) -> str:
        return str(meta["e_tag"] if self.scheme == "s3" else meta["version"])

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Python's own errors in place of obstore's."""
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:
            text = str(error).split("\n", 1)[0]
            if "NoSuchBucket" in str(error):
                raise OSError(f"there is no bucket '{self.name}': make it first, or check the URL '{path}'") from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"'{path}' is missing") from error
            if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
                raise PermissionError(f"'{path}': access denied ({text}); check the credentials") from error
            raise OSError(f"'{path}': {text}") from error
