"""Metrics of segmentation that grow batch by batch: the confusion of px, never the px themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from msdask.training.class_metrics import ClassF1, ConfusionScore
from msdask.training.class_scores import SCORES

__all__ = ["MeanDice", "PixelPredictions", "PixelScore", "pixel_confusion", "segment_metrics"]


class PixelPredictions(NamedTuple):
    """What a segmentation model says of a batch, as metrics and tables take it.

    Attributes
    ----------
    counts : (B, C, C) int64, labeled px of each patch: rows are the true classes, columns the predicted ones
    """

    counts: Tensor


def pixel_confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Confusion matrices (B, C, C) int64 of maps.

    Parameters
    ----------
    predicted : (B, s, s) integer, 0 to below `classes`
    targets : (B, s, s) int64, -1 where nothing is labeled: these px do not count
    classes : how many
    """
    known = targets >= 0
    cells = targets * classes + predicted + _image_numbers(targets) * classes**2
    counts = torch.bincount(cells[known], minlength=len(targets) * classes**2)
    return counts.view(len(targets), classes, classes)


def _image_numbers(targets: Tensor) -> Tensor:
    return torch.arange(len(targets), device=targets.device).view(-1, 1, 1)


def segment_metrics(classes: Sequence[str]) -> dict[str, Metric]:
    """Metrics that are updated with (PixelPredictions, anything).

    Parameters
    ----------
    classes : their names

    Returns
    -------
    metrics : over all labeled px "macro_f1", "accuracy", "balanced_accuracy", "kappa" and "f1_<class>"; the last are
        the Dice of a class over all px, too. "dice" is the mean over patches of the mean Dice of each patch's classes
    """
    found: dict[str, Metric] = {name: PixelScore(len(classes), score) for name, score in SCORES.items()}
    found |= {f"f1_{name}": PixelScore(len(classes), ClassF1(number)) for number, name in enumerate(classes)}
    return found | {"dice": MeanDice()}


class PixelScore(ConfusionScore):
    """A score of the confusion matrix of all labeled px, see `ConfusionScore`."""

    def update(self, predictions: PixelPredictions, targets: object) -> None:  # type: ignore[override]
        """Take a batch in."""
        self.counts += predictions.counts.sum(0)


class MeanDice(Metric):
    """Mean over patches of the mean Dice of the classes that a patch has, or is said to have; NaN without any px."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: PixelPredictions, targets: object) -> None:
        """Take a batch in."""
        counts = predictions.counts.double()
        sizes = counts.sum(1) + counts.sum(2)
        dice = 2 * counts.diagonal(dim1=1, dim2=2) / sizes.clamp_min(1)
        there = sizes > 0
        labeled = there.any(1)
        means = (dice * there).sum(1) / there.sum(1).clamp_min(1)
        self.sums += torch.stack([means[labeled].sum(), labeled.sum().double()]).to(self.sums)

    def compute(self) -> Tensor:
        """The mean of all batches."""
        return (self.sums[0] / self.sums[1]).float()
