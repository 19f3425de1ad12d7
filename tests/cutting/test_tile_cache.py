"""Decoded tiles within a budget, and the memory that tiles are decoded into."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdask.cutting.tile_cache import TileCache, TileMemory, thread_memory


def tile(value: int) -> np.ndarray:
    return np.full((10, 10, 3), value, np.uint8)


def test_the_least_recently_used_tile_is_given_up_first() -> None:
    cache, decoded = TileCache(900), []

    def get(key: int) -> int:
        def decode() -> np.ndarray:
            decoded.append(key)
            return tile(key)

        return int(cache.decoded(("s", 0, 0, key, 1), decode)[0, 0, 0])

    assert [get(k) for k in (1, 2, 3, 1, 4, 1, 2)] == [1, 2, 3, 1, 4, 1, 2]
    assert decoded == [1, 2, 3, 4, 2]
    assert (cache.hits, cache.misses, cache.used_bytes) == (2, 5, 900)


def test_a_tile_that_two_threads_need_is_decoded_once() -> None:
    cache, begun, go = TileCache(10_000), threading.Event(), threading.Event()
    decoded = []

    def decode() -> np.ndarray:
        decoded.append(1)
        begun.set()
        assert go.wait(30)
        return tile(7)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.decoded, ("s", 0, 0, 0, 1), decode)
        assert begun.wait(30)
        second = pool.submit(cache.decoded, ("s", 0, 0, 0, 1), decode)
        go.set()
        assert first.result() is second.result()
    assert len(decoded) == 1


def test_a_tile_that_fails_is_tried_again() -> None:
    cache = TileCache(10_000)

    def fail() -> np.ndarray:
        raise ValueError("bad tile")

    with pytest.raises(ValueError, match="bad tile"):
        cache.decoded(("s", 0, 0, 0, 1), fail)
    assert cache.decoded(("s", 0, 0, 0, 1), lambda: tile(1))[0, 0, 0] == 1


def test_a_cache_travels_empty_with_its_budget() -> None:
    cache = TileCache(5000)
    cache.decoded(("s", 0, 0, 0, 1), lambda: tile(1))
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.max_bytes, copy.used_bytes) == (5000, 0)


def test_a_tile_that_is_put_twice_counts_once() -> None:
    cache = TileCache(10_000)
    for _ in range(2):
        cache.put("a", tile(1))
    assert cache.used_bytes == 300
    assert cache.get("b") is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=60))
def test_tile_memory_never_hands_out_what_is_in_use_and_keeps_its_budget(steps: list[tuple[bool, int]]) -> None:
    memory, used = TileMemory(300), list[np.ndarray]()
    for takes, size in steps:
        if takes or not used:
            tile = memory.take((size, size, 3))
            assert tile.shape == (size, size, 3)
            assert not any(np.shares_memory(tile, other) for other in used)
            used.append(tile)
        else:
            memory.give(used.pop(size % len(used)))
        held = [tile for free in memory._free.values() for tile in free]
        assert sum(tile.nbytes for tile in held) == memory._bytes <= 300


def test_each_thread_has_its_own_tile_memory() -> None:
    found: list[TileMemory] = []
    thread = threading.Thread(target=lambda: found.append(thread_memory()))
    thread.start()
    thread.join()
    assert found[0] is not thread_memory()
    assert thread_memory() is thread_memory()
