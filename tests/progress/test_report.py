"""What all reports share: counts, failures, a table, HTML and a JSON record."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from msdask.exports.images import export
from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport, SlideOutcome
from msdask.extraction.repair import RepairReport, SlideRepair, repair
from msdask.progress.events import Outcome, RunBegun, RunDone, SlideDone
from msdask.progress.report import Recorder, Report
from msdask.sample.slides import SampleSlide
from msdask.spec import ExtractionSpec
from tests.tools.store_tools import copy_store

GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.3)


@pytest.fixture(scope="module")
def store(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    extract([small_slide.path], path, GRID, progress=False)
    return path


def test_a_recorder_keeps_the_slides_in_their_order() -> None:
    recorder = Recorder()
    recorder(RunBegun("extract", "s.zarr", ("grid",), 2))
    recorder(SlideDone("b", ("grid",), 1, (Outcome("b", "grid", "complete", patches=2),)))
    recorder(SlideDone("a", ("grid",), 0, (Outcome("a", "grid", "failed", "gone"),)))
    recorder(RunDone({"kind": "plain"}))
    report: Report[Outcome] = Report(**recorder.facts())
    assert [o.slide_id for o in report.outcomes] == ["a", "b"]
    assert (report.store, report.sets, report.engine) == ("s.zarr", ("grid",), {"kind": "plain"})
    assert report.seconds > 0
    assert datetime.fromisoformat(report.started).utcoffset() is not None
    assert report.failures == {"grid/a": "gone"}
    assert (report.patches, report.is_complete) == (2, False)


def test_the_summary_counts_states_and_patches() -> None:
    done = SlideOutcome("a", "grid", "complete", path="a.svs", patches=3000)
    failed = SlideOutcome("b", "grid", "failed", "gone", path="b.svs")
    report = ExtractionReport("s.zarr", ("grid",), (done, failed), 2.0)
    assert report.summary() == "1 complete, 1 failed; 3,000 patches written in 2.0 s, 1,500/s"
    assert report.summary() in report._repr_html_()
    assert "gone" in report._repr_html_()


def test_a_table_without_outcomes_has_its_columns() -> None:
    frame = RepairReport("s.zarr", ("grid",), ()).to_frame()
    assert len(frame) == 0
    assert {"slide_id", "set", "state", "reason", "written"} <= set(frame)


@pytest.mark.parametrize(
    ("state", "action", "text"),
    [
        ("mended", "blocks", "grid: slide 'a': read 2 shards again (30 patches)"),
        ("renewed", "slide", "grid: slide 'a': extracted afresh (30 patches)"),
        ("failed", "none", "grid: slide 'a': not repaired"),
    ],
)
def test_a_repair_says_what_was_done(state: str, action: str, text: str) -> None:
    done = SlideRepair("a", "grid", state, patches=30, problems=(), blocks=(1, 2))  # type: ignore[arg-type]
    assert (done.action, str(done)) == (action, text)


def test_the_record_of_a_repair_is_that_of_an_extraction(store: Path, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "s.zarr")
    (slide,) = (tmp_path / "s.zarr" / GRID.name).glob("*.svs")
    (slide / "image" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    report = repair(tmp_path / "s.zarr", threads=2, progress=False)
    record = json.loads(report.to_json())
    assert set(record) == set(json.loads(ExtractionReport("s.zarr", (), ()).to_json()))
    assert record["totals"] == {"mended": 1, "renewed": 0, "failed": 0, "patches": report.patches}
    assert record["engine"] == {"kind": "threads", "threads": 2}
    assert record["slides"][0]["blocks"] == [0]
    row = report.to_frame().iloc[0]
    assert (row["set"], row["state"], row["written"]) == (GRID.name, "mended", report.patches)


def test_the_record_of_an_export_is_that_of_an_extraction(store: Path, tmp_path: Path) -> None:
    summary = export(store, tmp_path / "png", threads=2)
    record = json.loads(summary.to_json())
    assert record["store"] == str(store)
    assert record["totals"] == {"exported": 1, "empty": 0, "failed": 0, "patches": summary.patches}
    assert summary.to_frame()["folder"][0] == record["slides"][0]["folder"]
    assert "1 exported" in summary._repr_html_()
