"""Blocks of lazy patches: one task each, with whatever stands between, and only those that are left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from dask.delayed import Delayed

from msdask.cutting.lazy_patches import patches
from msdask.sample.slides import SampleSlide
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from msdask.store import blocks, documents, layout, shards
from msdask.store.blocks import block_writer
from msdask.store.patch_store import PatchStore
from msdask.store.slide_arrays import SlideArrays
from tests.tools.store_tools import BLOCK, lazy_grid, tree, use_small_blocks

BLOCKS = -(-108 // BLOCK)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def lazy_labelled(path: Path) -> xr.Dataset:
    slide = open_slide(path)
    labels = xr.DataArray((np.arange(72 * 96).reshape(72, 96) // 999).astype(np.uint8), dims=("y", "x"))
    return patches(slide, grid(slide, labels=labels, magnification=10, patch_size=64, unlabeled="keep"), labels=labels)


def invert(lazy: xr.Dataset) -> xr.Dataset:
    return lazy.assign(image=lazy["image"].copy(data=lazy["image"].data.map_blocks(np.invert, dtype=np.uint8)))


def begun(store: PatchStore, lazy: xr.Dataset) -> list[Delayed]:
    found = store.begin(store.open_set(ExtractionSpec.from_dict(lazy.attrs["spec"])), lazy)
    assert found is not None
    return found[1]


def tasks_of(tasks: list[Delayed]) -> int:
    """How many tasks a scheduler gets, those that are data or other names included."""
    return len(dict(dask.optimize(*tasks)[0].__dask_graph__()))


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("with_step", [False, True])
def test_a_slide_is_at_most_two_tasks_more_than_its_blocks(
    with_labels: bool, with_step: bool, small_slide: SampleSlide, tmp_path: Path
) -> None:
    lazy = (lazy_labelled if with_labels else lazy_grid)(small_slide.path)
    tasks = begun(PatchStore(tmp_path / "s.zarr"), invert(lazy) if with_step else lazy)
    assert len(tasks) == lazy["image"].data.numblocks[0] >= 6
    assert len(tasks) < tasks_of(tasks) <= len(tasks) + 2


def test_filling_bad_tiles_is_a_task_more_a_block(small_slide: SampleSlide, tmp_path: Path) -> None:
    slide = open_slide(small_slide.path)
    lazy = patches(slide, grid(slide, magnification=10, patch_size=64), on_bad_tile="fill")
    assert tasks_of(begun(PatchStore(tmp_path / "s.zarr"), lazy)) <= 2 * BLOCKS + 2


def test_what_is_left_is_all_that_is_computed(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = lazy_labelled(small_slide.path)
    count = lazy.sizes["patch"]
    whole = PatchStore(tmp_path / "whole.zarr")
    whole.write(lazy)
    original = shards.write_measured

    def failing(arrays: SlideArrays, block: int, measured: Any) -> None:
        if block in (2, 5):
            raise RuntimeError("no power")
        original(arrays, block, measured)

    store = PatchStore(tmp_path / "s.zarr")
    with monkeypatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(shards, "write_measured", failing)
        tasks = begun(store, lazy)
        for number, task in enumerate(tasks):
            if number in (2, 5):
                with pytest.raises(RuntimeError, match="no power"):
                    task.compute()
            else:
                assert task.compute().ravel().tolist() == [min(BLOCK, count - number * BLOCK)]
    left = begun(store, lazy)
    assert [task.key[1] for task in left] == [2, 5]
    assert tasks_of(left) <= 4
    store.write(lazy)
    assert tree(Path(store.path)) == tree(Path(whole.path))


def test_one_task_reaches_a_cluster_for_each_block(small_slide: SampleSlide, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        tasks = begun(PatchStore(tmp_path / "s.zarr"), invert(lazy_labelled(small_slide.path)))
        futures = client.compute(tasks)
        assert len(client.gather(futures)) == len(tasks)
        assert len(cluster.scheduler.tasks) <= len(tasks) + 2


@pytest.mark.parametrize("in_hand", [1, 5, 1000])
def test_a_block_is_the_same_however_few_patches_are_in_hand(
    in_hand: int, small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PatchStore(tmp_path / "whole.zarr").write(lazy_labelled(small_slide.path))
    monkeypatch.setattr(blocks, "IN_HAND_BYTES", in_hand * 64 * 64 * 3)
    PatchStore(tmp_path / "s.zarr").write(lazy_labelled(small_slide.path))
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")


def test_a_block_that_measures_otherwise_than_before_is_left_as_it_is(small_slide: SampleSlide, tmp_path: Path) -> None:
    patch_set = PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path))
    arrays = patch_set.arrays("small.svs")
    before = tree(Path(arrays.path))
    stored = shards.stored_measures(arrays, 1)
    image = patch_set.read("small.svs", range(16, 32))

    def write(pixels: np.ndarray) -> None:
        with block_writer(arrays, 1, stored=stored) as writer:
            writer.put(0, pixels)

    from msdask.errors import StoreError

    with pytest.raises(StoreError, match=r"block 1: what is read now does not measure as what was stored"):
        write(255 - image)
    write(image)
    assert tree(Path(arrays.path)) == before


def test_a_slide_that_an_earlier_version_began_is_finished_with_the_measures_that_it_had(
    small_slide: SampleSlide, tmp_path: Path
) -> None:
    lazy, store = lazy_grid(small_slide.path), PatchStore(tmp_path / "s.zarr")
    tasks = begun(store, lazy)
    (folder,) = (tmp_path / "s.zarr").glob("grid*/*.svs")
    early = replace(store.begin(folder.parent.name, lazy)[0], measures=3)  # type: ignore[index]
    layout.create_measured(early)
    attrs = {
        name: value for name, value in documents.read_slide(str(folder)).items() if name not in ("seal", "measures")
    }
    documents.write_sealed(str(folder), attrs)
    arrays, left = store.begin(folder.parent.name, lazy)  # type: ignore[misc]
    assert (arrays.measures, len(left)) == (3, len(tasks))
    store.write(lazy)
    patch_set = store[folder.parent.name]
    assert patch_set.open(small_slide.path.name)["measured"].shape == (108, 1, 3)
    assert "focus" not in patch_set.table()
    assert patch_set.verify() == []
