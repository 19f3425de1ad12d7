"""`ms.plan` and `msdask extract --dry-run`: what is said of a run is what the run then does, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import msdask as ms
from msdask.cli.app import main
from msdask.extraction.dry_run import ExtractionPlan
from msdask.sample.slides import make_slide

SPECS = [ms.ExtractionSpec("grid", (m,), patch_size=64, min_tissue=0.3, codec="lossless") for m in (10, 5)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.svs, c.svs, which has no scale, and b.svs, which is no slide."""
    folder = tmp_path_factory.mktemp("plan")
    make_slide(folder / "a.svs", size=(640, 800), seed=0, levels=(1,), mpp=0.5, associated=False)
    (folder / "b.svs").write_bytes(b"no slide")
    make_slide(folder / "c.svs", size=(320, 400), seed=1, levels=(1,), write_mpp=False, associated=False)
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)


@pytest.fixture(scope="module")
def planned(cohort: Path) -> ExtractionPlan:
    before = _files(cohort)
    found = ms.plan(cohort, SPECS, store=cohort / "out" / "s.zarr")
    assert _files(cohort) == before
    return found


def test_a_plan_counts_what_a_run_writes(cohort, planned):
    report = ms.extract(cohort, cohort / "run" / "s.zarr", SPECS, threads=0, progress=False)
    wanted = {(o.slide_id, o.set_name): (o.state == "failed", o.reason, o.patches) for o in report.outcomes}
    assert {(s.slide_id, s.set_name): (s.state == "fails", s.reason, s.patches) for s in planned.slides} == wanted
    assert sum(s.patches for s in planned.slides) > 0
    assert planned.failures.keys() == {"b.svs", "c.svs"}
    assert not planned.is_sound
    again = ms.plan(cohort, SPECS, store=cohort / "run" / "s.zarr")
    assert [s.state for s in again.slides[:2]] == ["present", "present"]
    assert again.bytes == 0


def test_sizes_are_those_of_a_run(cohort, planned):
    """All patches of such small slides are in the probe: what is estimated by it is what is written, but for tables."""
    store = ms.PatchStore(cohort / "run" / "s.zarr")
    for name in store:
        shards = sum(p.stat().st_size for p in Path(store.path, name, "a.svs", "image", "c").rglob("*") if p.is_file())
        told = sum(s.bytes for s in planned.slides if s.set_name == name)
        assert told == pytest.approx(shards, rel=0.05)
    probe = planned.probes["grid-10x-64"]
    assert probe.slides == ("a.svs",)
    assert probe.patches == planned.slides[1].patches
    assert planned.seconds > probe.patches * probe.seconds > 0
    raw = ms.plan(cohort / "a.svs", ms.ExtractionSpec("grid", (10,), patch_size=64, min_tissue=0.3))
    assert raw.bytes == raw.slides[0].patches * (3 * 64 * 64 + 4 + 64)


def test_the_shell_says_it_and_writes_nothing(cohort, tmp_path, capsys):
    common = ["extract", str(cohort), "-o", str(tmp_path / "s.zarr"), "-m", "10", "-s", "64", "-x", "0.3", "--dry-run"]
    with pytest.raises(SystemExit) as left:
        main(common)
    printed, said = capsys.readouterr()
    assert left.value.code == 1
    assert "1 to do, 2 fails; " in printed
    assert "sizes are exact" in printed
    assert "would fail: c.svs: " in said
    assert "--missing-mpp" in said or "--mpp ..." in said
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_does_not_fit_is_told(cohort, capsys):
    spec = ms.ExtractionSpec("grid", (10,), patch_size=64, min_tissue=0.5, codec="lossless")
    found = ms.plan(cohort / "a.svs", spec, store=cohort / "run" / "s.zarr")
    assert "min_tissue=0.3, not min_tissue=0.5" in found.problem
    assert (found.failures, found.is_sound) == ({}, False)
