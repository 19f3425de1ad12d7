"""The cutter: patches of one block, put together straight from decoded tiles, each tile decoded once.

This is the one place with a Python loop over patches. Its cost beside the decoder is one copy of a patch's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.cutting.tile_cache import TileCache, thread_memory
from msdask.cutting.unread import Unread
from msdask.errors import TileError
from msdask.readers.base import LevelInfo, PartTileError, Reader, ReadsAhead
from msdask.scale import ReadPlan
from msdask.slides.region import WHITE, OnBadTile

__all__ = ["Cutter", "OnBadTile", "SharedTiles"]

Origins: TypeAlias = "NDArray[np.int32] | NDArray[np.float64]"
_Segment = tuple[int, int, int, int, int]
"""One tile along one axis: its row (column), px [from, to) in the patch, px [from, to) in the tile."""


@dataclass(frozen=True, slots=True)
class SharedTiles:
    """Tiles that several blocks of a slide need, kept for a while after their first use.

    Attributes
    ----------
    cache : of the process
    slide : names the slide in the cache's keys
    needed : for each level and reduction that is read (tile rows, tile columns) bool, whether more than one part of
        the slide's patches needs the tile
    """

    cache: TileCache
    slide: Hashable
    needed: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts the patches of one selection out of their slide.

    Attributes
    ----------
    plans : how each magnification is read
    footprints : level-0 px of a patch's side, for each magnification: the larger one
    patch_size : px a side, or the height where there is a `width`
    pad : value outside the slide
    on_bad_tile : "raise" a TileError, or "fill" the tile, or its bad part, white and count its pixels
    width : px; None: patches are square
    """

    plans: tuple[ReadPlan, ...]
    footprints: tuple[float, ...]
    patch_size: int
    pad: int = WHITE
    on_bad_tile: OnBadTile = "raise"
    width: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a patch, px."""
        return self.patch_size, self.width or self.patch_size

    def cut(
        self,
        reader: Reader,
        x0: Origins,
        y0: Origins,
        *,
        shared: SharedTiles | None = None,
        out: NDArray[np.uint8] | None = None,
        unread: Unread | None = None,
        after: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pixels of a block of patches.

        Parameters
        ----------
        reader : of the slide
        x0, y0 : (patch, magnification) int32, level-0 px of the origins; or float64, for px of a level that begins
            between them
        shared : tiles that other blocks need too; changes no pixel
        out : array for `image`; touching fresh memory costs as much as a tenth of the decoding. One of fewer patches is
            used as a ring: patch i is at ``out[i % len(out)]``, for whoever takes it away in `after`
        unread : gets the bad tiles, and which px stand for them, where `on_bad_tile` is "fill"
        after : called with the number of each patch when it is there, while it is in the processor's cache

        Returns
        -------
        image : (patch, magnification, y, x, channel) uint8; `out`, where it was given
        filled : (patch, magnification) float32
            Fraction of a patch's read pixels that were filled because their tile is bad; 0 unless `on_bad_tile` is
            "fill".
        """
        count = len(x0)
        image = np.empty((count, len(self.plans), *self.shape, 3), np.uint8) if out is None else out
        filled = np.zeros((count, len(self.plans)), np.float32)
        levels, cuts = self._cuts(reader, x0, y0)
        for number, level in enumerate(levels):
            level.expect([cut for cut in cuts if cut.level is level])
            if shared is not None:
                level.share(shared, shared.needed[number])
        for i in range(count):
            patch = image[i % len(image)]
            for m, cut in enumerate(cuts):
                cut.read(i, patch[m])
                if cut.level.bad and (is_bad := cut.bad_px(i)) is not None:
                    filled[i, m] = np.count_nonzero(is_bad) / is_bad.size
                    if unread is not None:
                        unread.px[i, m] = is_bad
            for level in levels:
                level.release(i)
            if after is not None:
                after(i)
        if unread is not None:
            unread.tiles.update((level.plan.level, *tile) for level in levels for tile in level.bad)
        return image, filled

    def shared_tiles(
        self, reader: Reader, x0: NDArray[np.int32], y0: NDArray[np.int32], part: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], ...]:
        """Which tiles more than one part of the patches needs, for `SharedTiles`.

        Parameters
        ----------
        reader : of the slide
        x0, y0 : (patch, magnification) int32, of all patches of the slide
        part : (patch,) int64, ascending: what is cut in one call of `cut`

        Returns
        -------
        needed : for each level and reduction that is read (tile rows, tile columns) bool
        """
        levels, cuts = self._cuts(reader, x0, y0)
        return tuple(level.shared_by_parts([c for c in cuts if c.level is level], part) for level in levels)

    def _cuts(self, reader: Reader, x0: Origins, y0: Origins) -> tuple[list[_Level], list[_Cut]]:
        """What is read, each level and reduction once, and how each magnification is cut from it."""
        levels: dict[tuple[int, int], _Level] = {}
        cuts = []
        for m, plan in enumerate(self.plans):
            level = levels.setdefault((plan.level, plan.dct_scale), _Level(reader, plan, self.on_bad_tile))
            cuts.append(_Cut(self, level, m, x0[:, m], y0[:, m]))
        return list(levels.values()), cuts


class _Level:
    """One level at one reduction in one block: its tiles, kept from their first to their last use."""

    def __init__(self, reader: Reader, plan: ReadPlan, on_bad_tile: OnBadTile) -> None:
        info = reader.levels[plan.level]
        scale = plan.dct_scale
        self.reader, self.plan, self.on_bad_tile = reader, plan, on_bad_tile
        self.tile_height, self.tile_width = info.tile[0] // scale, info.tile[1] // scale
        self.height, self.width = _scaled_shape(info, scale)
        self.tiles: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._memory = thread_memory()
        self._own: set[tuple[int, int]] = set()
        self.bad: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._ends: dict[int, list[tuple[int, int]]] = {}
        self._shared: SharedTiles | None = None
        self._needed: NDArray[np.bool_] | None = None
        self._ahead: list[tuple[int, int]] = []
        self._fetched: set[tuple[int, int]] = set()

    def expect(self, cuts: Sequence[_Cut]) -> None:
        """Learn after which patch each tile is not needed any more."""
        last_use = {
            (r[0], c[0]): i
            for i in range(len(cuts[0].rows))
            for cut in cuts
            for r in cut.rows[i]
            for c in cut.columns[i]
        }
        for key, i in last_use.items():
            self._ends.setdefault(i, []).append(key)
        if getattr(self.reader, "reads_ahead", False):
            self._ahead = list(last_use)  # in the order of their first use

    def share(self, shared: SharedTiles, needed: NDArray[np.bool_]) -> None:
        """Look for tiles in the shared cache, and leave there those that other parts need."""
        self._shared, self._needed = shared, needed

    def release(self, patch: int) -> None:
        """Let go of the tiles that `patch` was the last to need."""
        for key in self._ends.get(patch, ()):
            tile = self.tiles.pop(key, None)
            if tile is not None and key in self._own:
                self._own.remove(key)
                self._memory.give(tile)

    def load(self, row: int, column: int) -> NDArray[np.uint8]:
        """A tile from the shared cache, or decoded."""
        key = None
        if self._shared is not None and self._needed is not None and self._needed[row, column]:
            key = (self._shared.slide, self.plan.level, self.plan.dct_scale, row, column)
            tile = self._shared.cache.get(key)
            if tile is not None:
                self.tiles[row, column] = tile
                if (row, column) in self._fetched and isinstance(self.reader, ReadsAhead):
                    self.reader.forget(self.plan.level, (row, column))  # another part has decoded it meanwhile
                return tile
        if self._ahead and (row, column) not in self._fetched:
            self._read_ahead((row, column))
        memory = self._memory.take((self.tile_height, self.tile_width, 3))
        try:
            tile = self.reader.read_tile(self.plan.level, row, column, self.plan.dct_scale, out=memory)
        except TileError as error:
            if self.on_bad_tile == "raise":
                raise
            if isinstance(error, PartTileError):
                tile, self.bad[row, column] = error.pixels, error.is_bad
            else:
                tile = np.full((self.tile_height, self.tile_width, 3), WHITE, np.uint8)
                self.bad[row, column] = np.ones(tile.shape[:2], np.bool_)
            key = None
        if key is not None and self._shared is not None:
            self._shared.cache.put(key, tile)
        elif tile is memory:
            self._own.add((row, column))
        if tile is not memory:
            self._memory.give(memory)
        self.tiles[row, column] = tile
        return tile

    def _read_ahead(self, tile: tuple[int, int]) -> None:
        """Have the reader fetch the bytes of this tile and those that come after it."""
        if tile not in self._ahead or not isinstance(self.reader, ReadsAhead):
            return
        coming = [key for key in self._ahead[self._ahead.index(tile) :] if key == tile or not self._is_shared(key)]
        count = self.reader.prefetch(self.plan.level, coming)
        self._fetched.update(coming[:count])
        self._ahead = coming[count:]

    def _is_shared(self, tile: tuple[int, int]) -> bool:
        if self._shared is None or self._needed is None or not self._needed[tile]:
            return False
        return self._shared.cache.get((self._shared.slide, self.plan.level, self.plan.dct_scale, *tile)) is not None

    def shared_by_parts(self, cuts: Sequence[_Cut], part: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(tile rows, tile columns) bool: whether more than one part of the patches needs the tile."""
        grid = -(-self.height // self.tile_height), -(-self.width // self.tile_width)
        parts = int(part.max(initial=0)) + 1
        pairs = [np.empty(0, np.int64)]
        for cut in cuts:
            (top, bottom), (left, right) = cut.tile_spans()
            # The few offsets from a patch's first tile: as many as a patch has tiles, whatever the slide's size.
            for dr in range(int((bottom - top).max(initial=-1)) + 1):
                for dc in range(int((right - left).max(initial=-1)) + 1):
                    ok = (top + dr <= bottom) & (left + dc <= right)
                    pairs.append((((top + dr) * grid[1] + left + dc) * parts + part)[ok])
        tiles = np.unique(np.concatenate(pairs)) // parts
        return np.bincount(tiles, minlength=grid[0] * grid[1]).reshape(grid) > 1


class _Cut:
    """One magnification of one block: where its patches lie in what is read, and how they become patches."""

    def __init__(self, cutter: Cutter, level: _Level, magnification: int, x0: Origins, y0: Origins) -> None:
        self.level, self.plan, self.shape, self.pad = level, cutter.plans[magnification], cutter.shape, cutter.pad
        # One px more than the patch needs, so that the last patch px is an average over real neighbours at every ratio.
        ratio = self.plan.ratio
        self.height, self.width = (n if ratio == 1.0 else math.ceil(n * ratio - 1e-9) + 1 for n in self.shape)
        self.xs, self.ys = self._starts(x0), self._starts(y0)
        slide_height, slide_width = level.reader.levels[0].shape
        footprint = cutter.footprints[magnification]
        self.x_limits = self._limits(x0, slide_width, footprint)
        self.y_limits = self._limits(y0, slide_height, footprint)
        self._canvas: NDArray[np.uint8] | None = None

    @cached_property
    def columns(self) -> list[list[_Segment]]:
        """Tiles under each patch along x."""
        return [_segments(x, self.width, self.level.width, self.level.tile_width) for x in self.xs.tolist()]

    @cached_property
    def rows(self) -> list[list[_Segment]]:
        """Tiles under each patch along y."""
        return [_segments(y, self.height, self.level.height, self.level.tile_height) for y in self.ys.tolist()]

    @cached_property
    def whole(self) -> list[bool]:
        """Whether all that is read for a patch lies in the level."""
        xs, ys = self.xs, self.ys
        whole = (xs >= 0) & (ys >= 0) & (xs + self.width <= self.level.width) & (ys + self.height <= self.level.height)
        return [bool(w) for w in whole]

    def read(self, i: int, patch: NDArray[np.uint8]) -> None:
        """Put patch `i` together, straight from its tiles."""
        ratio = self.plan.ratio
        canvas = patch
        if ratio != 1.0:
            if self._canvas is None:
                self._canvas = np.empty((self.height, self.width, 3), np.uint8)
            canvas = self._canvas
        if not self.whole[i]:
            canvas[:] = self.pad
        tiles, load = self.level.tiles, self.level.load
        for r, top, bottom, tile_top, tile_bottom in self.rows[i]:
            for c, left, right, tile_left, tile_right in self.columns[i]:
                tile = tiles.get((r, c))
                if tile is None:
                    tile = load(r, c)
                canvas[top:bottom, left:right] = tile[tile_top:tile_bottom, tile_left:tile_right]
        if not self.whole[i]:
            _replicate(canvas, int(self.ys[i]), self.level.height, int(self.y_limits[i]))
            _replicate(canvas.swapaxes(0, 1), int(self.xs[i]), self.level.width, int(self.x_limits[i]))
        if ratio != 1.0:
            method = cv2.INTER_AREA if ratio > 1.0 else cv2.INTER_CUBIC
            reduced = cv2.resize(canvas, None, fx=1 / ratio, fy=1 / ratio, interpolation=method)
            patch[:] = reduced[: self.shape[0], : self.shape[1]]

    def bad_px(self, i: int) -> NDArray[np.bool_] | None:
        """Which px of what is read for patch `i` stand for a bad tile, or the bad part of one: None, or (y, x) bool."""
        bad = self.level.bad
        under = [(r, c) for r in self.rows[i] for c in self.columns[i] if (r[0], c[0]) in bad]
        if not under:
            return None
        is_bad = np.zeros((self.height, self.width), np.bool_)
        for r, c in under:
            is_bad[r[1] : r[2], c[1] : c[2]] = bad[r[0], c[0]][r[3] : r[4], c[3] : c[4]]
        return is_bad if is_bad.any() else None

    def tile_spans(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(first, last) tile row and column of each patch."""
        axes = (
            (self.ys, self.height, self.level.height, self.level.tile_height),
            (self.xs, self.width, self.level.width, self.level.tile_width),
        )
        return [
            (np.clip(start, 0, size - 1) // tile, np.clip(start + extent - 1, 0, size - 1) // tile)
            for start, extent, size, tile in axes
        ]

    def _starts(self, origin: Origins) -> NDArray[np.int64]:
        """Nearest px of what is read, halves away from zero."""
        read_px = origin / self.plan.step
        return np.copysign(np.floor(np.abs(read_px) + 0.5), read_px).astype(np.int64)

    def _limits(self, origin: Origins, slide_size: int, footprint: float) -> NDArray[np.int64]:
        """First px of this read that lies outside the slide; the level itself may end up to one px earlier.

        -1 where the planned footprint lies in the slide (1 level-0 px of slack, origins are rounded): what rounding
        pushes over the edge is replicated there, not padded.
        """
        is_inside = (origin >= 0) & (origin + footprint <= slide_size + 1.0)
        return np.where(is_inside, -1, math.ceil(slide_size / self.plan.step - 1e-6))


def _segments(start: int, extent: int, size: int, tile: int) -> list[_Segment]:
    """Tiles under a patch of `extent` px along one axis of a level of `size` px."""
    low, high = max(start, 0), min(start + extent, size)
    segments: list[_Segment] = []
    if low >= high:
        return segments
    for index in range(low // tile, -(-high // tile)):
        begin = index * tile
        first, last = max(low, begin), min(high, begin + tile)
        segments.append((index, first - start, last - start, first - begin, last - begin))
    return segments


def _scaled_shape(info: LevelInfo, scale: int) -> tuple[int, int]:
    """Whole px of a level that is decoded at 1 / scale."""
    return max(1, info.shape[0] // scale), max(1, info.shape[1] // scale)


def _replicate(pixels: NDArray[np.uint8], start: int, size: int, limit: int) -> None:
    """Repeat the level's first and last px along axis 0 of `pixels` where the slide, but not the level, goes on.

    `limit` is the first px that is outside the slide and stays padded; -1 means that nothing is.
    """
    extent = len(pixels)
    end = extent if limit < 0 else min(limit - start, extent)
    last = size - 1 - start
    if 0 <= last < end - 1:
        pixels[last + 1 : end] = pixels[last]
    if limit < 0 and start < 0 < extent + start:
        pixels[:-start] = pixels[-start]
