"""One block into the store, from a cutter or from lazy patches: measured and written a few patches at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed
from numpy.typing import NDArray

from msdask.cutting.measures import column, is_same_measured, measure
from msdask.errors import StoreError
from msdask.store import shards
from msdask.store.slide_arrays import SCHEMA, SlideArrays

__all__ = ["BlockWriter", "block_writer", "lazy_blocks", "rows_per_block"]

IN_HAND_BYTES = 4 * 2**20
"""Pixels that a thread has in hand between the decoder and the file: 40x is 6 % faster than with a block of 38 MB."""

_LAZY = {"image": "pmyxc", "filled": "pm", "label_map": "pmyx"}
"""Lazy arrays that a block is written from, and their axes."""


class BlockWriter:
    """One block on its way into the store: its patches are measured and written as they come, a few at a time.

    Attributes
    ----------
    measured : (patch, magnification, measure) float32, of the patches that have come
    checksums : (patch, magnification) uint32, the CRC32C of their chunks
    in_hand : as many patches as should come at once: they stay in the processor's cache from where they are made to
        the file
    """

    def __init__(
        self, arrays: SlideArrays, rows: int, put_chunks: Callable[[int, Sequence[shards.Chunk]], None]
    ) -> None:
        self._arrays, self._put_chunks = arrays, put_chunks
        self.measured = np.zeros((rows, arrays.shape[1], arrays.measures), np.float32)
        self.checksums = np.zeros((rows, arrays.shape[1]), np.uint32)
        self.in_hand = max(1, IN_HAND_BYTES // (arrays.shape[1] * math.prod(arrays.chunk_shape("image"))))

    def put(self, first: int, pixels: NDArray[np.uint8]) -> None:
        """Measure and write patches, in any order and from any thread; after it their memory may be used again.

        Parameters
        ----------
        first : number of the first in the block
        pixels : (patch, magnification, y, x, channel) uint8
        """
        for start in range(0, len(pixels), self.in_hand):
            some = pixels[start : start + self.in_hand]
            at = first + start
            self.measured[at : at + len(some)] = measure(some, measures=self._arrays.measures)
            chunks = shards.encode(self._arrays, "image", some)
            self.checksums[at : at + len(some)] = shards.checksums(self._arrays, chunks)
            self._put_chunks(at * self._arrays.shape[1], chunks)


@contextmanager
def block_writer(
    arrays: SlideArrays, block: int, *, stored: NDArray[np.float32] | None = None
) -> Iterator[BlockWriter]:
    """Write one block, when all has come: its shard, its chunks' checksums, and last its rows of `measured`.

    Doing it twice changes nothing.

    Parameters
    ----------
    arrays, block : where
    stored : what was measured on the block when it was written before: now it must measure so again, have the
        checksums that are stored, and only its shard is replaced

    Raises
    ------
    StoreError
        It cannot be written, or measures otherwise than what was stored; nothing is changed then.
    """
    rows = arrays.block(block)
    with shards.shard_writer(arrays, "image", block) as put_chunks:
        writer = BlockWriter(arrays, rows.stop - rows.start, put_chunks)
        yield writer
        if stored is not None and not _is_as_before(arrays, block, writer, stored):
            raise StoreError(
                f"'{arrays.path}' block {block}: what is read now does not measure as what was stored, or has other "
                "bytes (a step between reading and writing?): left as it is; write the slide again with overwrite"
            )
    if stored is None:
        shards.write_checksums(arrays, "image", block, writer.checksums)
        shards.write_measured(arrays, block, writer.measured)


def _is_as_before(arrays: SlideArrays, block: int, writer: BlockWriter, stored: NDArray[np.float32]) -> bool:
    if not is_same_measured(writer.measured, stored):
        return False
    if arrays.schema < SCHEMA:
        return True
    checksums = shards.stored_checksums(arrays, "image", block)
    return checksums is not None and np.array_equal(writer.checksums, checksums)


def lazy_blocks(arrays: SlideArrays, patches: xr.Dataset, blocks: Sequence[int]) -> list[Delayed]:
    """Blocks of lazy patches as tasks that write them: whatever stands between reading and writing is in the same task.

    Parameters
    ----------
    arrays : where
    patches : `image`, and `filled` and `label_map` where they are there; one chunk a block
    blocks : to write

    Returns
    -------
    tasks : one a block
    """
    image = patches["image"].data
    numbers = da.map_blocks(_number, chunks=((1,) * image.numblocks[0],), dtype=np.int64, meta=np.empty(0, np.int64))
    inputs = [part for name, axes in _LAZY.items() if name in patches for part in (patches[name].data, axes)]
    written = da.blockwise(
        partial(_write_block, arrays, [name for name in _LAZY if name in patches]),
        "pmyxc",
        numbers,
        "p",
        *inputs,
        dtype=np.int64,
        align_arrays=False,
        adjust_chunks=dict.fromkeys("pmyxc", 1),
        meta=np.empty((0,) * 5, np.int64),
        # Tasks of one name are one task to a cluster: the same patches into another store are others.
        name=f"write-{os.path.basename(arrays.path)}-{tokenize(arrays, *inputs)}",
    )
    tasks = written.to_delayed(optimize_graph=True).ravel()
    return [tasks[block] for block in blocks]


def _number(block_id: tuple[int, ...]) -> NDArray[np.int64]:
    return np.asarray(block_id)


def _write_block(
    arrays: SlideArrays, names: list[str], number: NDArray[np.int64], *values: NDArray[Any]
) -> NDArray[np.int64]:
    """Write one block of `image` and what comes with it; gives its number of patches, in the shape of a block."""
    block, given = int(number[0]), dict(zip(names, values, strict=True))
    image = shards.check_block(arrays, "image", block, given["image"])
    if "label_map" in given:
        shards.write_shard(arrays, "label_map", block, given["label_map"])
    with block_writer(arrays, block) as writer:
        writer.put(0, image)
        column(writer.measured, "filled")[...] = given.get("filled", 0)
    return np.full((1,) * image.ndim, len(image))


def rows_per_block(path: str, patches: xr.Dataset) -> int:
    """Patches in a block of lazy patches.

    Raises
    ------
    StoreError
        They are not lazy, or their chunks are no blocks.
    """
    image = patches["image"].data
    if not isinstance(image, da.Array):
        raise StoreError(
            f"'{path}': image is a {type(image).__name__}, expected lazy patches (a dask array), as "
            "msdask.patches gives"
        )
    lengths = image.chunks[0]
    rows = max(1, lengths[0] if lengths else 1)
    if any(len(c) > 1 for c in image.chunks[1:]) or any(n != rows for n in lengths[:-1]):
        raise StoreError(
            f"'{path}': image has chunks {image.chunks}; a chunk must be a whole block: only the first axis may be cut"
        )
    return rows
