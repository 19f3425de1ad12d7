"""What msdask is measured against: the seed's way, a fast reader with a tile cache, and the floor.

The floor is what any extractor has to do: decode each needed tile once, then write each patch once. Both halves are
timed alone, with ready input and nothing kept, so it has no bookkeeping at all.
"""

from __future__ import annotations

import itertools
import math
import mmap
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from msdask.scale import ReadPlan

__all__ = [
    "Cut",
    "TileFile",
    "fastslide_reads",
    "floor_decode",
    "floor_write",
    "needed_tiles",
    "openslide_reads",
    "seed_way",
]

CACHE_BYTES = 64 * 2**20
RUN = 16
"""Patches that a thread takes at once: threads stay close to each other, which is kind to a shared cache."""

TileKey = tuple[int, int, int, int]
"""(level, row, column, scale)"""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is to be cut, as arrays.

    Attributes
    ----------
    x0, y0 : (patch, magnification) int, level-0 px
    footprints : level-0 px of a side, for each magnification
    plans : how msdask reads each magnification
    patch_size : px
    """

    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    footprints: tuple[float, ...]
    plans: tuple[ReadPlan, ...]
    patch_size: int

    def row_major(self) -> NDArray[np.int64]:
        """Order of the patches row by row."""
        return np.lexsort((self.x0[:, 0], self.y0[:, 0]))


def seed_way(path: str, cut: Cut, folder: Path, *, first: int, most: int, budget_s: float) -> float:
    """Patches (or tuples) per second of the seed's way: one loop, level 0, PIL, one PNG file a patch.

    It is slow, so it gets a contiguous run in row-major order, cut off after `budget_s` seconds.
    """
    import openslide

    order = cut.row_major()[first : first + most]
    sides = [round(side) for side in cut.footprints]
    size = (cut.patch_size, cut.patch_size)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = 0
    with openslide.OpenSlide(path) as slide:
        started = time.perf_counter()
        for i in order:
            for m, side in enumerate(sides):
                region = slide.read_region((int(cut.x0[i, m]), int(cut.y0[i, m])), 0, (side, side)).convert("RGB")
                region.resize(size).save(folder / f"{i}_{m}.png")
            done += 1
            if time.perf_counter() - started > budget_s:
                break
        seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return done / seconds


def _share(items: Sequence[int], threads: int, work: Callable[[Sequence[int]], None], run: int = RUN) -> float:
    """Seconds that `threads` threads need for all items, `run` neighbours at a time."""
    starts = itertools.count(0, run)
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                start = next(starts)
            if start >= len(items):
                return
            work(items[start : start + run])

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(worker) for _ in range(threads)]:
            future.result()
    return time.perf_counter() - started


def _level_reads(downsamples: Sequence[float], cut: Cut) -> list[tuple[int, float, int]]:
    """(level, its downsample, px of a side that are read) for each magnification: the coarsest that is fine enough.

    Not the peers' own `get_best_level_for_downsample`: fastslide's takes the nearest level, which may be too coarse.
    """
    reads = []
    for side in cut.footprints:
        fine = [d for d in downsamples if d <= side / cut.patch_size + 0.01]
        reads.append((len(fine) - 1, fine[-1], round(side / fine[-1])))
    return reads


def openslide_reads(path: str, cut: Cut, *, threads: int, order: Sequence[int]) -> float:
    """Patches per second that OpenSlide reads: best level, cv2 area reduction, nothing written."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        reads = _level_reads(slide.level_downsamples, cut)
        size = (cut.patch_size, cut.patch_size)

        def work(run: Sequence[int]) -> None:
            for i in run:
                for m, (level, _, extent) in enumerate(reads):
                    at = int(cut.x0[i, m]), int(cut.y0[i, m])
                    pixels = np.asarray(slide.read_region(at, level, (extent, extent)).convert("RGB"))
                    if extent != cut.patch_size:
                        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)

        return len(order) / _share(order, threads, work)


def fastslide_reads(path: str, cut: Cut, *, threads: int, order: Sequence[int]) -> float:
    """Patches per second that fastslide reads with its tile cache: best level, cv2 area reduction, nothing written.

    Only patches that lie inside the slide: fastslide refuses negative origins.
    """
    import fastslide

    with fastslide.FastSlide.from_file_path(path, cache=CACHE_BYTES) as slide:
        reads = _level_reads(slide.level_downsamples, cut)
        size = (cut.patch_size, cut.patch_size)

        def work(run: Sequence[int]) -> None:
            for i in run:
                for m, (level, downsample, extent) in enumerate(reads):
                    at = round(cut.x0[i, m] / downsample), round(cut.y0[i, m] / downsample)
                    pixels = slide.read_region(at, level, (extent, extent)).numpy()
                    if extent != cut.patch_size:
                        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)

        return len(order) / _share(order, threads, work)


class TileFile:
    """JPEG tiles of a TIFF straight from the mapped file: as little as can stand between the bytes and the decoder."""

    def __init__(self, path: str) -> None:
        with tifffile.TiffFile(path) as tif:
            pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            self.tiles = [(page.tilelength, page.tilewidth) for page in pages]
            self.shapes = [(page.imagelength, page.imagewidth) for page in pages]
            self._offsets = [np.asarray(page.dataoffsets) for page in pages]
            self._counts = [np.asarray(page.databytecounts) for page in pages]
            self._tables = [page.jpegtables for page in pages]
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read_tile(self, level: int, row: int, column: int, scale: int) -> NDArray[np.uint8]:
        """One tile, (height, width, 3) uint8 RGB, reduced by `scale`."""
        height, width = self.tiles[level]
        index = row * -(-self.shapes[level][1] // width) + column
        offset = int(self._offsets[level][index])
        data = self._map[offset : offset + int(self._counts[level][index])]
        tables = self._tables[level]
        if tables:
            data = tables[:-2] + data[2:]
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height // scale, min_width=width // scale, min_factor=1)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


def needed_tiles(cut: Cut, file: TileFile) -> list[TileKey]:
    """Every tile that a patch touches, once each, at the scale it is decoded at; row by row."""
    keys: set[TileKey] = set()
    for m, plan in enumerate(cut.plans):
        height, width = (side // plan.dct_scale for side in file.tiles[plan.level])
        rows, columns = (
            -(-side // tile) for side, tile in zip(file.shapes[plan.level], file.tiles[plan.level], strict=True)
        )
        extent = cut.patch_size if plan.ratio == 1.0 else math.ceil(cut.patch_size * plan.ratio - 1e-9) + 1
        top, left = (np.floor(origin[:, m] / plan.step + 0.5).astype(int) for origin in (cut.y0, cut.x0))
        for y, x in zip(top.tolist(), left.tolist(), strict=True):
            for row in range(max(0, y // height), min(rows, -(-(y + extent) // height))):
                for column in range(max(0, x // width), min(columns, -(-(x + extent) // width))):
                    keys.add((plan.level, row, column, plan.dct_scale))
    return sorted(keys)


def floor_decode(file: TileFile, keys: Sequence[TileKey], *, threads: int) -> float:
    """Seconds to decode every tile once; nothing is kept."""

    def work(run: Iterable[int]) -> None:
        for i in run:
            file.read_tile(*keys[i])

    return _share(range(len(keys)), threads, work, run=32)


def floor_write(folder: Path, cut: Cut, *, shard: int, threads: int) -> float:
    """Seconds to write as many ready patches as `cut` has, once: raw, crc32c on every chunk and index, no fsync.

    Parameters
    ----------
    folder : made anew, removed afterwards
    shard : patches of a shard, as in the store that it is compared with
    """
    import tensorstore

    count, scales = cut.x0.shape
    size = cut.patch_size
    inner = [{"name": "bytes"}, {"name": "crc32c"}]
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": [count, scales, size, size, 3],
            "data_type": "uint8",
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, scales, size, size, 3]}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {"chunk_shape": [1, 1, size, size, 3], "codecs": inner, "index_codecs": index},
                }
            ],
        },
        "store_data_equal_to_fill_value": True,
    }
    limits = {name: {"limit": threads} for name in ("data_copy_concurrency", "file_io_concurrency")}
    shutil.rmtree(folder, ignore_errors=True)
    array = tensorstore.open(spec, create=True, context=tensorstore.Context({**limits, "file_io_sync": False})).result()
    pixels = np.random.default_rng(0).integers(1, 255, (min(shard, count), scales, size, size, 3), np.uint8)

    def work(run: Sequence[int]) -> None:
        for block in run:
            first, last = block * shard, min((block + 1) * shard, count)
            array[first:last].write(pixels[: last - first]).result()

    seconds = _share(range(-(-count // shard)), threads, work, run=1)
    shutil.rmtree(folder)
    return seconds
