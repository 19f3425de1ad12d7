"""The record of a run: every slide's fate, machine and versions, as JSON and HTML, and never inside the store."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from msdask import __version__
from msdask.cli.app import main
from msdask.errors import MsdaskError
from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport, SlideOutcome, write_log
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from tests.tools.store_tools import tree

GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_slide(folder / "a.svs", size=(1024, 1280), seed=20)
    shutil.copy(folder / "a.svs", folder / "b – ß.svs")
    os.truncate(folder / "b – ß.svs", 3000)
    return folder


def test_the_record_says_what_became_of_every_slide(made: Path, tmp_path: Path) -> None:
    report = extract(made, tmp_path / "s.zarr", GRID, threads=2, progress=False)
    record = json.loads(report.to_json())
    assert record["msdask"] == __version__
    assert record["engine"] == {"kind": "threads", "threads": 2}
    assert record["store"] == str(tmp_path / "s.zarr")
    assert record["totals"] == {"complete": 1, "present": 0, "failed": 1, "patches": report.patches}
    assert datetime.fromisoformat(record["started"]).utcoffset() is not None
    assert {"host", "system", "cores", "memory"} <= set(record["machine"])
    assert {"Python", "dask", "distributed", "numpy", "tifffile", "zarr"} <= set(record["versions"])
    whole, broken = record["slides"]
    assert (whole["slide_id"], whole["state"], whole["tries"], whole["workers"]) == ("a.svs", "complete", 1, [])
    assert whole["patches"] == whole["counts"]["selected"] > 0
    assert whole["seconds"] > 0
    assert (broken["slide_id"], broken["state"]) == ("b – ß.svs", "failed")
    assert "cut short" in broken["reason"]
    assert broken["path"] == str(made / "b – ß.svs")


def test_the_store_knows_nothing_of_the_run(made: Path, tmp_path: Path) -> None:
    first = extract([made / "a.svs"], tmp_path / "s.zarr", GRID, progress=False)
    before = tree(tmp_path / "s.zarr")
    write_log(tmp_path / "log" / "run.json", first)
    again = extract([made / "a.svs"], tmp_path / "s.zarr", GRID, progress=False)
    assert json.loads(again.to_json())["totals"]["present"] == 1
    assert tree(tmp_path / "s.zarr") == before
    stored = b"".join(p.read_bytes() for p in (tmp_path / "s.zarr").rglob("zarr.json"))
    assert os.uname().nodename.encode() not in stored
    assert b"seconds" not in stored


def test_lost_workers_are_in_every_form_of_the_report() -> None:
    workers = ("tcp://1", "tcp://2")
    outcome = SlideOutcome("a", "grid", "failed", "it died", path="a.svs", tries=3, workers=workers)
    report = ExtractionReport("s.zarr", ("grid",), (outcome,), 1.0)
    slide = json.loads(report.to_json())["slides"][0]
    assert (slide["tries"], slide["workers"]) == (3, ["tcp://1", "tcp://2"])
    row = report.to_frame().iloc[0]
    assert (row["tries"], row["workers"]) == (3, "tcp://1, tcp://2")


def test_a_record_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MsdaskError, match=r"cannot write .*the run itself is done"):
        write_log(tmp_path / "file" / "run.json", ExtractionReport("s.zarr", (), (), 1.0))


def test_the_command_line_writes_both_reports(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "10", "-s", "64", "-x", "0.3", "-q", "-o", str(tmp_path / "s.zarr")]
    reports = ["--report", str(tmp_path / "run.json"), "--report", str(tmp_path / "run.html")]
    with pytest.raises(SystemExit) as left:
        main(["extract", str(made), *arguments, *reports])
    assert left.value.code == 1
    assert "failed: b – ß.svs" in capsys.readouterr().err
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [s["state"] for s in record["slides"]] == ["complete", "failed"]
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "kind threads, threads" in html
    assert "b – ß.svs" in html


def test_a_report_gives_its_page_in_python_with_the_runs_thresholds_and_one_strip_of_levels(
    made: Path, tmp_path: Path
) -> None:
    grids = [GRID, ExtractionSpec(mode="grid", magnifications=(5,), patch_size=64, min_tissue=0.25)]
    report = extract([made / "a.svs"], tmp_path / "s.zarr", grids, progress=False)
    html = report.to_html(tmp_path / "page.html", title="both grids")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html
    assert "<h1>both grids</h1>" in html
    (text,) = re.findall(r'id="measurements">(.*?)</script>', html, flags=re.DOTALL)
    data = json.loads(text)
    assert [slide["thresholds"]["tissue"] for slide in data["slides"]] == [0.25, 0.3]
    assert {"focus", "blank", "pen", "dark"} <= set(data["slides"][0]["values"])
    assert html.count("<figcaption>levels") == 1
    assert html.count("<figcaption>selection") == 2
    assert "<img" not in report.to_html(pictures=0)
