"""Tuples of a slide, batch by batch, read by threads ahead of the network that takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter, SharedTiles
from msdask.cutting.tile_cache import process_cache
from msdask.cutting.unread import Unread
from msdask.slides.slide import Slide

__all__ = ["in_order", "read_ahead"]

T = TypeVar("T")

_PIECE = 16
"""Tuples that one thread reads at once: neighbours on the slide, whose tiles are decoded once."""


def in_order(
    begin: Callable[[ThreadPoolExecutor, int], tuple[T, list[Future[None]]]], count: int, *, ahead: int, threads: int
) -> Iterator[T]:
    """What threads make, in order; those that come next are made while one is looked at.

    Parameters
    ----------
    begin : given a pool and a number, what is to be filled in, and the pieces of work that fill it in
    count : how many
    ahead : most of them that are on their way at once: whoever is slow is waited for
    threads : that work
    """
    waiting: deque[tuple[T, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="msdask-map")
    try:
        for number in range(count):
            waiting.append(begin(pool, number))
            if len(waiting) > ahead:
                yield _filled(*waiting.popleft())
        while waiting:
            yield _filled(*waiting.popleft())
    finally:  # no thread may still write into memory that is let go of
        pool.shutdown(wait=True, cancel_futures=True)


def _filled(what: T, pieces: list[Future[None]]) -> T:
    wait(pieces)
    for piece in pieces:
        piece.result()
    return what


def read_ahead(
    slide: Slide,
    cutter: Cutter,
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    batches: Sequence[slice],
    *,
    threads: int,
) -> Iterator[tuple[slice, NDArray[np.uint8], Unread]]:
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
    unread : the bad tiles under them, where the cutter fills such tiles

    Raises
    ------
    SlideError
        A tile cannot be read, and the cutter does not fill it.
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

    def read(rows: slice, out: NDArray[np.uint8], unread: Unread, first: int) -> None:
        own = Unread()
        cutter.cut(reader, x0[rows], y0[rows], shared=shared, out=out, unread=own)
        unread.add(own, patch=first)

    def begin(
        pool: ThreadPoolExecutor, number: int
    ) -> tuple[tuple[slice, NDArray[np.uint8], Unread], list[Future[None]]]:
        rows, unread = batches[number], Unread()
        pixels = np.empty((rows.stop - rows.start, x0.shape[1], size, size, 3), np.uint8)
        pieces = []
        for first in edges[number]:
            piece = slice(first, min(first + _PIECE, rows.stop))
            begin_at = piece.start - rows.start
            pieces.append(pool.submit(read, piece, pixels[begin_at : piece.stop - rows.start], unread, begin_at))
        return (rows, pixels, unread), pieces

    longest = max(rows.stop - rows.start for rows in batches)
    yield from in_order(begin, len(batches), ahead=1 + -(-threads * _PIECE // longest), threads=threads)
