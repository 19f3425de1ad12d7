"""A rectangle of an image put together from its tiles, as it is or reduced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import TileError
from msdask.readers.base import LevelInfo, PartTileError
from msdask.readers.to_rgb import shrink

__all__ = ["from_finer", "read_rectangle"]

_PIECE = 2048
"""px of the finer level on a side that are in memory at once."""


def read_rectangle(
    read_tile: Callable[[int, int], NDArray[np.uint8]],
    tile: tuple[int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> NDArray[np.uint8]:
    """Px [first, last) of rows and columns, which must lie inside the image.

    Parameters
    ----------
    read_tile : gives the tile of a (row, column), (height, width, 3); at the edge cut or padded
    tile : (height, width) of a tile, px

    Returns
    -------
    pixels : (height, width, 3) uint8

    Raises
    ------
    PartTileError
        A tile of them cannot be read; holds what the others show.
    """
    (y0, y1), (x0, x1) = rows, columns
    out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    bad = _BadPart(out)
    for row in range(y0 // tile[0], -(-y1 // tile[0])):
        for column in range(x0 // tile[1], -(-x1 // tile[1])):
            top, left = row * tile[0], column * tile[1]
            first_y, last_y = max(y0, top), min(y1, top + tile[0])
            first_x, last_x = max(x0, left), min(x1, left + tile[1])
            inside = slice(first_y - top, last_y - top), slice(first_x - left, last_x - left)
            place = slice(first_y - y0, last_y - y0), slice(first_x - x0, last_x - x0)
            try:
                out[place] = read_tile(row, column)[inside]
            except PartTileError as error:
                bad.add(error, place, error.pixels[inside], error.is_bad[inside])
            except TileError as error:
                bad.add(error, place)
    bad.check()
    return out


def from_finer(
    read_tile: Callable[[int, int], NDArray[np.uint8]], finer: LevelInfo, coarser: LevelInfo, row: int, column: int
) -> NDArray[np.uint8]:
    """One tile of a level as the area mean of what a finer level shows there.

    Parameters
    ----------
    read_tile : gives the finer level's tile of a (row, column)
    row, column : of the coarser level's tile

    Returns
    -------
    pixels : (height, width, 3) uint8, cut at the level's edge

    Raises
    ------
    PartTileError
        A tile of the finer level cannot be read; holds what the others show.
    """
    y0, x0 = row * coarser.tile[0], column * coarser.tile[1]
    height, width = (
        min(side, size - start) for side, size, start in zip(coarser.tile, coarser.shape, (y0, x0), strict=True)
    )
    ratio = coarser.downsample / finer.downsample
    out = np.empty((height, width, 3), np.uint8)
    bad = _BadPart(out)
    step = max(1, int(_PIECE // ratio))
    for top in range(0, height, step):
        for left in range(0, width, step):
            part = out[top : top + step, left : left + step]
            rows = _span(y0 + top, part.shape[0], ratio, finer.shape[0])
            columns = _span(x0 + left, part.shape[1], ratio, finer.shape[1])
            reduced = partial(_reduced, shape=(part.shape[0], part.shape[1]))
            try:
                part[:] = reduced(read_rectangle(read_tile, finer.tile, rows, columns))
            except PartTileError as error:
                less = error.changed(reduced)
                bad.add(error, (slice(top, top + step), slice(left, left + step)), less.pixels, less.is_bad)
    bad.check()
    return out


class _BadPart:
    """Collects what could not be read of a picture while it is put together in `out`."""

    def __init__(self, out: NDArray[np.uint8]) -> None:
        self._out = out
        self._first: TileError | None = None
        self._is_bad = np.zeros((0, 0), np.bool_)

    def add(
        self,
        error: TileError,
        place: tuple[slice, slice],
        pixels: NDArray[np.uint8] | int = 255,
        is_bad: NDArray[np.bool_] | bool = True,
    ) -> None:
        """A place of which all or some cannot be read."""
        if self._first is None:
            self._first, self._is_bad = error, np.zeros(self._out.shape[:2], np.bool_)
        self._out[place] = pixels
        self._is_bad[place] = is_bad

    def check(self) -> None:
        """Raise the first error, with all that could be read."""
        if self._first is not None:
            raise PartTileError(str(self._first), self._out, self._is_bad) from self._first


def _reduced(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Area means, (height, width) of them."""
    if pixels.shape[0] % shape[0] == 0 and pixels.shape[0] * shape[1] == pixels.shape[1] * shape[0]:
        return shrink(pixels, pixels.shape[0] // shape[0])
    return np.asarray(cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _span(start: int, count: int, ratio: float, size: int) -> tuple[int, int]:
    """Px [first, last) of the finer level under `count` px from `start` of the coarser one: one at least."""
    first = min(round(start * ratio), size - 1)
    return first, max(first + 1, min(round((start + count) * ratio), size))
