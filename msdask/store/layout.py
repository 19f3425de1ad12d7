"""Where things lie in a patch store (schema 1): names, paths, array metadata. Nothing here moves pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from msdask.cutting.measures import MEASURES
from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec
from msdask.storage import places
from msdask.store.codecs import inner_codec

__all__ = [
    "INDEX_GROUP",
    "SCHEMA",
    "SlideTarget",
    "array_names",
    "check_document",
    "check_slide_id",
    "create_column",
    "create_group",
    "create_measured",
    "create_shards",
    "document_time",
    "exists",
    "has_document",
    "read_attrs",
    "read_column",
    "read_shape",
    "read_variable",
    "remove_tree",
    "write_document",
]

SCHEMA = 1
INDEX_GROUP = "_index"
DOCUMENT = "zarr.json"
MAX_ID_BYTES = 200


def check_slide_id(slide_id: str) -> str:
    """`slide_id` if it can name a group inside the store.

    Raises
    ------
    StoreError
        Empty, too long, no valid Unicode, with a separator or a control character, starting with "_" or ".", or a
        name that Zarr itself uses.
    """
    bad = (
        "is empty"
        if not slide_id
        else "is no valid Unicode"
        if any(0xD800 <= ord(c) < 0xE000 for c in slide_id)
        else f"has {len(slide_id.encode())} bytes, at most {MAX_ID_BYTES} are allowed"
        if len(slide_id.encode()) > MAX_ID_BYTES
        else "holds a path separator or control character"
        if any(c in "/\\" or ord(c) < 32 for c in slide_id)
        else "starts with '_' or '.'"
        if slide_id[0] in "_."
        else "is the name of Zarr's own documents"
        if slide_id == DOCUMENT
        else ""
    )
    if bad:
        raise StoreError(f"slide id {slide_id!r} {bad}: give another one in a column 'slide_id' of the slides' table")
    return slide_id


@dataclass(frozen=True, slots=True)
class SlideTarget:
    """Where one slide's patches are written, and in what shape: all that a block's task needs to know of the store.

    Attributes
    ----------
    path : of the slide's group; a URL in object storage
    codec : of the store
    shape : (patches, magnifications)
    rows : patches in a shard
    patch_size : px
    """

    path: str
    codec: Codec
    shape: tuple[int, int]
    rows: int
    patch_size: int

    @property
    def blocks(self) -> int:
        """Number of shards of `image`."""
        return -(-self.shape[0] // self.rows)

    def block(self, index: int) -> slice:
        """Rows of one block."""
        return slice(index * self.rows, min((index + 1) * self.rows, self.shape[0]))

    def array_path(self, name: str) -> str:
        """Directory of one of the slide's arrays."""
        return places.join(self.path, name)

    def shard_path(self, name: str, block: int) -> str:
        """File of one shard of `image` or `label_map`."""
        rest = ["0"] * (len(self.chunk_shape(name)) - 1)
        return places.join(self.path, name, "c", str(block), *rest)

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one inner chunk: one patch at one magnification."""
        size = self.patch_size
        return (1, 1, size, size, 3) if name == "image" else (1, 1, size, size)

    def array_codec(self, name: str) -> Codec:
        """Codec of one of the sharded arrays; label maps are always raw."""
        return self.codec if name == "image" else "raw"


def read_attrs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Attributes of a group or array, straight from its document; {} where there is none."""
    document = _read_document(path)
    return dict(document.get("attributes", {})) if document else {}


def _read_document(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    file = places.join(path, DOCUMENT)
    try:
        document = json.loads(places.at(file).read(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"'{file}' cannot be read as a Zarr v3 document: {error}; restore it or extract again"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise StoreError(f"'{file}' holds no Zarr v3 document: expected a JSON object; restore it or extract again")
    return document


def write_document(path: str | os.PathLike[str], attrs: Mapping[str, Any], *, consolidate: bool = False) -> None:
    """Write a group's metadata document in one atomic step.

    Parameters
    ----------
    path : directory of the group
    attrs : all of its attributes
    consolidate : put the metadata of the arrays below it inside, so that readers open one file; only done for a
        slide, since a document further up goes stale with every slide that is added
    """
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attrs)}
    if consolidate:
        names = array_names(path)
        documents = places.gather(str(path), lambda name: _read_document(places.join(path, name)), names)
        inside = dict(zip(names, documents, strict=True))
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": inside}
    file = places.join(path, DOCUMENT)
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)
    try:
        places.at(file).write(file, [text.encode()], sync=True)
    except OSError as error:
        raise StoreError(
            f"cannot write '{file}': {error.strerror or error}; check that the place exists, is writable and has room"
        ) from error


def create_group(path: str | os.PathLike[str], attrs: Mapping[str, Any]) -> None:
    """Create a group unless there is one."""
    if _read_document(path) is None:
        write_document(path, attrs)


def create_shards(target: SlideTarget, name: str) -> None:
    """Create the empty sharded array `image` or `label_map`."""
    chunk = target.chunk_shape(name)
    count, magnifications = target.shape
    codec = inner_codec(target.array_codec(name))
    dims = ("patch", "magnification", "y", "x", "channel")[: len(chunk)]
    _create_array(
        target.array_path(name),
        shape=(count, magnifications, *chunk[2:]),
        chunks=chunk,
        shards=(target.rows, magnifications, *chunk[2:]),
        dtype="uint8",
        serializer=codec if codec is not None else "auto",
        compressors=[Crc32cCodec()],
        fill_value=0,
        dimension_names=dims,
    )


def create_measured(target: SlideTarget) -> None:
    """Create the array `measured`, all NaN: NaN says that a block is not written yet."""
    count, magnifications = target.shape
    _create_array(
        target.array_path("measured"),
        shape=(count, magnifications, len(MEASURES)),
        chunks=(target.rows, magnifications, len(MEASURES)),
        dtype="float32",
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        dimension_names=("patch", "magnification", "measure"),
        attributes={"measures": list(MEASURES)},
    )


def create_column(
    group: str | os.PathLike[str],
    name: str,
    values: NDArray[Any],
    dims: Sequence[str],
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write a small array whole: one chunk, with a checksum; masks are compressed."""
    compressors: list[Any] = [ZstdCodec(level=3), Crc32cCodec()] if name == "mask" else [Crc32cCodec()]
    _create_array(
        places.join(group, name),
        values,
        shape=values.shape,
        chunks=tuple(max(1, n) for n in values.shape),
        dtype=values.dtype,
        compressors=compressors,
        fill_value=np.zeros((), values.dtype).item(),
        dimension_names=list(dims),
        attributes=dict(attrs or {}),
        config={"write_empty_chunks": True},
    )


def _create_array(path: str, values: NDArray[Any] | None = None, **options: Any) -> None:
    """What zarr's `create_array` makes, and the values written; where there is one, it is replaced."""
    if not places.is_remote(path):
        _fill(zarr.create_array(store=path, overwrite=True, **options), values)
        return
    # Made in memory and sent: the same bytes as in a folder, one PUT an object, and no documents in the groups above.
    made: dict[str, Any] = {}
    _fill(zarr.create_array(store=MemoryStore(made), **options), values)
    place = places.at(path)
    for key, buffer in made.items():
        place.write(places.join(path, key), [buffer.to_bytes()])


def _fill(array: Any, values: NDArray[Any] | None) -> None:
    if values is not None and values.size:
        array[...] = values


def read_column(group: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """A small array, whole.

    Raises
    ------
    CorruptChunkError
        It is missing or damaged; names it.
    """
    path = places.join(group, name)
    hint = "run `msdask verify` on the store, then extract the slide again with overwrite"
    try:
        array = _fetch_array(path) if places.is_remote(path) else zarr.open_array(store=path, mode="r")
        # zarr reads fill values from an absent or empty chunk without a word
        for key in _chunk_keys(array):
            chunk = os.path.join(path, key)
            if not places.is_remote(path) and (not os.path.exists(chunk) or os.path.getsize(chunk) == 0):
                raise CorruptChunkError(f"chunk '{chunk}' is missing or empty: {hint}")
        return np.asarray(array[...])
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, AttributeError) as error:
        raise CorruptChunkError(f"array '{path}' cannot be read: {error}; {hint}") from error


def _fetch_array(path: str) -> Any:
    """An array of object storage in memory: its document, then all of its chunks."""
    place = places.at(path)
    held: dict[str, Any] = {DOCUMENT: cpu.Buffer.from_bytes(place.read(places.join(path, DOCUMENT)))}
    keys = _chunk_keys(zarr.open_array(store=MemoryStore(held), mode="r"))
    for key, data in zip(keys, places.gather(path, lambda k: place.read(places.join(path, k)), keys), strict=True):
        if not data:
            raise ValueError(f"chunk '{places.join(path, key)}' is empty")
        held[key] = cpu.Buffer.from_bytes(data)
    return zarr.open_array(store=MemoryStore(held), mode="r")


def _chunk_keys(array: Any) -> list[str]:
    counts = (-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    return ["/".join(("c", *map(str, index))) for index in np.ndindex(*counts)]


def read_variable(group: str | os.PathLike[str], name: str) -> tuple[list[str], NDArray[Any], dict[str, Any]]:
    """A small array as (dims, values, attributes); errors as for `read_column`."""
    document = _read_document(places.join(group, name)) or {}
    values = read_column(group, name)
    return list(document["dimension_names"]), values, dict(document.get("attributes", {}))


def array_names(group: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays of a group, sorted."""
    folders = places.at(group).folders(os.fspath(group))
    found = places.gather(os.fspath(group), lambda name: has_document(places.join(group, name)), folders)
    return [name for name, is_there in zip(folders, found, strict=True) if is_there]


def has_document(path: str | os.PathLike[str]) -> bool:
    """Whether there is a group or array at `path`."""
    file = places.join(path, DOCUMENT)
    try:
        places.at(file).size(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether something lies at `path`: a group, or what a killed writer or removal has left of one."""
    return places.at(path).is_folder(os.fspath(path))


def read_shape(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Shape of an array, from its document alone: whatever its codecs are.

    Raises
    ------
    StoreError
        There is no such array.
    """
    document = _read_document(path)
    if document is None or "shape" not in document:
        raise StoreError(f"array '{path}' is missing: the store was changed from outside; extract the slide again")
    try:
        return tuple(int(n) for n in document["shape"])
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptChunkError(f"array '{path}' has the shape {document['shape']!r} in its document") from error


def check_document(group: str | os.PathLike[str], name: str) -> None:
    """Compare an array's document with the copy that its slide's document took at the commit.

    One flipped bit in it (another separator of chunk names, say) makes every Zarr library read zeros without a word.

    Raises
    ------
    CorruptChunkError
        They differ; names the array.
    """
    kept = (_read_document(group) or {}).get("consolidated_metadata", {})
    path = places.join(group, name)
    try:
        found = _read_document(path)
    except StoreError as error:
        raise CorruptChunkError(str(error)) from error
    if not isinstance(kept, dict) or found is None or found != kept.get("metadata", {}).get(name):
        raise CorruptChunkError(
            f"document of array '{path}' is not the one that was committed: run `msdask verify` on the store, then "
            "extract the slide again with overwrite"
        )


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a group: its document first, so that a killed removal never leaves something that looks complete."""
    place, folder = places.at(path), os.fspath(path)
    place.remove(places.join(folder, DOCUMENT))
    place.remove_tree(folder)


def document_time(path: str | os.PathLike[str]) -> int:
    """State of an array's or group's document: caches of what is stored are keyed by it.

    In a folder its time, ns. In object storage a digest of its ETag and of that of the group above, since equal
    documents have equal ETags there.
    """
    folder = os.fspath(path)
    if not places.is_remote(folder):
        return os.stat(os.path.join(folder, DOCUMENT)).st_mtime_ns
    place = places.at(folder)
    return hash((place.state(places.join(folder, DOCUMENT)), place.state(f"{folder.rsplit('/', 1)[0]}/{DOCUMENT}")))
