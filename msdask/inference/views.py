"""Views of tiles: squares of a slide at several magnifications, on px grids that begin in the slide's corner.

What a px shows depends on its place alone, whichever view it is read for: the area mean of what lies under it, of the
coarsest stored level that is fine enough. Outside of the slide it is white, as in the patches that models learn from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter, SharedTiles
from msdask.cutting.tile_cache import process_cache
from msdask.cutting.unread import Unread
from msdask.inference.reading_ahead import in_order
from msdask.scale import ReadPlan
from msdask.slides.region import OnBadTile
from msdask.slides.resample import area_mean
from msdask.slides.slide import Slide

__all__ = ["Views", "read_views"]

_Batch: TypeAlias = tuple[slice, list[NDArray[np.uint8]], Unread]

_BAND_BYTES = 8 * 2**20
"""Of what is averaged at once: the sums are float64, for a whole view hundreds of MB."""


@dataclass(frozen=True)
class Views:
    """How the views of one magnification are read.

    Attributes
    ----------
    slide : that they are read from
    plan : which level, and how much smaller its px become
    size : px a side
    on_bad_tile : "raise" a TileError, or "fill" the tile white and note it
    """

    slide: Slide
    plan: ReadPlan
    size: int
    on_bad_tile: OnBadTile = "raise"

    @classmethod
    def at(cls, slide: Slide, step: float, size: int, on_bad_tile: OnBadTile = "raise") -> Views:
        """Those whose px have `step` level-0 px a side."""
        # As for the whole slide, so that the level does not depend on the size of a view.
        plan = slide.plan_read(step, patch_size=max(1, round(max(slide.shape) / step)))
        return cls(slide, plan, size, on_bad_tile)

    def read(self, row: int, column: int, out: NDArray[np.uint8]) -> Unread:
        """Fill in one view; what of it could not be read, as its patch 0: (size, size) bool.

        Parameters
        ----------
        row, column : of its first px on the grid; may be negative
        out : (size, size, 3) uint8
        """
        ratio = self.plan.ratio
        extent = self.size if ratio == 1.0 else math.ceil(self.size * ratio) + 1
        first = tuple(math.floor(begin * ratio + 1e-9) for begin in (row, column))
        read = out[None, None] if ratio == 1.0 else np.empty((1, 1, extent, extent, 3), np.uint8)
        # Whole px of the level: reduced by 1, in a patch that is as large as what is needed.
        as_stored = ReadPlan(self.plan.level, self.plan.dct_scale, self.plan.step, 1.0)
        # Of endless footprint, so that px beyond the slide are white in every view, also if only one px is.
        cutter = Cutter((as_stored,), (math.inf,), extent, on_bad_tile=self.on_bad_tile)
        unread = Unread()
        y0, x0 = (np.array([[begin * self.plan.step]]) for begin in first)
        cutter.cut(self.slide.reader, x0, y0, shared=self._shared(), out=read, unread=unread)
        if ratio != 1.0:
            self._reduce(read[0, 0], first, (row, column), out)
            unread.px = {key: self._any(is_bad, first, (row, column)) for key, is_bad in unread.px.items()}
        return unread

    def _shared(self) -> SharedTiles:
        info, scale = self.slide.level_infos[self.plan.level], self.plan.dct_scale
        grid = [-(-max(1, n // scale) // (t // scale)) for n, t in zip(info.shape, info.tile, strict=True)]
        reader = self.slide.reader
        return SharedTiles(process_cache(), (self.slide.path, reader), (np.ones(grid, np.bool_),))

    def _reduce(
        self, read: NDArray[np.uint8], origin: tuple[int, ...], first: tuple[int, int], out: NDArray[np.uint8]
    ) -> None:
        ratio = self.plan.ratio
        band = max(1, int(_BAND_BYTES / (len(read) * 3 * 8 * ratio)))
        for top in range(0, self.size, band):
            stop = min(top + band, self.size)
            begin = math.floor((first[0] + top) * ratio + 1e-9) - origin[0]
            end = math.ceil((first[0] + stop) * ratio - 1e-9) - origin[0]
            out[top:stop] = area_mean(
                read[begin:end],
                origin=(origin[0] + begin, origin[1]),
                first=(first[0] + top, first[1]),
                shape=(stop - top, self.size),
                ratio=ratio,
            )

    def _any(self, is_bad: NDArray[np.bool_], origin: tuple[int, ...], first: tuple[int, int]) -> NDArray[np.bool_]:
        """Whether any px of the level that a px of the view is averaged from is bad: (size, size) bool."""
        counts = np.zeros((len(is_bad) + 1, len(is_bad) + 1), np.int64)
        np.cumsum(np.cumsum(is_bad, 0, dtype=np.int64), 1, out=counts[1:, 1:])
        ends = []
        for begin, start in zip(first, origin, strict=True):
            px = begin + np.arange(self.size)
            low = np.floor(px * self.plan.ratio + 1e-9).astype(np.int64) - start
            high = np.ceil((px + 1) * self.plan.ratio - 1e-9).astype(np.int64) - start
            ends.append((low, high))
        (top, bottom), (left, right) = ends
        inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
        return np.asarray(inside > 0)


def read_views(
    views: Sequence[Views], origins: NDArray[np.int64], batches: Sequence[slice], *, threads: int
) -> Iterator[_Batch]:
    """Read batches of tiles in order; those that come next are read while one is looked at.

    Parameters
    ----------
    views : one a magnification
    origins : (tiles, magnifications, 2) row and column of each view's first px
    batches : rows of each
    threads : that read; they change nothing of what is read

    Yields
    ------
    rows : as given
    pixels : for each magnification (tiles, size, size, 3) uint8
    unread : bad tiles under them, where views fill such tiles, and the px of views that show them

    Raises
    ------
    SlideError
        A tile of the slide cannot be read, and is not filled.
    """
    if not batches:
        return

    def read(view: Views, place: tuple[int, int], out: NDArray[np.uint8], unread: Unread, at: tuple[int, int]) -> None:
        unread.add(view.read(*place, out), patch=at[0], magnification=at[1])

    def begin(pool: ThreadPoolExecutor, number: int) -> tuple[_Batch, list[Future[None]]]:
        rows, unread = batches[number], Unread()
        count = rows.stop - rows.start
        pixels = [np.empty((count, view.size, view.size, 3), np.uint8) for view in views]
        pieces = []
        for i in range(count):
            for m, view in enumerate(views):
                row, column = origins[rows.start + i, m].tolist()
                pieces.append(pool.submit(read, view, (row, column), pixels[m][i], unread, (i, m)))
        return (rows, pixels, unread), pieces

    longest = max(rows.stop - rows.start for rows in batches) * len(views)
    yield from in_order(begin, len(batches), ahead=1 + -(-threads // longest), threads=threads)
