"""Whether stored bytes are what was written: here a chunk, an index, a document and a slide's file are judged.

Bytes and facts in, a verdict out: nothing here reads or writes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError
from msdask.store.slide_arrays import CRC_BYTES, SlideArrays

__all__ = [
    "REPAIR_HINT",
    "check_document",
    "check_same_file",
    "checked_body",
    "checksum",
    "committed_documents",
    "index_table",
]

REPAIR_HINT = "run `msdask verify` on the store, then extract the slide again with overwrite"
_CRC = struct.Struct("<I")


def checksum(data: bytes | memoryview | NDArray[np.uint8]) -> bytes:
    """CRC32C as Zarr stores it, 4 bytes; without a copy of `data`."""
    # The C function takes an array, but no memoryview, whose buffer must be released.
    whole = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else data
    return _CRC.pack(google_crc32c.value(cast("bytes", whole)))


def checked_body(data: bytes | memoryview, length: int | None = None) -> memoryview | None:
    """A chunk without its checksum; None where that is wrong, or the chunk has not `length` bytes.

    Parameters
    ----------
    data : a chunk as stored, with its checksum at the end
    length : that the chunk must have without it; None where that is not known
    """
    body = memoryview(data)[:-CRC_BYTES]
    is_whole = len(body) > 0 if length is None else len(body) == length
    return body if is_whole and checksum(body) == data[-CRC_BYTES:] else None


def index_table(arrays: SlideArrays, name: str, block: int, raw: bytes, size: int) -> NDArray[np.uint64]:
    """The index of a shard, checked.

    Parameters
    ----------
    arrays, name, block : of the shard
    raw : its end: the index and its checksum
    size : of the shard, bytes

    Returns
    -------
    table : (rows, magnifications, 2) uint64, offset and length of each chunk

    Raises
    ------
    CorruptChunkError
        The shard is empty or cut short, its index is damaged, or chunks are not where they can be.
    """
    path, rows = arrays.shard_path(name, block), arrays.block(block)
    if len(raw) < arrays.index_bytes:
        raise CorruptChunkError(
            f"shard '{path}' has {size} bytes, its index alone needs {arrays.index_bytes}: {REPAIR_HINT}"
        )
    body = checked_body(raw)
    if body is None:
        raise CorruptChunkError(f"shard '{path}': the checksum of its index is wrong: {REPAIR_HINT}")
    table = np.frombuffer(body, "<u8").reshape(*arrays.shard_shape, 2)
    offsets, lengths = np.moveaxis(table[: rows.stop - rows.start], -1, 0)
    room = size - arrays.index_bytes
    if (offsets > room).any() or (lengths > room).any() or (offsets + lengths > room).any():
        raise CorruptChunkError(
            f"shard '{path}' of {size} bytes lacks chunks that its index or its array needs: {REPAIR_HINT}"
        )
    expected = arrays.chunk_bytes(name)
    if expected is not None and (lengths != expected).any():
        raise CorruptChunkError(f"shard '{path}' holds chunks that are not of {expected} bytes: {REPAIR_HINT}")
    return table


def committed_documents(slide: Mapping[str, Any] | None) -> dict[str, Any]:
    """Documents of a slide's arrays, by name, of which its own document took copies at the commit."""
    consolidated = (slide or {}).get("consolidated_metadata")
    found = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    return found if isinstance(found, dict) else {}


def check_document(path: str, found: Mapping[str, Any] | None, committed: Any) -> None:
    """Compare an array's document with the copy that was taken at the commit.

    One flipped bit in it (another separator of chunk names, say) makes every Zarr library read zeros without a word.

    Parameters
    ----------
    path : of the array
    found : its document as it is now, None where there is none
    committed : the copy, None where there is none

    Raises
    ------
    CorruptChunkError
        They differ; names the array.
    """
    if found is None or found != committed:
        raise CorruptChunkError(f"document of array '{path}' is not the one that was committed: {REPAIR_HINT}")


def check_same_file(
    stored: str,
    attrs: Mapping[str, Any],
    fingerprint: str,
    source: str,
    *,
    otherwise: str = "pass overwrite=True to replace it, or give the slide another id",
) -> None:
    """Check that a file is the one that a stored slide was made from.

    Parameters
    ----------
    stored : the stored slide, for the error: "slide 'a.svs' of 'grid-10x-224'"
    attrs : its attributes
    fingerprint, source : of the file
    otherwise : what to do about another file

    Raises
    ------
    StoreError
        It is another file.
    """
    if fingerprint != attrs.get("fingerprint"):
        raise StoreError(
            f"{stored} was made from another file than '{source}' (their fingerprints differ): {otherwise}"
        )
