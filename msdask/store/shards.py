"""Shards in and out, any codec, every inner chunk with a CRC32C.

TensorStore reads them. It also could write them, byte for byte the same (a test holds us to that), at half the speed: a
gathered write from the patches themselves saves two copies of every pixel.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import google_crc32c
import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError
from msdask.storage import places
from msdask.storage.local import local
from msdask.store.codecs import decoder, encoder
from msdask.store.layout import SlideTarget

__all__ = [
    "Chunk",
    "check_shard",
    "encode",
    "index_length",
    "is_placed",
    "placed_chunks",
    "read_block",
    "read_rows",
    "repair_hint",
    "shard_index",
    "write_block",
    "write_chunks",
    "write_measured",
    "written_blocks",
    "wrong_checksum",
]

Chunk = tuple[bytes | memoryview, bytes]
"""One encoded patch and its CRC32C."""

_CRC = struct.Struct("<I")
_CELL = struct.Struct("<QQ")
_EMPTY = 2**64 - 1
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@lru_cache(maxsize=1)
def _context() -> ts.Context:
    # One fsync a slide, before its commit, instead of one a shard: 5,500 against 2,200 patches/s (design section 6).
    return ts.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})


@lru_cache(maxsize=64)
def _open_array(path: str, state: tuple[int, int]) -> ts.TensorStore:
    """One handle an array and process; `state` is its document's file, so that a recreated array is opened anew."""
    kvstore = places.at(path).tensorstore(f"{path}/")
    spec = {"driver": "zarr3", "kvstore": kvstore, "store_data_equal_to_fill_value": True}
    return ts.open(spec, context=_context(), open=True).result()


def _array(path: str) -> ts.TensorStore:
    try:
        return _open_array(path, places.at(path).state(places.join(path, "zarr.json")))
    except FileNotFoundError as error:
        raise StoreError(f"'{path}' is missing: the store was changed from outside; extract the slide again") from error


def write_block(target: SlideTarget, name: str, block: int, values: NDArray[np.uint8]) -> None:
    """Write one shard of `image` or `label_map`; it appears whole or not at all.

    Parameters
    ----------
    values : (patch, magnification, y, x[, channel]) uint8, all rows of the block
    """
    rows = target.block(block)
    expected = (rows.stop - rows.start, target.shape[1], *target.chunk_shape(name)[2:])
    if values.shape != expected or values.dtype != np.uint8:
        raise StoreError(
            f"'{target.path}' block {block} of {name}: {values.shape} {values.dtype}; expected {expected} uint8"
        )
    write_chunks(target, name, block, encode(target, name, values))


def encode(target: SlideTarget, name: str, values: NDArray[np.uint8]) -> list[Chunk]:
    """Patches as the inner chunks that are stored: those of `raw` are views of `values`, not copies."""
    encode_one = encoder(target.array_codec(name))
    data = [encode_one(chunk) for patch in values for chunk in patch]
    return [(chunk, _CRC.pack(_checksum(chunk))) for chunk in data]


def _checksum(data: bytes | memoryview) -> int:
    """CRC32C without a copy: the C function takes an array, but no memoryview, whose buffer must be released."""
    whole = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    return google_crc32c.value(cast("bytes", whole))


def write_chunks(target: SlideTarget, name: str, block: int, chunks: Sequence[Chunk]) -> None:
    """`write_block` with its chunks encoded already, all of the block in their order."""
    path = target.shard_path(name, block)
    lengths = np.fromiter((len(data) + _CRC.size for data, _ in chunks), np.uint64, len(chunks))
    with _writing(path):
        places.at(path).write(path, [*chain.from_iterable(chunks), *_index(target, lengths)])


def is_placed(target: SlideTarget, name: str) -> bool:
    """Whether `placed_chunks` writes what it gets at once: raw chunks in a folder."""
    return target.array_codec(name) == "raw" and not places.is_remote(target.path)


@contextmanager
def placed_chunks(target: SlideTarget, name: str, block: int) -> Iterator[Callable[[int, Sequence[Chunk]], None]]:
    """`write_chunks` in pieces, in any order and from any thread, each with the number of its first chunk.

    Raw chunks go to their place in a file at once, so that writing goes on beside reading; others are kept, since where
    they lie depends on those before them. The shard appears when the block ends; all calls must have come back by then.
    """
    if not is_placed(target, name):
        pieces: dict[int, Sequence[Chunk]] = {}
        yield pieces.__setitem__
        write_chunks(target, name, block, [chunk for first in sorted(pieces) for chunk in pieces[first]])
        return
    path, rows = target.shard_path(name, block), target.block(block)
    size = int(np.prod(target.chunk_shape(name))) + _CRC.size
    count = (rows.stop - rows.start) * target.shape[1]
    with ExitStack() as stack:
        with _writing(path):
            write_at = stack.enter_context(local().placed(path))

        def put(first: int, chunks: Sequence[Chunk]) -> None:
            with _writing(path):
                write_at(first * size, list(chain.from_iterable(chunks)))

        yield put
        with _writing(path):
            write_at(count * size, _index(target, np.full(count, size, np.uint64)))
            stack.close()


def _index(target: SlideTarget, lengths: NDArray[np.uint64]) -> list[bytes | memoryview]:
    """A shard's end: places of all its cells, and their checksum."""
    table = np.full((target.rows * target.shape[1], 2), _EMPTY, "<u8")
    table[: len(lengths), 0] = np.cumsum(lengths) - lengths
    table[: len(lengths), 1] = lengths
    index = table.tobytes()
    return [index, _CRC.pack(google_crc32c.value(index))]


@contextmanager
def _writing(path: str, errors: type[Exception] | tuple[type[Exception], ...] = OSError) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise StoreError(
            f"cannot write '{path}': {error}; check that there is room and that it is writable, then run again"
        ) from error


def _shard_spec(target: SlideTarget, name: str, path: str) -> dict[str, Any]:
    grid = [target.rows, target.shape[1]] + [1] * (len(target.chunk_shape(name)) - 2)
    return {
        "driver": "zarr3_sharding_indexed",
        "base": places.at(path).tensorstore(path),
        "grid_shape": grid,
        "index_codecs": _INDEX_CODECS,
        "index_location": "end",
    }


def write_measured(target: SlideTarget, block: int, measured: NDArray[np.float32]) -> None:
    """Write a block's rows of `measured`: after its shards, since this is what says that they are there."""
    path = target.array_path("measured")
    with _writing(path, (OSError, ValueError)):  # the second is TensorStore's
        _array(path)[target.block(block)].write(measured).result()


def written_blocks(target: SlideTarget) -> NDArray[np.bool_]:
    """Which blocks are written: (blocks,) bool."""
    if target.blocks == 0:
        return np.zeros(0, bool)
    measured = np.asarray(_array(target.array_path("measured"))[:, 0, 0].read().result())
    return ~np.isnan(np.maximum.reduceat(measured, np.arange(0, target.shape[0], target.rows)))


def shard_index(
    target: SlideTarget, name: str, block: int, *, path: str | None = None
) -> tuple[bytes, NDArray[np.uint64]]:
    """The index at a shard's end, checked.

    Returns
    -------
    raw : the index as stored, with its CRC32C
    table : (rows, magnifications, 2) uint64, offset and length of each inner chunk

    Raises
    ------
    CorruptChunkError
        The shard is missing, empty, cut short, or its index is damaged.
    """
    path = path or target.shard_path(name, block)
    length = index_length(target)
    try:
        raw, size = places.at(path).read_end(path, length)
    except FileNotFoundError:
        raise CorruptChunkError(f"shard '{path}' is missing: {repair_hint(target)}") from None
    return raw, _checked_index(target, name, block, path, raw, size)


def _checked_index(target: SlideTarget, name: str, block: int, path: str, raw: bytes, size: int) -> NDArray[np.uint64]:
    """The table of a shard of `size` bytes that ends with `raw`."""
    length = index_length(target)
    if len(raw) < length:
        raise CorruptChunkError(
            f"shard '{path}' has {size} bytes, its index alone needs {length}: {repair_hint(target)}"
        )
    if google_crc32c.value(raw[:-4]) != _CRC.unpack(raw[-4:])[0]:
        raise CorruptChunkError(f"shard '{path}': the checksum of its index is wrong: {repair_hint(target)}")
    table = np.frombuffer(raw[:-4], "<u8").reshape(target.rows, target.shape[1], 2)
    rows = target.block(block)
    used = table[: rows.stop - rows.start]
    ends = used[..., 0] + used[..., 1]
    if (used == _EMPTY).any() or (ends > size - length).any():
        raise CorruptChunkError(
            f"shard '{path}' of {size} bytes lacks chunks that its index or its array needs: {repair_hint(target)}"
        )
    if target.array_codec(name) == "raw":
        expected = int(np.prod(target.chunk_shape(name))) + _CRC.size
        if (used[..., 1] != expected).any():
            raise CorruptChunkError(
                f"shard '{path}' holds chunks that are not of {expected} bytes: {repair_hint(target)}"
            )
    return table


def index_length(target: SlideTarget) -> int:
    """Bytes of the index at a shard's end, its checksum included."""
    return target.rows * target.shape[1] * _CELL.size + _CRC.size


def check_shard(target: SlideTarget, name: str, block: int) -> list[str]:
    """Recompute the checksum of every chunk of a shard: one sentence for each that is wrong."""
    try:
        data, table = _read_shard(target, name, block)
    except (CorruptChunkError, OSError) as error:
        return [str(error)]
    rows = target.block(block)
    return [
        wrong_checksum(target, name, rows.start + i, m)
        for i in range(rows.stop - rows.start)
        for m in range(target.shape[1])
        if not _is_sound(data, *table[i, m].tolist())
    ]


def _read_shard(target: SlideTarget, name: str, block: int) -> tuple[bytes, NDArray[np.uint64]]:
    """A shard, whole, and its index, checked."""
    path = target.shard_path(name, block)
    try:
        data = places.at(path).read(path)
    except FileNotFoundError:
        raise CorruptChunkError(f"shard '{path}' is missing: {repair_hint(target)}") from None
    return data, _checked_index(target, name, block, path, data[-index_length(target) :], len(data))


def _is_sound(data: bytes, offset: int, length: int) -> bool:
    chunk = memoryview(data)[offset : offset + length]
    return length > _CRC.size and _checksum(chunk[: -_CRC.size]) == _CRC.unpack(chunk[-_CRC.size :])[0]


def read_block(target: SlideTarget, name: str, block: int) -> NDArray[np.uint8]:
    """One shard, decoded: (patch, magnification, y, x[, channel]) uint8.

    Raises
    ------
    CorruptChunkError
        Something of it is missing or its checksum is wrong; names array and chunk.
    """
    rows = target.block(block)
    if places.is_remote(target.path):
        return _read_remote_block(target, name, block)
    return read_rows(target, name, np.arange(rows.start, rows.stop))


def _read_remote_block(target: SlideTarget, name: str, block: int) -> NDArray[np.uint8]:
    """A shard in one request, where chunk by chunk would be hundreds."""
    data, table = _read_shard(target, name, block)
    rows, shape = target.block(block), target.chunk_shape(name)[2:]
    decode = decoder(target.array_codec(name))
    out = np.empty((rows.stop - rows.start, target.shape[1], *shape), np.uint8)
    for i in range(out.shape[0]):
        for m in range(out.shape[1]):
            offset, length = table[i, m].tolist()
            if not _is_sound(data, offset, length):
                raise _damaged(target, name, rows.start + i, m)
            out[i, m] = decode(data[offset : offset + length - _CRC.size], shape)
    return out


def read_rows(
    target: SlideTarget,
    name: str,
    rows: Sequence[int] | NDArray[np.integer[Any]],
    magnifications: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Any rows of `image` or `label_map`, in the order given.

    Parameters
    ----------
    rows : of the slide's patches
    magnifications : which of them, as positions; None means all

    Returns
    -------
    values : (len(rows), magnification, y, x[, channel]) uint8

    Raises
    ------
    CorruptChunkError
        A chunk is missing or its checksum is wrong; names array and chunk.
    """
    wanted: NDArray[np.int64] = np.asarray(rows, np.int64)
    columns = list(range(target.shape[1])) if magnifications is None else list(magnifications)
    if wanted.size == 0:
        return np.empty((0, len(columns), *target.chunk_shape(name)[2:]), np.uint8)
    if wanted.min() < 0 or wanted.max() >= target.shape[0]:
        raise StoreError(
            f"'{target.path}': rows {wanted.min()}..{wanted.max()} asked for, it has 0..{target.shape[0] - 1}"
        )
    codec = target.array_codec(name)
    if places.is_remote(target.path):
        return _read_encoded(target, name, wanted, columns)
    for block in np.unique(wanted // target.rows).tolist():
        # Every Zarr library reads fill values from an absent or empty shard without a word.
        path = target.shard_path(name, block)
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            raise CorruptChunkError(f"shard '{path}' is missing or empty: {repair_hint(target)}")
    if codec != "raw":
        return _read_encoded(target, name, wanted, columns)
    array = _array(target.array_path(name))
    view = array.oindex[wanted] if len(columns) == target.shape[1] else array.oindex[wanted, columns]
    try:
        return np.asarray(view.read().result())
    except (ValueError, OSError) as error:
        raise _diagnose(target, name, wanted, error) from error


def _read_encoded(target: SlideTarget, name: str, rows: NDArray[np.int64], columns: list[int]) -> NDArray[np.uint8]:
    shape = target.chunk_shape(name)[2:]
    decode = decoder(target.array_codec(name))
    out = np.empty((len(rows), len(columns), *shape), np.uint8)
    rest = (0,) * len(shape)
    stores = {
        block: ts.KvStore.open(_shard_spec(target, name, target.shard_path(name, block)), context=_context()).result()
        for block in np.unique(rows // target.rows).tolist()
    }
    # All reads are begun before the first is waited for: TensorStore then has many requests in flight.
    reads: deque[Any] = deque()
    for row in rows.tolist():
        block, within = divmod(row, target.rows)
        reads.extend(stores[block].read(struct.pack(f">{2 + len(shape)}I", within, m, *rest)) for m in columns)
    for i, row in enumerate(rows.tolist()):
        for j, m in enumerate(columns):
            try:
                data = reads.popleft().result().value
            except (ValueError, OSError) as error:
                raise _diagnose(target, name, rows, error) from error
            if not data:
                raise _diagnose(target, name, rows, ValueError(f"chunk {row, m} is missing"))
            if not _is_sound(data, 0, len(data)):
                raise _damaged(target, name, row, m)
            out[i, j] = decode(data[: -_CRC.size], shape)
    return out


def wrong_checksum(target: SlideTarget, name: str, row: int, magnification: int) -> str:
    """What is wrong with a chunk, in words."""
    return f"array '{target.array_path(name)}' chunk {row, magnification}: the checksum of its bytes is wrong"


def _damaged(target: SlideTarget, name: str, row: int, magnification: int) -> CorruptChunkError:
    return CorruptChunkError(f"{wrong_checksum(target, name, row, magnification)}: {repair_hint(target)}")


def _diagnose(target: SlideTarget, name: str, rows: NDArray[np.int64], error: Exception) -> CorruptChunkError:
    """Name the chunk that a failed read stumbled over: TensorStore does not."""
    found = [line for block in np.unique(rows // target.rows).tolist() for line in check_shard(target, name, block)]
    what = "; ".join(found[:3]) or f"array '{target.array_path(name)}': {error}"
    hint = repair_hint(target)
    return CorruptChunkError(what if hint in what else f"{what}: {hint}")


def repair_hint(target: SlideTarget) -> str:
    """What to do about a slide that is damaged."""
    return (
        f"run `msdask verify` on the store, then extract slide '{os.path.basename(target.path)}' again with overwrite"
    )
