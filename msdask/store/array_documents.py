"""Zarr arrays as their files: the document and the chunks that `zarr.create_array` writes, to the byte.

A slide has some ten small arrays. Made by zarr, each costs milliseconds of event loops and objects; as text and bytes
it is done in a tenth of one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import DTypeLike, NDArray

from msdask.store.integrity import checksum

__all__ = ["array_document", "chunk_bytes"]

ZSTD_LEVEL = 3
_CRC: dict[str, Any] = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def array_document(
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: DTypeLike,
    *,
    dims: Sequence[str],
    fill_value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
    compressed: bool = False,
    inner: Sequence[int] | None = None,
    inner_codec: Mapping[str, Any] | None = None,
) -> bytes:
    """The document of an array in Zarr v3.

    Parameters
    ----------
    shape, chunks, dtype, dims : of the array; `chunks` are its shards, where it has them
    fill_value : of what is not written, by default 0
    attributes : of the array
    compressed : with zstd
    inner : shape of the chunks in a shard; None: it has none
    inner_codec : of these, as in a document; None: their bytes as they are
    """
    text = _template(
        np.dtype(dtype),
        tuple(dims),
        fill_value or 0,
        json.dumps(dict(attributes or {})),
        compressed,
        None if inner is None else tuple(inner),
        json.dumps(inner_codec),
    )
    return text.replace(_SHAPE, _listed(shape, 2), 1).replace(_CHUNKS, _listed(chunks, 6), 1).encode()


_SHAPE, _CHUNKS = '"<shape>"', '"<chunks>"'


def _listed(numbers: Sequence[int], indent: int) -> str:
    """A list as `json.dumps` indents it."""
    if not numbers:
        return "[]"
    return "[" + ",".join(f"\n{' ' * (indent + 2)}{int(n)}" for n in numbers) + f"\n{' ' * indent}]"


@lru_cache(maxsize=256)
def _template(
    kind: np.dtype[Any],
    dims: tuple[str, ...],
    fill_value: float,
    attributes: str,
    compressed: bool,
    inner: tuple[int, ...] | None,
    inner_codec: str,
) -> str:
    """The document with names where shape and chunks go: slides differ in nothing else, and indenting takes time."""
    plain = {"name": "bytes"} if kind.itemsize == 1 else _LITTLE
    zstd = [{"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}] if compressed else []
    codecs = [json.loads(inner_codec) or plain, *zstd, _CRC]
    if inner is not None:
        sharding = {
            "chunk_shape": list(inner),
            "codecs": codecs,
            "index_codecs": [_LITTLE, _CRC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    fill = np.asarray(fill_value, kind).item()
    document = {
        "shape": json.loads(_SHAPE),
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": json.loads(_CHUNKS)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if isinstance(fill, float) and math.isnan(fill) else fill,
        "codecs": codecs,
        "attributes": json.loads(attributes),
        "dimension_names": list(dims),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return json.dumps(document, indent=2)


def chunk_bytes(values: NDArray[Any], *, compressed: bool = False) -> bytes:
    """A chunk with its checksum, as `array_document` says that it is stored."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    body = bytes(Zstd(level=ZSTD_LEVEL).encode(plain)) if compressed else plain
    return body + checksum(body)
