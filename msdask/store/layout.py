"""Where things lie in a patch store (schema 1): names, paths, array metadata. Nothing here moves pixels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from msdask.cutting.measures import MEASURES
from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec
from msdask.storage import places
from msdask.store.codecs import inner_codec
from msdask.store.integrity import REPAIR_HINT, check_document, checked_body, committed_documents
from msdask.store.slide_arrays import SlideArrays

__all__ = [
    "INDEX_GROUP",
    "SCHEMA",
    "array_names",
    "check_documents",
    "check_slide_id",
    "create_column",
    "create_group",
    "create_measured",
    "create_shards",
    "document_state",
    "exists",
    "has_document",
    "open_arrays",
    "read_attrs",
    "read_column",
    "read_variable",
    "remove_tree",
    "sharded_names",
    "write_document",
]

SCHEMA = 1
INDEX_GROUP = "_index"
DOCUMENT = "zarr.json"
SHARDED = ("image", "label_map")
"""Arrays of patches; all others are columns."""
MAX_ID_BYTES = 200

_DATA_TYPES = ("bool", "uint8", "int16", "int32", "float32", "float64")
_PLAIN, _COMPRESSED = ["bytes", "crc32c"], ["bytes", "zstd", "crc32c"]
"""Codecs of columns, and of masks."""


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


def create_shards(arrays: SlideArrays, name: str) -> None:
    """Create the empty sharded array `image` or `label_map`."""
    chunk = arrays.chunk_shape(name)
    count, magnifications = arrays.shape
    codec = inner_codec(arrays.array_codec(name))
    dims = ("patch", "magnification", "y", "x", "channel")[: len(chunk)]
    _create_array(
        arrays.array_path(name),
        shape=(count, magnifications, *chunk[2:]),
        chunks=chunk,
        shards=(arrays.rows, magnifications, *chunk[2:]),
        dtype="uint8",
        serializer=codec if codec is not None else "auto",
        compressors=[Crc32cCodec()],
        fill_value=0,
        dimension_names=dims,
    )


def create_measured(arrays: SlideArrays) -> None:
    """Create the array `measured`, all NaN: NaN says that a block is not written yet."""
    count, magnifications = arrays.shape
    _create_array(
        arrays.array_path("measured"),
        shape=(count, magnifications, len(MEASURES)),
        chunks=(arrays.rows, magnifications, len(MEASURES)),
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
    # Made in memory and written file by file: the same bytes in a folder and in object storage, each file in one step.
    made: dict[str, Any] = {}
    array = zarr.create_array(store=MemoryStore(made), **options)
    if values is not None and values.size:
        array[...] = values
    place = places.at(path)
    for key, buffer in made.items():
        place.write(places.join(path, key), [buffer.to_bytes()])


def read_column(group: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """A small array, whole.

    Raises
    ------
    CorruptChunkError
        It is missing or damaged; names it.
    """
    return read_variable(group, name)[1]


def read_variable(group: str | os.PathLike[str], name: str) -> tuple[list[str], NDArray[Any], dict[str, Any]]:
    """A small array as (dims, values, attributes); errors as for `read_column`."""
    path = places.join(group, name)
    try:
        document = _read_document(path)
        if document is None:
            raise FileNotFoundError("it has no document")
        return list(document["dimension_names"]), _read_chunks(path, document), dict(document.get("attributes", {}))
    except (StoreError, OSError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
        raise CorruptChunkError(f"array '{path}' cannot be read: {error}; {REPAIR_HINT}") from error


def _read_chunks(path: str, document: Mapping[str, Any]) -> NDArray[Any]:
    """Values of an array of a type and with codecs that this package writes, cut along its first axis at most.

    zarr would read fill values from a chunk that is absent or empty, without a word.
    """
    shape, chunk = tuple(document["shape"]), tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = [codec["name"] for codec in document["codecs"]]
    if document["data_type"] not in _DATA_TYPES or codecs not in (_PLAIN, _COMPRESSED):
        raise ValueError(f"it is of {document['data_type']!r} with codecs {codecs}, which msdask does not write")
    if len(shape) != len(chunk) or any(c != max(1, n) for n, c in zip(shape[1:], chunk[1:], strict=True)):
        raise ValueError(f"it has shape {shape} and chunks {chunk}, which msdask does not write")
    dtype = np.dtype(document["data_type"]).newbyteorder("<")
    length = math.prod(chunk) * dtype.itemsize
    rest = ["0"] * (len(shape) - 1)
    place = places.at(path)

    def read(number: int) -> NDArray[Any]:
        file = places.join(path, "c", str(number), *rest)
        body = checked_body(place.read(file), length if codecs == _PLAIN else None)
        if body is not None and codecs == _COMPRESSED:
            body = memoryview(Zstd().decode(body))
        if body is None or len(body) != length:
            raise ValueError(f"the checksum of its chunk '{file}' is wrong, or that has not the bytes of {chunk}")
        return np.frombuffer(body, dtype).reshape(chunk)

    count = -(-shape[0] // chunk[0])
    # The last one first: a document that lies about the shape must not have us ask for millions.
    parts = [read(count - 1)] if count else []
    parts[:0] = places.gather(path, read, range(count - 1))
    return np.concatenate(parts)[: shape[0]] if parts else np.empty(shape, dtype)


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


def open_arrays(path: str, codec: Codec, attrs: Mapping[str, Any]) -> SlideArrays:
    """The arrays that a slide's group was written as: their shape is in a document, whatever their codecs are.

    Parameters
    ----------
    path : of the group
    codec : of the store
    attrs : of the group

    Raises
    ------
    StoreError
        There is no `image`, or none of such a shape.
    """
    image = places.join(path, "image")
    document = _read_document(image)
    if document is None or "shape" not in document:
        raise StoreError(f"array '{image}' is missing: the store was changed from outside; {REPAIR_HINT}")
    try:
        count, magnifications, size = (int(n) for n in document["shape"][:3])
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptChunkError(f"array '{image}' has the shape {document['shape']!r} in its document") from error
    return SlideArrays(path, codec, (count, magnifications), int(attrs["rows_per_shard"]), size)


def sharded_names(arrays: SlideArrays) -> list[str]:
    """Which of the sharded arrays a slide has."""
    return [name for name in SHARDED if has_document(arrays.array_path(name))]


def check_documents(group: str | os.PathLike[str], names: Sequence[str] | None = None) -> list[str]:
    """Compare documents of a complete slide's arrays with the copies that its own document took at the commit.

    Parameters
    ----------
    group : of the slide
    names : of the arrays; by default "image" and all that were committed

    Returns
    -------
    names : of all arrays that were committed

    Raises
    ------
    CorruptChunkError
        One is another, or missing; names the array.
    """
    committed = committed_documents(_read_document(group))

    def check(name: str) -> None:
        path = places.join(group, name)
        try:
            found = _read_document(path)
        except StoreError as error:
            raise CorruptChunkError(str(error)) from error
        check_document(path, found, committed.get(name))

    places.gather(os.fspath(group), check, sorted({"image", *committed}) if names is None else names)
    return sorted(committed)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a group: its document first, so that a killed removal never leaves something that looks complete."""
    place, folder = places.at(path), os.fspath(path)
    place.remove(places.join(folder, DOCUMENT))
    place.remove_tree(folder)


def document_state(path: str | os.PathLike[str]) -> int:
    """State of an array's document: caches of what is stored are keyed by it.

    Made from the document and that of the group above, since equal documents have equal ETags in object storage.
    """
    place, folder = places.at(path), os.fspath(path)
    files = (places.join(folder, DOCUMENT), places.join(os.path.dirname(folder), DOCUMENT))
    return hash(tuple(place.state(file) for file in files))
