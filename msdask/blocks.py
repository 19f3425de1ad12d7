"""The block reader: patches of one dask chunk, put together straight from decoded tiles, each tile decoded once.

This is the one place with a Python loop over patches. Its cost beside the decoder is one copy of a patch's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import TileError
from msdask.readers.base import LevelInfo, Reader
from msdask.scale import ReadPlan

__all__ = ["OnBadTile", "PatchReader", "read_region"]

OnBadTile = Literal["raise", "fill"]

_WHITE = 255
_TileKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the patches of one magnification lie along one axis, in px that are read."""

    start: NDArray[np.int64]
    is_inside: NDArray[np.bool_]
    """The planned footprint lies in the slide: what rounding pushes over the edge is replicated, not padded."""


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
        self, reader: Reader, x0: NDArray[np.int32], y0: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pixels of a block of patches.

        Parameters
        ----------
        reader : of the slide
        x0, y0 : (patch, magnification) int32, level-0 px of the origins

        Returns
        -------
        image : (patch, magnification, y, x, channel) uint8
        filled : (patch, magnification) float32
            Fraction of a patch's read pixels that were filled because their tile is bad; 0 unless `on_bad_tile` is
            "fill".
        """
        count, size = len(x0), self.patch_size
        image = np.empty((count, len(self.plans), size, size, 3), np.uint8)
        filled = np.zeros((count, len(self.plans)), np.float32)
        for m, plan in enumerate(self.plans):
            _MagnificationReader(self, reader, plan, self.footprints[m]).read(
                x0[:, m], y0[:, m], image[:, m], filled[:, m]
            )
        return image, filled


class _MagnificationReader:
    """One magnification of one block: its tiles, kept from their first to their last use."""

    def __init__(self, spec: PatchReader, reader: Reader, plan: ReadPlan, footprint: float) -> None:
        self.spec, self.reader, self.plan, self.footprint = spec, reader, plan, footprint
        info = reader.levels[plan.level]
        scale = plan.dct_scale
        self.tile_height, self.tile_width = info.tile[0] // scale, info.tile[1] // scale
        self.height, self.width = _scaled_shape(info, scale)
        self.size = spec.patch_size
        # One px more than the patch needs, so that the last patch px is an average over real neighbours at every ratio.
        self.extent = self.size if plan.ratio == 1.0 else math.ceil(self.size * plan.ratio - 1e-9) + 1
        self.tiles: dict[_TileKey, NDArray[np.uint8]] = {}
        self.bad: set[_TileKey] = set()

    def read(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], image: NDArray[np.uint8], filled: NDArray[np.float32]
    ) -> None:
        slide_height, slide_width = self.reader.levels[0].shape
        x, y = self._axis(x0, slide_width), self._axis(y0, slide_height)
        columns = self._tile_span(x.start, self.width, self.tile_width)
        rows = self._tile_span(y.start, self.height, self.tile_height)
        last_use = {key: i for i, (r, c) in enumerate(zip(rows, columns, strict=True)) for key in _keys(r, c)}
        extent, ratio = self.extent, self.plan.ratio
        canvas = None if ratio == 1.0 else np.empty((extent, extent, 3), np.uint8)
        in_bounds = (
            (x.start >= 0) & (y.start >= 0) & (x.start + extent <= self.width) & (y.start + extent <= self.height)
        )
        limits = self._limit(slide_height), self._limit(slide_width)
        x_starts, y_starts, whole = x.start.tolist(), y.start.tolist(), in_bounds.tolist()
        for i in range(len(x_starts)):
            target = image[i] if canvas is None else canvas
            if whole[i]:
                self._copy(target, y_starts[i], x_starts[i], rows[i], columns[i])
            else:
                target[:] = self.spec.pad
                self._copy(target, y_starts[i], x_starts[i], rows[i], columns[i])
                _replicate(target, y_starts[i], self.height, None if y.is_inside[i] else limits[0])
                _replicate(target.swapaxes(0, 1), x_starts[i], self.width, None if x.is_inside[i] else limits[1])
            if canvas is not None:
                method = cv2.INTER_AREA if ratio > 1.0 else cv2.INTER_CUBIC
                reduced = cv2.resize(canvas, None, fx=1 / ratio, fy=1 / ratio, interpolation=method)
                image[i] = reduced[: self.size, : self.size]
            if self.bad:
                filled[i] = self._bad_fraction(y_starts[i], x_starts[i], rows[i], columns[i])
            for key in _keys(rows[i], columns[i]):
                if last_use[key] == i:
                    self.tiles.pop(key, None)

    def _axis(self, origin: NDArray[np.int32], slide_size: int) -> _Axis:
        read_px = origin / self.plan.step
        start = np.copysign(np.floor(np.abs(read_px) + 0.5), read_px).astype(np.int64)
        # 1 level-0 px of slack: stored origins are rounded.
        is_inside = (origin >= 0) & (origin + self.footprint <= slide_size + 1.0)
        return _Axis(start, is_inside)

    def _limit(self, slide_size: int) -> int:
        """First px of this read that lies outside the slide; the level itself may end up to one px earlier."""
        return math.ceil(slide_size / self.plan.step - 1e-6)

    def _tile_span(self, start: NDArray[np.int64], level_size: int, tile: int) -> list[tuple[int, int]]:
        """Tiles [first, last) that each patch needs along one axis."""
        first = np.clip(start, 0, level_size) // tile
        last = -(-np.clip(start + self.extent, 0, level_size) // tile)
        # A patch that lies beyond the level's floor size still replicates its last px.
        first = np.minimum(first, (level_size - 1) // tile)
        return list(zip(first.tolist(), np.maximum(last, first + 1).tolist(), strict=True))

    def _copy(self, target: NDArray[np.uint8], y: int, x: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Put the part of the level that the patch at (y, x) covers into `target`."""
        tile_height, tile_width, extent = self.tile_height, self.tile_width, self.extent
        for r in range(*rows):
            top = r * tile_height
            y_from, y_to = max(y, top), min(y + extent, top + tile_height, self.height)
            for c in range(*columns):
                left = c * tile_width
                x_from, x_to = max(x, left), min(x + extent, left + tile_width, self.width)
                if y_from < y_to and x_from < x_to:
                    tile = self._tile(r, c)
                    target[y_from - y : y_to - y, x_from - x : x_to - x] = tile[
                        y_from - top : y_to - top, x_from - left : x_to - left
                    ]

    def _tile(self, row: int, column: int) -> NDArray[np.uint8]:
        tile = self.tiles.get((row, column))
        if tile is None:
            try:
                tile = self.reader.read_tile(self.plan.level, row, column, self.plan.dct_scale)
            except TileError:
                if self.spec.on_bad_tile == "raise":
                    raise
                self.bad.add((row, column))
                tile = np.full((self.tile_height, self.tile_width, 3), _WHITE, np.uint8)
            self.tiles[row, column] = tile
        return tile

    def _bad_fraction(self, y: int, x: int, rows: tuple[int, int], columns: tuple[int, int]) -> float:
        extent, pixels = self.extent, 0
        for r, c in self.bad.intersection(_keys(rows, columns)):
            height = min(y + extent, (r + 1) * self.tile_height) - max(y, r * self.tile_height)
            width = min(x + extent, (c + 1) * self.tile_width) - max(x, c * self.tile_width)
            pixels += max(height, 0) * max(width, 0)
        return pixels / extent**2


def _keys(rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[_TileKey]:
    return ((r, c) for r in range(*rows) for c in range(*columns))


def _scaled_shape(info: LevelInfo, scale: int) -> tuple[int, int]:
    """Whole px of a level that is decoded at 1 / scale."""
    return max(1, info.shape[0] // scale), max(1, info.shape[1] // scale)


def _replicate(target: NDArray[np.uint8], start: int, size: int, limit: int | None) -> None:
    """Repeat the level's first and last px along axis 0 of `target` where the slide, but not the level, goes on.

    `limit` is the first px that is outside the slide and stays padded; None means that nothing is.
    """
    extent = len(target)
    end = extent if limit is None else min(limit - start, extent)
    last = size - 1 - start
    if 0 <= last < end - 1:
        target[last + 1 : end] = target[last]
    if limit is None and start < 0 < extent + start:
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
