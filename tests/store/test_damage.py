"""One judge of a slide: what `verify` finds is what `repair` mends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.sample.slides import SampleSlide
from msdask.spec import ExtractionSpec
from msdask.store.damage import Damage
from msdask.store.manifest import slide_entries
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import copy_store, tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.0)
SLIDE = "small.svs"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def whole(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        assert extract([small_slide.path], path, GRID, progress=False).is_complete
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return copy_store(whole, tmp_path / "s.zarr")


def group(store: Path) -> Path:
    return store / GRID.name / SLIDE


def damage_of(store: Path) -> Damage | None:
    patch_set = PatchStore(store)[GRID.name]
    return patch_set.damage(SLIDE, slide_entries(str(store), GRID.name)[SLIDE])


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_sound_slide_has_no_damage(whole: Path) -> None:
    assert damage_of(whole) is None


@pytest.mark.parametrize("array", ["image", "measured", "x0", "keep", "mask"])
def test_a_changed_document_of_an_array_is_found_by_verify_and_mended_by_repair(
    array: str, store: Path, whole: Path
) -> None:
    # A sound document with another separator: every Zarr library reads fill values by it, without a word.
    edit(
        group(store) / array / "zarr.json",
        lambda document: document.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}),
    )
    (problem,) = PatchStore(store).verify()[GRID.name]
    assert f"document of array '{group(store) / array}' is not the one that was committed" in problem
    report = repair(store, progress=False)
    assert [(r.slide_id, r.action) for r in report.repairs] == [(SLIDE, "slide")]
    assert tree(group(store)) == tree(group(whole))


def test_an_array_that_is_gone_is_found_by_verify_and_mended_by_repair(store: Path, whole: Path) -> None:
    shutil.rmtree(group(store) / "mask")
    (problem,) = PatchStore(store).verify()[GRID.name]
    assert "mask" in problem
    assert repair(store, progress=False).is_complete
    assert tree(group(store)) == tree(group(whole))


@pytest.mark.parametrize(
    "damage",
    [
        lambda slide: (slide / "image/c/2/0/0/0/0").unlink(),
        lambda slide: (slide / "x0/c/0/0").write_bytes(b""),
        lambda slide: (slide / "image/zarr.json").write_text("{}"),
        lambda slide: (slide / "tissue/zarr.json").unlink(),
        lambda slide: edit(slide / "zarr.json", lambda document: document.pop("consolidated_metadata")),
        lambda slide: edit(slide / "zarr.json", lambda document: document["attributes"].pop("rows_per_shard")),  # type: ignore[attr-defined]
        lambda slide: zarr.open_array(store=slide / "y0", mode="r+").__setitem__(0, 7),
    ],
    ids=["shard", "column", "nonsense", "no document", "no copies", "no rows", "another value"],
)
def test_verify_and_repair_agree(damage: Callable[[Path], object], store: Path) -> None:
    damage(group(store))
    problems = PatchStore(store).verify()[GRID.name]
    found = damage_of(store)
    assert found is not None
    assert problems == [f"slide '{SLIDE}': {line}" for line in found.problems]
    assert len(repair(store, progress=False).repairs) == 1
    assert PatchStore(store).verify()[GRID.name] == []


def test_an_array_of_someone_else_is_no_damage(store: Path) -> None:
    zarr.create_array(store=group(store) / "mine", data=np.arange(108.0).reshape(9, 12), chunks=(3, 5))
    assert PatchStore(store).verify()[GRID.name] == []
    assert "mine" not in PatchStore(store)[GRID.name].open(SLIDE)
