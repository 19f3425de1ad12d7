"""Readers whose tiles come from a cache: a slide's as they are, and a small image's as if it had a pyramid."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.readers.base import LevelInfo, Reader, SlideMetadata
from msdask.slides.region import read_region

__all__ = ["CachedReader", "HalvedReader"]

_HALVINGS = 3
_LEAST_SIDE = 64

_TileKey = tuple[str, int, int, int, int]
_Tile = NDArray[np.uint8]
_Get = Callable[[_TileKey, Callable[[], _Tile]], _Tile]


class CachedReader:
    """A slide's reader whose tiles come from a cache.

    Parameters
    ----------
    path : of the slide, for the keys of the cache
    reader : of the slide
    get : the cache: the tile of a key, made by the given function if it is not there
    """

    def __init__(self, path: str, reader: Reader, get: _Get) -> None:
        self._path, self._reader, self._get = path, reader, get
        self.format: str = reader.format
        self.levels: tuple[LevelInfo, ...] = reader.levels
        self.metadata: SlideMetadata = reader.metadata
        self.associated: tuple[str, ...] = reader.associated

    def read_tile(self, level: int, row: int, column: int, scale: int = 1, *, out: _Tile | None = None) -> _Tile:
        """See `Reader.read_tile`; tiles that are kept have memory of their own, never `out`."""
        key = (self._path, level, row, column, scale)
        return self._get(key, lambda: self._reader.read_tile(level, row, column, scale))

    def read_associated(self, name: str) -> _Tile:
        """See `Reader.read_associated`."""
        return self._reader.read_associated(name)

    def fingerprint(self) -> str:
        """See `Reader.fingerprint`."""
        return self._reader.fingerprint()

    def close(self) -> None:
        """Nothing: the slide's own reader stays open."""


class HalvedReader(CachedReader):
    """A small image without a pyramid: coarse crops need not read all its pixels.

    Its levels are one tile each: the image, and the exact 2 x 2 means of the level before.
    """

    def __init__(self, path: str, reader: Reader, get: _Get) -> None:
        super().__init__(path, reader, get)
        shape = reader.levels[0].shape
        levels = [LevelInfo(shape, shape)]
        while len(levels) <= _HALVINGS and min(shape) >= 2 * _LEAST_SIDE:
            shape = (shape[0] // 2, shape[1] // 2)
            levels.append(LevelInfo(shape, shape, float(2 ** len(levels))))
        self.levels = tuple(levels)

    def read_tile(self, level: int, row: int, column: int, scale: int = 1, *, out: _Tile | None = None) -> _Tile:
        """See `Reader.read_tile`: the whole level."""
        return self._get((self._path, -1 - level, row, column, scale), lambda: self._make(level))

    def _make(self, level: int) -> _Tile:
        height, width = self.levels[level].shape
        if level == 0:
            return read_region(self._reader, 0, 1, (0, height), (0, width))
        finer = self.read_tile(level - 1, 0, 0)[: 2 * height, : 2 * width]
        return np.asarray(cv2.resize(finer, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
