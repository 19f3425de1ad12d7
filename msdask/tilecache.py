"""Decoded tiles that are needed again soon, within a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["TileCache", "process_cache"]

PROCESS_BUDGET = 64 * 2**20
"""Bytes of decoded tiles that a process keeps for the blocks that come next."""


class TileCache:
    """Least recently used tiles, for any number of threads.

    Parameters
    ----------
    budget : bytes of pixels; the oldest tiles go first
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._tiles: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> NDArray[np.uint8] | None:
        """The tile, or None. Treat it as read-only."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: Hashable, tile: NDArray[np.uint8]) -> None:
        """Keep a tile, and let go of the oldest ones beyond the budget."""
        with self._lock:
            if key not in self._tiles:
                self._bytes += tile.nbytes
            self._tiles[key] = tile
            self._tiles.move_to_end(key)
            while self._bytes > self.budget and self._tiles:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of pixels that are kept now."""
        return self._bytes


@lru_cache(maxsize=1)
def process_cache() -> TileCache:
    """The cache that all slides of this process share."""
    return TileCache(PROCESS_BUDGET)
