"""Arrays as files: the bytes that zarr itself writes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from msdask.spec import Codec
from msdask.store.array_documents import array_document, chunk_bytes
from msdask.store.codecs import inner_codec

NAMES = ["patch", "magnification", "y", "x", "channel"]


def made_by_zarr(values: np.ndarray | None = None, **options: Any) -> dict[str, bytes]:
    files: dict[str, Any] = {}
    array = zarr.create_array(store=MemoryStore(files), **options)
    if values is not None and values.size:
        array[...] = values
    return {name: buffer.to_bytes() for name, buffer in files.items()}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (0, 2), (0,), (3, 4, 5)])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_column_has_the_bytes_of_zarr(dtype: str, shape: tuple[int, ...], compressed: bool) -> None:
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    chunks, attrs = tuple(max(1, n) for n in shape), {"maße": [1, 0.1], "source": "msdask"}
    expected = made_by_zarr(
        values,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=[ZstdCodec(level=3), Crc32cCodec()] if compressed else [Crc32cCodec()],
        fill_value=np.zeros((), dtype).item(),
        dimension_names=NAMES[: len(shape)],
        attributes=attrs,
        config={"write_empty_chunks": True},
    )
    dims = NAMES[: len(shape)]
    document = array_document(shape, chunks, dtype, dims=dims, attributes=attrs, compressed=compressed)
    chunk = [chunk_bytes(values, compressed=compressed)] if values.size else []
    assert [document, *chunk] == [expected.pop("zarr.json"), *expected.values()]


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_a_sharded_array_has_the_document_of_zarr(codec: Codec) -> None:
    one = inner_codec(codec)
    shape, shards, chunk = (7, 2, 16, 16, 3), (4, 2, 16, 16, 3), (1, 1, 16, 16, 3)
    expected = made_by_zarr(
        shape=shape,
        shards=shards,
        chunks=chunk,
        dtype="uint8",
        serializer="auto" if one is None else one,
        compressors=[Crc32cCodec()],
        fill_value=0,
        dimension_names=NAMES,
    )
    own = None if one is None else one.to_dict()
    assert array_document(shape, shards, np.uint8, dims=NAMES, inner=chunk, inner_codec=own) == expected["zarr.json"]


def test_what_is_not_measured_yet_is_nan() -> None:
    expected = made_by_zarr(
        shape=(7, 2, 3),
        chunks=(4, 2, 3),
        dtype="float32",
        compressors=[Crc32cCodec()],
        fill_value=math.nan,
        dimension_names=NAMES[:3],
    )
    document = array_document((7, 2, 3), (4, 2, 3), np.float32, dims=NAMES[:3], fill_value=math.nan)
    assert document == expected["zarr.json"]


def test_a_chunk_of_the_other_byte_order_is_stored_little_endian() -> None:
    values = np.arange(5, dtype=">i4")
    assert chunk_bytes(values) == chunk_bytes(values.astype("<i4"))


def test_names_in_attributes_are_not_taken_for_the_shape() -> None:
    attrs = {"source": "<shape>", "other": ["<chunks>", '"<shape>"']}
    for shape in ((3, 4), (5, 6)):  # the second document is made from what is kept of the first
        document = json.loads(array_document(shape, shape, "uint8", dims=NAMES[:2], attributes=attrs))
        assert document["attributes"] == attrs
        assert document["shape"] == document["chunk_grid"]["configuration"]["chunk_shape"] == list(shape)
