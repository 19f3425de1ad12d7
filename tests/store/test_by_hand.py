"""What the page of the store says of moving, copying, merging and deleting by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import msdask as ms
from msdask.errors import CorruptChunkError, StoreError

GRID = ms.ExtractionSpec("grid", (10.0,), 64, min_tissue=0.0)
NAME = "grid-10x-64"
SMALL, ODD = "small.svs", "odd.svs"


def extract(store: Path, *slides: Path, spec: ms.ExtractionSpec = GRID) -> str:
    report = ms.extract([{"path": slide} for slide in slides], store, spec, threads=1, progress=False)
    assert report.is_complete, report.failures
    return report.summary()


@pytest.fixture(scope="module")
def made(small_slide, odd_slide, tmp_path_factory) -> tuple[Path, Path]:
    """A store of the small slide, and one of the odd slide."""
    folder = tmp_path_factory.mktemp("made")
    extract(folder / "one.zarr", small_slide.path)
    extract(folder / "two.zarr", odd_slide.path)
    return folder / "one.zarr", folder / "two.zarr"


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of the first store that a test may change."""
    return Path(shutil.copytree(made[0], tmp_path / "copy.zarr"))


def problems(store: Path) -> list[str]:
    return [sentence for found in ms.PatchStore(store).verify().values() for sentence in found]


def put(store: Path, other: Path, slide: str, *groups: str) -> None:
    """Copy a slide's folders of another store."""
    for group in groups:
        shutil.copytree(other / group / slide, store / group / slide)


def test_a_store_may_be_copied_and_renamed(copy, small_slide):
    moved = copy.rename(copy.with_name("elsewhere.zarr"))
    assert problems(moved) == []
    assert "1 present" in extract(moved, small_slide.path)


def test_a_copy_without_the_notes_beside_it_is_repaired_with_a_table(copy, small_slide):
    shard = next(p for p in (copy / NAME / SMALL / "image" / "c").rglob("*") if p.is_file())
    shard.unlink()
    (told,) = problems(copy)
    assert "is missing" in told
    assert "1 present" in extract(copy, small_slide.path)  # it looks at the document alone
    report = ms.repair(copy, slides=[{"path": small_slide.path}], progress=False)
    assert not report.failures
    assert problems(copy) == []


def test_a_slide_that_was_deleted_is_missing_until_it_is_made_again(copy, small_slide):
    shutil.rmtree(copy / NAME / SMALL)
    assert list(ms.PatchStore(copy)[NAME].slides) == []
    assert problems(copy) == [f"slide '{SMALL}' is missing: run the same extraction again to finish it"]
    extract(copy, small_slide.path)
    assert problems(copy) == []


def test_a_slide_that_was_deleted_with_its_entry_is_gone_for_good(copy):
    for group in (NAME, f"_manifest/{NAME}"):
        shutil.rmtree(copy / group / SMALL)
    assert problems(copy) == []


def test_a_set_whose_folder_alone_was_deleted_is_an_error_until_it_is_made_again(copy, small_slide):
    shutil.rmtree(copy / NAME)
    with pytest.raises(CorruptChunkError, match="is lost: run `msdask verify --repair`"):
        list(ms.PatchStore(copy)[NAME].slides)
    extract(copy, small_slide.path)
    assert problems(copy) == []


def test_a_slide_of_another_store_belongs_to_the_set_with_its_entry(copy, made):
    put(copy, made[1], ODD, NAME)
    (told,) = problems(copy)
    assert "the store's manifest does not know it" in told
    put(copy, made[1], ODD, f"_manifest/{NAME}")
    assert problems(copy) == []
    assert list(ms.PatchStore(copy)[NAME].slides) == [ODD, SMALL]


def test_a_slide_of_another_spec_is_not_in_the_set(copy, odd_slide, tmp_path):
    extract(tmp_path / "other.zarr", odd_slide.path, spec=ms.ExtractionSpec("grid", (10.0,), 64, min_tissue=0.5))
    put(copy, tmp_path / "other.zarr", ODD, NAME, f"_manifest/{NAME}")
    assert list(ms.PatchStore(copy)[NAME].slides) == [SMALL]
    (told,) = problems(copy)
    assert "was cut by another spec" in told


def test_a_set_of_another_store_comes_with_its_entries(copy, odd_slide, tmp_path):
    other, name = tmp_path / "other.zarr", "grid-5x-64"
    extract(other, odd_slide.path, spec=ms.ExtractionSpec("grid", (5.0,), 64, min_tissue=0.0))
    for group in (name, f"_manifest/{name}"):
        shutil.copytree(other / group, copy / group)
    assert sorted(ms.PatchStore(copy)) == [NAME, name]
    assert problems(copy) == []


def test_folders_that_are_renamed_are_noticed(copy):
    (copy / NAME / SMALL).rename(copy / NAME / "mine.svs")
    assert len(problems(copy)) == 2
    (copy / NAME).rename(copy / "mine")
    with pytest.raises(CorruptChunkError, match="is lost"):
        list(ms.PatchStore(copy)[NAME].slides)


def test_of_what_stands_beside_the_slides_the_manifest_alone_is_needed(copy):
    store = ms.PatchStore(copy)
    store[NAME].index()
    store.freeze("v1")
    for group in ("_index", "_frozen"):
        shutil.rmtree(copy / group)
        assert problems(copy) == []
    assert len(ms.PatchStore(copy)[NAME].table()) > 0
    shutil.rmtree(copy / "_manifest")
    (told,) = problems(copy)
    assert "the store's manifest does not know it" in told


def test_a_slide_that_was_frozen_and_deleted_is_an_error_of_that_state(copy):
    ms.PatchStore(copy).freeze("v1")
    shutil.rmtree(copy / NAME / SMALL)
    with pytest.raises(StoreError, match="was frozen, and is gone now"):
        list(ms.PatchStore(copy, at="v1")[NAME].slides)
