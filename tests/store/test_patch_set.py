"""PatchSet as a sequence and in a notebook: its length, its patches one by one, what it shows of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msdask.sample.slides import SampleSlide
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.reading import ShardArray
from tests.tools.store_tools import lazy_grid, lazy_tuples, use_small_blocks

NAME = "grid-10x-64"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture
def store(small_slide: SampleSlide, tmp_path: Path) -> PatchStore:
    """A grid of two slides of 108 patches, and tuples of one."""
    store = PatchStore(tmp_path / "s.zarr")
    for slide_id, split in (("b", "test"), ("a", "train")):
        lazy = lazy_grid(small_slide.path)
        lazy.attrs["slide_id"] = slide_id
        store.write(lazy, attrs={"cohort": {"split": split}})
    store.write(lazy_tuples(small_slide.path))
    return store


def test_the_length_is_the_number_of_patches(store: PatchStore) -> None:
    assert len(store[NAME]) == 216
    assert [len(patch_set) for patch_set in store.values()] == [108, 216]


def test_patches_come_in_the_order_of_the_index(store: PatchStore) -> None:
    patch_set = store[NAME]
    index = patch_set.index()
    for i in (0, 107, 108, 215):
        patch, row = patch_set[i], index.isel(patch=i)
        assert patch.slide_id == index.attrs["slides"][int(row["slide"])]
        assert patch.split == index.attrs["splits"][int(row["split"])]
        for name in ("row", "x0", "y0", "label", "tissue", "keep"):
            assert getattr(patch, name) == row[name].item()
        np.testing.assert_array_equal(patch.image, patch_set.read(patch.slide_id, [patch.row])[0])


def test_a_tuple_has_all_its_magnifications(store: PatchStore) -> None:
    patch = store["centroids-10x-5x-2.5x-64"][3]
    assert patch.magnifications == (10.0, 5.0, 2.5)
    assert patch.image.shape == (3, 64, 64, 3)
    assert "10x, 5x, 2.5x" in repr(patch)


def test_negative_numbers_count_from_the_end(store: PatchStore) -> None:
    patch_set = store[NAME]
    assert (patch_set[-1].slide_id, patch_set[-1].row) == ("b", 107)
    assert (patch_set[-216].slide_id, patch_set[-216].row) == ("a", 0)


@pytest.mark.parametrize("number", [216, -217])
def test_numbers_outside_are_an_index_error(number: int, store: PatchStore) -> None:
    with pytest.raises(IndexError, match=f"patch {number} asked for, the set has 216"):
        store[NAME][number]


def test_slices_are_refused(store: PatchStore) -> None:
    with pytest.raises(TypeError):
        store[NAME][0:2]  # type: ignore[index]


def test_all_patches_can_be_gone_through(store: PatchStore) -> None:
    places = [(patch.slide_id, patch.row) for patch in store[NAME]]
    assert places == [(slide_id, row) for slide_id in "ab" for row in range(108)]


def test_slides_that_come_later_are_there(store: PatchStore, small_slide: SampleSlide) -> None:
    patch_set = store[NAME]
    assert patch_set[0].slide_id == "a"
    lazy = lazy_grid(small_slide.path)
    lazy.attrs["slide_id"] = "c"
    store.write(lazy)
    assert len(patch_set) == 324
    assert patch_set[300].slide_id == "c"


def test_a_slide_that_is_written_anew_is_looked_up_anew(store: PatchStore, small_slide: SampleSlide) -> None:
    patch_set = store[NAME]
    before = patch_set[5]
    lazy = lazy_grid(small_slide.path).isel(patch=slice(50, 90))
    lazy = lazy.chunk({"patch": 10})
    lazy.attrs["slide_id"] = "a"
    store.write(lazy, overwrite=True)
    after = patch_set[5]
    assert (after.x0, after.y0) != (before.x0, before.y0)
    np.testing.assert_array_equal(after.image, lazy["image"][5].to_numpy())


def test_an_empty_set_is_falsy_and_shown(store: PatchStore, tmp_path: Path) -> None:
    empty = PatchStore(tmp_path / "empty.zarr")
    name = empty.open_set(store[NAME].spec)
    assert len(empty[name]) == 0
    assert "0, 0 of them to keep" in empty[name]._repr_html_()


def test_html_says_slides_patches_bytes_spec_and_scale(store: PatchStore) -> None:
    patch_set = store[NAME]
    html = patch_set._repr_html_()
    kept = int(patch_set.table()["keep"].sum())
    size = sum(p.stat().st_size for p in Path(patch_set.path).rglob("*") if p.is_file())
    for text in (f"216, {kept} of them to keep", f"{size / 2**20:.2f} MiB, raw", "grid, 64 px", "10x (1 µm/px)"):
        assert text in html
    assert NAME in store._repr_html_()
    assert "centroids-10x-5x-2.5x-64" in store._repr_html_()


def test_html_says_what_differs_from_the_usual(small_slide: SampleSlide, tmp_path: Path) -> None:
    patch_set = PatchStore(tmp_path / "t.zarr").write(lazy_grid(small_slide.path, stride=128, min_tissue=0.2))
    html = patch_set._repr_html_()
    assert "stride 128" in html
    assert "min_tissue 0.2" in html
    assert "min_label" not in html


def test_html_says_what_is_not_complete(store: PatchStore) -> None:
    Path(store.path, NAME, "a", "zarr.json").write_text("{")
    assert "1, 1 not complete" in store[NAME]._repr_html_()


def test_ids_are_escaped(store: PatchStore, small_slide: SampleSlide) -> None:
    lazy = lazy_grid(small_slide.path, magnification=5)
    lazy.attrs["slide_id"] = "<b>"
    assert "<b>" not in store.write(lazy)[0]._repr_html_()


def test_no_repr_reads_pixels_or_writes(store: PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("pixels were read")

    for name in ("_read", "submit", "read_block"):
        monkeypatch.setattr(ShardArray, name, refuse)
    for shown in (store, store[NAME]):
        assert repr(shown)
        assert shown._repr_html_()
    assert not Path(store.path, "_index").exists()


def test_one_damaged_slide_does_not_hide_the_others(store: PatchStore) -> None:
    Path(store.path, NAME, "a", "zarr.json").write_text("{")
    patch_set: PatchSet = store[NAME]
    assert len(patch_set) == 108
    assert patch_set[0].slide_id == "b"
