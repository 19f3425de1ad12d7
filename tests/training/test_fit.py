"""Training: one way to fit, resume, log and save; the metrics."""

# ruff: noqa: E402
from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
torchmetrics = pytest.importorskip("torchmetrics")


import msdask as ms
from msdask.errors import MsdaskError, SpecError
from msdask.models import ScaleRegressor
from msdask.models.files import load_model
from msdask.training import Recipe, ScaleTask, evaluate, fit, scale_metrics
from tests.tools.scale_tools import ListLoader, random_patches, textured_image

CPU = {"accelerator": "cpu", "patience": None}
CLASSES = np.array([5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0])


def _model(**options) -> ScaleRegressor:
    torch.manual_seed(0)
    return ScaleRegressor("scalenet", embedding=16, target="log2", **options)


class Broken(Exception):
    """What kills a run in these tests."""


class Breaking(ListLoader):
    """Raises after so many batches."""

    def __init__(self, *arguments, after: int, **options) -> None:
        super().__init__(*arguments, **options)
        self.after = after

    def __iter__(self):
        for batch in super().__iter__():
            if len(self.given) > self.after:
                raise Broken
            yield batch


# --- fit ---


def test_a_tiny_model_learns_32_patches_by_heart(tmp_path):
    images, truth = random_patches(32)
    data = ListLoader(images, truth, batch_size=16)
    recipe = Recipe(epochs=60, lr=3e-3, optimizer="adamw", **CPU)
    result = fit(_model(), ScaleTask("huber", delta=0.25), data, data, tmp_path / "run", recipe=recipe)
    assert result.valid["r2"] > 0.9
    with torch.inference_mode():
        assert (torch.log2(result.model.magnification(images) / truth).abs() < 0.3).float().mean() > 0.9


def test_a_run_leaves_weights_settings_log_curves_and_metrics(tmp_path):
    data = ListLoader(*random_patches(16))
    recipe = Recipe(epochs=3, **CPU)
    result = fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=recipe, about={"data": "noise"})
    hparams = json.loads((tmp_path / "run/hparams.json").read_text())
    assert hparams["model"]["backbone"] == "scalenet"
    assert hparams["recipe"]["epochs"] == 3
    assert hparams["task"]["loss"] == "l1"
    rows = list(csv.DictReader((tmp_path / "run/log.csv").open()))
    assert [int(r["epoch"]) for r in rows] == [0, 1, 2]
    assert {"train_loss", "valid_loss", "valid_kappa", "valid_balanced_accuracy", "lr"} <= set(rows[0])
    assert cv2.imread(str(tmp_path / "run/curves.png")) is not None
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["best_epoch"] == result.best_epoch == min(range(3), key=lambda i: float(rows[i]["valid_loss"]))
    loaded, about = load_model(tmp_path / "run")
    assert about["data"] == "noise"
    assert torch.equal(loaded(data.images), result.model(data.images))


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    data = ListLoader(*random_patches(16))
    result = fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=Recipe(epochs=4, lr=0.3, **CPU))
    losses = [float(r["valid_loss"]) for r in csv.DictReader((tmp_path / "run/log.csv").open())]
    found = evaluate(result.model, ScaleTask(), data, recipe=Recipe(**CPU))
    assert found["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_the_last_weights_are_kept_where_the_recipe_says_so(tmp_path):
    images, truth = random_patches(16)
    worse = list(ListLoader(images, 45 - truth))
    recipe = Recipe(epochs=6, lr=3e-3, keep="last", **CPU)
    result = fit(_model(), ScaleTask(), ListLoader(images, truth), worse, tmp_path / "run", recipe=recipe)
    losses = [float(r["valid_loss"]) for r in csv.DictReader((tmp_path / "run/log.csv").open())]
    assert result.best_epoch == 5
    assert result.valid["loss"] == losses[-1] > min(losses)
    assert evaluate(result.model, ScaleTask(), worse, recipe=Recipe(**CPU))["loss"] == pytest.approx(losses[-1])


def test_training_stops_after_patience_epochs_without_a_better_validation_loss(tmp_path):
    images, truth = random_patches(16)
    other = ListLoader(images, 45 - truth)  # the better the training, the worse the validation
    recipe = Recipe(epochs=40, lr=3e-3, patience=2, accelerator="cpu")
    result = fit(_model(), ScaleTask(), ListLoader(images, truth), other, tmp_path / "run", recipe=recipe)
    assert result.epochs == result.best_epoch + 1 + 2 < 40


class Maximizing(ScaleTask):
    """A scale task that keeps the weights with the highest value of a metric."""

    mode = "max"

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor


def test_a_task_that_maximizes_keeps_the_weights_of_its_highest_value(tmp_path):
    images, truth = random_patches(16)
    other = list(ListLoader(images, 45 - truth))
    task, recipe = Maximizing("max_error"), Recipe(epochs=6, lr=3e-3, **CPU)
    result = fit(_model(), task, ListLoader(images, truth), other, tmp_path / "run", recipe=recipe)
    rows = list(csv.DictReader((tmp_path / "run/log.csv").open()))
    losses, errors = ([float(r[f"valid_{name}"]) for r in rows] for name in ("loss", "max_error"))
    assert result.best_epoch == int(np.argmax(errors)) != int(np.argmin(losses))
    assert result.valid["max_error"] == max(errors)
    found = evaluate(result.model, task, other, recipe=Recipe(**CPU))
    assert found["max_error"] == pytest.approx(max(errors), rel=1e-4)
    assert json.loads((tmp_path / "run/hparams.json").read_text())["task"]["monitor"] == "max_error"


def test_a_task_that_maximizes_stops_when_its_value_falls(tmp_path):
    images, truth = random_patches(16)
    other = ListLoader(images, 45 - truth)
    recipe = Recipe(epochs=40, lr=3e-3, patience=2, accelerator="cpu")
    task = Maximizing("explained_variance")
    result = fit(_model(), task, ListLoader(images, truth), other, tmp_path / "run", recipe=recipe)
    values = [float(r["valid_explained_variance"]) for r in csv.DictReader((tmp_path / "run/log.csv").open())]
    assert result.epochs == result.best_epoch + 1 + 2 < 40
    assert result.valid["explained_variance"] == max(values)


def test_a_value_that_is_no_number_is_never_the_best_and_does_not_stop_training(tmp_path):
    images, truth = random_patches(16)
    data = ListLoader(images, truth)

    class Undefined(torchmetrics.MeanMetric):
        """No number in its first epoch."""

        computed = 0

        def update(self, predictions, targets):
            super().update(predictions)

        def compute(self):
            self.computed += 1
            return torch.tensor(math.nan) if self.computed == 1 else torch.tensor(1 / self.computed)

    class Task(Maximizing):
        def metrics(self):
            return {"score": Undefined()}

    recipe = Recipe(epochs=3, patience=5, accelerator="cpu")
    result = fit(_model(), Task("score"), data, data, tmp_path / "run", recipe=recipe)
    assert (result.best_epoch, result.epochs) == (1, 3)
    assert result.valid["score"] == 0.5


def test_a_task_that_monitors_what_it_does_not_measure_is_refused(tmp_path):
    data = ListLoader(*random_patches(16))
    with pytest.raises(SpecError, match="monitor='f1': expected one of loss, r2"):
        fit(_model(), Maximizing("f1"), data, data, tmp_path / "run", recipe=Recipe(epochs=1, **CPU))
    task = ScaleTask()
    task.mode = "least"
    with pytest.raises(SpecError, match="mode='least'"):
        fit(_model(), task, data, data, tmp_path / "run", recipe=Recipe(epochs=1, **CPU))


def test_a_run_from_before_tasks_said_what_they_monitor_can_be_resumed(tmp_path):
    data = ListLoader(*random_patches(16))
    fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=Recipe(epochs=1, **CPU))
    hparams = json.loads((tmp_path / "run/hparams.json").read_text())
    del hparams["task"]["monitor"], hparams["task"]["mode"]
    (tmp_path / "run/hparams.json").write_text(json.dumps(hparams))
    more = Recipe(epochs=2, **CPU)
    assert fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=more, resume=True).epochs == 2
    task = Maximizing("r2")
    with pytest.raises(MsdaskError, match=r"differs in task\.mode, task\.monitor"):
        fit(_model(), task, data, data, tmp_path / "run", recipe=more, resume=True)


@pytest.mark.parametrize("after", [3, 4, 6])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_equals_an_unbroken_one(tmp_path, after):
    images, truth = random_patches(32)
    recipe = Recipe(epochs=3, ema=0.9, schedule="cosine", warmup=0.1, checkpoint_every=1, **CPU)
    task, valid = ScaleTask(), list(ListLoader(images, truth))
    whole_loader = ListLoader(images, truth)
    whole = fit(_model(dropout=0.3), task, whole_loader, valid, tmp_path / "whole", recipe=recipe)
    broken, rest = Breaking(images, truth, after=after), ListLoader(images, truth)
    with pytest.raises(Broken):
        fit(_model(dropout=0.3), task, broken, valid, tmp_path / "broken", recipe=recipe)
    resumed = fit(_model(dropout=0.3), task, rest, valid, tmp_path / "broken", recipe=recipe, resume=True)
    assert broken.given[:after] + rest.given == whole_loader.given
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert (tmp_path / "broken/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def test_a_finished_run_can_be_resumed_with_more_epochs(tmp_path):
    images, truth = random_patches(16)
    task, valid = ScaleTask(), list(ListLoader(images, truth))
    whole = fit(_model(), task, ListLoader(images, truth), valid, tmp_path / "a", recipe=Recipe(epochs=4, **CPU))
    fit(_model(), task, ListLoader(images, truth), valid, tmp_path / "b", recipe=Recipe(epochs=2, **CPU))
    longer = fit(
        _model(), task, ListLoader(images, truth), valid, tmp_path / "b", recipe=Recipe(epochs=4, **CPU), resume=True
    )
    assert longer.epochs == 4
    assert all(torch.equal(v, longer.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


class Scripted(ScaleTask):
    """Its validation loss is what a list says, epoch by epoch."""

    def __init__(self, losses) -> None:
        super().__init__()
        self.losses, self.epoch = losses, -1

    def loss(self, model, batch):
        loss, found = super().loss(model, batch)
        return loss if model.training else torch.full_like(loss, self.losses[self.epoch]), found

    def metrics(self):
        self.epoch = -1
        task = self

        class Epoch(torchmetrics.MeanMetric):
            """Begins with every validation."""

            def reset(self):
                super().reset()
                task.epoch += 1

            def update(self, predictions, targets):
                super().update(predictions)

        return {"epoch": Epoch()}


def scripted_run(folder, losses, *, first=0, **options):
    """A run whose validation losses are given, those of a resumed one from its first epoch on."""
    data = ListLoader(*random_patches(16))
    task = Scripted(losses[first:])
    recipe = Recipe(epochs=len(losses), **CPU)
    return fit(_model(), task, data, list(ListLoader(*random_patches(8))), folder, recipe=recipe, **options)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0], [2.0, 3.0, 1.0, 4.0]])
def test_a_run_folder_that_was_moved_goes_on_as_it_would_have_where_it_was(tmp_path, losses):
    whole = scripted_run(tmp_path / "whole", losses)
    scripted_run(tmp_path / "here", losses[:2])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = scripted_run(tmp_path / "there", losses, first=2, resume=True)
    best = losses.index(1.0)
    assert moved.best_epoch == whole.best_epoch == best
    assert moved.valid["loss"] == 1.0
    held = torch.load(tmp_path / "there/checkpoints/best.ckpt", weights_only=True)
    assert held["epoch"] == best
    kept, _ = load_model(tmp_path / "there")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, moved.model.state_dict()[name]), name
        assert torch.equal(value, kept.state_dict()[name]), name
        assert torch.equal(value, held["state_dict"][f"model.{name}"]), name
    metrics = [json.loads((tmp_path / place / "metrics.json").read_text()) for place in ("whole", "there")]
    assert metrics[0]["best_epoch"] == metrics[1]["best_epoch"] == best
    assert not (tmp_path / "here").exists()


def test_no_checkpoint_knows_where_it_lies(tmp_path):
    scripted_run(tmp_path / "some place", [1.0, 2.0])
    for name in ("best", "last"):
        assert b"some place" not in (tmp_path / f"some place/checkpoints/{name}.ckpt").read_bytes()


def test_a_run_that_was_killed_between_its_two_checkpoints_keeps_the_best_weights(tmp_path):
    whole = scripted_run(tmp_path / "whole", [2.0, 1.0, 3.0])
    scripted_run(tmp_path / "run", [2.0, 1.0])
    (tmp_path / "run/checkpoints/best.ckpt").unlink()
    resumed = scripted_run(tmp_path / "run", [2.0, 1.0, 3.0], first=2, resume=True)
    assert resumed.best_epoch == 1
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_best_weights_that_are_gone_are_said_before_the_run_goes_on(tmp_path):
    scripted_run(tmp_path / "run", [1.0, 2.0, 3.0])
    best, last = (tmp_path / f"run/checkpoints/{name}.ckpt" for name in ("best", "last"))
    best.unlink()
    with pytest.raises(MsdaskError, match=r"best\.ckpt' is missing; expected those of epoch 0, the best of the log"):
        scripted_run(tmp_path / "run", [1.0, 2.0, 3.0, 4.0], first=3, resume=True)
    best.write_bytes(last.read_bytes())
    with pytest.raises(MsdaskError, match=r"best\.ckpt' has the weights of epoch 2; expected those of epoch 0"):
        scripted_run(tmp_path / "run", [1.0, 2.0, 3.0, 4.0], first=3, resume=True)


def test_a_folder_with_a_run_is_not_overwritten_nor_resumed_with_other_settings(tmp_path):
    data = ListLoader(*random_patches(8))
    fit(_model(), ScaleTask(), data, data, tmp_path, recipe=Recipe(epochs=1, **CPU))
    with pytest.raises(MsdaskError, match="holds a training run already"):
        fit(_model(), ScaleTask(), data, data, tmp_path, recipe=Recipe(epochs=1, **CPU))
    with pytest.raises(MsdaskError, match=r"differs in task\.loss, recipe\.lr"):
        fit(_model(), ScaleTask("mse"), data, data, tmp_path, recipe=Recipe(epochs=1, lr=0.1, **CPU), resume=True)


def test_averaged_weights_are_what_is_validated_and_saved(tmp_path):
    data = ListLoader(*random_patches(16))
    recipe = Recipe(epochs=1, ema=0.5, lr=0.01, **CPU)
    result = fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=recipe)
    state = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    name = "head.1.weight"
    assert torch.equal(result.model.state_dict()[name], state[f"averaged.{name}"])
    assert not torch.equal(state[f"averaged.{name}"], state[f"model.{name}"])


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path):
    images, truth = random_patches(16)
    truth[3] = math.nan
    data = ListLoader(images, truth)
    with pytest.raises(MsdaskError, match="loss is nan in epoch 0, batch"):
        fit(_model(), ScaleTask(), data, data, tmp_path / "run", recipe=Recipe(epochs=1, **CPU))


def test_empty_loaders_are_named(tmp_path):
    images, truth = random_patches(16)
    with pytest.raises(MsdaskError, match="empty"):
        evaluate(_model(), ScaleTask(), ListLoader(images[:0], truth[:0]), recipe=Recipe(**CPU))
    with pytest.raises(MsdaskError, match="empty"):
        fit(
            _model(),
            ScaleTask(),
            ListLoader(images[:0], truth[:0]),
            ListLoader(images, truth),
            tmp_path / "run",
            recipe=Recipe(epochs=1, **CPU),
        )


def test_a_batch_of_one_image_is_an_error_that_says_how_to_leave_it_out(tmp_path):
    images, truth = random_patches(9)
    data = [
        {"image": images[i].unsqueeze(1), "magnification": truth[i].unsqueeze(1)} for i in (slice(0, 8), slice(8, 9))
    ]
    with pytest.raises(
        MsdaskError, match=r"batch 1 of epoch 0 has one image, and batch norm needs two.*drop_last=True"
    ):
        fit(_model(), ScaleTask(), data, data[:1], tmp_path, recipe=Recipe(epochs=1, **CPU))


def test_a_validation_of_one_image_has_no_r2_and_does_not_stop_training(tmp_path):
    images, truth = random_patches(17)
    valid = [{"image": images[:1].unsqueeze(1), "magnification": truth[:1].unsqueeze(1)}]
    task, data = ScaleTask(), ListLoader(images, truth)
    result = fit(_model(), task, data, valid, tmp_path, recipe=Recipe(epochs=2, **CPU))
    assert result.epochs == 2
    assert math.isnan(result.valid["r2"])
    assert math.isfinite(result.valid["loss"])
    assert math.isfinite(result.valid["max_error"])


def test_mixed_precision_trains_too(tmp_path):
    data = ListLoader(*random_patches(16))
    result = fit(_model(), ScaleTask(), data, data, tmp_path, recipe=Recipe(epochs=2, precision="bf16", **CPU))
    assert math.isfinite(result.valid["loss"])


@pytest.mark.parametrize(
    "option", [{"optimizer": "lion"}, {"schedule": "x"}, {"epochs": 0}, {"lr": 0.0}, {"ema": 1.0}, {"patience": 0}]
)
def test_recipes_that_make_no_sense_are_refused(option):
    with pytest.raises(SpecError, match=next(iter(option))):
        Recipe(**option)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_takes_the_steps_of_its_schedule(tmp_path, optimizer):
    data = ListLoader(*random_patches(16))
    recipe = Recipe(epochs=2, optimizer=optimizer, schedule="step", step_epochs=1, lr=0.01, **CPU)
    fit(_model(), ScaleTask(), data, data, tmp_path, recipe=recipe)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(r["lr"]) for r in rows] == pytest.approx([0.001, 0.0001])  # after the epoch's last step


def test_evaluation_is_added_to_the_run(tmp_path):
    data = ListLoader(*random_patches(16))
    result = fit(_model(), ScaleTask(), data, data, tmp_path, recipe=Recipe(epochs=1, **CPU))
    found = evaluate(result.model, ScaleTask(), data, folder=tmp_path, name="other organ", recipe=Recipe(**CPU))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["other organ"] == found
    assert metrics["valid"]["loss"] == result.valid["loss"]


_TWO_PROCESSES = """
import json, os, sys
import torch
from msdask.models import ScaleRegressor
from msdask.training import Recipe, ScaleTask, fit
from tests.tools.scale_tools import ListLoader, random_patches

torch.set_num_threads(1)
rank = int(os.environ.get("LOCAL_RANK", 0))
images, truth = random_patches(32)
share = ListLoader(images[rank::2], truth[rank::2])
recipe = Recipe(epochs=2, ema=0.9, accelerator="cpu", devices=2, strategy="ddp")
result = fit(ScaleRegressor("scalenet", embedding=16), ScaleTask(), share, share, sys.argv[1], recipe=recipe)
weights = [float(p.double().sum()) for p in result.model.parameters()]
open(f"{sys.argv[1]}/rank{rank}.json", "w").write(json.dumps([result.valid, weights]))
"""


@pytest.mark.slow
def test_two_processes_train_one_model_and_measure_it_over_both_shares(tmp_path):
    (tmp_path / "train.py").write_text(_TWO_PROCESSES)
    root = Path(__file__).parents[2]
    command = [sys.executable, tmp_path / "train.py", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=240, capture_output=True)
    first, second = (json.loads((tmp_path / f"run/rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    model, _ = load_model(tmp_path / "run")
    images, truth = random_patches(32)
    alone = evaluate(model, ScaleTask(), list(ListLoader(images, truth)), recipe=Recipe(**CPU))
    assert first[0]["r2"] == pytest.approx(alone["r2"], abs=1e-4)
    assert first[0]["loss"] == pytest.approx(alone["loss"], rel=1e-4)


# --- metrics ---


def _naive_metrics(estimated, true):
    """Spec 8, written out."""
    e, t = np.asarray(estimated, float), np.asarray(true, float)
    found, wanted = (np.array([min(range(7), key=lambda k: abs(v - CLASSES[k])) for v in x]) for x in (e, t))
    observed = np.zeros((7, 7))
    for w, f in zip(wanted, found, strict=True):
        observed[w, f] += 1
    weights = np.array([[(i - j) ** 2 for j in range(7)] for i in range(7)])
    chance = np.outer(observed.sum(1), observed.sum(0)) / len(e)
    return {
        "r2": 1 - ((t - e) ** 2).sum() / ((t - t.mean()) ** 2).sum(),
        "mse": ((t - e) ** 2).mean(),
        "max_error": np.abs(t - e).max(),
        "explained_variance": 1 - (t - e).var() / t.var(),
        "balanced_accuracy": np.mean([(found[wanted == k] == k).mean() for k in set(wanted.tolist())]),
        "kappa": 1 - (weights * observed).sum() / (weights * chance).sum(),
    }


@pytest.mark.parametrize("present", [CLASSES, CLASSES[[0, 3, 6]]])
def test_metrics_equal_their_definitions_over_batches(present):
    rng = np.random.default_rng(0)
    true = rng.choice(present, 200)
    estimated = true * np.exp(rng.normal(scale=0.25, size=200))
    metrics = scale_metrics()
    for rows in np.array_split(np.arange(200), 7):
        for metric in metrics.values():
            metric.update(torch.tensor(estimated[rows]).float(), torch.tensor(true[rows]).float())
    for name, value in _naive_metrics(estimated, true).items():
        assert float(metrics[name].compute()) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_true_magnifications_off_the_nominal_ones_count_as_the_nearest():
    metrics = scale_metrics()
    metrics["balanced_accuracy"].update(torch.tensor([21.0, 9.0]), torch.tensor([20.04, 10.02]))
    assert float(metrics["balanced_accuracy"].compute()) == 0.5


@pytest.mark.parametrize("options", [{"loss": "l3"}, {"delta": 0.0}, {"classes": (5.0,)}])
def test_tasks_that_make_no_sense_are_refused(options):
    with pytest.raises(SpecError, match=next(iter(options))):
        ScaleTask(**options)


@pytest.mark.parametrize(("loss", "value"), [("l1", 1.0), ("mse", 5 / 3), ("huber", (0 + 0.21875 + 0.46875) / 3)])
def test_losses_are_in_target_space(loss, value):
    model = _model()
    model.forward = lambda images: torch.log2(torch.tensor([10.0, 20.0, 40.0])) + torch.tensor([0.0, 1.0, -2.0])
    batch = {"image": torch.zeros(3, 1, 3, 32, 32), "magnification": torch.tensor([[10.0], [20.0], [40.0]])}
    found, (estimated, true) = ScaleTask(loss, delta=0.25).loss(model, batch)
    assert float(found) == pytest.approx(value)
    assert estimated.tolist() == pytest.approx([10.0, 40.0, 10.0])
    assert true.tolist() == [10.0, 20.0, 40.0]


# --- with patch stores ---


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Patches at 20x and 10x of one slide."""
    folder = tmp_path_factory.mktemp("store")
    Image.fromarray(textured_image(3, 320)).save(folder / "s.png")
    slide = ms.open_slide(folder / "s.png", magnification=20)
    everywhere = np.ones((20, 20), bool)
    store = ms.PatchStore(folder / "p.zarr")
    for magnification in (20, 10):
        selected = ms.grid(slide, everywhere, magnification=magnification, patch_size=32, min_tissue=0.0)
        store.write(ms.patches(slide, selected))
    return ms.data.PatchDataset(list(store.values()), target="magnification", keep=False)


@pytest.mark.parametrize("is_fed", [False, True])
def test_a_run_on_a_patch_store_resumes_in_the_middle_of_an_epoch(dataset, tmp_path, monkeypatch, is_fed):
    monkeypatch.setattr("msdask.training.on_device.is_fed", lambda device: is_fed)  # the CPU, as a GPU is
    augment = ms.data.Augment(scale=ms.data.ScaleAugment([10, 20]))
    options = {"batch_size": 16, "balanced": True, "augment": augment}
    recipe = Recipe(epochs=2, checkpoint_every=1, **CPU)
    task, valid = ScaleTask(classes=(10, 20)), ms.data.loader(dataset, batch_size=64, shuffle=False)

    class Failing(ScaleTask):
        seen = 0

        def loss(self, model, batch):
            if model.training:
                self.seen += 1
                if self.seen > len(ms.data.loader(dataset, **options)) + 2:
                    raise Broken
            return super().loss(model, batch)

    whole = fit(_model(), task, ms.data.loader(dataset, **options), valid, tmp_path / "whole", recipe=recipe)
    failing = Failing(classes=(10, 20))
    with pytest.raises(Broken):
        fit(_model(), failing, ms.data.loader(dataset, **options), valid, tmp_path / "broken", recipe=recipe)
    rest = ms.data.loader(dataset, **options)
    resumed = fit(_model(), task, rest, valid, tmp_path / "broken", recipe=recipe, resume=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    assert (tmp_path / "broken/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def test_loaders_give_batches_on_the_gpu_while_it_trains_and_then_as_before(dataset, tmp_path, monkeypatch):
    seen, told = [], ms.data.loader(dataset, batch_size=16, device="cpu")

    class Watching(ScaleTask):
        def loss(self, model, batch):
            assert "draw" not in batch
            seen.append((train.device, valid.device))
            return super().loss(model, batch)

    def run(task, name):
        return fit(_model(), task, train, valid, tmp_path / name, recipe=Recipe(epochs=1, **CPU))

    train = ms.data.loader(dataset, batch_size=16, augment=ms.data.Augment())
    valid = ms.data.loader(dataset, batch_size=64, shuffle=False)
    run(Watching(classes=(10, 20)), "cpu")
    assert set(seen) == {(None, None)}
    monkeypatch.setattr("msdask.training.on_device.is_fed", lambda device: True)  # the CPU, as a GPU is
    seen.clear()
    run(Watching(classes=(10, 20)), "gpu")
    assert set(seen) == {(torch.device("cpu"), torch.device("cpu"))}
    assert (train.device, valid.device) == (None, None)
    evaluate(_model(), Watching(classes=(10, 20)), valid, recipe=Recipe(**CPU))
    assert valid.device is None

    class Failing(ScaleTask):
        def loss(self, model, batch):
            assert train.device is not None
            raise Broken

    with pytest.raises(Broken):
        run(Failing(classes=(10, 20)), "broken")
    assert train.device is None
    train = told
    run(ScaleTask(classes=(10, 20)), "told")
    assert told.device == torch.device("cpu")


def test_only_gpus_change_whole_batches():
    from msdask.training.on_device import is_fed

    assert [is_fed(torch.device(name)) for name in ("cuda", "cuda:1", "cpu", "mps")] == [True, True, False, False]


def test_an_epoch_of_a_patch_store_has_no_batch_of_one(dataset, tmp_path):
    train = ms.data.loader(dataset, batch_size=len(dataset) - 1, balanced=True)
    valid = ms.data.loader(dataset, batch_size=64, shuffle=False)
    task = ScaleTask(classes=(10, 20))
    assert fit(_model(), task, train, valid, tmp_path, recipe=Recipe(epochs=1, **CPU)).epochs == 1


def shares(dataset, rank, world_size):
    """Every kind of loader that says which process it is for."""
    stream = ms.data.PatchStream(dataset, batch_size=8, rank=rank, world_size=world_size)
    sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=world_size, rank=rank)
    return [
        ms.data.loader(dataset, batch_size=8, rank=rank, world_size=world_size),
        stream,
        torch.utils.data.DataLoader(stream, batch_size=None),
        torch.utils.data.DataLoader(dataset, batch_size=8, sampler=sampler),
    ]


@pytest.mark.parametrize("kind", range(4))
def test_loaders_of_another_process_are_refused_before_training(dataset, tmp_path, kind):
    one, first, second = (shares(dataset, *share)[kind] for share in ((0, 1), (0, 2), (1, 2)))
    two = Recipe(epochs=1, devices=2, strategy="ddp", **CPU)
    task = ScaleTask(classes=(10, 20))
    said = r"made with rank=0, world_size=1, but this is process 0 of 2.*make it with rank=0, world_size=2"
    with pytest.raises(SpecError, match=said):
        fit(_model(), task, one, first, tmp_path / "a", recipe=two)
    with pytest.raises(SpecError, match=said):
        fit(_model(), task, first, one, tmp_path / "b", recipe=two)
    with pytest.raises(SpecError, match="made with rank=1, world_size=2, but this is process 0 of 2"):
        fit(_model(), task, second, first, tmp_path / "c", recipe=two)
    with pytest.raises(SpecError, match="made with rank=0, world_size=2, but this is process 0 of 1"):
        evaluate(_model(), task, first, recipe=Recipe(**CPU))
    assert not (tmp_path / "a/log.csv").exists()
