"""Whether stored bytes are what was written: here a chunk, an index, a document and a slide's file are judged.

Bytes and facts in, a verdict out: nothing here reads or writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from typing import Any, cast

import crc32c as _crc32c
import numpy as np
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError, UnreachableError
from msdask.store.slide_arrays import CRC_BYTES, SCHEMA, SlideArrays

__all__ = [
    "REPAIR_HINT",
    "check_document",
    "check_same_file",
    "check_slide_document",
    "checked_body",
    "checked_shape",
    "checksum",
    "committed_documents",
    "crc32c",
    "digest_of",
    "index_table",
    "sealed",
    "slide_checksum",
    "unreadable",
]

REPAIR_HINT = "run `msdask verify` on the store, then extract the slide again with overwrite"
_CRC = struct.Struct("<I")
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')
_OPEN_SEAL = b'"seal": ""'
_NOT_CONTENTS = ("checksum", "seal", "cohort")
"""Attributes of a slide that its checksum is not taken over: facts of the cohort's table may be put right later."""
_COUNTS = ("candidates", "selected", "kept", "labeled", "filled")
_MOST_MAGNIFICATIONS, _MOST_PATCHES = 1024, 2**31 - 1


def unreadable(what: str, error: OSError) -> StoreError:
    """The error for something that could not be read: missing, or there and not to be had now.

    Only the first says that the store is damaged. A server that is down or a disk that is busy says nothing about what
    is stored, and nothing may be replaced for it.
    """
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return CorruptChunkError(f"{what} cannot be read: it is missing; {REPAIR_HINT}")
    return UnreachableError(f"{what} cannot be read now: {error}; nothing was found to be damaged: try again")


def digest_of(values: NDArray[Any]) -> str:
    """SHA-256 (hex) of an array: its type, its shape and its values."""
    whole = np.ascontiguousarray(values)
    digest = hashlib.sha256(f"{whole.dtype.str} {whole.shape}".encode())
    digest.update(whole.data if whole.size else b"")
    return digest.hexdigest()


def sealed(document: Mapping[str, Any]) -> bytes:
    """The text of a document with a hash of itself in its attribute `seal`: whatever changes it is seen."""
    attrs = {**document["attributes"], "seal": ""}
    text = json.dumps({**document, "attributes": attrs}, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    return text.replace(_OPEN_SEAL, f'"seal": "{hashlib.sha256(text).hexdigest()}"'.encode(), 1)


def _is_sealed(text: bytes) -> bool:
    found = _SEAL.search(text)
    if found is None:
        return False
    without = text[: found.start()] + _OPEN_SEAL + text[found.end() :]
    return hashlib.sha256(without).hexdigest().encode() == found[1]


def slide_checksum(attrs: Mapping[str, Any], documents: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a slide: its id, its spec, and the digests of its tables, where the chunks' checksums are.

    Parameters
    ----------
    attrs : of the complete slide
    documents : of its arrays, by name
    """
    contents = {name: value for name, value in attrs.items() if name not in _NOT_CONTENTS}
    text = json.dumps([contents, documents], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_slide_document(
    path: str, text: bytes, document: Mapping[str, Any], *, slide_id: str, spec_hash: str | None = None
) -> None:
    """Check a slide's document: that it is as it was written, of this slide, and of this patch set's spec.

    Parameters
    ----------
    path : of the slide's group
    text, document : as stored, and parsed
    slide_id : whose place it lies in
    spec_hash : of the patch set; None: of any

    Raises
    ------
    CorruptChunkError
        It is damaged, or of another slide or spec.
    """
    attrs = document.get("attributes", {})
    schema, state = attrs.get("schema", 1), attrs.get("state")
    what = f"document of slide '{path}'"
    if schema not in (1, SCHEMA):
        raise CorruptChunkError(f"{what} is of schema {schema!r}, this msdask reads 1 and {SCHEMA}: update msdask")
    if state == "complete":
        counts = attrs.get("counts")
        if not isinstance(counts, dict) or any(not _is_count(counts.get(key)) for key in _COUNTS):
            raise CorruptChunkError(f"{what} has the counts {str(counts)[:80]}: {REPAIR_HINT}")
        if not isinstance(attrs.get("checksum"), str) or not _is_count(attrs.get("rows_per_shard"), least=1):
            raise CorruptChunkError(f"{what} lacks its checksum or its shards' size: {REPAIR_HINT}")
    if schema == 1:
        return
    if not _is_sealed(text):
        raise CorruptChunkError(f"{what} is not as it was written: {REPAIR_HINT}")
    if attrs.get("slide_id") != slide_id:
        raise CorruptChunkError(f"'{path}' holds the slide {attrs.get('slide_id')!r}: {REPAIR_HINT}")
    if spec_hash is not None and attrs.get("spec_hash") != spec_hash:
        raise CorruptChunkError(f"slide '{path}' was cut by another spec than its patch set's: {REPAIR_HINT}")


def _is_count(value: Any, *, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST_PATCHES


def checked_shape(path: str, shape: Any) -> tuple[int, int, int]:
    """(patches, magnifications, px) out of the shape in the document of `image`; raises CorruptChunkError."""
    first = list(shape[:3]) if isinstance(shape, (list, tuple)) else []
    if len(first) < 3 or not all(map(_is_count, first)) or not 0 < first[1] <= _MOST_MAGNIFICATIONS:
        raise CorruptChunkError(f"array '{path}' has the shape {str(shape)[:80]} in its document: {REPAIR_HINT}")
    return first[0], first[1], first[2]


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """CRC32C of bytes as a number; without a copy of `data`, and without the interpreter's lock from 32 KiB on."""
    return _crc32c.crc32c(cast("bytes", data))


def checksum(data: bytes | memoryview | NDArray[np.uint8]) -> bytes:
    """CRC32C as Zarr stores it, 4 bytes; without a copy of `data`."""
    return _CRC.pack(crc32c(data))


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
