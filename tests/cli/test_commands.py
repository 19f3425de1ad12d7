"""`msdask info | mask | extract | verify | export | demo`: what they print, what they write, and their exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import msdask as ms
from msdask.cli.app import main
from msdask.cli.demo import run_demo
from msdask.sample.slides import SampleSlide, make_slide

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def msdask(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command; exit code, what it printed, and what it said beside."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        output = capsys.readouterr()
        return int(left.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="module")
def store(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grid sets at 10x and 5x of one slide."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    specs = [ms.ExtractionSpec(mode="grid", magnifications=(m,), patch_size=64) for m in (10, 5)]
    ms.extract(small_slide.path, path, specs, threads=1, progress=False)
    return path


def test_info_says_what_a_slide_is(small_slide, msdask):
    code, printed, _ = msdask("info", small_slide.path)
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines() if not line.startswith(("level", "mpp used")))
    assert code == 0
    assert facts["slide"] == str(small_slide.path)
    assert facts["size"] == "3072 x 2304 px"
    assert facts["mpp"] == "0.25 um/px (aperio, stated)"
    assert facts["extent"] == "0.77 x 0.58 mm"
    assert facts["objective"] == "40x"
    assert facts["associated"] == "label, macro, thumbnail"
    assert "mpp used    0.25 um/px (40x)" in printed
    assert "level 1     768 x 576 px, 1/4, tiles 256 x 256" in printed


def test_info_takes_the_scale_that_is_given(small_slide, msdask):
    assert "mpp         0.5 um/px" in msdask("info", small_slide.path, "--mpp", 0.5)[1]
    assert "mpp         0.5 um/px" in msdask("info", small_slide.path, "--slide-magnification", 20)[1]


def test_info_of_a_slide_without_a_scale_says_what_is_missing(tmp_path, msdask):
    sample = make_slide(tmp_path / "a.svs", size=(300, 400), levels=(1,), write_mpp=False)
    code, printed, _ = msdask("info", sample.path)
    assert code == 0
    assert "mpp         unknown: " in printed
    assert "extent" not in printed


def test_info_of_what_is_no_slide_is_an_error(tmp_path, msdask):
    (tmp_path / "a.svs").write_bytes(b"no slide")
    code, _, said = msdask("info", tmp_path / "a.svs")
    assert code == 1
    assert said.startswith("msdask: ")
    assert "a.svs" in said


def test_mask_writes_the_tissue_as_a_picture(small_slide, tmp_path, msdask):
    code, printed, _ = msdask("mask", small_slide.path, "-o", tmp_path / "new" / "m.png", "-w", 2.5)
    assert code == 0
    expected = ms.tissue_mask(ms.open_slide(small_slide.path), mpp=4.0).values
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "m.png")), expected * np.uint8(255))
    assert f"{expected.shape[1]} x {expected.shape[0]} px, {expected.mean():.1%} tissue" in printed


def test_mask_refuses_other_formats_and_places(small_slide, tmp_path, msdask):
    code, _, said = msdask("mask", small_slide.path, "-o", tmp_path / "m.jpg")
    assert (code, "give a name that ends in .png" in said) == (1, True)
    (tmp_path / "file").write_text("")
    code, _, said = msdask("mask", small_slide.path, "-o", tmp_path / "file" / "m.png")
    assert (code, "cannot write" in said) == (1, True)


def test_extract_of_several_magnifications_makes_a_set_each(small_slide, store, tmp_path, msdask):
    arguments = ("-m", 10, 5, "--mode", "grid", "-s", 64, "-p", 1, "-q")
    code, printed, _ = msdask("extract", small_slide.path, "-o", tmp_path / "s.zarr", *arguments)
    assert code == 0
    assert f"grid-5x-64, grid-10x-64 in {tmp_path / 's.zarr'}: 2 complete" in printed
    made, expected = ms.PatchStore(tmp_path / "s.zarr"), ms.PatchStore(store)
    assert {name: made[name].spec for name in made} == {name: expected[name].spec for name in expected}


def test_extract_takes_a_scale_for_slides_that_state_none(tmp_path, msdask):
    sample = make_slide(tmp_path / "a.svs", size=(1200, 1600), write_mpp=False)
    common = ("extract", sample.path, "-o", tmp_path / "s.zarr", "-m", 10, "-s", 64, "-p", 1, "-q")
    code, _, said = msdask(*common)
    assert (code, "failed: a" in said) == (1, True)
    assert msdask(*common, "--mpp", 0.25)[0] == 0


def test_two_ways_to_run_at_once_are_refused(small_slide, tmp_path, msdask):
    ways = ("--scheduler", "tcp://127.0.0.1:9", "--workers", 2)
    code, _, said = msdask("extract", small_slide.path, "-o", tmp_path / "s.zarr", "-m", 10, *ways)
    assert (code, "give one of them" in said) == (1, True)


def test_verify_names_the_sets_that_are_sound(store, msdask):
    code, printed, _ = msdask("verify", store)
    assert code == 0
    assert printed.splitlines() == [
        "grid-10x-64: 1 complete slides, 0 problems",
        "grid-5x-64: 1 complete slides, 0 problems",
    ]


@pytest.mark.parametrize("command", [("verify",), ("export", "-o", "out"), ("train", "scale", "-o", "out")])
def test_what_is_no_store_is_refused(command, tmp_path, msdask, monkeypatch):
    if command[0] == "train":
        pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)
    code, _, said = msdask(*command, tmp_path / "nothing.zarr")
    assert (code, "is no patch store, or has no patch set yet" in said) == (1, True)


def test_export_writes_the_tables_that_are_asked_for(store, tmp_path, msdask):
    code, printed, _ = msdask("export", store, "-o", tmp_path, "--format", "csv", "--set", "grid-5x-64")
    assert code == 0
    assert printed.split() == [str(tmp_path / "grid-5x-64.csv")]
    kept = int(ms.PatchStore(store)["grid-5x-64"].index()["keep"].sum())
    assert len(pd.read_csv(tmp_path / "grid-5x-64.csv")) == kept


def test_export_writes_pictures_and_counts_them(store, tmp_path, msdask):
    code, printed, _ = msdask("export", store, "-o", tmp_path, "--set", "grid-5x-64", "--all", "-q", "-p", 1)
    assert code == 0
    pictures = list(tmp_path.rglob("*.png"))
    assert len(pictures) == ms.PatchStore(store)["grid-5x-64"].index().sizes["patch"]
    assert f"1 exported; {len(pictures)} patches" in printed


def test_export_says_which_slide_is_not_there(store, tmp_path, msdask):
    code, _, said = msdask("export", store, "-o", tmp_path, "--slides", "other", "-q")
    assert code == 1
    assert "has no slides ['other'] in the sets to export" in said


def test_wrong_usage_is_said_and_is_another_exit_code(msdask):
    code, _, said = msdask("extract", "slides.csv", "-o", "s.zarr")
    assert code == 2
    assert "--magnification" in said
    assert "try `msdask extract --help`" in said


def test_an_interrupted_command_says_how_to_go_on(msdask, monkeypatch, small_slide):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("msdask.slides.slide.open_slide", interrupt)
    code, _, said = msdask("info", small_slide.path)
    assert (code, "run the same command again" in said) == (130, True)


def test_the_demo_leaves_a_report_and_a_store_of_both_kinds(tmp_path):
    report = run_demo(tmp_path, slides=1, size=1800, threads=1, progress=False)
    assert report == tmp_path / "report.html"
    store = ms.PatchStore(tmp_path / "patches.zarr")
    assert list(store) == ["centroids-20x-10x-5x-224", "grid-10x-224"]
    assert all(len(store[name].slides) == 1 for name in store)
    html = report.read_text(encoding="utf-8")
    assert "msdask demo: generated slides" in html
    assert all(name in html for name in store)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "of this process: "),
        (("--threads", 3), "3 threads of this process, as said by --threads"),
        (("--workers", 2), "2 worker processes, as said by --workers; threads of each: as many as cores are free"),
        (("--timeout", 60), "worker processes of 1 to "),
    ],
)
def test_explain_says_what_a_run_would_have_and_does_nothing(options, expected, small_slide, tmp_path, msdask):
    common = ("extract", small_slide.path, "-o", tmp_path / "s.zarr", "-m", 10, "--explain", *options)
    code, printed, _ = msdask(*common)
    assert code == 0
    assert expected in printed
    assert not (tmp_path / "s.zarr").exists()
