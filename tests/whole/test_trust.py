"""What once lied in silence: damage that looked sound, sets of two specs, files that change, facts that stay old."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import msdask as ms
from msdask.errors import CorruptChunkError, StoreError
from msdask.extraction import slide_job
from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.sample.slides import SampleSlide, make_slide
from msdask.spec import ExtractionSpec
from msdask.storage.locks import slide_lock
from msdask.storage.set_locks import set_lock
from msdask.store import manifest
from msdask.store.integrity import sealed
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import copy_store, forge, noted_source, tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(20.0,), patch_size=64)
OTHER = ExtractionSpec(mode="grid", magnifications=(20.0,), patch_size=64, min_tissue=0.9)
NAME = GRID.name
IDS = ["a.svs", "b.svs"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[SampleSlide]:
    folder = tmp_path_factory.mktemp("trust") / "slides"
    folder.mkdir()
    return [make_slide(folder / name, size=(1280, 1536), seed=i) for i, name in enumerate(IDS)]


@pytest.fixture(scope="module")
def whole(samples: list[SampleSlide], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        assert extract([s.path for s in samples], path, GRID, progress=False).is_complete
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_small_blocks(monkeypatch)
    return copy_store(whole, tmp_path / "s.zarr")


def cut(slides: Any, store: Path, spec: ExtractionSpec = GRID, **options: Any) -> Any:
    return extract(slides, store, spec, progress=False, **options)


def shard(store: Path, block: int, slide_id: str = "a.svs") -> Path:
    return store / NAME / slide_id / "image" / "c" / str(block) / "0/0/0/0"


# --- what belongs where ----------------------------------------------------------------------------------------------


def swap(one: Path, two: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def test_two_full_shards_that_were_swapped_are_found_read_by_nobody_and_mended(store: Path, whole: Path) -> None:
    image = PatchStore(whole)[NAME].open("a.svs")["image"]
    rows, other = image.chunksizes["patch"][:2]
    assert rows == other
    swap(shard(store, 0), shard(store, 1))
    problems = PatchStore(store).verify()[NAME]
    assert len(problems) == 2 * rows
    patch_set = PatchStore(store)[NAME]
    with pytest.raises(CorruptChunkError, match="not the one of this place"):
        patch_set.read("a.svs", [3])
    with pytest.raises(CorruptChunkError, match="not the one of this place"):
        patch_set.open("a.svs")["image"][:2].to_numpy()
    assert [r.state for r in repair(store, progress=False).repairs] == ["mended"]
    assert tree(store) == tree(whole)


def test_a_shard_of_another_slide_is_found(store: Path) -> None:
    shutil.copy(shard(store, 0, "b.svs"), shard(store, 0))
    assert PatchStore(store).verify()[NAME] != []
    with pytest.raises(CorruptChunkError):
        PatchStore(store)[NAME].read("a.svs", [3])


def test_the_folder_of_one_slide_in_the_place_of_another_is_noticed(store: Path, whole: Path) -> None:
    shutil.rmtree(store / NAME / "a.svs")
    shutil.copytree(store / NAME / "b.svs", store / NAME / "a.svs")
    assert PatchStore(store)[NAME].slides == ["b.svs"]
    assert "holds the slide 'b.svs'" in PatchStore(store).verify()[NAME][0]
    with pytest.raises(StoreError, match=r"holds the slide 'b\.svs'"):
        PatchStore(store)[NAME].open("a.svs")
    assert [r.state for r in repair(store, progress=False).repairs] == ["renewed"]
    assert tree(store) == tree(whole)


def test_a_column_of_another_slide_is_noticed_by_every_reader(store: Path) -> None:
    moved = PatchStore(store)[NAME].columns("a.svs", ["label_fraction"])[0] + 1
    other = store.parent / "other.zarr"
    copy_store(store, other)
    forge(other, NAME, "a.svs", {"label_fraction": moved})  # a sound array of the same shape
    shutil.rmtree(store / NAME / "a.svs" / "label_fraction")
    shutil.copytree(other / NAME / "a.svs" / "label_fraction", store / NAME / "a.svs" / "label_fraction")
    for read in (lambda: PatchStore(store)[NAME].open("a.svs"), lambda: PatchStore(store)[NAME].table()):
        with pytest.raises(CorruptChunkError, match="not those that were committed"):
            read()


# --- what there should be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["a.svs", "a.svs/zarr.json", "zarr.json", "", "../zarr.json"])
def test_what_is_lost_is_missed_and_made_again(lost: str, store: Path, whole: Path) -> None:
    path = (store / NAME / lost).resolve()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if lost == "../zarr.json":
        with pytest.raises(StoreError, match="has lost its document"):
            PatchStore(store)
    else:
        assert PatchStore(store).verify()[NAME] != []
    assert repair(store, progress=False).is_complete
    assert tree(store) == tree(whole)


def test_a_slide_that_is_lost_stays_reported_until_it_can_be_made_again(store: Path, tmp_path: Path) -> None:
    gone = {"slide": str(tmp_path / "gone.svs"), "masks": {}}
    noted_source(store, NAME, "a.svs").write_text(json.dumps(gone))
    shutil.rmtree(store / NAME / "a.svs")
    for _ in range(2):
        report = repair(store, progress=False)
        assert [(r.slide_id, r.state) for r in report.repairs] == [("a.svs", "failed")]
        assert len(PatchStore(store).verify()[NAME]) == 1


def test_a_spec_that_was_edited_is_noticed(store: Path, whole: Path, samples: list[SampleSlide]) -> None:
    path = store / NAME / "zarr.json"
    path.write_text(path.read_text().replace('"min_tissue": 0.7', '"min_tissue": 0.1'))
    assert path.read_text() != (whole / NAME / "zarr.json").read_text()
    assert "another spec than it was made with" in PatchStore(store).verify()[NAME][0]
    with pytest.raises(StoreError, match="another spec"):
        PatchStore(store)[NAME].slides  # noqa: B018
    assert repair(store, progress=False).is_complete
    assert tree(store) == tree(whole)


def test_a_lost_document_of_a_set_does_not_let_another_spec_adopt_its_slides(
    store: Path, samples: list[SampleSlide]
) -> None:
    (store / NAME / "zarr.json").unlink()
    with pytest.raises(StoreError, match="was made with min_tissue="):
        cut([s.path for s in samples], store, OTHER, name=NAME)


def test_a_slide_that_the_manifest_does_not_know_is_told(store: Path) -> None:
    shutil.rmtree(store / "_manifest" / NAME / "a.svs")
    assert "manifest does not know it" in PatchStore(store).verify()[NAME][0]


# --- repair never makes it worse -------------------------------------------------------------------------------------


def flip(path: Path, at: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_slide_that_cannot_be_made_again_keeps_what_it_has(samples: list[SampleSlide], tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for sample in samples:
        Image.fromarray((sample.mask > 0).astype(np.uint8) * 255).save(masks / f"{sample.path.stem}.png")
    store = tmp_path / "s.zarr"
    assert cut([s.path for s in samples], store, masks=masks).is_complete
    whole = tree(store)
    flip(store / NAME / "a.svs" / "x0" / "c" / "0" / "0")
    damaged = tree(store)
    masks.rename(tmp_path / "elsewhere")
    for _ in range(2):
        report = repair(store, progress=False)
        assert [r.state for r in report.repairs] == ["failed"]
        assert tree(store) == damaged
        assert len(PatchStore(store).verify()[NAME]) == 1
    (tmp_path / "elsewhere").rename(masks)
    assert [r.state for r in repair(store, progress=False).repairs] == ["renewed"]
    assert tree(store) == whole


def test_a_kill_while_a_slide_is_made_again_loses_nothing(
    store: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(store / NAME / "a.svs" / "x0" / "c" / "0" / "0")
    before = tree(store / NAME)

    def killed(*args: Any, **options: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("msdask.extraction.repair.run_block", killed)
        with pytest.raises(KeyboardInterrupt):
            repair(store, progress=False, threads=0)
    assert tree(store / NAME) == before
    assert repair(store, progress=False).is_complete
    assert tree(store) == tree(whole)


def test_a_kill_between_the_two_renames_is_made_good(store: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(store / NAME / "a.svs" / "x0" / "c" / "0" / "0")
    rename = os.rename

    def killed(source: str, target: str) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            repair(store, progress=False, threads=0)
    assert "missing" in PatchStore(store).verify()[NAME][0]
    assert repair(store, progress=False).is_complete
    assert tree(store) == tree(whole)


def test_what_cannot_be_read_now_is_not_damage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msdask.storage.local import LocalFolders

    before, read = tree(store), LocalFolders.read

    def failing(self: LocalFolders, path: str) -> bytes:
        if "a.svs/x0/c" in path:
            raise PermissionError(13, "Permission denied")
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolders, "read", failing)
        report = repair(store, progress=False)
        assert [(r.slide_id, r.state) for r in report.repairs] == [("a.svs", "failed")]
        assert "cannot be read now" in report.repairs[0].reason
        assert "cannot be read now" in PatchStore(store).verify()[NAME][0]
    assert tree(store) == before
    assert repair(store, progress=False).repairs == ()


# --- one set, one spec -----------------------------------------------------------------------------------------------


def test_a_set_is_not_replaced_while_somebody_writes_into_it(store: Path, samples: list[SampleSlide]) -> None:
    before = tree(store)
    with slide_lock(str(store), NAME, "c.svs"):
        with pytest.raises(StoreError, match="is being written by"):
            cut([samples[0].path], store, OTHER, name=NAME, overwrite=True)
        with pytest.raises(StoreError, match="is being written by"):
            PatchStore(store).remove(NAME)
    assert tree(store) == before


def test_a_slide_that_is_written_while_its_set_is_replaced_is_not_committed(
    store: Path, samples: list[SampleSlide], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = slide_job.commit_slide

    def replaced(job: slide_job.BlockJob) -> dict[str, Any]:
        manifest.enter_set(str(store), NAME, OTHER)
        path = store / NAME / "zarr.json"
        attrs = {"spec": OTHER.to_dict(), "spec_hash": OTHER.hash}
        path.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attrs}))
        return original(job)

    monkeypatch.setattr("msdask.extraction.cohort.commit_slide", replaced)
    report = cut([samples[0].path], store, overwrite=True)
    assert "replaced by one of another spec" in report.failures["a.svs"]
    assert PatchStore(store)[NAME].slides == []


def test_a_slide_waits_for_the_maker_of_its_set_and_not_for_ever(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        set_lock(str(store), NAME),
        pytest.raises(StoreError, match="patch set"),
        set_lock(str(store), NAME, patience=0.2),
    ):
        pass


def make_one(slide: str, store: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    try:
        answers.put(cut([slide], Path(store)).is_complete)
    except StoreError as error:
        answers.put(str(error))


def test_four_processes_that_make_one_store_at_once_all_finish(samples: list[SampleSlide], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    folder = tmp_path / "slides"
    folder.mkdir()
    slides = [shutil.copy(samples[i % 2].path, folder / f"{i}.svs") for i in range(4)]
    barrier, answers = context.Barrier(4), context.Queue()
    store = tmp_path / "s.zarr"
    processes = [context.Process(target=make_one, args=(str(s), str(store), barrier, answers)) for s in slides]
    for process in processes:
        process.start()
    assert [answers.get(timeout=120) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert PatchStore(store)[NAME].slides == ["0.svs", "1.svs", "2.svs", "3.svs"]
    assert PatchStore(store).verify() == {NAME: []}


# --- files that change, places that change ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["replaced", "rewritten"])
def test_a_file_that_changes_while_it_is_read_makes_the_slide_fail(
    way: str, samples: list[SampleSlide], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_blocks(monkeypatch)
    path = tmp_path / "a.svs"
    shutil.copy(samples[0].path, path)
    original, calls = slide_job.run_block, []

    def changing(job: slide_job.BlockJob, block: int, **options: Any) -> int:
        calls.append(block)
        if len(calls) == 3:
            if way == "replaced":
                shutil.copy(samples[1].path, tmp_path / "new")
                (tmp_path / "new").replace(path)
            else:
                flip(path, path.stat().st_size // 2)
        return original(job, block, **options)

    monkeypatch.setattr("msdask.extraction.cohort.run_block", changing)
    report = cut([path], tmp_path / "s.zarr", threads=0)
    assert "was replaced or written while it was read" in report.failures["a.svs"]
    assert PatchStore(tmp_path / "s.zarr")[NAME].slides == []


def test_a_store_does_not_depend_on_where_its_slides_lie(samples: list[SampleSlide], tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "deeper"
    shutil.copytree(samples[0].path.parent, moved)
    cut([s.path for s in samples], tmp_path / "one.zarr")
    cut(moved, tmp_path / "two.zarr")
    assert tree(tmp_path / "one.zarr") == tree(tmp_path / "two.zarr")
    assert PatchStore(tmp_path / "two.zarr")[NAME].attrs("a.svs")["source"] == str(moved / "a.svs")


def test_a_rerun_at_another_place_says_where_the_slides_are_now(
    store: Path, samples: list[SampleSlide], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(samples[0].path.parent, moved)
    before = tree(store)
    assert {o.state for o in cut(moved, store).outcomes} == {"present"}
    assert tree(store) == before
    assert PatchStore(store)[NAME].attrs("a.svs")["source"] == str(moved / "a.svs")


def test_paths_are_resolved_at_the_door(
    samples: list[SampleSlide], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(samples[0].path.parent, tmp_path / "home" / "slides")
    for place, where in {"../x.zarr": tmp_path / "x.zarr", "~/y.zarr": tmp_path / "home" / "y.zarr"}.items():
        report = cut("~/slides", Path(place))
        assert report.is_complete, report.failures
        assert report.store == str(where)
        assert PatchStore(place)[NAME].slides == IDS
    assert list((tmp_path / "here").iterdir()) == []


# --- facts of the cohort ---------------------------------------------------------------------------------------------


def cohort(samples: list[SampleSlide], **columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"path": [str(s.path) for s in samples], **columns})


def test_facts_that_are_corrected_are_brought_up_to_date_and_told(samples: list[SampleSlide], tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    cut(cohort(samples, split=["train", "test"], label=[1, 2]), store)
    PatchStore(store)[NAME].index()
    report = cut(cohort(samples, split=["test", "train"], label=[1, 3]), store)
    assert {o.state for o in report.outcomes} == {"present"}
    assert "split 'train' -> 'test'" in report.outcomes[0].warnings[0]
    patch_set = PatchStore(store)[NAME]
    assert [patch_set.attrs(i)["cohort"] for i in IDS] == [
        {"split": "test", "label": 1},
        {"split": "train", "label": 3},
    ]
    assert PatchStore(store).verify() == {NAME: []}
    index = patch_set.index()
    rows = index["split"].values == index.attrs["splits"].index("train")
    assert {index.attrs["slides"][s] for s in index["slide"].values[rows]} == {"b.svs"}
    again = cut(cohort(samples, split=["test", "train"], label=[1, 3]), store)
    assert all(o.warnings == () for o in again.outcomes)


def test_columns_that_a_table_has_not_stay(samples: list[SampleSlide], tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    cut(cohort(samples, split=["train", "test"]), store)
    cut(cohort(samples, patient=["p", "q"]), store)
    assert PatchStore(store)[NAME].attrs("a.svs")["cohort"] == {"split": "train", "patient": "p"}


def test_facts_given_to_write_are_brought_up_to_date(samples: list[SampleSlide], tmp_path: Path) -> None:
    slide = ms.open_slide(samples[0].path)
    lazy = ms.patches(slide, ms.grid(slide, magnification=20, patch_size=64))
    store = PatchStore(tmp_path / "s.zarr")
    store.write(lazy, attrs={"cohort": {"split": "train"}})
    store.write(lazy, attrs={"cohort": {"split": "test"}})
    (name,) = store
    assert store[name].attrs("a.svs")["cohort"] == {"split": "test"}
    assert store.verify() == {name: []}


# --- hostile stores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda attrs: attrs.update(rows_per_shard=0),
        lambda attrs: attrs.update(counts=None),
        lambda attrs: attrs.update(counts={"selected": 10**12}),
        lambda attrs: attrs.update(checksum=None),
        lambda attrs: attrs.update(digests={}),
        lambda attrs: attrs.update(arrays=["image"]),
    ],
    ids=["rows", "no counts", "counts", "checksum", "digests", "arrays"],
)
def test_one_slide_of_a_hostile_store_does_not_hide_the_others(change: Any, store: Path, whole: Path) -> None:
    document = json.loads((store / NAME / "a.svs" / "zarr.json").read_text())
    change(document["attributes"])
    (store / NAME / "a.svs" / "zarr.json").write_bytes(sealed(document))
    problems = PatchStore(store).verify()[NAME]
    assert problems
    assert all("a.svs" in p for p in problems)
    assert "b.svs" in PatchStore(store)[NAME].slides
    assert repair(store, progress=False).is_complete
    assert tree(store) == tree(whole)


def test_a_shape_of_a_million_million_is_bounded_before_anything_is_asked_for(store: Path) -> None:
    document = json.loads((store / NAME / "a.svs" / "zarr.json").read_text())
    for file in (store / NAME / "a.svs" / "image" / "zarr.json",):
        image = json.loads(file.read_text())
        image["shape"][0] = 10**12
        file.write_text(json.dumps(image))
    document["consolidated_metadata"]["metadata"]["image"] = image
    (store / NAME / "a.svs" / "zarr.json").write_bytes(sealed(document))
    assert "has the shape" in PatchStore(store).verify()[NAME][0]
    image["shape"][0] = 2**31 - 1
    file.write_text(json.dumps(image))
    assert "patches by its document" in PatchStore(store).verify()[NAME][0]


@pytest.mark.parametrize("where", ["a.svs", "a.svs/x0", "a.svs/image"])
def test_a_link_leads_nobody_out_of_the_store(where: str, store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(store / NAME / where, outside)
    (store / NAME / where).symlink_to(outside, target_is_directory=True)
    before = tree(outside)
    problems = PatchStore(store).verify()[NAME]
    assert problems
    assert "b.svs" in PatchStore(store)[NAME].slides
    repair(store, progress=False)
    assert tree(outside) == before


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_a_frozen_state_shows_what_was_and_refuses_what_is_not(
    store: Path, samples: list[SampleSlide], tmp_path: Path
) -> None:
    frozen = PatchStore(store).freeze("v1")
    assert PatchStore(store).freeze("v1") == frozen
    extra = tmp_path / "c.svs"
    shutil.copy(samples[0].path, extra)
    cut([extra], store)
    assert PatchStore(store)[NAME].slides == [*IDS, "c.svs"]
    at = PatchStore(store, at="v1")
    assert at[NAME].slides == IDS
    assert at.frozen == frozen
    with pytest.raises(StoreError, match="none of the 2 slides"):
        at[NAME].open("c.svs")
    with pytest.raises(StoreError, match="other contents"):
        PatchStore(store).freeze("v1")
    cut(cohort(samples, split=["train", "test"]), store)
    with pytest.raises(StoreError, match="its row of the cohort's table changed"):
        PatchStore(store, at="v1")[NAME].slides  # noqa: B018
    with pytest.raises(StoreError, match=r"no frozen state 'v2'; it has \['v1'\]"):
        PatchStore(store, at="v2")
    assert sorted(PatchStore(store).freeze("v2").sets[NAME]) == [*IDS, "c.svs"]
