"""`msdask train | test segmenter`: runs from a store to metrics and the confusion of px, and what is refused."""

# ruff: noqa: E402
from __future__ import annotations

import json
from collections.abc import Callable

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.cli.app import main
from msdask.models import HookNet, UNet, load_model
from msdask.training.class_scores import macro_f1
from tests.tools.segment_tools import write_mapped_cohort

Command = Callable[..., tuple[int, str, str]]
SMALL = ("--filters", 1, "--depth", 2, "-e", 1, "-q")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_mapped_cohort(tmp_path_factory.mktemp("mapped"))


@pytest.fixture
def msdask(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        output = capsys.readouterr()
        return int(left.value.code or 0), output.out, output.err

    return run


@pytest.mark.parametrize(
    ("kind", "scales", "options"),
    [
        ("hooknet", (20, 10), ("--merge", "add", "--loss-weights", 0.75, 0.25, "--context-size", 60)),
        pytest.param("unet", (10,), ("--class-weights", "balanced", "--augment", "none"), marks=pytest.mark.slow),
    ],
)
def test_a_segmenter_is_trained_and_measured(store, msdask, tmp_path, kind, scales, options):
    run = tmp_path / "run"
    given = ("-i", store.path, "-o", run, "-m", *scales, "--model", kind)
    code, printed, said = msdask("train", "segmenter", *given, *options, *SMALL)
    assert code == 0, said
    assert "patches left out: none" in printed
    network, about = load_model(run)
    assert type(network) is {"hooknet": HookNet, "unet": UNet}[kind]
    assert (about["task"], about["magnifications"]) == ("segment", list(map(float, scales)))
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    pixels = pd.read_csv(run / "pixels.csv")
    assert set(pixels["patient"]) == {"D"}
    counts = pixels["pixels"].to_numpy().reshape(2, 2)
    assert metrics["macro_f1"] == pytest.approx(float(macro_f1(counts)))
    code, printed, said = msdask("test", "segmenter", "-i", store.path, "-p", run, "-o", tmp_path / "again", "-q")
    assert code == 0, said
    again = json.loads((tmp_path / "again/metrics.json").read_text())["test"]
    assert again["macro_f1"] == pytest.approx(metrics["macro_f1"])
    assert "macro f1" in printed


def test_what_does_not_fit_is_refused(store, msdask, tmp_path):
    given = ("train", "segmenter", "-i", store.path, "-o", tmp_path / "run")
    for options, said in {
        ("--model", "unet"): "--model unet with magnifications [20.0, 10.0]: expected one magnification (-m 20)",
        ("-m", "20"): "--model hooknet with magnifications [20.0]: expected two or three (-m 20 5)",
        ("-m", "20", "5"): "with label maps has 20x, 5x together",
        (): "patches of 68 px: HookNet with valid padding takes 220, 252, ... px, every 32; take 220",
    }.items():
        code, _, found = msdask(*given, *options)
        assert code == 1
        assert said in found
    code, _, found = msdask("test", "segmenter", "-i", store.path, "-p", "default")
    assert code == 1
    assert "default" in found
