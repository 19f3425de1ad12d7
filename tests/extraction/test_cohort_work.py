"""How much work a cohort is, before a slide is opened, and what worker processes are told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from msdask.engines.machine import Machine
from msdask.extraction import cohort_work as module
from msdask.extraction.cohort import extract
from msdask.extraction.cohort_work import bound_here, cohort_plan, cohort_work
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.readers import registry
from msdask.readers.registry import Backend
from msdask.sample.slides import SampleSlide, make_slide
from msdask.spec import ExtractionSpec
from msdask.storage import places
from tests.tools.store_tools import tree

GRID = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.5)
TUPLES = ExtractionSpec(mode="centroids", magnifications=(20, 10, 5), patch_size=224)


def row(path: Path | str) -> SlideRow:
    return SlideRow(str(path), "a")


def test_work_grows_with_slides_and_their_files(tmp_path: Path) -> None:
    small, large = tmp_path / "small.svs", tmp_path / "large.svs"
    for file, size in ((small, 1000), (large, 250_000_000)):
        with file.open("wb") as opened:
            opened.truncate(size)
    assert cohort_work([row(small)], [GRID]).seconds == pytest.approx(0.05, rel=0.01)
    assert cohort_work([row(large), row(small)], [GRID]).seconds == pytest.approx(6.81, rel=0.01)
    coarse, fine = (replace(GRID, magnifications=(m,)) for m in (10, 40))
    assert cohort_work([row(large)], [coarse]).seconds == pytest.approx(1.06, rel=0.01)
    assert cohort_work([row(large)], [fine]).seconds == pytest.approx(10.26, rel=0.01)
    assert cohort_work([row(large)], [coarse, fine]).seconds == pytest.approx(11.06, rel=0.01)
    assert cohort_work([row(small)], [GRID, TUPLES]).patch_bytes == 3 * 3 * 224 * 224


@pytest.mark.parametrize("name", ["s3://bucket/a.svs", "https://server/a.svs", "folder", "a.mrxs", "missing.svs"])
def test_a_slide_of_unknown_size_counts_as_a_large_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.mrxs").write_text("small")
    (tmp_path / "a").mkdir()
    path = name if "://" in name else str(tmp_path / name)
    assert cohort_work([row(path)], [GRID]).seconds == 60


def test_the_plan_of_a_cohort_is_what_extract_runs_on(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(cores=4, memory=64 * 2**30)
    monkeypatch.setattr("msdask.engines.open_engine.this_machine", lambda refusal="": replace(machine, refusal=refusal))
    rows = read_slides([small_slide.path])
    assert cohort_plan(rows, [GRID]).kind == "threads"
    monkeypatch.setattr(module, "_BYTES_PER_SECOND", 1000.0)
    plan = cohort_plan(rows, [GRID])
    assert (plan.kind, plan.workers, plan.threads) == ("processes", 4, 4)
    report = extract([small_slide.path], tmp_path / "s.zarr", GRID, progress=False)
    assert report.is_complete
    assert report.engine["kind"] == "processes"
    assert report.engine["workers"] == 4
    assert "4 cores" in report.engine["why"]
    extract([small_slide.path], tmp_path / "t.zarr", GRID, progress=False, threads=1)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


READER = """
from msdask.readers import tiff
def accepts(place):
    return place.path.endswith(".own")
open_place = tiff.open_place
"""


@pytest.fixture
def own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A reader that this process has registered, in a module beside its program."""
    (tmp_path / "own_reader.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    backend = Backend("own", "own_reader", ("OWN",), (".own",), priority=1)
    registry.register(backend)
    return backend


def test_a_reader_that_was_registered_is_known_to_worker_processes(own_reader: Backend, tmp_path: Path) -> None:
    made = make_slide(tmp_path / "a.svs", size=(900, 1100), seed=2, levels=(1,))
    Path(made.path).rename(tmp_path / "a.own")
    assert bound_here() == ""
    report = extract([tmp_path / "a.own"], tmp_path / "s.zarr", GRID, progress=False, workers=1)
    assert report.is_complete, report.failures


@pytest.mark.parametrize("name", ["__main__", "made_by_hand", "absent"])
def test_a_reader_in_no_module_keeps_the_work_here(
    name: str, own_reader: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    registry.register(replace(own_reader, name="bound", module=name))
    assert bound_here() == "the reader 'bound' is in no module that another process can import"
    assert cohort_plan([row("s3://bucket/a.svs")] * 9, [GRID]).kind == "threads"


def test_settings_of_buckets_go_to_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_options", {})
    places.configure("s3://bucket/cohort.zarr", {"region": "eu-central-1"})
    setup = module.setup_of_workers()
    monkeypatch.setattr(places, "_options", {})
    setup()
    assert places.settings() == {"s3://bucket": {"region": "eu-central-1"}}
