"""Training classifiers: losses against hand sums, what they teach, metrics, the table of predictions, resuming."""

# ruff: noqa: E402
from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.data import Augment, loader
from msdask.errors import SpecError
from msdask.models import AttentionFusion, FeatureFusion, PredictionFusion, ScaleRegressor, SingleScale
from msdask.models.files import load_model
from msdask.training import ClassifySource, ClassifyTask, PredictionTable, Recipe, evaluate, fit
from msdask.training.class_scores import balanced_accuracy, kappa
from tests.tools.class_tools import SCALES, write_class_cohort

CPU = {"accelerator": "cpu", "patience": None}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_class_cohort(tmp_path_factory.mktemp("classes"))


def _model(fusion=FeatureFusion, classes: int = 3, magnifications=SCALES, **options):
    torch.manual_seed(0)
    return fusion(classes, magnifications, backbone="scalenet", embedding=16, **options)


def _batch(count: int = 12, classes: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (count, 3, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "label": torch.randint(0, classes, (count, 3), generator=generator),
    }


def _negative_log(logits: torch.Tensor, label: torch.Tensor) -> list[float]:
    return [(torch.logsumexp(z, 0) - z[y]).item() for z, y in zip(logits, label.tolist(), strict=True)]


@pytest.mark.parametrize("fusion", [FeatureFusion, PredictionFusion, AttentionFusion])
def test_one_loss_is_the_cross_entropy_of_the_whole_with_the_finest_label(fusion):
    model, batch = _model(fusion).eval(), _batch()
    loss, (predictions, targets) = ClassifyTask(3).loss(model, batch)
    output = model(batch["image"])
    assert loss.item() == pytest.approx(np.mean(_negative_log(output.logits, batch["label"][:, 0])), rel=1e-5)
    torch.testing.assert_close(predictions.probabilities, output.logits.softmax(-1).unsqueeze(1))
    assert torch.equal(targets, batch["label"][:, :1])
    alone, _ = ClassifyTask(3).loss(model, batch | {"label": batch["label"][:, 0]})
    assert alone.item() == loss.item()


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.25, 2.0)])
def test_n_plus_1_losses_are_the_sum_that_one_adds_up_by_hand(weights):
    model, batch = _model().eval(), _batch()
    batch["label"][::3, 2] = -1
    task = ClassifyTask(3, "n+1", magnifications=SCALES, loss_weights=weights)
    loss, (predictions, targets) = task.loss(model, batch)
    output = model(batch["image"])
    parts = [np.mean(_negative_log(output.logits, batch["label"][:, 0]))]
    for i in range(3):
        known = batch["label"][:, i] >= 0
        parts.append(np.mean(_negative_log(output.branch_logits[known, i], batch["label"][known, i])))
    assert loss.item() == pytest.approx(np.dot(weights or (1, 1, 1, 1), parts), rel=1e-5)
    assert predictions.probabilities.shape == (12, 4, 3)
    assert torch.equal(targets, torch.cat([batch["label"][:, :1], batch["label"]], 1))


def test_a_magnification_without_any_label_adds_nothing():
    model, batch = _model().eval(), _batch()
    batch["label"][:, 1:] = -1
    task = ClassifyTask(3, "n+1", magnifications=SCALES)
    output = model(batch["image"])
    expected = np.mean(_negative_log(output.logits, batch["label"][:, 0]))
    expected += np.mean(_negative_log(output.branch_logits[:, 0], batch["label"][:, 0]))
    assert task.loss(model, batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fusion", [FeatureFusion, PredictionFusion, AttentionFusion])
@pytest.mark.parametrize("losses", ["one", "n+1"])
def test_which_heads_a_training_teaches(fusion, losses, store, tmp_path):
    """One loss leaves the branches' classes as they are, unless the whole follows from them; n + 1 teach all."""
    model = _model(fusion, 2)
    before = [branch.head.weight.detach().clone() for branch in model.branches]
    source = ClassifySource(store.path, "upper_region", losses=losses)
    batches = list(loader(source.dataset(["a0.png"]), batch_size=16))
    task = ClassifyTask(2, losses, magnifications=SCALES)
    recipe = Recipe(epochs=1, weight_decay=0.1, optimizer="adamw", **CPU)
    result = fit(model, task, batches, batches, tmp_path / "run", recipe=recipe)
    is_same = [torch.equal(a, b.head.weight) for a, b in zip(before, result.model.branches, strict=True)]
    assert is_same == [losses == "one" and fusion is not PredictionFusion] * 3


def test_a_tiny_run_learns_two_colors_and_leaves_everything_behind(store, tmp_path):
    source = ClassifySource(store.path, "upper_region", losses="n+1")
    split = source.split()
    source.check(split)
    task = ClassifyTask(["pale", "dark"], "n+1", magnifications=source.magnifications)
    train = loader(source.dataset(split.train), batch_size=32, balanced=True, augment=Augment(hsv=None))
    valid = source.measured(split.valid, batch_size=64)
    run = tmp_path / "run"
    result = fit(_model(AttentionFusion, 2), task, train, valid, run, recipe=Recipe(epochs=2, lr=3e-3, **CPU))
    test = source.measured(split.test, batch_size=50)
    table = PredictionTable(
        test.dataset.slide_ids,
        task.classes,
        views=task.views,
        magnifications=source.magnifications,
        patients=source.patients,
    )
    found = evaluate(result.model, task, test, folder=run, listener=table, recipe=Recipe(**CPU))
    assert found["balanced_accuracy"] > 0.95
    assert found["balanced_accuracy_20x"] > 0.95
    assert {"kappa", "macro_f1", "f1_pale", "f1_dark", "ece", "kappa_5x", "ece_5x", "f1_dark_10x"} <= set(found)
    assert json.loads((run / "metrics.json").read_text())["test"] == found
    assert "valid_kappa_10x" in next(csv.DictReader((run / "log.csv").open()))
    assert json.loads((run / "hparams.json").read_text())["task"]["losses"] == "n+1"
    rows = pd.read_parquet(table.write(run / "predictions.parquet"))
    assert len(rows) == len(test.dataset) == int(source.counts[4:].sum())
    assert set(rows["slide"]) == {"d.png", "e.png"}
    assert set(rows["patient"]) == {"D", "E"}
    np.testing.assert_allclose(rows[["probability_pale", "probability_dark"]].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[["attention_20x", "attention_10x", "attention_5x"]].sum(axis=1), 1, rtol=1e-5)
    assert float(kappa(table.confusion())) == pytest.approx(found["kappa"], abs=1e-6)
    stored = store["grid-20x-32"].open("d.png").compute()
    mine = rows[rows["slide"] == "d.png"]
    np.testing.assert_array_equal(mine["x0"], stored["x0"].values[mine["row"], 0])
    np.testing.assert_array_equal(mine["label"], stored["label"].values[mine["row"], 0])
    loaded, about = load_model(run)
    assert about["task"] == "classify"
    again = evaluate(loaded, task, test, recipe=Recipe(**CPU))
    assert again == found


def test_a_resumed_run_equals_an_unbroken_one(store, tmp_path):
    source = ClassifySource(store.path)
    task = ClassifyTask(2, monitor="kappa")

    def run(folder: Path, epochs: int, *, resume: bool = False):
        train = loader(source.dataset(["a0.png", "b.png"]), batch_size=32, balanced=True, augment=Augment())
        valid = source.measured(["c.png"], batch_size=64)
        model = _model(FeatureFusion, 2, dropout=0.2)
        recipe = Recipe(epochs=epochs, schedule="step", step_epochs=2, **CPU)
        return fit(model, task, train, valid, folder, recipe=recipe, resume=resume)

    unbroken = run(tmp_path / "unbroken", 3)
    run(tmp_path / "broken", 2)
    resumed = run(tmp_path / "broken", 3, resume=True)
    assert (tmp_path / "broken/log.csv").read_text() == (tmp_path / "unbroken/log.csv").read_text()
    for a, b in zip(unbroken.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_single_scale_learns_from_its_column(store, tmp_path):
    source = ClassifySource(store.path, magnifications=[10])
    batches = list(loader(source.dataset(["a0.png"]), batch_size=32))
    model = SingleScale(2, [10], backbone="scalenet")
    result = fit(model, ClassifyTask(2), batches, batches, tmp_path / "run", recipe=Recipe(epochs=1, **CPU))
    assert {"kappa", "f1_0", "f1_1"} <= set(result.valid)
    assert not any(name.endswith("x") for name in result.valid)


def test_metrics_are_those_of_all_batches_together():
    model, batch = _model().eval(), _batch(30)
    task = ClassifyTask(3)
    pieces = [{k: v[i : i + 7] for k, v in batch.items()} for i in range(0, 30, 7)]
    found = evaluate(model, task, pieces, recipe=Recipe(**CPU))
    with torch.inference_mode():
        said = model(batch["image"]).logits.argmax(1)
    counts = np.zeros((3, 3))
    np.add.at(counts, (batch["label"][:, 0].numpy(), said.numpy()), 1)
    assert found["balanced_accuracy"] == pytest.approx(float(balanced_accuracy(counts)))


def test_which_epoch_is_the_best_is_said_by_the_metric_in_its_direction():
    assert (ClassifyTask(3).monitor, ClassifyTask(3).mode) == ("loss", "min")
    assert ClassifyTask(3, monitor="kappa").mode == "max"
    assert ClassifyTask(3, monitor="ece").mode == "min"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": 1}, "two or more"),
        ({"classes": ["a", "a"]}, "a name of its own"),
        ({"losses": "two"}, "losses='two'"),
        ({"losses": "n+1"}, "a single magnification has one loss"),
        ({"loss_weights": [1, 1]}, r"go with losses='n\+1'"),
        ({"losses": "n+1", "magnifications": SCALES, "loss_weights": [1, 1, 1]}, "expected 4 numbers"),
        ({"losses": "n+1", "magnifications": SCALES, "loss_weights": [1, 1, 1, -1]}, "not below 0"),
        ({"losses": "n+1", "magnifications": SCALES, "loss_weights": [1, 1, 1, float("nan")]}, "not below 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(SpecError, match=match):
        ClassifyTask(**{"classes": 3} | options)


def test_labels_and_models_that_do_not_fit_are_refused():
    batch = _batch()
    with pytest.raises(SpecError, match="label 2 in a batch: expected classes 0 to 1"):
        ClassifyTask(2).loss(_model(classes=2), batch)
    batch["label"][4, 0] = -1
    with pytest.raises(SpecError, match="label -1 in a batch: expected classes 0 to 2"):
        ClassifyTask(3).loss(_model(), batch)
    with pytest.raises(SpecError, match=r"labels of shape \(12,\): n \+ 1 losses need one at each of 3"):
        ClassifyTask(3, "n+1", magnifications=SCALES).loss(_model(), _batch() | {"label": torch.ones(12).long()})
    with pytest.raises(SpecError, match="the model has 3 classes, the task 4"):
        ClassifyTask(4).loss(_model(), batch)
    with pytest.raises(SpecError, match="expected a classifier such as FeatureFusion"):
        ClassifyTask(3).loss(ScaleRegressor("scalenet"), batch)


_TWO_PROCESSES = """
import json, os, sys
import torch
from msdask.models import FeatureFusion
from msdask.training import ClassifyTask, Recipe, fit
rank = int(os.environ.get("LOCAL_RANK", 0))
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (32, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
labels = torch.randint(0, 3, (32,), generator=generator)
share = [{"image": images[i::8], "label": labels[i::8]} for i in range(rank, 8, 2)]
recipe = Recipe(epochs=2, accelerator="cpu", devices=2, strategy="ddp")
torch.manual_seed(0)
model = FeatureFusion(3, (20, 5), backbone="scalenet", embedding=8)
result = fit(model, ClassifyTask(3), share, share, sys.argv[1], recipe=recipe)
weights = [float(p.double().sum()) for p in result.model.parameters()]
open(f"{sys.argv[1]}/rank{rank}.json", "w").write(json.dumps([result.valid, weights]))
"""


@pytest.mark.slow
def test_two_processes_train_one_classifier_with_heads_that_no_loss_reaches(tmp_path):
    (tmp_path / "train.py").write_text(_TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "train.py", tmp_path / "run"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=240, capture_output=True)
    first, second = (json.loads((tmp_path / f"run/rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (32,), generator=generator)
    model, _ = load_model(tmp_path / "run")
    alone = evaluate(model, ClassifyTask(3), [{"image": images, "label": labels}], recipe=Recipe(**CPU))
    assert {name: first[0][name] for name in alone} == pytest.approx(alone, abs=1e-4, nan_ok=True)
