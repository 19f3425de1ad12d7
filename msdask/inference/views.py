"""Views of tiles: parts of a slide at several magnifications, on px grids that begin in the slide's corner.

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

__all__ = ["Batch", "Views", "read_views"]


@dataclass(frozen=True)
class Views:
    """How the views of one magnification are read.

    Attributes
    ----------
    slide : that they are read from
    plan : which level, and how much smaller its px become
    on_bad_tile : "raise" a TileError, or "fill" the tile white and note it
    """

    slide: Slide
    plan: ReadPlan
    on_bad_tile: OnBadTile = "raise"

    @classmethod
    def at(cls, slide: Slide, step: float, on_bad_tile: OnBadTile = "raise") -> Views:
        """Those whose px have `step` level-0 px a side."""
        # As for the whole slide, so that the level does not depend on the size of a view.
        plan = slide.plan_read(step, patch_size=max(1, round(max(slide.shape) / step)))
        return cls(slide, plan, on_bad_tile)

    def read(self, row: int, column: int, out: NDArray[np.uint8]) -> Unread:
        """Fill in one view; what of it could not be read, as its patch 0: (height, width) bool.

        Parameters
        ----------
        row, column : of its first px on the grid; may be negative
        out : (height, width, 3) uint8
        """
        ratio, shape = self.plan.ratio, out.shape[:2]
        extent = tuple(n if ratio == 1.0 else math.ceil(n * ratio) + 1 for n in shape)
        y, x = (math.floor(begin * ratio + 1e-9) for begin in (row, column))
        read = out if ratio == 1.0 else np.empty((*extent, 3), np.uint8)
        # Whole px of the level: reduced by 1, in a patch that is as large as what is needed.
        as_stored = ReadPlan(self.plan.level, self.plan.dct_scale, self.plan.step, 1.0)
        # Of endless footprint, so that px beyond the slide are white in every view, also if only one px is.
        cutter = Cutter((as_stored,), (math.inf,), extent[0], on_bad_tile=self.on_bad_tile, width=extent[1])
        unread = Unread()
        y0, x0 = (np.array([[begin * self.plan.step]]) for begin in (y, x))
        cutter.cut(self.slide.reader, x0, y0, shared=self._shared(), out=read[None, None], unread=unread)
        if ratio != 1.0:
            out[:] = area_mean(read, origin=(y, x), first=(row, column), shape=(shape[0], shape[1]), ratio=ratio)
            px = [begin + np.arange(n) for begin, n in zip((row, column), shape, strict=True)]
            unread.px = {key: self._any(is_bad, (y, x), px) for key, is_bad in unread.px.items()}
        return unread

    def _shared(self) -> SharedTiles:
        info, scale = self.slide.level_infos[self.plan.level], self.plan.dct_scale
        grid = [-(-max(1, n // scale) // (t // scale)) for n, t in zip(info.shape, info.tile, strict=True)]
        reader = self.slide.reader
        return SharedTiles(process_cache(), (self.slide.path, reader), (np.ones(grid, np.bool_),))

    def _any(
        self, is_bad: NDArray[np.bool_], origin: tuple[int, int], px: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.bool_]:
        """Whether any px of the level that a px of the view is averaged from is bad: (height, width) bool."""
        counts = np.zeros((is_bad.shape[0] + 1, is_bad.shape[1] + 1), np.int64)
        np.cumsum(np.cumsum(is_bad, 0, dtype=np.int64), 1, out=counts[1:, 1:])
        ends = []
        for of_axis, start in zip(px, origin, strict=True):
            low = np.floor(of_axis * self.plan.ratio + 1e-9).astype(np.int64) - start
            high = np.ceil((of_axis + 1) * self.plan.ratio - 1e-9).astype(np.int64) - start
            ends.append((low, high))
        (top, bottom), (left, right) = ends
        inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
        return np.asarray(inside > 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles that are read together.

    Attributes
    ----------
    rows : of them among all tiles
    origins : (tiles, magnifications, 2) row and column of each view's first px
    sizes : (magnifications, 2) height and width of the views
    """

    rows: slice
    origins: NDArray[np.int64]
    sizes: NDArray[np.int64]


_Read: TypeAlias = tuple[Batch, list[NDArray[np.uint8]], Unread]


def read_views(views: Sequence[Views], batches: Sequence[Batch], *, threads: int) -> Iterator[_Read]:
    """Read batches of tiles in order; those that come next are read while one is looked at.

    Parameters
    ----------
    views : one a magnification
    batches : what is read
    threads : that read; they change nothing of what is read

    Yields
    ------
    batch : as given
    pixels : for each magnification (tiles, height, width, 3) uint8
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

    def begin(pool: ThreadPoolExecutor, number: int) -> tuple[_Read, list[Future[None]]]:
        batch, unread = batches[number], Unread()
        count = len(batch.origins)
        pixels = [np.empty((count, *size, 3), np.uint8) for size in batch.sizes.tolist()]
        pieces = []
        for i in range(count):
            for m, view in enumerate(views):
                row, column = batch.origins[i, m].tolist()
                pieces.append(pool.submit(read, view, (row, column), pixels[m][i], unread, (i, m)))
        return (batch, pixels, unread), pieces

    longest = max(len(batch.origins) for batch in batches) * len(views)
    yield from in_order(begin, len(batches), ahead=1 + -(-threads // longest), threads=threads)
