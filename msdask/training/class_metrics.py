"""Metrics of classifiers that grow batch by batch: scores of the confusion matrix, and how honest probabilities are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from msdask.training.class_scores import SCORES, f1

__all__ = ["CalibrationError", "ClassF1", "ClassPredictions", "ConfusionScore", "class_metrics"]

_BINS = 15
"""Of confidence, as usual for the expected calibration error."""


class ClassPredictions(NamedTuple):
    """What a classifier says of a batch, as metrics and tables take it.

    Attributes
    ----------
    probabilities : (B, V, C) of the whole, and of each magnification where they were taught
    attention : (B, M), or None
    """

    probabilities: Tensor
    attention: Tensor | None = None


def class_metrics(classes: Sequence[str], views: Sequence[str] = ("",)) -> dict[str, Metric]:
    """Metrics that are updated with (ClassPredictions, targets (B, V)); targets of -1 do not count.

    Parameters
    ----------
    classes : their names
    views : what is measured: "" for the whole, then magnifications such as "20x"

    Returns
    -------
    metrics : "kappa" (Cohen's, quadratic weights), "balanced_accuracy", "macro_f1", "accuracy", "ece" (expected
        calibration error) and "f1_<class>" of the whole; with "_20x" at the end of a magnification alone
    """
    found: dict[str, Metric] = {}
    for view, name in enumerate(views):
        end = f"_{name}" if name else ""
        found |= {f"{score}{end}": ConfusionScore(len(classes), of, view) for score, of in SCORES.items()}
        found[f"ece{end}"] = CalibrationError(view)
        for number, one in enumerate(classes):
            found[f"f1_{one}{end}"] = ConfusionScore(len(classes), ClassF1(number), view)
    return found


class ClassF1:
    """F1 of one class; a class of its own so that metrics can be pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, counts: NDArray[Any]) -> NDArray[np.float64]:
        """F1 of the class, of matrices (..., C, C)."""
        return f1(counts)[..., self.number]


class ConfusionScore(Metric):
    """A score of the confusion matrix.

    Parameters
    ----------
    classes : how many
    score : from counts (C, C) to a number
    view : which of the targets' columns
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int, score: Callable[[NDArray[Any]], NDArray[np.float64]], view: int = 0) -> None:
        super().__init__()
        self.classes, self.score, self.view = classes, score, view
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: ClassPredictions, targets: Tensor) -> None:
        """Take a batch in."""
        truth = targets[:, self.view]
        known = truth >= 0
        predicted = predictions.probabilities[:, self.view].argmax(-1)
        cells = truth[known] * self.classes + predicted[known]
        self.counts += torch.bincount(cells, minlength=self.classes**2).view(self.classes, self.classes)

    def compute(self) -> Tensor:
        """The score of all batches."""
        return torch.tensor(float(self.score(self.counts.cpu().numpy())))


class CalibrationError(Metric):
    """Expected calibration error: how far confidence is from the share that is right, in 15 bins of confidence."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, view: int = 0) -> None:
        super().__init__()
        self.view = view
        # of each bin: predictions, their confidence, those that are right
        self.add_state("sums", torch.zeros(3, _BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: ClassPredictions, targets: Tensor) -> None:
        """Take a batch in."""
        truth = targets[:, self.view]
        known = truth >= 0
        confidence, predicted = predictions.probabilities[:, self.view][known].max(-1)
        number = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == truth[known]).float()])
        self.sums.index_add_(1, number, values.double())

    def compute(self) -> Tensor:
        """The error of all batches; NaN without any."""
        count, confidence, right = self.sums
        return ((confidence - right).abs().sum() / count.sum()).float()
