"""Patches out of shards, straight from their files: single ones in any order, and whole blocks.

A positioned read of the bytes that are wanted into their place in the batch, the chunk's CRC32C, and the decoder where
there is one. For random batches of 64 patches of 224 px from a store in the page cache this gives one and a half times
what TensorStore's reads give (docs/loaders.md), with the same checks, and errors name the chunk. From object storage
the chunks that lie together come in one request, and a whole shard in one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError
from msdask.storage import places
from msdask.storage.places import OpenFile
from msdask.store import layout, shards
from msdask.store.codecs import decoder
from msdask.store.integrity import REPAIR_HINT, checked_body, crc32c, index_table, unreadable
from msdask.store.reading_threads import PATCHES_A_TASK, Part, start
from msdask.store.slide_arrays import CRC_BYTES, SCHEMA, SlideArrays, checksums_of

__all__ = ["ShardArray"]

_MAX_RUN = 64
"""Chunks that lie one behind the other are read at once, up to this many."""

_NOTHING = np.empty(0, np.uint8)

Decoder = Callable[[bytes | memoryview, tuple[int, ...]], Any]
"""Bytes of a chunk and the shape of its place -> what is put there."""


class _Chunk(NamedTuple):
    """One chunk that is wanted: where it lies in its shard, where its pixels go, and the checksum that it must have."""

    # A tuple, since one is made for every patch: a frozen dataclass takes four times as long.
    offset: int
    length: int
    row: int
    column: int
    out: NDArray[Any]
    crc: int | None = None


class ShardArray:
    """`image` or `label_map` of a complete slide: every read is of patches whose index and checksum are right.

    Parameters
    ----------
    arrays : the slide's
    name : "image" or "label_map"
    """

    def __init__(self, arrays: SlideArrays, name: str) -> None:
        self.arrays, self.name = arrays, name
        self._waits = places.is_remote(arrays.path)
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._paths: dict[int, str] = {}
        self._checksums: NDArray[np.uint32] | None = None

    def check_sizes(self) -> None:
        """Check that every shard is there and of the size that its patches need, without reading one.

        Raises
        ------
        CorruptChunkError
            One is missing, empty or of another size; names it.
        """
        places.gather(self.arrays.path, self._check_size, range(self.arrays.blocks))

    def _check_size(self, block: int) -> None:
        path = self.arrays.shard_path(self.name, block)
        try:
            size = places.at(path).size(path)
        except OSError as error:
            raise unreadable(f"shard '{path}'", error) from error
        rows, fixed = self.arrays.block(block), self.arrays.chunk_bytes(self.name)
        chunks = (rows.stop - rows.start) * self.arrays.shape[1]
        expected = self.arrays.index_bytes + chunks * (fixed or CRC_BYTES + 1)
        if size < expected or (fixed and size > expected):
            raise CorruptChunkError(
                f"shard '{path}' has {size} bytes, its {chunks} chunks need {expected}: {REPAIR_HINT}"
            )

    def parts(
        self,
        rows: NDArray[np.integer[Any]],
        out: NDArray[Any],
        *,
        places: NDArray[np.integer[Any]] | None = None,
        columns: Sequence[int] | None = None,
        decode: Decoder | None = None,
    ) -> list[Part]:
        """Patches that are to be read into `out`, in pieces for one thread each; `reading_threads.start` begins them.

        Parameters
        ----------
        rows : of the slide's patches, in any order
        out : (n, magnification, y, x[, channel]) uint8, each image C-contiguous
        places : first index of `out` for each row; None means in the order of `rows`
        columns : which magnifications, as positions; None means all
        decode : what becomes of a chunk's bytes, instead of the pixels that its codec gives

        Returns
        -------
        parts : each raises CorruptChunkError where a chunk's checksum is wrong; names array and chunk
        """
        where = range(len(rows)) if places is None else places.tolist()
        pairs = sorted(zip(rows.tolist(), where, strict=True))
        if pairs and (pairs[0][0] < 0 or pairs[-1][0] >= self.arrays.shape[0]):
            raise StoreError(
                f"'{self.arrays.path}': rows {rows.min()}..{rows.max()} asked for, it has 0..{self.arrays.shape[0] - 1}"
            )
        wanted = range(self.arrays.shape[1]) if columns is None else columns
        cut = [pairs[i : i + PATCHES_A_TASK] for i in range(0, len(pairs), PATCHES_A_TASK)]
        return [Part(len(some), self._waits, partial(self._read, some, wanted, out, decode=decode)) for some in cut]

    def submit(
        self, rows: NDArray[np.integer[Any]], out: NDArray[Any], *, decode: Decoder | None = None
    ) -> list[Future[None]]:
        """Begin to read patches into `out`; they are there when every future is done. Parameters as for `parts`."""
        return start(self.parts(rows, out, decode=decode))

    def read(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Any rows, in the order given: (len(rows), magnification, y, x[, channel]) uint8.

        Raises
        ------
        CorruptChunkError
            A chunk is missing or its checksum is wrong; names array and chunk.
        """
        wanted: NDArray[np.int64] = np.asarray(rows, np.int64).reshape(-1)
        out = self._empty(len(wanted))
        for future in self.submit(wanted, out):
            future.result()
        return out

    def read_encoded(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.object_]:
        """Bytes of patches as they are stored, without their checksums, which are checked.

        Parameters
        ----------
        rows : of the slide's patches, in any order

        Returns
        -------
        encoded : (len(rows), magnification) bytes

        Raises
        ------
        CorruptChunkError
            A chunk is missing or its checksum is wrong; names array and chunk.
        """
        wanted: NDArray[np.int64] = np.asarray(rows, np.int64).reshape(-1)
        out = np.empty((len(wanted), self.arrays.shape[1], 1), object)
        for future in self.submit(wanted, out, decode=_as_stored):
            future.result()
        return out[..., 0]

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """All rows of one shard, in the calling thread; errors as for `read`."""
        rows = self.arrays.block(block)
        out = self._empty(rows.stop - rows.start)
        pairs = [(row, place) for place, row in enumerate(range(rows.start, rows.stop))]
        self._read(pairs, range(self.arrays.shape[1]), out, whole=True)
        return out

    def damage(self, block: int) -> list[str]:
        """Recompute the checksum of every chunk of a shard: one sentence for each that is wrong."""
        rows = self.arrays.block(block)
        try:
            with self._opened(block, whole=True) as file:
                table = self._judged_index(file, block)[1][: rows.stop - rows.start].tolist()
                cells = ((row, m, *cell) for row, cells in enumerate(table) for m, cell in enumerate(cells))
                crcs = self._block_checksums(block)
                chunks = [
                    _Chunk(offset, length, rows.start + row, m, _NOTHING, None if crcs is None else crcs.item(row, m))
                    for row, m, offset, length in cells
                ]
                judge = _fill_by(None)
                return [self._named(chunk) for run in _runs(chunks) for chunk in judge(file, run)]
        except CorruptChunkError as error:
            return [str(error)]

    def index(self, block: int) -> tuple[bytes, NDArray[np.uint64]]:
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
        with self._opened(block) as file:
            return self._judged_index(file, block)

    def _judged_index(self, file: OpenFile, block: int) -> tuple[bytes, NDArray[np.uint64]]:
        raw, size = file.read_end(self.arrays.index_bytes)
        return raw, index_table(self.arrays, self.name, block, raw, size)

    def _read(
        self,
        pairs: list[tuple[int, int]],
        columns: Sequence[int],
        out: NDArray[Any],
        *,
        whole: bool = False,
        decode: Decoder | None = None,
    ) -> None:
        """Fill ``out[place]`` for each (row, place), in the order of rows; `whole`: it is most of a shard."""
        codec = self.arrays.array_codec(self.name)
        fill = _fill_raw if codec == "raw" and decode is None else _fill_by(decode or decoder(codec))
        crcs = self._known_checksums()
        for block, group in groupby(pairs, key=lambda pair: pair[0] // self.arrays.rows):
            first, path = block * self.arrays.rows, self._path(block)
            try:
                with places.at(path).opened(path, whole=whole) as file:
                    table = self._tables.get(block)
                    if table is None:
                        table = self._tables[block] = self._judged_index(file, block)[1].astype(np.int64)
                    cell, crc = table.item, None if crcs is None else crcs.item
                    # One number at a time by `item`: for a handful of patches anything else of NumPy takes longer.
                    chunks = [
                        _Chunk(
                            cell(row - first, column, 0),
                            cell(row - first, column, 1),
                            row,
                            column,
                            out[place, j],
                            None if crc is None else crc(row, column),
                        )
                        for row, place in group
                        for j, column in enumerate(columns)
                    ]
                    bad = [chunk for run in _runs(chunks) for chunk in fill(file, run)]
            except OSError as error:
                raise unreadable(f"shard '{path}'", error) from error
            if bad:
                raise CorruptChunkError(f"{'; '.join(map(self._named, bad[:3]))}: {REPAIR_HINT}")

    def _known_checksums(self) -> NDArray[np.uint32] | None:
        """(patch, magnification) uint32, little-endian, of a complete slide; None where none were stored."""
        name = checksums_of(self.name)
        if self._checksums is None and self.arrays.schema >= SCHEMA:
            digests = dict(self.arrays.digests)
            if name in digests:
                self._checksums = layout.read_column(self.arrays.path, name, digest=digests[name])
        return self._checksums

    def _block_checksums(self, block: int) -> NDArray[np.uint32] | None:
        """Those of one block, also of a slide that is not complete yet."""
        known = self._known_checksums()
        if known is not None:
            return known[self.arrays.block(block)]
        return shards.stored_checksums(self.arrays, self.name, block) if self.arrays.schema >= SCHEMA else None

    @contextmanager
    def _opened(self, block: int, *, whole: bool = False) -> Iterator[OpenFile]:
        path = self._path(block)
        try:
            with places.at(path).opened(path, whole=whole) as file:
                yield file
        except OSError as error:
            raise unreadable(f"shard '{path}'", error) from error

    def _path(self, block: int) -> str:
        path = self._paths.get(block)
        if path is None:
            path = self._paths[block] = self.arrays.shard_path(self.name, block)
        return path

    def _named(self, chunk: _Chunk) -> str:
        where = f"array '{self.arrays.array_path(self.name)}' chunk {chunk.row, chunk.column}"
        return f"{where}: the checksum of its bytes is wrong, or is not the one of this place"

    def _empty(self, count: int) -> NDArray[np.uint8]:
        return np.empty((count, self.arrays.shape[1], *self.arrays.chunk_shape(self.name)[2:]), np.uint8)


def _runs(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Chunks that lie one behind the other, together."""
    run: list[_Chunk] = []
    end = -1
    for chunk in chunks:
        if run and (chunk.offset != end or len(run) == _MAX_RUN):
            yield run
            run = []
        run.append(chunk)
        end = chunk.offset + chunk.length
    if run:
        yield run


def _fill_raw(file: OpenFile, run: list[_Chunk]) -> list[_Chunk]:
    """Read a run straight to where its pixels go; gives the chunks whose checksum is wrong or that are cut short."""
    stored = bytearray(CRC_BYTES * len(run))
    tails = memoryview(stored)
    parts: list[memoryview] = []
    length = 0
    for i, chunk in enumerate(run):
        parts += (chunk.out.data, tails[CRC_BYTES * i : CRC_BYTES * (i + 1)])
        length += chunk.length
    if file.read_into(run[0].offset, parts) != length:
        return run
    found = struct.unpack(f"<{len(run)}I", stored)
    return [c for c, tail in zip(run, found, strict=True) if crc32c(c.out) != tail or c.crc not in (None, tail)]


def _as_stored(data: bytes | memoryview, shape: tuple[int, ...]) -> bytes:
    return bytes(data)


def _fill_by(
    decode: Decoder | None,
) -> Callable[[OpenFile, list[_Chunk]], list[_Chunk]]:
    """As `_fill_raw`, by a decoder; None looks at the checksums only."""

    def fill(file: OpenFile, run: list[_Chunk]) -> list[_Chunk]:
        start, bad = run[0].offset, []
        data = memoryview(bytearray(sum(chunk.length for chunk in run)))
        file.read_into(start, [data])
        for chunk in run:
            stored = data[chunk.offset - start : chunk.offset - start + chunk.length]
            body = checked_body(stored)
            if body is None or chunk.crc not in (None, int.from_bytes(stored[-CRC_BYTES:], "little")):
                bad.append(chunk)
            elif decode is not None:
                chunk.out[...] = decode(body, chunk.out.shape)
        return bad

    return fill
