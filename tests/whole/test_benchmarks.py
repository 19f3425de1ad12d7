"""The programs in benchmarks/ run: each at its smallest size, so that a change of the package cannot break them unseen.

What they measure at such sizes says nothing; that they measure, write their files and end is what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from msdask.sample.slides import SampleSlide, make_slide
from msdask.slides.slide import open_slide

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder can be imported from; what benchmarks set for their process is set back."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads, torch = cv2.getNumThreads(), sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch is not None else os.cpu_count() or 1
    yield
    cv2.setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(torch_threads)


def program(name: str) -> ModuleType:
    """A file of the folder as a module, by its own name, which worker processes know; Python has a `codecs`, too."""
    if name not in sys.stdlib_module_names:
        return import_module(name)
    spec = spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *options: object) -> Any:
    """A benchmark's exit code."""
    return program(name).main([str(option) for option in options])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "fuzz"))
def test_every_program_can_be_imported(name: str) -> None:
    if name in {"any_scale", "classification", "gpu", "scale_detector", "segment_slides", "segmentation", "stream"}:
        pytest.importorskip("torch")
    assert program(name).__doc__


@pytest.mark.parametrize("case", ["10x", pytest.param("tuples", marks=pytest.mark.slow)])
def test_extract_compares_everybody(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("fastslide", "openslide", "tensorstore"):
        pytest.importorskip(package)
    extract = program("extract")
    monkeypatch.setattr(extract, "settle", lambda folder, nbytes: None)  # it syncs whatever others have written
    options = ("--side", 2048, "--repeats", 1, "--threads", 1, "--seed-seconds", 0.1, "--only", case)
    code = extract.main([str(option) for option in ("--folder", tmp_path, *options)])
    assert code in (0, 1)  # small slides reach no target
    results = json.loads((tmp_path / "extract.json").read_text())
    names = {name.rsplit(" ", 1)[0] for name in results["rates"][case]}
    others = {"10x": "fastslide", "tuples": "separate"}
    assert names == {"msdask", "msdask with commit", "floor", "floor decode", "floor write", "seed", others[case]}
    assert all(rate > 0 for rates in results["rates"][case].values() for rate in rates)
    exact = [check for check in results["checks"] if "naive selection" in check["what"] or "PSNR" in check["what"]]
    assert exact
    assert all(check["passes"] for check in exact)


def test_codecs_of_the_store(small_slide: SampleSlide, capsys: pytest.CaptureFixture[str]) -> None:
    run("codecs", small_slide.path, "--rounds", 1)
    table = capsys.readouterr().out
    assert all(f"| `{codec}` |" in table for codec in ("raw", "lossless", "jpeg"))


@pytest.mark.slow
def test_memory_against_its_formula(tmp_path: Path) -> None:
    assert run("memory", "--folder", tmp_path, "--sides", 2048, "--threads", 1, "--cases", "20x") == 0
    assert json.loads((tmp_path / "memory.json").read_text())["lines"][0]["grew"] > 0


@pytest.mark.slow
def test_planning_without_pixels(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    assert run("scheduler", "--slides", 8, "--patches", 600, "--table", 20, "--output", tmp_path) == 0
    assert "tasks/s" in (tmp_path / "scheduler.md").read_text()


@pytest.mark.slow
def test_streaming(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ("--quick", "--side", 2048, "--seconds", 0.05, "--workers", 1)
    assert run("stream", *options, "--folder", tmp_path, "--output", tmp_path) in (0, 1)
    rows = json.loads((tmp_path / "stream.json").read_text())["rows"]
    assert {row["group"] for row in rows} == {"raw", "augmented", "tuples"}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hooks", "nuclei"])
def test_segmentation(part: str, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    data = Path(os.environ.get("MSDASK_DATA_DIR") or FOLDER.parents[1] / "shared" / "data")
    if part == "nuclei" and not (data / "monuseg").is_dir():
        pytest.skip(f"'{data}' has no monuseg crops: set MSDASK_DATA_DIR")
    assert run("segmentation", "--quick", "--parts", part, "--folder", tmp_path) == 0
    page = (tmp_path / f"segmentation-{part}.md").read_text()
    assert "HookNet" in page
    if part == "hooks":  # what no network can do, it cannot do after one step either
        assert "| U-Net 5x: right | 0.25" in page


@pytest.mark.slow
def test_feeding_a_gpu_or_what_is_left_without_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ("--quick", "--patches", 64, "--batch", 8)
    assert run("gpu", *options, "--folder", tmp_path, "--output", tmp_path) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["rates"]


@pytest.mark.slow
def test_masks_beside_others(tmp_path: Path) -> None:
    assert run("masks", "--side", 300, "--data", tmp_path, "--output", tmp_path) == 0
    assert json.loads((tmp_path / "masks.json").read_text())["iou"]


@pytest.mark.slow
def test_steps_of_the_store_and_kills() -> None:
    # A process of its own: it makes the blocks of a store small, for good.
    command = [sys.executable, str(FOLDER / "trust.py"), "--steps", "40", "--kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_scaling_over_cores(tmp_path: Path) -> None:
    options = (
        "--quick",
        "--cores",
        1,
        "--seconds",
        0.05,
        "--rows",
        "grid 20x",
        "--side",
        4096,
        "--count",
        2,
        "--small",
        2,
    )
    assert run("scaling", *options, "--folder", tmp_path) == 0
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert {timing["way"] for timing in record["timings"]} >= {"threads", "floor (decoding alone)"}
    assert record["counts"]["grid 20x"]
    assert record["left out"], "the seconds were used by the first row"


def test_the_process_can_be_bound_to_some_cores(benchmarks: None) -> None:
    import msdask.engines.processes as processes

    cores = program("cores")
    before = cores.all_cores()
    with cores.some_cores(1):
        assert processes.CPU_COUNT == 1
        assert cores.all_cores() == 1
    assert cores.all_cores() == before


def test_a_slide_is_repeated_tile_by_tile(small_slide: SampleSlide, tmp_path: Path) -> None:
    cohorts = program("scaling_cohorts")
    with pytest.raises(ValueError, match="no whole number of tiles"):
        cohorts.repeat_slide(small_slide.path, tmp_path / "twice.svs", 2)
    make_slide(tmp_path / "unit.svs", size=(1024, 1024), levels=(1, 4), seed=5)
    cohorts.repeat_slide(tmp_path / "unit.svs", tmp_path / "twice.svs", 2)
    unit, twice = open_slide(tmp_path / "unit.svs"), open_slide(tmp_path / "twice.svs")
    assert twice.mpp == unit.mpp
    for level in (0, 1):
        once = unit.levels[level].compute()
        np.testing.assert_array_equal(twice.levels[level].compute(), np.tile(once, (2, 2, 1)))


def test_the_simulated_run_is_what_a_reckoning_by_hand_gives() -> None:
    simulate, one_core = program("simulate"), sys.modules["one_core"]
    costs = one_core.BlockCosts(patch=0.001, lock=0.0001)
    engine = one_core.EngineCosts(start=2.0, again=0.0, fork=0.0, task=0.0, slide=0.0)
    slide = one_core.SlideCosts(
        patches=16 * 256, blocks=16, file_bytes=10**9, begin=1.0, begin_shared=0.0, commit=0.5, block_seconds=0.0
    )
    alone = simulate.simulate(16, [slide], costs, engine, 1.0, 150_528)
    assert alone.plan.workers == 16
    assert alone.seconds == pytest.approx(2 + 1 + 0.256 + 0.5)
    assert alone.one_thread == pytest.approx(1 + 16 * 0.256 + 0.5)
    many = simulate.simulate(16, [slide] * 64, costs, engine, 1.0, 150_528)
    assert many.efficiency(16) > 0.85, "slides are done beside each other"
    assert many.seconds >= 2 + many.one_thread / 16
    assert simulate.simulate(16, [slide], costs, engine, 2.0, 150_528).seconds == pytest.approx(2 + 2 + 0.512 + 0.5)


@pytest.mark.parametrize("threads", [1, 2, 4, 1000])
def test_threads_wait_for_one_lock(threads: int) -> None:
    simulate, one_core = program("simulate"), sys.modules["one_core"]
    rate = simulate.rate(threads, one_core.BlockCosts(patch=0.001, lock=0.0002), 1.0)
    assert rate <= min(threads / 0.001, 1 / 0.0002) + 1e-6
    assert rate >= {1: 1000, 2: 1900, 4: 3300, 1000: 4990}[threads]


@pytest.mark.slow
def test_what_a_simulation_is_made_of(tmp_path: Path) -> None:
    options = ("--quick", "--rows", "grid 20x", "--cores", 16)
    assert run("simulate", *options, "--folder", tmp_path, "--output", tmp_path) == 0
    record = json.loads((tmp_path / "simulation.json").read_text())
    blocks = record["measured"]["grid 20x"]["blocks"]
    assert 0 < blocks["lock"] <= blocks["patch"]
    assert "A simulation, not a measurement" in (tmp_path / "simulation.md").read_text()


def test_the_share_of_the_lock_is_measured_whatever_else_runs() -> None:
    one_core = program("one_core")
    tile = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    data = zlib.compress(tile.tobytes(), 1)

    def in_python() -> None:
        for i in range(20_000):
            i * i

    # A hundred looks are few: beside other tests a single share has missed its bound.
    held = [one_core.lock_share(in_python, cycle=1e-3, looks=100) for _ in range(3)]
    free = [one_core.lock_share(lambda: zlib.decompress(data), cycle=1e-3, looks=100) for _ in range(3)]
    assert np.median(held) > 0.75
    assert np.median(free) < 0.25


def test_decoders_are_compared(tmp_path: Path) -> None:
    options = ("--quick", "--sizes", 64, "--only", "deflate", "zstd", "lz4", "--output", tmp_path)
    assert run("decoders", *options) == 0
    lines = json.loads((tmp_path / "decoders.json").read_text())
    assert {line["kind"] for line in lines["tiles"]} == {"deflate", "zstd", "lz4"}
    assert all(line["difference"] == 0 for line in lines["tiles"])
    assert {line["kind"] for line in lines["patches"] if line["is_ours"]} == {
        f"store {codec}, {way}" for codec in ("raw", "lossless", "jpeg") for way in ("encode", "decode")
    }


@pytest.mark.slow
def test_jpeg_decoders_with_and_without_simd(tmp_path: Path) -> None:
    assert run("decoders", "--quick", "--sizes", 256, "--only", "JPEG", "--output", tmp_path) == 0
    tiles = json.loads((tmp_path / "decoders.json").read_text())["tiles"]
    assert all(line["simd"] > 0 for line in tiles if line["kind"].startswith("JPEG 4"))
    assert {line["name"] for line in tiles if line["is_ours"]} == {"simplejpeg", "imagecodecs jpeg2k"}


@pytest.mark.slow
def test_classification_is_judged_against_its_ceilings(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    assert run("classification", "--quick", "--parts", "xor", "--folder", tmp_path) == 0
    text = (tmp_path / "classification-xor.md").read_text()
    lines = {line.split(":")[0].strip("| ") for line in text.splitlines() if ": balanced accuracy |" in line}
    assert {"single-20x-one", "single-5x-one", "features-20x-5x-one", "attention-20x-5x-one"} <= lines
    assert text.count("| pass |") >= 5, "what sees one bit, or adds, knows nothing"
    assert (tmp_path / "classification-xor.png").is_file()


def test_outlines_are_written_and_read(tmp_path: Path) -> None:
    assert run("geojson", "--polygons", 500, "--output", tmp_path) == 0
    rows = json.loads((tmp_path / "geojson.json").read_text())["rows"]
    assert [(row["file"], row["step"]) for row in rows] == [
        (ending, step) for ending in (".geojson", ".geojson.gz") for step in ("write", "read", "draw")
    ]


@pytest.mark.slow
def test_segmentation_of_whole_slides_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert run("segment_slides", "--quick", "--cores", 1, "--folder", tmp_path, "--output", tmp_path) in (0, 1)
    record = json.loads((tmp_path / "segment_slides.json").read_text())
    assert {row["network"] for row in record["rows"]} == {"hooknet", "unet"}
    assert all(row["mm2 a minute"] > 0 and 0 < row["network's share"] < 1 for row in record["rows"])
    assert len([aim for aim in record["aims"] if aim["aim"].startswith("FLOPs")]) == 2
    flops = program("segment_slides").counted(8, 1088)
    assert flops["hooknet"] <= 1.10 * flops["unet"]
    assert flops["hooknet"] <= flops["hooknet 284"] / 8
