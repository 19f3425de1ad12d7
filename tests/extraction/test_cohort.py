"""Cohorts: one bad slide never stops the others, a rerun finishes the rest, bytes depend on input and spec alone."""

from __future__ import annotations

import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import xarray as xr
from PIL import Image

from msdask.cutting.measures import tissue_mean
from msdask.engines import in_flight
from msdask.errors import MaskError, SpecError, StoreError
from msdask.extraction import cohort
from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport
from msdask.masks import choice
from msdask.masks.formats import MaskContent
from msdask.masks.tissue import tissue_mask
from msdask.sample.slides import SampleSlide, make_slide, write_labels, write_masks
from msdask.selection.parents import link_upper_regions
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec, ExtractionSpec
from msdask.storage.locks import slide_lock
from msdask.store.patch_store import PatchStore
from tests.tools.slide_damage import damage_tile
from tests.tools.store_tools import grid_specs, tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.5)
TUPLES = ExtractionSpec(mode="centroids", magnifications=(20, 10, 5), patch_size=64, min_tissue=0.5)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[SampleSlide]:
    """Three slides of 1280 x 1536 px with masks and labels beside them."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "slides").mkdir()
    names = ("a.svs", "b – ß.svs", "c.svs")
    made = [make_slide(folder / "slides" / name, size=(1280, 1536), seed=20 + i) for i, name in enumerate(names)]
    for sample in made:
        write_masks(sample, folder / "masks")
        write_labels(sample, folder / "labels")
    return made


@pytest.fixture
def slides(samples: list[SampleSlide], tmp_path: Path) -> Path:
    """A folder of its own with the three slides, to damage."""
    folder = tmp_path / "slides"
    shutil.copytree(samples[0].path.parent, folder)
    return folder


def run(slides: Any, store: Path | PatchStore, spec: Any = GRID, **options: Any) -> ExtractionReport:
    return extract(slides, store, spec, progress=False, **options)


def masks_of(samples: list[SampleSlide]) -> Path:
    return samples[0].path.parent.parent / "masks"


def state(report: ExtractionReport) -> dict[str, str]:
    return {o.slide_id: o.state for o in report.outcomes}


# --- the plain case ---------------------------------------------------------------------------------------------------


def test_a_folder_of_slides_becomes_a_set(slides: Path, tmp_path: Path) -> None:
    report = run(slides, tmp_path / "s.zarr")
    assert report.is_complete
    assert state(report) == {"a.svs": "complete", "b – ß.svs": "complete", "c.svs": "complete"}
    patch_set = PatchStore(tmp_path / "s.zarr")["grid-10x-64"]
    assert patch_set.slides == ["a.svs", "b – ß.svs", "c.svs"]
    assert report.patches == len(patch_set.table()) > 0
    assert patch_set.verify() == []
    assert patch_set.index().attrs["slides"] == patch_set.slides
    assert list(report.to_frame()["state"]) == ["complete"] * 3
    assert "3 complete" in report.summary()


def test_a_slide_of_the_cohort_is_what_it_is_alone(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    slide = open_slide(slides / "a.svs")
    mask = tissue_mask(slide)
    table = grid(slide, mask, magnification=10, patch_size=64, min_tissue=0.5)
    data = PatchStore(tmp_path / "s.zarr")["grid-10x-64"].open("a.svs")
    for name in ("x0", "y0", "tissue", "label"):
        np.testing.assert_array_equal(data[name], table[name])
    level = stored_level(slides / "a.svs", 1)
    for i, (x, y) in enumerate(zip(data["x0"][:, 0].values // 4, data["y0"][:, 0].values // 4, strict=True)):
        np.testing.assert_array_equal(data["image"][i, 0].to_numpy(), level[y : y + 64, x : x + 64])


def stored_level(path: Path, level: int) -> np.ndarray:
    with tifffile.TiffFile(path) as tif:
        return np.asarray(tif.series[0].levels[level].asarray())


def test_the_white_threshold_comes_from_the_tissue_alone(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    slide = open_slide(slides / "a.svs")
    image, mask = slide.at(mpp=8.0).to_numpy(), tissue_mask(slide).to_numpy()
    attrs = PatchStore(tmp_path / "s.zarr")["grid-10x-64"].attrs("a.svs")
    assert attrs["tissue_mean"] == pytest.approx(tissue_mean(image, mask), abs=0.5)
    assert abs(attrs["tissue_mean"] - image.mean()) > 5


def test_the_mask_that_was_used_is_stored(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    data = PatchStore(tmp_path / "s.zarr")["grid-10x-64"].open("a.svs")
    np.testing.assert_array_equal(data["mask"].to_numpy() > 0, tissue_mask(open_slide(slides / "a.svs")).to_numpy())


def test_columns_of_the_table_are_kept_with_the_slide(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id,split,patient\nslides/a.svs,one,train,P1\nslides/c.svs,two,test,P2\n")
    report = run(table, tmp_path / "s.zarr")
    assert state(report) == {"one": "complete", "two": "complete"}
    patch_set = PatchStore(tmp_path / "s.zarr")["grid-10x-64"]
    assert patch_set.attrs("one")["cohort"] == {"split": "train", "patient": "P1"}
    assert set(patch_set.table()["split"]) == {"train", "test"}
    assert patch_set.index().attrs["splits"] == ["train", "test"]


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_bytes_do_not_depend_on_threads(codec: Codec, slides: Path, tmp_path: Path) -> None:
    spec = ExtractionSpec(mode="centroids", magnifications=(10, 5), patch_size=64, codec=codec)
    for threads in (1, 2, 4):
        assert run(slides, tmp_path / f"{threads}.zarr", spec, threads=threads).is_complete
    assert tree(tmp_path / "1.zarr") == tree(tmp_path / "2.zarr") == tree(tmp_path / "4.zarr")


@pytest.mark.slow
def test_bytes_of_a_cluster_are_those_of_threads(slides: Path, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    specs = grid_specs(GRID, [20, 10])
    run(slides, tmp_path / "threads.zarr", specs)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        # Blocks are as large as in the other runs: the workers' own limit is not patched, so sets must be small.
        report = run(slides, tmp_path / "cluster.zarr", specs, client=client)
        assert report.is_complete
    run(slides, tmp_path / "again.zarr", specs, threads=1)
    for name in ("grid-20x-64", "grid-10x-64"):
        ours, theirs = (PatchStore(tmp_path / f"{kind}.zarr")[name] for kind in ("threads", "cluster"))
        for slide_id in ours.slides:
            xr.testing.assert_identical(
                ours.open(slide_id).drop_attrs().compute(), theirs.open(slide_id).drop_attrs().compute()
            )
    assert tree(tmp_path / "threads.zarr") == tree(tmp_path / "again.zarr")


# --- failures ---------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


@pytest.mark.parametrize("spec", [GRID, TUPLES])
def test_a_truncated_slide_is_reported_and_a_rerun_after_its_repair_finishes(
    spec: ExtractionSpec, slides: Path, tmp_path: Path
) -> None:
    whole = truncate(slides / "b – ß.svs")
    report = run(slides, tmp_path / "s.zarr", spec)
    assert state(report) == {"a.svs": "complete", "b – ß.svs": "failed", "c.svs": "complete"}
    assert not report.is_complete
    assert "b – ß.svs" in report.failures["b – ß.svs"]
    assert "1 failed" in report.summary()
    frame = report.to_frame().set_index("slide_id")
    assert frame.loc["b – ß.svs", "reason"] == report.failures["b – ß.svs"]
    patch_set = PatchStore(tmp_path / "s.zarr")[spec.name]
    assert patch_set.slides == ["a.svs", "c.svs"]
    done = {
        p: p.stat().st_mtime_ns
        for name in ("a.svs", "c.svs")
        for p in Path(patch_set.path, name).rglob("*")
        if p.is_file()
    }

    again = run(slides, tmp_path / "s.zarr", spec)
    assert state(again) == {"a.svs": "present", "b – ß.svs": "failed", "c.svs": "present"}
    (slides / "b – ß.svs").write_bytes(whole)
    last = run(slides, tmp_path / "s.zarr", spec)
    assert state(last) == {"a.svs": "present", "b – ß.svs": "complete", "c.svs": "present"}
    assert {p: p.stat().st_mtime_ns for p in done} == done
    run(slides, tmp_path / "t.zarr", spec)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_a_tile_that_fails_in_the_middle_leaves_what_a_rerun_after_its_repair_finishes(
    slides: Path, tmp_path: Path
) -> None:
    everything = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.0)
    whole = damage_tile(slides / "a.svs", 1, 3)
    report = run(slides, tmp_path / "s.zarr", everything)
    assert state(report)["a.svs"] == "failed"
    assert "level 1" in report.failures["a.svs"]
    assert "row 1, column 1" in report.failures["a.svs"]
    (slides / "a.svs").write_bytes(whole)
    assert run(slides, tmp_path / "s.zarr", everything).is_complete
    run(slides, tmp_path / "t.zarr", everything)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


@pytest.mark.parametrize("level", [1, 2])
def test_bad_tiles_can_be_filled_wherever_they_are(level: int, slides: Path, tmp_path: Path) -> None:
    everything = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.0)
    damage_tile(slides / "a.svs", level, 0)
    report = run(slides, tmp_path / "s.zarr", everything, on_bad_tile="fill")
    assert report.is_complete, report.failures
    counts = PatchStore(tmp_path / "s.zarr")[everything.name].attrs("a.svs")["counts"]
    assert counts["filled"] == (16 if level == 1 else 0)


def test_what_is_no_slide_is_one_failure_among_others(slides: Path, tmp_path: Path) -> None:
    (slides / "d.svs").write_text("no slide")
    (slides / "e.svs").write_bytes(b"")
    report = run([*sorted(slides.iterdir()), tmp_path / "absent.svs"], tmp_path / "s.zarr")
    assert set(report.failures) == {"d.svs", "e.svs", "absent.svs"}
    for slide_id, reason in report.failures.items():
        assert slide_id in reason
    assert len(PatchStore(tmp_path / "s.zarr")[GRID.name].slides) == 3


def test_an_unexpected_error_is_one_failure_among_others(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = choice.tissue_mask

    def failing(slide: Any, **options: Any) -> xr.DataArray:
        if slide.name == "c.svs":
            raise ZeroDivisionError("by zero")
        return original(slide, **options)

    monkeypatch.setattr(choice, "tissue_mask", failing)
    report = run(slides, tmp_path / "s.zarr")
    assert report.failures == {"c.svs": "ZeroDivisionError: by zero"}


def test_a_slide_without_scale_fails_until_the_table_says_it(
    slides: Path, tmp_path: Path, scaleless_slide: SampleSlide
) -> None:
    shutil.copy(scaleless_slide.path, slides / "d.svs")
    report = run(slides, tmp_path / "s.zarr")
    assert "pass mpp=" in report.failures["d.svs"]
    table = tmp_path / "slides.csv"
    table.write_text(
        "path,mpp\n"
        + "".join(f"slides/{p.name},{0.25 if p.name == 'd.svs' else ''}\n" for p in sorted(slides.iterdir()))
    )
    assert run(table, tmp_path / "s.zarr").is_complete


def test_facts_of_the_table_are_stored_and_what_is_empty_is_none(samples: list[SampleSlide], tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "path": [sample.path for sample in samples[:2]],
            "split": ["NA", "train"],
            "taken": [pd.Timestamp("2020-01-01"), pd.NaT],
            "ratio": [np.inf, 0.5],
        }
    )
    with pytest.warns(UserWarning, match="column '(split|taken|ratio)' of the slides' table") as said:
        report = run(table, tmp_path / "s.zarr")
    assert report.is_complete
    assert len([w for w in said if "slides' table" in str(w.message)]) == 3
    patches = PatchStore(tmp_path / "s.zarr")[GRID.name]
    stored = [patches.attrs(sample.path.name)["cohort"] for sample in samples[:2]]
    assert stored == [{"taken": "2020-01-01", "ratio": "inf"}, {"split": "train", "ratio": 0.5}]
    assert patches.index().attrs["splits"] == ["train"]


def test_a_changed_file_under_a_complete_slide_fails_and_the_stored_one_stays(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    before = tree(tmp_path / "s.zarr")
    (slides / "a.svs").write_bytes((slides / "a.svs").read_bytes() + b"\0")
    report = run(slides, tmp_path / "s.zarr")
    assert "fingerprints differ" in report.failures["a.svs"]
    assert tree(tmp_path / "s.zarr") == before
    assert run(slides, tmp_path / "s.zarr", overwrite=True).is_complete


def test_another_scale_under_a_complete_slide_fails(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    report = run([{"path": slides / "a.svs", "mpp": 0.5}], tmp_path / "s.zarr")
    assert "0.5" in report.failures["a.svs"]
    assert "overwrite" in report.failures["a.svs"]


def test_a_damaged_slide_in_the_store_does_not_stop_the_others(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / GRID.name / "a.svs" / "zarr.json").write_text("{")
    shutil.rmtree(tmp_path / "s.zarr" / GRID.name / "c.svs")
    report = run(slides, tmp_path / "s.zarr")
    assert state(report) == {"a.svs": "failed", "b – ß.svs": "present", "c.svs": "complete"}
    assert run([slides / "a.svs"], tmp_path / "s.zarr", overwrite=True).is_complete


def test_a_damaged_table_in_the_store_does_not_lose_the_report(slides: Path, tmp_path: Path) -> None:
    run(slides, tmp_path / "s.zarr")
    next(p for p in (tmp_path / "s.zarr" / GRID.name / "a.svs" / "x0" / "c").rglob("*") if p.is_file()).unlink()
    shutil.rmtree(tmp_path / "s.zarr" / GRID.name / "c.svs")
    shutil.rmtree(tmp_path / "s.zarr" / "_index")
    with pytest.warns(UserWarning, match="index"):
        report = run(slides, tmp_path / "s.zarr")
    assert state(report)["c.svs"] == "complete"


def test_a_slide_that_another_run_is_writing_fails_and_the_others_go_on(slides: Path, tmp_path: Path) -> None:
    with slide_lock(str(tmp_path / "s.zarr"), GRID.name, "a.svs"):
        report = run(slides, tmp_path / "s.zarr")
    assert "being written by" in report.failures["a.svs"]
    assert state(report)["c.svs"] == "complete"


def test_a_slide_whose_lock_was_lost_meanwhile_is_not_committed(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cohort.run_block

    def robbed(job: Any, block: int, **options: Any) -> int:
        if job.arrays.path.endswith("a.svs"):  # what another run does that takes the slide over
            (tmp_path / "s.zarr.locks" / GRID.name / "a.svs.lock").unlink(missing_ok=True)
        return int(original(job, block, **options))

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "run_block", robbed)
        report = run(slides, tmp_path / "s.zarr")
    assert list(report.failures) == ["a.svs"]
    assert "the lock of this run was lost" in report.failures["a.svs"]
    assert "a.svs" not in PatchStore(tmp_path / "s.zarr")[GRID.name].slides
    assert run(slides, tmp_path / "s.zarr").is_complete


def test_the_store_and_the_set_are_checked_before_any_work(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(slides, tmp_path / "s.zarr")
    before = tree(tmp_path / "s.zarr")
    monkeypatch.setattr(cohort, "begin_slide", lambda *a, **k: pytest.fail("work began"))
    with pytest.raises(StoreError, match=r"was made with min_tissue=.*, not min_tissue="):
        run(
            slides,
            tmp_path / "s.zarr",
            ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.9),
        )
    with pytest.raises(StoreError, match="stores patches as 'raw', asked for 'jpeg'"):
        run(slides, tmp_path / "s.zarr", ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, codec="jpeg"))
    with pytest.raises(SpecError, match="column 'slide_id'"):
        run([slides / "a.svs", tmp_path / "other" / "a.svs"], tmp_path / "s.zarr")
    with pytest.raises(SpecError, match="no spec"):
        run(slides, tmp_path / "s.zarr", [])
    with pytest.raises(SpecError, match="mode 'grid'"):
        run(slides, tmp_path / "s.zarr", [GRID, TUPLES])
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        run(slides, tmp_path / "file" / "s.zarr")
    assert tree(tmp_path / "s.zarr") == before


def test_ctrl_c_leaves_a_store_that_a_rerun_finishes(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.0)
    original, calls = in_flight.wait, []
    before = set(threading.enumerate())  # what has read stored patches keeps its threads as long as the process lives

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(in_flight, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(slides, tmp_path / "s.zarr", everything, threads=1)
    patch_set = PatchStore(tmp_path / "s.zarr")[everything.name]
    assert len(patch_set.slides) < 3
    assert not [t for t in threading.enumerate() if t.name.startswith("msdask-") and t not in before]
    assert run(slides, tmp_path / "s.zarr", everything).is_complete
    run(slides, tmp_path / "t.zarr", everything)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


# --- masks and labels -------------------------------------------------------------------------------------------------


def test_masks_of_histoqc_are_found_and_a_missing_one_fails(
    samples: list[SampleSlide], slides: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(masks_of(samples), masks)
    shutil.rmtree(masks / "a.svs")
    report = run(slides, tmp_path / "s.zarr", masks=masks, mask_magnification=1.25)
    assert list(report.failures) == ["a.svs"]
    assert "a.svs_mask_use.png" in report.failures["a.svs"]
    data = PatchStore(tmp_path / "s.zarr")[GRID.name].open("c.svs")
    slide = open_slide(slides / "c.svs")
    expected = grid(
        slide, xr.DataArray(samples[2].mask, dims=("y", "x")), magnification=10, patch_size=64, min_tissue=0.5
    )
    np.testing.assert_array_equal(data["x0"], expected["x0"])


def test_a_mask_of_another_magnification_fails_saying_which(
    samples: list[SampleSlide], slides: Path, tmp_path: Path
) -> None:
    report = run(slides, tmp_path / "s.zarr", masks=masks_of(samples), mask_magnification=2.5)
    assert set(state(report).values()) == {"failed"}
    assert "it is of 1.25x" in report.failures["a.svs"]


def test_annotated_masks_give_labels(samples: list[SampleSlide], slides: Path, tmp_path: Path) -> None:
    labels = masks_of(samples).parent / "labels"
    report = run(slides, tmp_path / "s.zarr", masks=labels, values=samples[0].values)
    assert report.is_complete
    patch_set = PatchStore(tmp_path / "s.zarr")[GRID.name]
    table = patch_set.table()
    assert set(table["label"]) <= {0, 1, 2}
    assert sum(patch_set.attrs(s)["counts"]["labeled"] for s in patch_set.slides) == len(table) > 0
    wrong = run(slides, tmp_path / "t.zarr", masks=labels, values=[50, 100])
    assert "150" in wrong.failures["a.svs"]
    with pytest.raises(MaskError, match="but there are none: give labels= or masks="):
        run(slides, tmp_path / "u.zarr", values=[50, 100, 150])


def test_an_empty_mask_is_a_complete_slide_without_patches_and_a_warning(slides: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "empty.png")
    report = run([{"path": slides / "a.svs", "mask": tmp_path / "empty.png"}, slides / "c.svs"], tmp_path / "s.zarr")
    assert report.is_complete
    (first, second) = report.outcomes
    assert first.counts["selected"] == 0
    assert any("empty" in w for w in first.warnings)
    assert any("no patch was selected" in w for w in first.warnings)
    assert second.warnings == ()
    assert PatchStore(tmp_path / "s.zarr")[GRID.name].open("a.svs").sizes["patch"] == 0


@pytest.mark.filterwarnings("ignore:mask")
def test_warnings_stay_with_their_slide_when_slides_are_planned_at_once(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(tmp_path / "full.png")
    barrier = threading.Barrier(2)
    original = choice.as_tissue

    def meeting(content: MaskContent, file: str, slide: Any) -> xr.DataArray:
        barrier.wait(30)  # both are being planned now
        mask = original(content, file, slide)
        barrier.wait(30)
        return mask

    monkeypatch.setattr(choice, "as_tissue", meeting)
    shown, filters = warnings.showwarning, list(warnings.filters)
    rows = [{"path": slides / f"{n}.svs", "mask": tmp_path / f"{m}.png"} for n, m in (("a", "full"), ("c", "empty"))]
    first, second = run(rows, tmp_path / "s.zarr").outcomes
    assert first.warnings == ()
    assert "empty.png" in second.warnings[0]
    assert warnings.showwarning is shown
    assert warnings.filters == filters


# --- several grids ----------------------------------------------------------------------------------------------------


def test_several_grids_are_linked_to_their_parents(slides: Path, tmp_path: Path) -> None:
    report = run([slides / "a.svs"], tmp_path / "s.zarr", grid_specs(GRID, [5, 20, 10]))
    assert report.is_complete
    store = PatchStore(tmp_path / "s.zarr")
    assert sorted(store) == ["grid-10x-64", "grid-20x-64", "grid-5x-64"]
    fine = store["grid-20x-64"].open("a.svs")
    slide = open_slide(slides / "a.svs")
    mask = tissue_mask(slide)
    tables = {m: grid(slide, mask, magnification=m, patch_size=64, min_tissue=0.5) for m in (20, 10, 5)}
    for m in (10, 5):
        parents = fine[f"parent_{m}x"].to_numpy()
        assert parents.dtype == np.int32
        np.testing.assert_array_equal(parents, link_upper_regions(tables[20], tables[m]))
        coarse = store[f"grid-{m}x-64"].open("a.svs")
        side_fine, side_coarse = 64 * 20 / 20 * 2, 64 * 40 / m
        assert (parents >= 0).any()
        for i, parent in enumerate(parents):
            x, y = fine["x0"].values[i, 0], fine["y0"].values[i, 0]
            contains = [
                j
                for j, (px, py) in enumerate(zip(coarse["x0"].values[:, 0], coarse["y0"].values[:, 0], strict=True))
                if px - 1 <= x
                and py - 1 <= y
                and x + side_fine <= px + side_coarse + 1
                and y + side_fine <= py + side_coarse + 1
            ]
            assert parent == (contains[0] if contains else -1)
        assert store["grid-20x-64"].attrs("a.svs")["links"][f"parent_{m}x"] == {
            "set": f"grid-{m}x-64",
            "spec_hash": store[f"grid-{m}x-64"].spec_hash,
        }
    middle = store["grid-10x-64"].open("a.svs")["parent_5x"].to_numpy()
    np.testing.assert_array_equal(middle, link_upper_regions(tables[10], tables[5]))
    assert not [name for name in store["grid-5x-64"].open("a.svs") if str(name).startswith("parent")]
    assert store.verify() == {"grid-10x-64": [], "grid-20x-64": [], "grid-5x-64": []}


def test_a_finest_grid_that_was_complete_before_its_parents_were_asked_for_is_not_passed_over(
    slides: Path, tmp_path: Path
) -> None:
    run([slides / "a.svs"], tmp_path / "s.zarr", grid_specs(GRID, [20]))
    report = run([slides / "a.svs"], tmp_path / "s.zarr", grid_specs(GRID, [20, 10]))
    fine = next(o for o in report.outcomes if o.set_name == "grid-20x-64")
    links: dict[str, Any] = PatchStore(tmp_path / "s.zarr")["grid-20x-64"].attrs("a.svs").get("links", {})
    assert fine.state == "present"
    assert links == {}
    assert any("without links into ['grid-10x-64']" in w for w in fine.warnings)
    assert run([slides / "a.svs"], tmp_path / "s.zarr", grid_specs(GRID, [20, 10]), overwrite=True).is_complete
    run([slides / "a.svs"], tmp_path / "t.zarr", grid_specs(GRID, [20, 10]))
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_a_slide_that_another_run_finished_meanwhile_is_left_alone(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cohort.slide_lock

    def late(store: str, set_name: str, slide_id: str) -> Any:
        # Between this run's look at the slide and its lock another run writes it.
        with monkeypatch.context() as patch:
            patch.setattr(cohort, "slide_lock", original)
            run([slides / "a.svs"], tmp_path / "s.zarr")
        times.update({p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr" / GRID.name / "a.svs").rglob("*")})
        return original(store, set_name, slide_id)

    times: dict[Path, int] = {}
    monkeypatch.setattr(cohort, "slide_lock", late)
    report = run([slides / "a.svs"], tmp_path / "s.zarr")
    assert state(report) == {"a.svs": "present"}
    assert times
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_a_resumed_finest_grid_keeps_its_links(slides: Path, tmp_path: Path) -> None:
    specs = grid_specs(GRID, [20, 10])
    run([slides / "a.svs"], tmp_path / "t.zarr", specs)
    run([slides / "a.svs"], tmp_path / "s.zarr", specs)
    shutil.rmtree(tmp_path / "s.zarr" / "grid-20x-64" / "a.svs")
    assert run([slides / "a.svs"], tmp_path / "s.zarr", specs).is_complete
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_no_threads_are_left_behind(slides: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run(slides, tmp_path / "s.zarr")
    assert not [t for t in threading.enumerate() if t.name.startswith("msdask-") and t not in before]


def test_a_changed_mask_under_a_complete_slide_is_refused(small_slide: SampleSlide, tmp_path: Path) -> None:
    path = write_masks(small_slide, tmp_path / "masks")
    spec = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64)
    store = tmp_path / "store.zarr"
    assert extract([small_slide.path], store, spec, masks=tmp_path / "masks", progress=False).is_complete
    again = extract([small_slide.path], store, spec, masks=tmp_path / "masks", progress=False)
    assert [o.state for o in again.outcomes] == ["present"]
    half = small_slide.mask.copy()
    half[: len(half) // 2] = False
    Image.fromarray(np.where(half, 255, 0).astype(np.uint8)).save(path)
    changed = extract([small_slide.path], store, spec, masks=tmp_path / "masks", progress=False)
    assert "another mask" in changed.failures[small_slide.path.name]
    replaced = extract([small_slide.path], store, spec, masks=tmp_path / "masks", overwrite=True, progress=False)
    assert replaced.outcomes[0].counts["selected"] < again.outcomes[0].counts["selected"]
