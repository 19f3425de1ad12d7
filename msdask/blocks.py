"""The block reader: patches of one dask chunk, put together straight from decoded tiles, each tile decoded once.

This is the one place with a Python loop over patches. Its cost beside the decoder is one copy of a patch's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import TileError
from msdask.readers.base import LevelInfo, Reader
from msdask.scale import ReadPlan
from msdask.tilecache import TileCache

__all__ = ["OnBadTile", "PatchReader", "SharedTiles", "read_region"]

OnBadTile = Literal["raise", "fill"]

_WHITE = 255

_Segment = tuple[int, int, int, int, int]
"""One tile along one axis: its row (column), px [from, to) in the patch, px [from, to) in the tile."""


@dataclass(frozen=True, slots=True)
class SharedTiles:
    """Tiles that several blocks of a slide need, kept for a while after their first use.

    Attributes
    ----------
    cache : of the process
    slide : names the slide in the cache's keys
    needed : for each magnification (tile rows, tile columns) bool, whether more than one block needs the tile
    """

    cache: TileCache
    slide: Hashable
    needed: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, slots=True)
class PatchReader:
    """Reads the patches of one selection.

    Attributes
    ----------
    plans : how each magnification is read
    footprints : level-0 px of a patch's side, for each magnification
    patch_size : px
    pad : value outside the slide
    on_bad_tile : "raise" a TileError, or "fill" the tile white and count its pixels
    """

    plans: tuple[ReadPlan, ...]
    footprints: tuple[float, ...]
    patch_size: int
    pad: int = _WHITE
    on_bad_tile: OnBadTile = "raise"

    def read(
        self,
        reader: Reader,
        x0: NDArray[np.int32],
        y0: NDArray[np.int32],
        *,
        shared: SharedTiles | None = None,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pixels of a block of patches.

        Parameters
        ----------
        reader : of the slide
        x0, y0 : (patch, magnification) int32, level-0 px of the origins
        shared : tiles that other blocks need too; changes no pixel
        out : array for `image`; touching fresh memory costs as much as a tenth of the decoding

        Returns
        -------
        image : (patch, magnification, y, x, channel) uint8
        filled : (patch, magnification) float32
            Fraction of a patch's read pixels that were filled because their tile is bad; 0 unless `on_bad_tile` is
            "fill".
        """
        count, size = len(x0), self.patch_size
        image = np.empty((count, len(self.plans), size, size, 3), np.uint8) if out is None else out
        filled = np.zeros((count, len(self.plans)), np.float32)
        for m in range(len(self.plans)):
            one = _MagnificationReader(self, reader, m, shared)
            one.read(x0[:, m], y0[:, m], image[:, m], filled[:, m])
        return image, filled

    def shared_tiles(
        self, reader: Reader, x0: NDArray[np.int32], y0: NDArray[np.int32], rows: int
    ) -> tuple[NDArray[np.bool_], ...]:
        """Which tiles more than one block needs, for `SharedTiles`.

        Parameters
        ----------
        reader : of the slide
        x0, y0 : (patch, magnification) int32, of all patches of the slide
        rows : patches in a block

        Returns
        -------
        needed : for each magnification (tile rows, tile columns) bool
        """
        return tuple(
            _MagnificationReader(self, reader, m, None).shared_by_blocks(x0[:, m], y0[:, m], rows)
            for m in range(len(self.plans))
        )


class _MagnificationReader:
    """One magnification of one block: its tiles, kept from their first to their last use."""

    def __init__(self, spec: PatchReader, reader: Reader, magnification: int, shared: SharedTiles | None) -> None:
        self.spec, self.reader = spec, reader
        self.plan, self.footprint = spec.plans[magnification], spec.footprints[magnification]
        info = reader.levels[self.plan.level]
        scale = self.plan.dct_scale
        self.tile_height, self.tile_width = info.tile[0] // scale, info.tile[1] // scale
        self.height, self.width = _scaled_shape(info, scale)
        self.size = spec.patch_size
        # One px more than the patch needs, so that the last patch px is an average over real neighbours at every ratio.
        ratio = self.plan.ratio
        self.extent = self.size if ratio == 1.0 else math.ceil(self.size * ratio - 1e-9) + 1
        self.tiles: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self.bad: set[tuple[int, int]] = set()
        self.shared = shared
        self.needed = shared.needed[magnification] if shared is not None else None

    def read(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], image: NDArray[np.uint8], filled: NDArray[np.float32]
    ) -> None:
        slide_height, slide_width = self.reader.levels[0].shape
        xs, ys = self._starts(x0), self._starts(y0)
        extent, ratio = self.extent, self.plan.ratio
        whole = (xs >= 0) & (ys >= 0) & (xs + extent <= self.width) & (ys + extent <= self.height)
        # The planned footprint lies in the slide: what rounding pushes over the edge is replicated, not padded.
        x_limits = np.where(self._is_inside(x0, slide_width), -1, self._limit(slide_width)).tolist()
        y_limits = np.where(self._is_inside(y0, slide_height), -1, self._limit(slide_height)).tolist()
        columns = [self._segments(x, self.width, self.tile_width) for x in xs.tolist()]
        rows = [self._segments(y, self.height, self.tile_height) for y in ys.tolist()]
        last_use = {(r[0], c[0]): i for i in range(len(rows)) for r in rows[i] for c in columns[i]}
        canvas = None if ratio == 1.0 else np.empty((extent, extent, 3), np.uint8)
        tiles = self.tiles
        for i in range(len(rows)):
            target = image[i] if canvas is None else canvas
            if not whole[i]:
                target[:] = self.spec.pad
            for r, top, bottom, tile_top, tile_bottom in rows[i]:
                for c, left, right, tile_left, tile_right in columns[i]:
                    tile = tiles.get((r, c))
                    if tile is None:
                        tile = self._load(r, c)
                    target[top:bottom, left:right] = tile[tile_top:tile_bottom, tile_left:tile_right]
                    if last_use[r, c] == i:
                        del tiles[r, c]
            if not whole[i]:
                _replicate(target, int(ys[i]), self.height, y_limits[i])
                _replicate(target.swapaxes(0, 1), int(xs[i]), self.width, x_limits[i])
            if canvas is not None:
                method = cv2.INTER_AREA if ratio > 1.0 else cv2.INTER_CUBIC
                reduced = cv2.resize(canvas, None, fx=1 / ratio, fy=1 / ratio, interpolation=method)
                image[i] = reduced[: self.size, : self.size]
            if self.bad:
                filled[i] = sum(
                    (r[2] - r[1]) * (c[2] - c[1]) for r in rows[i] for c in columns[i] if (r[0], c[0]) in self.bad
                ) / (extent**2)

    def shared_by_blocks(self, x0: NDArray[np.int32], y0: NDArray[np.int32], rows: int) -> NDArray[np.bool_]:
        """(tile rows, tile columns) bool: whether more than one block of `rows` patches needs the tile."""
        grid = -(-self.height // self.tile_height), -(-self.width // self.tile_width)
        spans = []
        for start, size, tile in (
            (self._starts(y0), self.height, self.tile_height),
            (self._starts(x0), self.width, self.tile_width),
        ):
            first = np.clip(start, 0, size - 1) // tile
            last = np.clip(start + self.extent - 1, 0, size - 1) // tile
            spans.append((first, last))
        (top, bottom), (left, right) = spans
        block = np.arange(len(x0)) // rows
        pairs = []
        # The few offsets from a patch's first tile: as many as a patch has tiles, whatever the slide's size.
        for dr in range(int((bottom - top).max(initial=-1)) + 1):
            for dc in range(int((right - left).max(initial=-1)) + 1):
                ok = (top + dr <= bottom) & (left + dc <= right)
                pairs.append((((top + dr) * grid[1] + left + dc)[ok] * (block.max(initial=0) + 1)) + block[ok])
        if not pairs:
            return np.zeros(grid, bool)
        tile_of = np.unique(np.concatenate(pairs)) // (block.max(initial=0) + 1)
        return np.bincount(tile_of, minlength=grid[0] * grid[1]).reshape(grid) > 1

    def _starts(self, origin: NDArray[np.int32]) -> NDArray[np.int64]:
        """Nearest px of what is read, halves away from zero."""
        read_px = origin / self.plan.step
        return np.copysign(np.floor(np.abs(read_px) + 0.5), read_px).astype(np.int64)

    def _is_inside(self, origin: NDArray[np.int32], slide_size: int) -> NDArray[np.bool_]:
        """Whether the footprint lies in the slide along this axis; 1 level-0 px of slack, since origins are rounded."""
        return (origin >= 0) & (origin + self.footprint <= slide_size + 1.0)

    def _limit(self, slide_size: int) -> int:
        """First px of this read that lies outside the slide; the level itself may end up to one px earlier."""
        return math.ceil(slide_size / self.plan.step - 1e-6)

    def _segments(self, start: int, size: int, tile: int) -> list[_Segment]:
        """Tiles under a patch along one axis; a grid has few distinct starts, but they cost little anyway."""
        low, high = max(start, 0), min(start + self.extent, size)
        segments: list[_Segment] = []
        if low >= high:  # all of it lies outside
            return segments
        for index in range(low // tile, -(-high // tile)):
            begin = index * tile
            first, last = max(low, begin), min(high, begin + tile)
            segments.append((index, first - start, last - start, first - begin, last - begin))
        return segments

    def _load(self, row: int, column: int) -> NDArray[np.uint8]:
        """A tile from the shared cache, or decoded."""
        key = None
        if self.shared is not None and self.needed is not None and self.needed[row, column]:
            key = (self.shared.slide, self.plan.level, self.plan.dct_scale, row, column)
            tile = self.shared.cache.get(key)
            if tile is not None:
                self.tiles[row, column] = tile
                return tile
        try:
            tile = self.reader.read_tile(self.plan.level, row, column, self.plan.dct_scale)
        except TileError:
            if self.spec.on_bad_tile == "raise":
                raise
            self.bad.add((row, column))
            tile = np.full((self.tile_height, self.tile_width, 3), _WHITE, np.uint8)
            key = None
        if key is not None and self.shared is not None:
            self.shared.cache.put(key, tile)
        self.tiles[row, column] = tile
        return tile


def _scaled_shape(info: LevelInfo, scale: int) -> tuple[int, int]:
    """Whole px of a level that is decoded at 1 / scale."""
    return max(1, info.shape[0] // scale), max(1, info.shape[1] // scale)


def _replicate(target: NDArray[np.uint8], start: int, size: int, limit: int) -> None:
    """Repeat the level's first and last px along axis 0 of `target` where the slide, but not the level, goes on.

    `limit` is the first px that is outside the slide and stays padded; -1 means that nothing is.
    """
    extent = len(target)
    end = extent if limit < 0 else min(limit - start, extent)
    last = size - 1 - start
    if 0 <= last < end - 1:
        target[last + 1 : end] = target[last]
    if limit < 0 and start < 0 < extent + start:
        target[:-start] = target[-start]


def read_region(
    reader: Reader, level: int, scale: int, rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.uint8]:
    """A rectangle of a level that is decoded at 1 / scale, px [first, last) within it.

    Returns
    -------
    pixels : (height, width, 3) uint8

    Raises
    ------
    TileError
        A tile under it cannot be read.
    """
    info = reader.levels[level]
    tile_height, tile_width = info.tile[0] // scale, info.tile[1] // scale
    (y0, y1), (x0, x1) = rows, columns
    out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    for r in range(y0 // tile_height, -(-y1 // tile_height)):
        top = r * tile_height
        y_from, y_to = max(y0, top), min(y1, top + tile_height)
        for c in range(x0 // tile_width, -(-x1 // tile_width)):
            left = c * tile_width
            x_from, x_to = max(x0, left), min(x1, left + tile_width)
            tile = reader.read_tile(level, r, c, scale)
            out[y_from - y0 : y_to - y0, x_from - x0 : x_to - x0] = tile[
                y_from - top : y_to - top, x_from - left : x_to - left
            ]
    return out
