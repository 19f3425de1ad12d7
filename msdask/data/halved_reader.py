"""HalvedReader: a small image without a pyramid as if it had one, so that coarse crops need not read all its pixels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.readers.base import LevelInfo, Reader, SlideMetadata
from msdask.slides.region import read_region

__all__ = ["HalvedReader"]

_HALVINGS = 3
_LEAST_SIDE = 64

_TileKey = tuple[str, int, int, int, int]


class HalvedReader:
    """Levels of one tile each: the image, and the exact 2 x 2 means of the level before.

    Parameters
    ----------
    path : of the image, for the keys of the cache
    reader : of the image
    get : a cache: the tile of a key, made by the given function if it is not there
    """

    def __init__(
        self,
        path: str,
        reader: Reader,
        get: Callable[[_TileKey, Callable[[], NDArray[np.uint8]]], NDArray[np.uint8]],
    ) -> None:
        self._path, self._reader, self._get = path, reader, get
        self.format: str = reader.format
        self.metadata: SlideMetadata = reader.metadata
        self.associated: tuple[str, ...] = ()
        shape = reader.levels[0].shape
        levels = [LevelInfo(shape, shape)]
        while len(levels) <= _HALVINGS and min(shape) >= 2 * _LEAST_SIDE:
            shape = (shape[0] // 2, shape[1] // 2)
            levels.append(LevelInfo(shape, shape, float(2 ** len(levels))))
        self.levels: tuple[LevelInfo, ...] = tuple(levels)

    def read_tile(
        self, level: int, row: int, column: int, scale: int = 1, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Reader.read_tile`: the whole level; it has memory of its own, never `out`."""
        return self._get((self._path, -1 - level, row, column, scale), lambda: self._make(level))

    def _make(self, level: int) -> NDArray[np.uint8]:
        height, width = self.levels[level].shape
        if level == 0:
            return read_region(self._reader, 0, 1, (0, height), (0, width))
        finer = self.read_tile(level - 1, 0, 0)[: 2 * height, : 2 * width]
        return np.asarray(cv2.resize(finer, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """See `Reader.read_associated`."""
        return self._reader.read_associated(name)

    def fingerprint(self) -> str:
        """See `Reader.fingerprint`."""
        return self._reader.fingerprint()

    def close(self) -> None:
        """Nothing: the image's own reader stays open."""
