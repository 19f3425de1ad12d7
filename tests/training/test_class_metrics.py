"""Scores of classifiers, against loops, torchmetrics and numbers worked out by hand."""

# ruff: noqa: E402
from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from torchmetrics.classification import MulticlassCohenKappa, MulticlassF1Score

from msdask.training.class_metrics import CalibrationError, ClassPredictions, class_metrics
from msdask.training.class_scores import accuracy, balanced_accuracy, confusion, f1, kappa, macro_f1

NAMES = ("a", "b", "c", "d")


def _drawn(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, count)
    return truth, np.where(rng.random(count) < 0.5, truth, rng.integers(0, 4, count))


def test_the_confusion_matrix_counts_pairs():
    truth, said = _drawn()
    expected = np.zeros((4, 4), int)
    for t, p in zip(truth, said, strict=True):
        expected[t, p] += 1
    np.testing.assert_array_equal(confusion(truth, said, 4), expected)


def test_scores_worked_out_by_hand():
    counts = np.array([[8, 2, 0], [1, 5, 4], [0, 0, 10]])
    assert accuracy(counts) == pytest.approx(23 / 30)
    assert balanced_accuracy(counts) == pytest.approx((0.8 + 0.5 + 1.0) / 3)
    np.testing.assert_allclose(f1(counts), [16 / 19, 10 / 17, 20 / 24])
    assert macro_f1(counts) == pytest.approx((16 / 19 + 10 / 17 + 20 / 24) / 3)
    # columns 9, 7, 14; observed 2 + 1 + 4 = 7; expected (10 (7 + 4 * 14) + 10 (9 + 14) + 10 (4 * 9 + 7)) / 30 = 43
    assert kappa(counts) == pytest.approx(1 - 7 / 43)


def test_kappa_and_f1_are_those_of_torchmetrics():
    truth, said = map(torch.from_numpy, _drawn())
    counts = confusion(truth.numpy(), said.numpy(), 4)
    assert kappa(counts) == pytest.approx(float(MulticlassCohenKappa(4, weights="quadratic")(said, truth)), abs=1e-6)
    assert macro_f1(counts) == pytest.approx(float(MulticlassF1Score(4, average="macro")(said, truth)), abs=1e-6)


def test_classes_that_do_not_occur_do_not_count():
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert balanced_accuracy(counts) == pytest.approx((0.75 + 1) / 2)
    assert np.isnan(f1(counts)[2])
    assert np.isnan(kappa(np.array([[5, 0], [0, 0]])))


def test_many_matrices_at_once_are_each_of_them():
    many = np.random.default_rng(0).integers(0, 9, (5, 2, 3, 3))
    for score in (kappa, accuracy, balanced_accuracy, macro_f1):
        np.testing.assert_allclose(score(many)[4, 1], score(many[4, 1]))


def _predictions(count: int = 400, views: int = 2) -> tuple[ClassPredictions, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(count, views, 4, generator=generator)).softmax(-1)
    targets = torch.randint(0, 4, (count, views), generator=generator)
    targets[::9, 1] = -1
    return ClassPredictions(probabilities), targets


def test_calibration_is_the_mean_distance_of_confidence_and_accuracy():
    (probabilities, _), targets = _predictions()
    metric = CalibrationError(1)
    for rows in (slice(0, 150), slice(150, None)):
        metric.update(ClassPredictions(probabilities[rows]), targets[rows])
    confidence, said = probabilities[:, 1].max(-1)
    known, expected = targets[:, 1] >= 0, 0.0
    for number in range(15):
        inside = known & (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            right = (said == targets[:, 1])[inside].float().mean()
            expected += float((confidence[inside].mean() - right).abs() * inside.sum() / known.sum())
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_metrics_have_a_name_for_the_whole_and_for_each_magnification():
    metrics = class_metrics(NAMES, ["", "10x"])
    assert {"kappa", "balanced_accuracy", "macro_f1", "accuracy", "ece", "f1_a", "f1_d"} <= set(metrics)
    assert {"kappa_10x", "ece_10x", "f1_d_10x"} <= set(metrics)
    predictions, targets = _predictions()
    for metric in metrics.values():
        metric.update(predictions, targets)
    known = targets[:, 1] >= 0
    counts = confusion(targets[known, 1].numpy(), predictions.probabilities[known, 1].argmax(-1).numpy(), 4)
    assert float(metrics["kappa_10x"].compute()) == pytest.approx(float(kappa(counts)))
    assert float(metrics["f1_c_10x"].compute()) == pytest.approx(float(f1(counts)[2]))
    assert float(pickle.loads(pickle.dumps(metrics["f1_a"])).compute()) == float(metrics["f1_a"].compute())
