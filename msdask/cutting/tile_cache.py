"""Decoded tiles that are needed again soon, and memory for those to come, each within a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["TileCache", "TileMemory", "process_cache", "thread_memory"]

PROCESS_BUDGET = 64 * 2**20
"""Bytes of decoded tiles that a process keeps for the blocks that come next."""
THREAD_BUDGET = 16 * 2**20
"""Bytes of memory that a thread keeps for the tiles that it decodes next."""


class TileCache:
    """Decoded tiles of all slides of a process within one budget, the least recently used given up first.

    For any number of threads. It travels to another process empty, with its budget.

    Attributes
    ----------
    max_bytes : budget; the tiles that a running read holds come on top
    hits, misses : how often a tile of `decoded` was there, and was decoded
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._tiles: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._decoding: dict[Hashable, Future[NDArray[np.uint8]]] = {}
        self._bytes = 0
        self._lock = threading.RLock()

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
            while self._bytes > self.max_bytes and self._tiles:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def decoded(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The tile of a key, decoded by `decode` if it is not there: once, also where two threads need it at once."""
        with self._lock:
            tile = self.get(key)
            waiting = self._decoding.get(key)
            if tile is None and waiting is None:
                self.misses += 1
                mine = self._decoding[key] = Future()
            else:
                self.hits += 1
        if tile is not None:
            return tile
        if waiting is not None:
            return waiting.result()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                del self._decoding[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._decoding[key]
            self.put(key, tile)
        mine.set_result(tile)
        return tile

    @property
    def used_bytes(self) -> int:
        """Bytes of the tiles that are kept now."""
        return self._bytes

    def __reduce__(self) -> tuple[type[TileCache], tuple[int]]:
        return TileCache, (self.max_bytes,)


@lru_cache(maxsize=1)
def process_cache() -> TileCache:
    """The cache that all slides of this process share."""
    return TileCache(PROCESS_BUDGET)


class TileMemory:
    """Arrays that are used for tile after tile, for one thread: memory from the system comes as pages to be zeroed.

    Parameters
    ----------
    budget : bytes that are kept; what is given back beyond them is let go of
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._free: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}
        self._bytes = 0

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape, with anything in it."""
        free = self._free.get(shape)
        if not free:
            return np.empty(shape, np.uint8)
        tile = free.pop()
        self._bytes -= tile.nbytes
        return tile

    def give(self, tile: NDArray[np.uint8]) -> None:
        """Give an array back that nobody looks at any more."""
        if tile.nbytes > self.budget:
            return
        if self._bytes + tile.nbytes > self.budget:
            self._free.clear()  # of another slide's shape, perhaps
            self._bytes = 0
        self._free.setdefault(tile.shape, []).append(tile)
        self._bytes += tile.nbytes


_local = threading.local()


def thread_memory() -> TileMemory:
    """The memory for tiles of the calling thread."""
    memory: TileMemory | None = getattr(_local, "memory", None)
    if memory is None:
        memory = _local.memory = TileMemory(THREAD_BUDGET)
    return memory
