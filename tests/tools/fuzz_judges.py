"""What is done with a damaged file, and what must hold of the result wherever no error is raised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fuzz_mutations import mutate

from msdask.cutting.lazy_patches import patches
from msdask.errors import MaskError, MsdaskError, SlideError, TileError
from msdask.extraction.slide_table import read_slides
from msdask.masks.files import read_tissue_mask
from msdask.masks.labels import read_label_mask
from msdask.readers import open_reader
from msdask.readers.base import Reader
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.store.layout import check_slide_id
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import copy_store

__all__ = ["JUDGES"]

_MOST_TILES = 36
_KINDS = {".tiff": "tiff", ".png": "png", ".jpeg": "jpeg", ".csv": "text", ".json": "json"}


@contextmanager
def _damaged(good: Path, scratch: Path, seed: int) -> Iterator[Path]:
    """A damaged copy under a name of its own: caches are keyed by path."""
    path = scratch / f"{seed}-{good.name}"
    path.write_bytes(mutate(good.read_bytes(), seed, kind=_KINDS.get(good.suffix, "binary")))
    try:
        yield path
    finally:
        path.unlink()


def _read_tiles(reader: Reader) -> None:
    """Some tiles of every level, at the largest reduction and at none; only a TileError may come."""
    refused = 0
    for level, info in enumerate(reader.levels):
        rows, columns = info.grid
        some = [(r, c) for r in _few(rows) for c in _few(columns)][:_MOST_TILES]
        for row, column in some:
            for scale in {1, info.dct_scales[-1]}:
                try:
                    pixels = reader.read_tile(level, row, column, scale)
                except TileError:
                    refused += 1
                    if refused > 8:
                        return
                    continue
                height = min(info.tile[0], info.shape[0] - row * info.tile[0]) // scale
                width = min(info.tile[1], info.shape[1] - column * info.tile[1]) // scale
                assert pixels.dtype == np.uint8, pixels.dtype
                assert pixels.ndim == 3, pixels.shape
                assert pixels.shape[2] == 3, pixels.shape
                assert pixels.flags.c_contiguous
                assert pixels.shape[0] >= height, (level, row, column, scale, pixels.shape, info)
                assert pixels.shape[1] >= width, (level, row, column, scale, pixels.shape, info)


def _few(count: int) -> list[int]:
    return list(range(count)) if count <= 4 else [0, 1, count // 2, count - 1]


def judge_slide(good: Path, scratch: Path, seed: int) -> None:
    """Open it, read tiles and associated images, fingerprint it; then the main job: select, and read two patches."""
    with _damaged(good, scratch, seed) as path:
        reader = open_reader(path)
        try:
            _read_tiles(reader)
            for name in reader.associated:
                try:
                    assert reader.read_associated(name).shape[2] == 3
                except SlideError:
                    continue
            assert len(reader.fingerprint()) == 64
        finally:
            reader.close()
        slide = open_slide(path)
        assert slide.mpp is None or 0 < slide.mpp_used < 1000
        assert "Slide" in repr(slide)
        if slide.mpp is None:
            slide = open_slide(path, mpp=0.5)
        selection = grid(slide, magnification=min(slide.magnification, 40), patch_size=32)
        wanted = selection.isel(patch=slice(2))
        if wanted.sizes["patch"]:
            images = patches(slide, wanted)["image"].values
            assert images.shape == (wanted.sizes["patch"], 1, 32, 32, 3)


def judge_mask(good: Path, scratch: Path, seed: int) -> None:
    """Read it as a tissue mask, and as a label mask."""
    slide: Any = SimpleNamespace(path="a.svs", name="a.svs", shape=(4800, 4000))
    with _damaged(good, scratch, seed) as path:
        tissue = labels = None
        try:
            tissue = read_tissue_mask(path, slide=slide)
            assert tissue.dtype == np.bool_
        except MaskError as error:
            failure = error
        try:
            labels = read_label_mask(path, values={50: 0, 100: 1}, slide=slide)
            assert set(np.unique(labels)) <= {0, 1, 2}
        except MaskError as error:
            failure = error
        if tissue is None and labels is None:
            raise failure


def judge_table(good: Path, scratch: Path, seed: int) -> None:
    """Read it; ids are safe and differ."""
    with _damaged(good, scratch, seed) as path:
        rows = read_slides(path)
        ids = [check_slide_id(row.slide_id) for row in rows]
        assert len(set(ids)) == len(ids) > 0
        for row in rows:
            assert row.mpp is None or isinstance(row.mpp, float)


@lru_cache(maxsize=8)
def _own_store(good: Path, scratch: Path) -> tuple[Path, list[Path], Any]:
    """A copy of a store to damage, its files, and what it holds."""
    path = scratch / good.name
    copy_store(good, path)
    store = PatchStore(path)
    (name,) = store
    opened = store[name].open(store[name].slides[0]).load()
    return path, sorted(f for f in path.rglob("*") if f.is_file()), opened


def judge_store(good: Path, scratch: Path, seed: int) -> None:
    """Damage one file of a store. What is read without an error equals what was written, and verify sees pixels lost.

    A slide's or set's document holds facts that nothing repeats (a slide's source): another value there is no error.
    The pixels must be right all the same.
    """
    path, files, whole = _own_store(good, scratch)
    documents = [f for f in files if f.name == "zarr.json"]
    pool = documents if seed % 2 else [f for f in files if f not in documents]
    file = pool[np.random.default_rng([seed, 1]).integers(len(pool))]
    kept = file.read_bytes()
    damaged = mutate(kept, seed, kind=_KINDS.get(file.suffix, "binary"))
    try:
        file.write_bytes(damaged)
        _use_store(path, whole, is_pixels="image" in file.parts and not _means_the_same(kept, damaged))
    finally:
        shutil.rmtree(path)
        copy_store(good, path)


def _means_the_same(kept: bytes, damaged: bytes) -> bool:
    """Whether two files are equal, as JSON if they are that."""
    try:
        return bool(json.loads(kept) == json.loads(damaged))
    except (ValueError, RecursionError):
        return kept == damaged


def _use_store(path: Path, whole: Any, *, is_pixels: bool) -> None:
    store = PatchStore(path)
    (name,) = store
    patch_set = store[name]
    problems = patch_set.verify()
    failure: MsdaskError | None = None
    is_equal = False
    for use in (patch_set.table, patch_set.index, lambda: patch_set.spec):
        try:
            use()
        except MsdaskError as error:
            failure = error
    for slide_id in patch_set.slides:
        try:
            images = patch_set.open(slide_id)["image"].values
            expected = whole["image"].values
            assert images.dtype == np.uint8
            count = min(len(images), len(expected))
            assert images.shape[1:] == expected.shape[1:], images.shape
            np.testing.assert_array_equal(images[:count], expected[:count])
            is_equal = len(images) == len(expected)
        except MsdaskError as error:
            failure = error
    if is_pixels and not problems:
        assert is_equal, f"verify found nothing wrong, {failure}"
    if failure is not None:
        raise failure


JUDGES: dict[str, Callable[[Path, Path, int], None]] = {
    "slide": judge_slide,
    "mask": judge_mask,
    "table": judge_table,
    "store": judge_store,
}
