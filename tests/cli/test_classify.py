"""`msdask train | test classifier`: runs from a store to metrics and predictions, and what is refused."""

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
from msdask.cli.classify_options import Branches
from msdask.errors import MsdaskError, SpecError
from msdask.models import AttentionFusion, FeatureFusion, PredictionFusion, SingleScale, backbones, load_model
from tests.tools.class_tools import write_class_cohort

Command = Callable[..., tuple[int, str, str]]
SMALL = ("-c", "scalenet", "-f", 16, "-b", 32, "-e", 1, "-lr", 0.003, "--augment", "none", "-q")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_class_cohort(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def msdask(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        output = capsys.readouterr()
        return int(left.value.code or 0), output.out, output.err

    return run


@pytest.mark.parametrize(
    ("combine", "relation", "magnifications", "model", "losses"),
    [
        ("features", "multicenter", (20, 10, 5), FeatureFusion, "one"),
        ("predictions", "upper_region", (20, 5), PredictionFusion, "n+1"),
        ("attention", "upper_region", (10, 5), AttentionFusion, "n+1"),
        ("single", "multi_center", (10,), SingleScale, "one"),
    ],
)
def test_a_classifier_is_trained_and_measured(
    store, msdask, tmp_path, combine, relation, magnifications, model, losses
):
    run = tmp_path / "run"
    given = ("-i", store.path, "-o", run, "-r", relation, "-m", *magnifications, "--combine", combine)
    code, printed, said = msdask("train", "classifier", *given, *SMALL)
    assert code == 0, said
    assert "tuples left out: " in printed
    network, about = load_model(run)
    assert isinstance(network, model)
    assert network.config["magnifications"] == list(map(float, magnifications))
    assert network.config["embedding"] == 16
    assert (about["losses"], about["initial_weights"]) == (losses, "random")
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    assert ("kappa_5x" in metrics) == (losses == "n+1")
    rows = pd.read_parquet(run / "predictions.parquet")
    assert set(rows["patient"]) == {"D", "E"}
    assert ("attention_5x" in rows) == (combine == "attention")
    assert (run / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    (run / "metrics.json").unlink()
    code, printed, said = msdask("test", "classifier", "-i", store.path, "-p", run, "-o", tmp_path / "again", "-q")
    assert code == 0, said
    again = json.loads((tmp_path / "again/metrics.json").read_text())["test"]
    assert again == pytest.approx(metrics, rel=1e-4, nan_ok=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again/predictions.parquet"), rows, rtol=1e-4)


def test_a_classifier_of_any_scale_is_trained_and_measured_over_its_range(store, msdask, tmp_path):
    run = tmp_path / "run"
    given = ("-i", store.path, "-o", run, "-m", 20, "--combine", "single", "--mpp-range", 0.5, 1.0)
    code, printed, said = msdask("train", "classifier", *given, *SMALL)
    assert code == 0, said
    assert printed.count("balanced accuracy at ") == 12
    _, about = load_model(run)
    assert about["mpp"] == [0.5, 1.0]
    assert about["patch_size"] == 32
    assert len(pd.read_csv(run / "accuracy_by_mpp.csv")) == 12
    code, _, said = msdask("train", "classifier", *given[:-2], 1, *SMALL[:-1], "--resume")
    assert code == 1
    assert "--mpp-range 1: expected the finest and the coarsest um/px" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", 40, 10), "magnifications [40.0, 10.0] are in no set"),
        (("-m", 10), "--combine features with magnifications [10.0]: expected two or more"),
        (("--combine", "single"), "--combine single with magnifications [20.0, 10.0, 5.0]: expected one"),
        (("--combine", "single", "-m", 10, "--losses", "n+1"), "one magnification has one loss"),
        (("--combine", "single", "-m", 10, "--copies", 3), "--combine single --copies 3: one branch is meant"),
        (("-n", 4), "class 2 is missing from 'train'"),
        (("-f", "wide"), "--embedding 'wide': expected a width, True or False"),
        (("--loss-weights", 1, 2), "--loss-weights 1 2: they go with --losses n+1"),
        (("--monitor", "kapa"), "--monitor kapa: expected one of"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(store, msdask, tmp_path, arguments, message):
    run = tmp_path / "run"
    code, _, said = msdask("train", "classifier", "-i", store.path, "-o", run, "-c", "scalenet", *arguments)
    assert code == 1
    assert message in said
    assert not run.exists()


def test_a_patient_in_two_parts_is_refused(store, msdask, tmp_path):
    for name, slides in {"train": ["a0", "b"], "valid": ["c"], "test": ["a1"]}.items():
        (tmp_path / f"list_{name}.csv").write_text("\n".join(slides) + "\n")
    code, _, said = msdask("train", "classifier", "-i", store.path, "-o", tmp_path / "run", "--lists", tmp_path)
    assert code == 1
    assert "patient 'A' is in two parts" in said


def test_weights_that_cannot_be_had_are_said_where_nobody_asked_for_them(monkeypatch):
    def none(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", none)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", none)
    with pytest.warns(UserWarning, match="training begins with random weights: .*ImageNet weights cannot be loaded"):
        _, begins_with = Branches(backbone="resnet18").model(3, (10.0, 5.0))
    assert begins_with == "random"
    with pytest.raises(MsdaskError, match="ImageNet weights cannot be loaded"):
        Branches(backbone="resnet18", weights="imagenet").model(3, (10.0, 5.0))
    with pytest.raises(SpecError, match="no such network"):
        Branches(backbone="resnet_18").model(3, (10.0, 5.0))
    assert backbones.SCALENET == "scalenet"


@pytest.mark.parametrize(("text", "width"), [("True", 128), ("false", None), ("0", None), ("64", 64), (None, 128)])
def test_an_embedding_is_on_off_or_a_width(text, width):
    model, _ = Branches(backbone="scalenet", embedding=text).model(3, (10.0, 5.0))
    assert model.config["embedding"] == width


def test_branches_are_permuted_where_asked_for(store, msdask, tmp_path):
    run = tmp_path / "run"
    code, _, said = msdask("train", "classifier", "-i", store.path, "-o", run, "-m", 20, 5, *SMALL)
    assert code == 0, said
    code, printed, said = msdask("test", "classifier", "-i", store.path, "-p", run, "--ablate", 2, "-q")
    assert code == 0, said
    assert "20x permuted, scores fall by: kappa " in printed
    table = pd.read_csv(run / "ablation.csv")
    assert table[["branch", "repeat"]].values.tolist() == [["none", 0], ["20x", 0], ["20x", 1], ["5x", 0], ["5x", 1]]
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    assert table["kappa"][0] == pytest.approx(metrics["kappa"], nan_ok=True)
