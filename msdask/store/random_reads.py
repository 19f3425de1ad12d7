"""Single patches out of shards, straight from their files: what random batches are made of.

A positioned read of the bytes that are wanted into their place in the batch, the chunk's CRC32C, and the decoder where
there is one, on a few threads. For random batches of 64 patches of 224 px from a store in the page cache this gives
one and a half times what TensorStore's reads give (docs/loaders.md), with the same checks, and errors name the chunk.
From object storage the chunks that lie together come in one request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import google_crc32c
import numpy as np
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError
from msdask.storage import places
from msdask.store.codecs import decoder
from msdask.store.layout import SlideTarget
from msdask.store.shards import index_length, repair_hint, shard_index, wrong_checksum

__all__ = ["FORK_REASON", "ShardArray", "reading_pool"]

FORK_REASON = (
    "a process that is forked inherits locks and queues of threads that do not exist in it, so that reads abort or "
    "hang; use num_workers=0 (reads run on threads anyway), or start workers by 'forkserver' or 'spawn'"
)

_CRC_BYTES = 4
_PATCHES_A_TASK = 8
"""Large enough that threads are not woken for nothing, small enough that a batch spreads over them."""
_MAX_RUN = 64
"""Chunks that lie one behind the other are read at once, up to this many."""

_Handle = int | Callable[[int, int], bytes]
"""A file's descriptor, or what gives (offset, size) of an object."""

_state: dict[str, Any] = {"pool": None, "is_forked": False}


def reading_pool() -> ThreadPoolExecutor:
    """The threads of this process that read and decode patches.

    Raises
    ------
    StoreError
        This process was forked from one that had begun to read.
    """
    if _state["is_forked"]:
        raise StoreError(f"this process was forked from one that had begun to read patches: {FORK_REASON}")
    if _state["pool"] is None:
        # More threads than cores, so that a disk has several requests to work on.
        _state["pool"] = ThreadPoolExecutor(min(16, max(4, CPU_COUNT)), thread_name_prefix="msdask-read")
    return _state["pool"]


def _after_fork() -> None:
    _state["is_forked"] = _state["is_forked"] or _state["pool"] is not None


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk that is wanted: where it lies in its shard, and where its pixels go."""

    offset: int
    length: int
    row: int
    column: int
    target: NDArray[np.uint8]


class ShardArray:
    """`image` or `label_map` of a complete slide, opened for reading single patches in any order.

    Presence and size of every shard are checked here, once: an absent or empty one must never read as black patches.

    Parameters
    ----------
    target : the slide
    name : "image" or "label_map"

    Raises
    ------
    CorruptChunkError
        A shard is missing, empty or not of the size that its patches need; names it.
    """

    def __init__(self, target: SlideTarget, name: str) -> None:
        self.target, self.name = target, name
        self._tables: dict[int, NDArray[np.int64]] = {}
        places.gather(target.path, self._check_size, range(target.blocks))

    def _check_size(self, block: int) -> None:
        path = self.target.shard_path(self.name, block)
        try:
            size = places.at(path).size(path)
        except FileNotFoundError:
            raise CorruptChunkError(f"shard '{path}' is missing: {repair_hint(self.target)}") from None
        rows, magnifications = self.target.block(block), self.target.shape[1]
        index = index_length(self.target)
        chunks = (rows.stop - rows.start) * magnifications
        if self.target.array_codec(self.name) == "raw":
            expected = index + chunks * (int(np.prod(self.target.chunk_shape(self.name))) + _CRC_BYTES)
            is_whole = size == expected
        else:
            expected = index + chunks * (_CRC_BYTES + 1)
            is_whole = size >= expected
        if not is_whole:
            raise CorruptChunkError(
                f"shard '{path}' has {size} bytes, its {chunks} chunks need {expected}: {repair_hint(self.target)}"
            )

    def begin(
        self,
        rows: NDArray[np.integer[Any]],
        out: NDArray[np.uint8],
        *,
        places: NDArray[np.integer[Any]] | None = None,
        columns: Sequence[int] | None = None,
    ) -> list[Future[None]]:
        """Begin to read patches into `out`; they are there when every future is done.

        Parameters
        ----------
        rows : of the slide's patches, in any order
        out : (n, magnification, y, x[, channel]) uint8, C-contiguous
        places : first index of `out` for each row; None means in the order of `rows`
        columns : which magnifications, as positions; None means all

        Returns
        -------
        futures : each raises CorruptChunkError where a chunk's checksum is wrong; names array and chunk
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.target.shape[0]):
            raise StoreError(
                f"'{self.target.path}': rows {rows.min()}..{rows.max()} asked for, it has 0..{self.target.shape[0] - 1}"
            )
        wanted = range(self.target.shape[1]) if columns is None else columns
        where = np.arange(len(rows)) if places is None else places
        order = np.argsort(rows, kind="stable")
        pairs = list(zip(rows[order].tolist(), where[order].tolist(), strict=True))
        pool = reading_pool()
        return [
            pool.submit(self._read, pairs[i : i + _PATCHES_A_TASK], wanted, out)
            for i in range(0, len(pairs), _PATCHES_A_TASK)
        ]

    def _read(self, pairs: list[tuple[int, int]], columns: Sequence[int], out: NDArray[np.uint8]) -> None:
        codec = self.target.array_codec(self.name)
        is_remote = places.is_remote(self.target.path)
        fill = _read_raw if codec == "raw" and not is_remote else _decode_with(decoder(codec))
        for block, group in groupby(pairs, key=lambda pair: pair[0] // self.target.rows):
            table = self._table(block)
            first = block * self.target.rows
            chunks = [
                _Chunk(offset, length, row, column, out[place, j])
                for row, place in group
                for j, column in enumerate(columns)
                for offset, length in [table[row - first, column].tolist()]
            ]
            path = self.target.shard_path(self.name, block)
            try:
                with _opened(path) as handle:
                    bad = [chunk for run in _runs(chunks) for chunk in fill(handle, run)]
            except OSError as error:
                raise CorruptChunkError(
                    f"shard '{path}' cannot be read: {error}; {repair_hint(self.target)}"
                ) from error
            if bad:
                named = "; ".join(wrong_checksum(self.target, self.name, chunk.row, chunk.column) for chunk in bad[:3])
                raise CorruptChunkError(f"{named}: {repair_hint(self.target)}")

    def _table(self, block: int) -> NDArray[np.int64]:
        table = self._tables.get(block)
        if table is None:
            table = shard_index(self.target, self.name, block)[1].astype(np.int64)
            self._tables[block] = table
        return table


@contextmanager
def _opened(path: str) -> Iterator[_Handle]:
    """A shard to read from: a file's descriptor, or a function for ranges of an object."""
    if places.is_remote(path):
        yield partial(places.bucket(path).read_range, path)
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _runs(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Chunks that lie one behind the other, together."""
    run: list[_Chunk] = []
    for chunk in chunks:
        if run and (chunk.offset != run[-1].offset + run[-1].length or len(run) == _MAX_RUN):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _read_raw(handle: _Handle, run: list[_Chunk]) -> list[_Chunk]:
    """Fill the targets of a run from a file; gives the chunks whose checksum is wrong or that are cut short."""
    assert isinstance(handle, int)
    checksums = memoryview(bytearray(_CRC_BYTES * len(run)))
    tails = [checksums[i : i + _CRC_BYTES] for i in range(0, len(checksums), _CRC_BYTES)]
    buffers = [part for chunk, tail in zip(run, tails, strict=True) for part in (chunk.target.data, tail)]
    if os.preadv(handle, buffers, run[0].offset) != sum(chunk.length for chunk in run):
        return run
    return [
        chunk
        for chunk, tail in zip(run, tails, strict=True)
        if google_crc32c.value(chunk.target) != int.from_bytes(tail, "little")
    ]


def _decode_with(
    decode: Callable[[bytes, tuple[int, ...]], NDArray[np.uint8]],
) -> Callable[[_Handle, list[_Chunk]], list[_Chunk]]:
    def read_encoded(handle: _Handle, run: list[_Chunk]) -> list[_Chunk]:
        size, offset = sum(chunk.length for chunk in run), run[0].offset
        data = os.pread(handle, size, offset) if isinstance(handle, int) else handle(offset, size)
        bad = []
        for chunk in run:
            end = chunk.offset + chunk.length - run[0].offset
            body, tail = data[end - chunk.length : end - _CRC_BYTES], data[end - _CRC_BYTES : end]
            if len(tail) == _CRC_BYTES and google_crc32c.value(body) == int.from_bytes(tail, "little"):
                chunk.target[...] = decode(body, chunk.target.shape)
            else:
                bad.append(chunk)
        return bad

    return read_encoded
