"""Tuples of a slide, batch by batch, read by threads ahead of the network that takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter, SharedTiles
from msdask.cutting.tile_cache import process_cache
from msdask.slides.slide import Slide

__all__ = ["read_ahead"]

_PIECE = 16
"""Tuples that one thread reads at once: neighbours on the slide, whose tiles are decoded once."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """A batch that is being read."""

    rows: slice
    pixels: NDArray[np.uint8]
    pieces: list[Future[None]] = field(default_factory=list)


def read_ahead(
    slide: Slide,
    cutter: Cutter,
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    batches: Sequence[slice],
    *,
    threads: int,
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Read batches of tuples in order; those that come next are read while one is looked at.

    At most as many batches are on their way as keep the threads busy: whoever is slow is waited for. What is read does
    not depend on the number of threads.

    Parameters
    ----------
    slide, cutter : where and how tuples are read
    x0, y0 : (tuples, magnifications) int32, level-0 px
    batches : rows of each
    threads : that read

    Yields
    ------
    rows : as given
    pixels : (tuples, magnifications, S, S, 3) uint8

    Raises
    ------
    SlideError
        A tile cannot be read.
    """
    size, reader = cutter.patch_size, slide.reader
    edges = [list(range(rows.start, rows.stop, _PIECE)) for rows in batches]
    starts = np.asarray([edge for of_batch in edges for edge in of_batch], np.int64)
    if not len(starts):
        return
    taken = np.concatenate([np.arange(rows.start, rows.stop) for rows in batches])
    part = np.searchsorted(starts, taken, side="right") - 1
    needed = cutter.shared_tiles(reader, x0[taken], y0[taken], part)
    shared = SharedTiles(process_cache(), (slide.path, reader), needed)

    def read(rows: slice, out: NDArray[np.uint8]) -> None:
        cutter.cut(reader, x0[rows], y0[rows], shared=shared, out=out)

    def begin(number: int) -> _Coming:
        rows = batches[number]
        coming = _Coming(rows, np.empty((rows.stop - rows.start, x0.shape[1], size, size, 3), np.uint8))
        for first in edges[number]:
            piece = slice(first, min(first + _PIECE, rows.stop))
            view = coming.pixels[piece.start - rows.start : piece.stop - rows.start]
            coming.pieces.append(pool.submit(read, piece, view))
        return coming

    longest = max(rows.stop - rows.start for rows in batches)
    ahead = 1 + -(-threads * _PIECE // longest)
    waiting: deque[_Coming] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="msdask-map")
    try:
        for number in range(len(batches)):
            waiting.append(begin(number))
            if len(waiting) > ahead:
                yield _read(waiting.popleft())
        while waiting:
            yield _read(waiting.popleft())
    finally:  # no thread may still write into memory that is let go of
        pool.shutdown(wait=True, cancel_futures=True)


def _read(coming: _Coming) -> tuple[slice, NDArray[np.uint8]]:
    wait(coming.pieces)
    for piece in coming.pieces:
        piece.result()
    return coming.rows, coming.pixels
