"""Where a store's bytes lie, a local folder or object storage (s3://, gs://): one small interface over both.

Places are named by whole paths, "cohort.zarr/grid-10x-224" or "s3://bucket/cohort.zarr/grid-10x-224". Every write
appears whole or not at all: a renamed file here, one PUT there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from msdask.errors import StoreError
from msdask.extras import how_to_install
from msdask.storage.local import PutAt, local

if TYPE_CHECKING:
    from msdask.storage.buckets import Bucket

__all__ = [
    "OpenFile",
    "Storage",
    "at",
    "bucket",
    "configure",
    "gather",
    "is_remote",
    "is_url",
    "join",
    "local_path",
    "location",
    "settings",
    "zarr_store",
]

T = TypeVar("T")
R = TypeVar("R")

SCHEMES = ("s3", "gs")
_REMOTE = tuple(f"{scheme}://" for scheme in SCHEMES)
_COLLAPSED = re.compile(rf"^({'|'.join(SCHEMES)}):/+")
_options: dict[str, dict[str, Any]] = {}
"""Bucket's URL -> settings of this process, and of its own worker processes; never stored, never sent elsewhere."""
_OPTION_NAMES = ("endpoint", "region", "anonymous")


class OpenFile(Protocol):
    """A file or object that is open for reading, from any thread."""

    def read_end(self, length: int) -> tuple[bytes, int]:
        """(its last `length` bytes, or all if it is shorter; its size)."""
        ...

    def read_into(self, offset: int, parts: Sequence[memoryview]) -> int:
        """Fill `parts`, one behind the other, from `offset` on; the number of bytes that were there."""
        ...


class Storage(Protocol):
    """What a store needs of the place that it lies in. All paths are whole; all methods are thread-safe.

    What is missing raises FileNotFoundError, everything else that goes wrong another OSError.

    Attributes
    ----------
    requests : how many small things are worth asking for at once
    """

    requests: int

    def read(self, path: str) -> bytes:
        """A file or object, whole."""
        ...

    def opened(self, path: str, *, whole: bool = False) -> AbstractContextManager[OpenFile]:
        """Open a file or object; `whole`: all of it will be read, which object storage sends in one request."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file or object."""
        ...

    def write(self, path: str, parts: Sequence[bytes | memoryview], *, sync: bool = False) -> None:
        """Write a file or object from its parts, replacing what is there in one step; `sync` also to the disk."""
        ...

    def placed(self, path: str, size: int | None) -> AbstractContextManager[PutAt]:
        """Write a file or object of `size` bytes (None: not known yet) in pieces, in any order and from any thread.

        A piece is taken before its call comes back. The file appears, whole, when the block ends; every call must have
        come back by then. An error in the block leaves nothing behind.
        """
        ...

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        ...

    def names(self, path: str) -> list[str]:
        """Names of all that lies directly below `path`; none where there is nothing."""
        ...

    def is_folder(self, path: str) -> bool:
        """Whether something lies below `path`."""
        ...

    def is_taken(self, path: str) -> bool:
        """Whether a new store cannot begin at `path`: there is a file, or a folder that holds something."""
        ...

    def size_below(self, path: str) -> int:
        """Bytes of all that lies below `path`."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or object, if it is there."""
        ...

    def remove_tree(self, path: str) -> None:
        """Remove everything below `path`."""
        ...

    def links(self, path: str) -> list[str]:
        """Symbolic links at or below `path`, through which one would read, write and remove outside of it."""
        ...

    def replace_tree(self, source: str, target: str) -> None:
        """Put everything below `source` in the place of what lies below `target`.

        Killed on the way it leaves `source` or `target` whole, and never the one mixed with the other under the name of
        a complete group: the document of `target` goes first and comes last.
        """
        ...

    def remove_leftovers(self, path: str) -> None:
        """Remove what a killed writer left below `path` under temporary names."""
        ...

    def state(self, path: str) -> tuple[int, int]:
        """Two numbers that change when the file or object is written anew."""
        ...

    def sync(self, path: str) -> None:
        """Make what was written below `path` survive a power cut."""
        ...


def location(path: str | os.PathLike[str]) -> str:
    """A path as text, absolute and without a slash at its end: it travels to workers that run elsewhere.

    "~" is the user's home; "s3:/bucket", what pathlib makes of a URL, is put right.

    Raises
    ------
    StoreError
        It is a bucket, and no place in one.

    >>> location("s3:/bucket/cohort.zarr/"), location("/data/../cohort.zarr/")
    ('s3://bucket/cohort.zarr', '/cohort.zarr')
    """
    text = _COLLAPSED.sub(r"\1://", os.fspath(path))
    if not is_remote(text):
        return local_path(text)
    text = text.rstrip("/")
    if text.count("/") < 3:
        raise StoreError(f"'{text}' is a whole bucket: give a place in it, such as '{text}/cohort.zarr'")
    return text


def local_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine, absolute, "~" put in words; links are not followed."""
    return os.path.abspath(os.path.expanduser(path))


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to object storage."""
    return isinstance(path, str) and path.startswith(_REMOTE)


def is_url(path: str) -> bool:
    """Whether this is a URL of any kind, object storage or another one, and no local path."""
    return "://" in path


def join(path: str | os.PathLike[str], *names: str) -> str:
    """A path below another one."""
    return "/".join((path, *names)) if isinstance(path, str) and is_remote(path) else os.path.join(path, *names)


def at(path: str | os.PathLike[str]) -> Storage:
    """The storage that a path leads to.

    Raises
    ------
    StoreError
        It is object storage, and what that needs is not installed or not set.
    """
    return bucket(path) if isinstance(path, str) and is_remote(path) else local()


def bucket(path: str) -> Bucket:
    """The bucket that a URL leads to; raises like `at`."""
    scheme, rest = path.split("://", 1)
    name = rest.split("/", 1)[0]
    try:
        from msdask.storage import buckets
    except ImportError as error:
        raise StoreError(
            f"'{path}' lies in object storage, and obstore is not installed: {how_to_install('cloud')}"
        ) from error
    return buckets.connect(scheme, name, _options.get(f"{scheme}://{name}", {}))


def configure(path: str, options: Mapping[str, Any]) -> None:
    """Settings of this process for the bucket that a path leads to; workers read their own environment.

    Parameters
    ----------
    path : URL of a store
    options : "endpoint" (URL of the server), "region", "anonymous" (True: sign nothing)

    Raises
    ------
    StoreError
        An unknown setting, or a credential: these are read from the environment only.
    """
    if not is_remote(path):
        raise StoreError(f"'{path}' is a local path, which takes no storage_options (given: {sorted(options)})")
    unknown = sorted(set(options) - set(_OPTION_NAMES))
    if unknown:
        raise StoreError(
            f"storage_options of '{path}': {unknown}; expected some of {list(_OPTION_NAMES)}. Credentials are read "
            "from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), here and on each "
            "worker, so that they are never stored or sent"
        )
    scheme, rest = path.split("://", 1)
    _options[f"{scheme}://{rest.split('/', 1)[0]}"] = dict(options)


def settings() -> dict[str, dict[str, Any]]:
    """What `configure` has set in this process, by bucket, for worker processes of its own."""
    return {bucket: dict(options) for bucket, options in _options.items()}


def gather(path: str, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[function(i) for i in items]``; where each is a request to object storage, several at a time."""
    most = min(at(path).requests, len(items))
    if most < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(most) as pool:
        return list(pool.map(function, items))


def zarr_store(path: str) -> Any:
    """A zarr-python store of a group or array in object storage, for zarr and xarray themselves.

    Examples
    --------
    >>> xr.open_zarr(zarr_store("s3://bucket/cohort.zarr/grid-10x-224/slide.svs"))  # doctest: +SKIP
    """
    from zarr.storage import ObjectStore

    place = location(path)
    found = bucket(place)
    return ObjectStore(found.client(found.key(place)), read_only=True)
