"""Blocks in files: shards, any codec, every inner chunk with a CRC32C; and their rows of `measured`.

`measured` holds what was measured on every patch; a block's rows in it say that the block is written. TensorStore
writes the same bytes (a test holds us to that) at half the speed: a gathered write from the patches themselves saves
two copies of every pixel. `msdask.store.reading` reads shards.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from msdask.cutting.measures import column
from msdask.errors import StoreError
from msdask.storage import places
from msdask.store.codecs import encoder
from msdask.store.integrity import checked_body, checksum
from msdask.store.slide_arrays import CRC_BYTES, SCHEMA, SlideArrays

__all__ = [
    "Chunk",
    "check_block",
    "checksums",
    "encode",
    "has_label_pixels",
    "mend_shard",
    "read_measured",
    "shard_writer",
    "stored_checksums",
    "stored_measures",
    "write_checksums",
    "write_label_pixels",
    "write_measured",
    "write_shard",
    "written_blocks",
]

Chunk = tuple[bytes | memoryview, bytes]
"""One encoded patch and its CRC32C."""

_EMPTY = 2**64 - 1
"""Offset and length of a chunk that is not there, in the index of a shard."""


def encode(arrays: SlideArrays, name: str, values: NDArray[np.uint8]) -> list[Chunk]:
    """Patches as the inner chunks that are stored: those of `raw` are views of `values`, not copies."""
    encode_one = encoder(arrays.array_codec(name))
    data = [encode_one(chunk) for patch in values for chunk in patch]
    return [(chunk, checksum(chunk)) for chunk in data]


def write_shard(arrays: SlideArrays, name: str, block: int, values: NDArray[np.uint8]) -> None:
    """Write one shard of `image` or `label_map`; it appears whole or not at all.

    Parameters
    ----------
    values : (patch, magnification, y, x[, channel]) uint8, all rows of the block
    """
    chunks = encode(arrays, name, check_block(arrays, name, block, values))
    with shard_writer(arrays, name, block) as put:
        put(0, chunks)
    write_checksums(arrays, name, block, checksums(arrays, chunks))


def mend_shard(arrays: SlideArrays, name: str, block: int, values: NDArray[np.uint8]) -> None:
    """Replace one shard by the same values, and touch nothing else; parameters as for `write_shard`.

    Raises
    ------
    StoreError
        Their checksums are not those that are stored; nothing is changed then.
    """
    chunks = encode(arrays, name, check_block(arrays, name, block, values))
    stored = stored_checksums(arrays, name, block)
    if stored is None or not np.array_equal(checksums(arrays, chunks), stored):
        raise StoreError(
            f"'{arrays.path}' block {block} of {name}: what it is now is not what was stored (has its mask changed?): "
            "left as it is; write the slide again with overwrite"
        )
    with shard_writer(arrays, name, block) as put:
        put(0, chunks)


def checksums(arrays: SlideArrays, chunks: Sequence[Chunk]) -> NDArray[np.uint32]:
    """(patch, magnification) uint32: the CRC32C of each chunk of some whole patches."""
    return np.frombuffer(b"".join(crc for _, crc in chunks), "<u4").reshape(-1, arrays.shape[1])


def write_checksums(arrays: SlideArrays, name: str, block: int, values: NDArray[np.uint32]) -> None:
    """Write a block's rows of the column of checksums.

    Parameters
    ----------
    values : (patch, magnification) uint32, all rows of the block
    """
    if arrays.schema < SCHEMA:
        return
    chunk = np.zeros(arrays.shard_shape, "<u4")
    chunk[: len(values)] = values
    data, path = chunk.tobytes(), arrays.checksums_path(name, block)
    with _storing(path):
        places.at(path).write(path, [data, checksum(data)])


def stored_checksums(arrays: SlideArrays, name: str, block: int) -> NDArray[np.uint32] | None:
    """A block's rows of the column of checksums; None where they are missing or damaged."""
    path, rows = arrays.checksums_path(name, block), arrays.block(block)
    try:
        body = checked_body(places.at(path).read(path), 4 * math.prod(arrays.shard_shape))
    except FileNotFoundError:
        body = None
    return None if body is None else np.frombuffer(body, "<u4").reshape(arrays.shard_shape)[: rows.stop - rows.start]


def write_label_pixels(arrays: SlideArrays, block: int, counts: NDArray[np.uint32]) -> None:
    """Write a block's rows of the column `label_pixels`.

    Parameters
    ----------
    counts : (patch, label) uint32, all rows of the block
    """
    chunk = np.zeros((arrays.rows, counts.shape[1]), "<u4")
    chunk[: len(counts)] = counts
    data, path = chunk.tobytes(), _label_pixels_path(arrays, block)
    with _storing(path):
        places.at(path).write(path, [data, checksum(data)])


def has_label_pixels(arrays: SlideArrays, block: int) -> bool:
    """Whether a block's rows of the column `label_pixels` are there, and sound."""
    path = _label_pixels_path(arrays, block)
    try:
        return checked_body(places.at(path).read(path)) is not None
    except FileNotFoundError:
        return False


def _label_pixels_path(arrays: SlideArrays, block: int) -> str:
    return places.join(arrays.array_path("label_pixels"), "c", str(block), "0")


def check_block(arrays: SlideArrays, name: str, block: int, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`values`, if they can be a block of `image` or `label_map`.

    Raises
    ------
    StoreError
        They are of another shape or type.
    """
    rows = arrays.block(block)
    expected = (rows.stop - rows.start, arrays.shape[1], *arrays.chunk_shape(name)[2:])
    if values.shape != expected or values.dtype != np.uint8:
        raise StoreError(
            f"'{arrays.path}' block {block} of {name}: {values.shape} {values.dtype}; expected {expected} uint8"
        )
    return values


@contextmanager
def shard_writer(arrays: SlideArrays, name: str, block: int) -> Iterator[Callable[[int, Sequence[Chunk]], None]]:
    """Write one shard in pieces, in any order and from any thread, each with the number of its first chunk.

    A raw chunk is at its place when the call comes back, so that writing goes on beside reading, and its memory may be
    used again. One of another codec is, too, once all before it have come: where it lies depends on them. The shard
    appears when the block ends; all calls must have come back by then. An error in the block leaves nothing behind.
    """
    path, place, size = arrays.shard_path(name, block), places.at(arrays.path), arrays.chunk_bytes(name)
    rows = arrays.block(block)
    count = (rows.stop - rows.start) * arrays.shape[1]
    whole = None if size is None else count * size + sum(map(len, _index(arrays, np.full(count, size, np.uint64))))
    with ExitStack() as stack:
        with _storing(path):
            put_at = stack.enter_context(place.placed(path, whole))
        places_of = _Places(count, size)

        def put(first: int, chunks: Sequence[Chunk]) -> None:
            for offset, some in places_of.of(first, chunks):
                with _storing(path):
                    put_at(offset, list(chain.from_iterable(some)))

        yield put
        with _storing(path):
            put_at(places_of.end, _index(arrays, places_of.lengths))
            stack.close()


class _Places:
    """Where chunks lie in a shard: one behind the other.

    Parameters
    ----------
    count : of the chunks
    size : bytes of each with its checksum; None: they differ

    Attributes
    ----------
    lengths : (count,) uint64, bytes of the chunks that have come
    """

    def __init__(self, count: int, size: int | None) -> None:
        self._size = size
        self.lengths = np.full(count, size or 0, np.uint64)
        self._early: dict[int, Sequence[Chunk]] = {}
        self._next = 0
        self._end = 0
        self._lock = threading.Lock()

    @property
    def end(self) -> int:
        """Bytes of all chunks."""
        return int(self.lengths.sum())

    def of(self, first: int, chunks: Sequence[Chunk]) -> list[tuple[int, Sequence[Chunk]]]:
        """What can be written now that these have come, and at which offsets; what comes early is kept."""
        if self._size is not None:
            return [(first * self._size, chunks)]
        found: list[tuple[int, Sequence[Chunk]]] = []
        with self._lock:
            self._early[first] = chunks
            while (some := self._early.pop(self._next, None)) is not None:
                lengths = [len(data) + CRC_BYTES for data, _ in some]
                self.lengths[self._next : self._next + len(some)] = lengths
                found.append((self._end, some))
                self._next, self._end = self._next + len(some), self._end + sum(lengths)
        return found


def _index(arrays: SlideArrays, lengths: NDArray[np.uint64]) -> list[bytes]:
    """A shard's end: places of all its cells, and their checksum."""
    table = np.full((arrays.rows * arrays.shape[1], 2), _EMPTY, "<u8")
    table[: len(lengths), 0] = np.cumsum(lengths) - lengths
    table[: len(lengths), 1] = lengths
    index = table.tobytes()
    return [index, checksum(index)]


@contextmanager
def _storing(path: str) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except OSError as error:
        # What a server said names what to set already.
        hint = "" if places.is_url(path) else "check that there is room and that it is writable, "
        raise StoreError(f"cannot write '{path}': {error}; {hint}then run again") from error


def write_measured(arrays: SlideArrays, block: int, measured: NDArray[np.float32]) -> None:
    """Write a block's rows: after its shards, since this is what says that they are there.

    Parameters
    ----------
    measured : (patch, magnification, measure) float32, all rows of the block
    """
    chunk = np.full(_chunk_shape(arrays), np.nan, "<f4")
    chunk[: len(measured)] = measured
    data, path = chunk.tobytes(), _path(arrays, block)
    with _storing(path):
        places.at(path).write(path, [data, checksum(data)])


def read_measured(arrays: SlideArrays) -> NDArray[np.float32]:
    """(patch, magnification, measure) float32, of all patches; NaN where a block is not written.

    A block whose rows are damaged counts as not written: it can be written again.
    """
    blocks = places.gather(arrays.path, partial(stored_measures, arrays), range(arrays.blocks))
    empty = np.empty((0, *_chunk_shape(arrays)[1:]), np.float32)
    return np.concatenate([empty, *blocks])


def stored_measures(arrays: SlideArrays, block: int) -> NDArray[np.float32]:
    """A block's rows, as `read_measured` gives them."""
    shape, path, rows = _chunk_shape(arrays), _path(arrays, block), arrays.block(block)
    try:
        body = checked_body(places.at(path).read(path), 4 * math.prod(shape))
    except FileNotFoundError:
        body = None
    chunk = np.full(shape, np.nan, np.float32) if body is None else np.frombuffer(body, "<f4").reshape(shape)
    return chunk[: rows.stop - rows.start]


def written_blocks(arrays: SlideArrays, measured: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    """Which blocks are written: (blocks,) bool.

    Parameters
    ----------
    measured : as `read_measured` gives it; read by default
    """
    if arrays.blocks == 0:
        return np.zeros(0, bool)
    values = read_measured(arrays) if measured is None else measured
    first = column(values, "brightness")[:, 0]
    return ~np.isnan(np.maximum.reduceat(first, np.arange(0, arrays.shape[0], arrays.rows)))


def _chunk_shape(arrays: SlideArrays) -> tuple[int, int, int]:
    return (*arrays.shard_shape, arrays.measures)


def _path(arrays: SlideArrays, block: int) -> str:
    return places.join(arrays.array_path("measured"), "c", str(block), "0", "0")
