"""Where things lie in a patch store (schema 2): names, paths, array metadata. Nothing here moves pixels."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from msdask.cutting.measures import MEASURES
from msdask.errors import CorruptChunkError, StoreError, UnreachableError
from msdask.spec import Codec
from msdask.storage import places
from msdask.store import documents
from msdask.store.array_documents import array_document, chunk_bytes
from msdask.store.codecs import inner_codec
from msdask.store.integrity import (
    REPAIR_HINT,
    checked_body,
    checked_shape,
    digest_of,
    unreadable,
)
from msdask.store.slide_arrays import CRC_BYTES, SCHEMA, SlideArrays, checksums_of, measures_of

__all__ = [
    "INDEX_GROUP",
    "check_slide_id",
    "create_column",
    "create_label_pixels",
    "create_measured",
    "create_shards",
    "open_arrays",
    "read_column",
    "read_columns",
    "read_variable",
    "sharded_names",
]

INDEX_GROUP = "_index"
SHARDED = ("image", "label_map")
"""Arrays of patches; all others are columns."""
MAX_ID_BYTES = 200

_DATA_TYPES = ("bool", "uint8", "int16", "int32", "uint32", "float32", "float64")
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
        if any(c in "/\\" or unicodedata.category(c) == "Cc" for c in slide_id)
        else "starts with '_' or '.'"
        if slide_id[0] in "_."
        else "is the name of Zarr's own documents"
        if slide_id == documents.DOCUMENT
        else ""
    )
    if bad:
        raise StoreError(f"slide id {slide_id!r} {bad}: give another one in a column 'slide_id' of the slides' table")
    return slide_id


def create_shards(arrays: SlideArrays, name: str) -> None:
    """Create the empty sharded array `image` or `label_map`, and the column of its chunks' checksums."""
    chunk = arrays.chunk_shape(name)
    count, magnifications = arrays.shape
    codec = inner_codec(arrays.array_codec(name))
    document = array_document(
        (count, magnifications, *chunk[2:]),
        (arrays.rows, magnifications, *chunk[2:]),
        np.uint8,
        inner=chunk,
        inner_codec=None if codec is None else codec.to_dict(),
        dims=("patch", "magnification", "y", "x", "channel")[: len(chunk)],
    )
    _write_array(arrays.array_path(name), document)
    if arrays.schema >= SCHEMA:
        dims = ("patch", "magnification")
        document = array_document(arrays.shape, arrays.shard_shape, np.uint32, dims=dims)
        _write_array(arrays.array_path(checksums_of(name)), document)


def create_measured(arrays: SlideArrays) -> None:
    """Create the array `measured`, all NaN: NaN says that a block is not written yet."""
    count, magnifications = arrays.shape
    document = array_document(
        (count, magnifications, arrays.measures),
        (arrays.rows, magnifications, arrays.measures),
        np.float32,
        fill_value=math.nan,
        dims=("patch", "magnification", "measure"),
        attributes={"measures": list(MEASURES[: arrays.measures])},
    )
    _write_array(arrays.array_path("measured"), document)


def create_label_pixels(arrays: SlideArrays, labels: int) -> None:
    """Create the column `label_pixels`: how many px of each label the target's label map has."""
    count, rows = arrays.shape[0], arrays.rows
    document = array_document((count, labels), (rows, labels), np.uint32, dims=("patch", "label_value"))
    _write_array(arrays.array_path("label_pixels"), document)


def create_column(
    group: str | os.PathLike[str],
    name: str,
    values: NDArray[Any],
    dims: Sequence[str],
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write a small array whole: one chunk, with a checksum; masks are compressed."""
    compressed = name == "mask"
    chunks = [max(1, n) for n in values.shape]
    document = array_document(values.shape, chunks, values.dtype, dims=dims, attributes=attrs, compressed=compressed)
    _write_array(
        places.join(group, name), document, chunk_bytes(values, compressed=compressed) if values.size else None, chunks
    )


def _write_array(path: str, document: bytes, chunk: bytes | None = None, chunks: Sequence[int] = ()) -> None:
    """The files of an array, each in one step; where there are some, they are replaced."""
    place = places.at(path)
    place.write(places.join(path, documents.DOCUMENT), [document])
    if chunk is not None:
        place.write(places.join(path, "c", *("0" for _ in chunks)), [chunk])


def read_column(group: str | os.PathLike[str], name: str, *, digest: str | None = None) -> NDArray[Any]:
    """A small array, whole.

    Parameters
    ----------
    group, name : where
    digest : of the values, as its slide's document has it; None where that is not known

    Raises
    ------
    CorruptChunkError
        It is missing, damaged or another one; names it.
    UnreachableError
        It cannot be read now.
    """
    return read_variable(group, name, digest=digest)[1]


def read_columns(group: str, names: Sequence[str], digests: Mapping[str, str] | None = None) -> list[NDArray[Any]]:
    """Several small arrays of a slide; `digests` by name, errors as for `read_column`."""
    known = digests or {}
    return places.gather(group, lambda name: read_column(group, name, digest=known.get(name)), names)


def read_variable(
    group: str | os.PathLike[str], name: str, *, digest: str | None = None
) -> tuple[list[str], NDArray[Any], dict[str, Any]]:
    """A small array as (dims, values, attributes); parameters and errors as for `read_column`."""
    path = places.join(group, name)
    try:
        document = documents.read_document(path)
        if document is None:
            raise FileNotFoundError("it has no document")
        values = _read_chunks(path, document)
        if digest is not None and digest_of(values) != digest:
            raise ValueError("its values are not those that were committed")
        return list(document["dimension_names"]), values, dict(document.get("attributes", {}))
    except UnreachableError:
        raise
    except OSError as error:
        raise unreadable(f"array '{path}'", error) from error
    except (StoreError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
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
    document = documents.read_document(image)
    if document is None or "shape" not in document:
        raise StoreError(f"array '{image}' is missing: the store was changed from outside; {REPAIR_HINT}")
    count, magnifications, size = checked_shape(image, document["shape"])
    _check_length(path, count)
    digests = tuple(sorted((n, d) for n, d in attrs.get("digests", {}).items() if n in map(checksums_of, SHARDED)))
    rows, schema = int(attrs["rows_per_shard"]), int(attrs.get("schema", 1))
    measures = measures_of(path, attrs)
    return SlideArrays(path, codec, (count, magnifications), rows, size, schema, measures, digests)


def _check_length(path: str, count: int) -> None:
    """Check that a slide has as many patches as a document says: a table of theirs is as long as that.

    A document that lies would have us allocate, or ask for, what was never written.
    """
    file = places.join(path, "tissue", "c", "0")
    try:
        size = places.at(file).size(file) if count else CRC_BYTES
    except OSError as error:
        raise unreadable(f"'{file}'", error) from error
    if size != 4 * count + CRC_BYTES:
        raise CorruptChunkError(
            f"'{path}' has {count:,} patches by its document, and a table '{file}' of {size} bytes: {REPAIR_HINT}"
        )


def sharded_names(arrays: SlideArrays) -> list[str]:
    """Which of the sharded arrays a slide has; asked of what lies there."""
    return [name for name in SHARDED if documents.has_document(arrays.array_path(name))]
