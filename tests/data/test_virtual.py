"""Virtual sets: a stored set's pixels without storing them, within one budget of decoded tiles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msdask as ms
from msdask.data import PatchDataset, ScaleAugment, VirtualSet
from msdask.errors import SpecError, StoreError
from msdask.sample.slides import SampleSlide, make_slide
from msdask.selection.select import centroids, grid
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from tests.tools.stream_tools import GRID, SIZE, SPLITS, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("virtual"), names=(GRID, TUPLES))


def pixels(batch: dict[str, Any]) -> np.ndarray:
    return batch["image"].permute(0, 1, 3, 4, 2).numpy()


@pytest.mark.parametrize("name", [GRID, TUPLES])
def test_a_virtual_set_has_the_stored_pixels_and_columns(cohort: Cohort, name: str) -> None:
    stored, virtual = PatchDataset(cohort[name]), PatchDataset(VirtualSet.of(cohort[name]))
    assert len(stored) == len(virtual)
    indices = np.random.default_rng(0).permutation(len(stored))[:100].tolist()
    one, other = stored.__getitems__(indices), virtual.__getitems__(indices)
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values.numpy(), other[key].numpy(), err_msg=key)


def test_some_magnifications(cohort: Cohort) -> None:
    stored = PatchDataset(cohort[TUPLES], magnifications=[5])
    virtual = PatchDataset(VirtualSet.of(cohort[TUPLES]), magnifications=[5])
    np.testing.assert_array_equal(pixels(stored.__getitems__([8, 2])), pixels(virtual.__getitems__([8, 2])))


def test_the_budget_changes_no_pixel(cohort: Cohort) -> None:
    expected = pixels(PatchDataset(cohort[TUPLES], keep=False).__getitems__(range(0, 200, 3)))
    for size in (0, 300_000, 2**30):
        virtual = VirtualSet.of(cohort[TUPLES], cache_bytes=size)
        batch = PatchDataset(virtual, keep=False).__getitems__(range(0, 200, 3))
        np.testing.assert_array_equal(pixels(batch), expected)
        assert virtual.cache.used_bytes <= size


def test_splits_that_are_numbers_are_named_by_them_and_none_is_no_split(cohort: Cohort) -> None:
    slides = {slide_id: open_slide(cohort.folder / slide_id, mpp=0.25) for slide_id in SPLITS}
    tables = {s: grid(slide, magnification=10, patch_size=SIZE) for s, slide in slides.items()}
    facts: dict[str, Any] = {"a.svs": {"split": 0}, "b.svs": {"split": 1}, "c.svs": {"split": None}}
    index = VirtualSet(slides, tables, cohort=facts).index()
    assert index.attrs["splits"] == ["0", "1"]
    assert np.unique(index["split"]).tolist() == [-1, 0, 1]


def test_selections_without_a_store(cohort: Cohort) -> None:
    slides = {slide_id: open_slide(cohort.folder / slide_id, mpp=0.25) for slide_id in ("a.svs", "c.svs")}
    tables = {s: centroids(slide, magnifications=[20, 10, 5], patch_size=SIZE) for s, slide in slides.items()}
    virtual = VirtualSet(slides, tables, cohort={"c.svs": {"split": "test"}})
    assert virtual.name == TUPLES
    dataset = PatchDataset(virtual, splits="test")
    assert len(dataset) == tables["c.svs"].sizes["patch"]
    lazy = ms.patches(slides["c.svs"], tables["c.svs"])["image"]
    np.testing.assert_array_equal(pixels(dataset.__getitems__([5, 30])), lazy[[5, 30]].to_numpy())


def test_a_plan_of_a_cohort_selects_what_an_extraction_would(cohort: Cohort, tmp_path: Path) -> None:
    spec = ExtractionSpec("grid", (20,), patch_size=SIZE, min_tissue=0.3)
    rows = [{"path": str(cohort.folder / s), "slide_id": s, "split": split} for s, split in SPLITS.items()]
    import pandas as pd

    table = pd.DataFrame(rows)
    virtual = VirtualSet.plan(table, spec)
    ms.extract(table, tmp_path / "s.zarr", spec, progress=False)
    stored = PatchDataset(ms.PatchStore(tmp_path / "s.zarr")[GRID], keep=False, splits="train")
    planned = PatchDataset(virtual, splits="train")
    assert len(stored) == len(planned) > 0
    indices = range(0, len(stored), 9)
    one, other = stored.__getitems__(indices), planned.__getitems__(indices)
    for name in ("image", "x0", "y0", "slide", "row", "magnification"):
        np.testing.assert_array_equal(one[name].numpy(), other[name].numpy())


def test_another_file_than_the_set_was_made_from_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    moved = tmp_path / "moved.svs"
    shutil.copy(cohort.folder / "a.svs", moved)
    assert len(VirtualSet.of(cohort[GRID], slides={"a.svs": moved}).slides) == 3
    with pytest.raises(StoreError, match=r"slide 'a.svs' .* another file than .*c\.svs"):
        VirtualSet.of(cohort[GRID], slides={"a.svs": cohort.folder / "c.svs"})


def test_selections_that_do_not_fit_are_refused(cohort: Cohort) -> None:
    slide = open_slide(cohort.folder / "a.svs")
    fine, coarse = (grid(slide, magnification=m, patch_size=SIZE) for m in (20, 10))
    with pytest.raises(SpecError, match=r"selections of \['y'\] were made with another spec"):
        VirtualSet({"x": slide, "y": slide}, {"x": fine, "y": coarse})
    with pytest.raises(SpecError, match=r"selections of \['z'\]"):
        VirtualSet({"x": slide}, {"z": fine})
    with pytest.raises(SpecError, match="no selection"):
        VirtualSet({}, {})
    with pytest.raises(SpecError, match="label maps"):
        PatchDataset(VirtualSet({"x": slide}, {"x": fine}), label_maps=True)


def test_block_order_saves_decoding(cohort: Cohort) -> None:
    def misses(shuffle: bool | str) -> int:
        virtual = VirtualSet.of(cohort[GRID], cache_bytes=4 * 256 * 256 * 3)
        dataset = PatchDataset(virtual, keep=False)
        order = ms.data.EpochOrder(len(dataset), 32, shuffle=shuffle, block_of=dataset.block_of, mix=1)  # type: ignore[arg-type]
        for start in range(0, len(dataset), 32):
            dataset.__getitems__(order.indices(0)[start : start + 32].tolist())
        return virtual.cache.misses

    assert misses("blocks") < 0.6 * misses(True)


# --- exact scales -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    path = tmp_path_factory.mktemp("lossless") / "l.svs"
    return make_slide(path, size=(640, 896), seed=5, levels=(1,), compression="none", threads=1)


def test_exact_scales_are_read_from_the_slide_around_the_same_center(lossless: SampleSlide) -> None:
    slide = open_slide(lossless.path)
    virtual = VirtualSet({"l": slide}, {"l": grid(slide, magnification=10, patch_size=SIZE)})
    dataset = PatchDataset(virtual, scale=ScaleAugment([10, 20, 40], p=1.0))
    batch = dataset.__getitems__(range(len(dataset)))
    drawn = batch["magnification"][:, 0].numpy()
    assert ((drawn >= 10) & (drawn <= 20)).all()
    assert len(set(drawn.tolist())) == len(drawn)
    level = slide.levels[0].compute()
    for i, m in enumerate(drawn.tolist()):
        side = SIZE * (10 / m) / 0.25
        x, y = (int(np.rint(int(batch[k][i]) + SIZE * 4 / 2 - side / 2)) for k in ("x0", "y0"))
        naive = area_mean(level, x, y, side)
        error = (pixels(batch)[i, 0].astype(float) - naive) ** 2
        assert 10 * np.log10(255**2 / error.mean()) > 40


def area_mean(level: np.ndarray, x: int, y: int, side: float) -> np.ndarray:
    """Exact area mean of the square at (x, y), `side` px, on SIZE x SIZE px."""
    span = int(np.ceil(side))
    edges = np.arange(SIZE + 1) * side / SIZE
    weights = np.maximum(
        0, np.minimum(edges[1:, None], np.arange(span)[None] + 1) - np.maximum(edges[:-1, None], np.arange(span)[None])
    )
    weights /= side / SIZE
    crop = level[y : y + span, x : x + span].astype(float)
    crop = np.pad(crop, [(0, span - crop.shape[0]), (0, span - crop.shape[1]), (0, 0)], mode="edge")
    return np.einsum("ay,bx,yxc->abc", weights, weights, crop)


def test_exact_scales_never_go_beyond_the_slides_own(lossless: SampleSlide) -> None:
    slide = open_slide(lossless.path)
    virtual = VirtualSet({"l": slide}, {"l": grid(slide, magnification=30, patch_size=SIZE)})
    dataset = PatchDataset(virtual, scale=ScaleAugment([30, 80], p=1.0))
    drawn = dataset.__getitems__(range(40))["magnification"].numpy()
    assert 30 < drawn.min() < 32
    assert 38 < drawn.max() <= 40


def test_exact_scales_follow_the_draws_seed(lossless: SampleSlide) -> None:
    slide = open_slide(lossless.path)
    virtual = VirtualSet({"l": slide}, {"l": grid(slide, magnification=10, patch_size=SIZE)})
    loader = ms.data.loader(PatchDataset(virtual, scale=ScaleAugment([10, 20])), batch_size=8)
    first, second = ([b["magnification"] for b in loader] for _ in range(2))
    loader.set_epoch(0)
    again = [b["magnification"] for b in loader]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, second, strict=True))
