"""Metrics of the scale detector, in magnification units and on the nearest nominal magnification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCohenKappa, MulticlassConfusionMatrix
from torchmetrics.regression import ExplainedVariance, MeanSquaredError, R2Score

from msdask.scale import SCALE_CLASSES

__all__ = [
    "SCALE_CLASSES",
    "BalancedScaleAccuracy",
    "MaxError",
    "ScaleKappa",
    "ScaleR2",
    "nearest_class",
    "scale_metrics",
]


def nearest_class(magnification: Tensor, classes: Tensor) -> Tensor:
    """Index of the nearest of `classes` (K,), ascending; halfway between two, the lower one."""
    return (magnification.float().unsqueeze(-1) - classes).abs().argmin(-1)


def scale_metrics(classes: Sequence[float] = SCALE_CLASSES) -> dict[str, Metric]:
    """Metrics that are updated with (estimated, true) magnifications (B,).

    Returns
    -------
    metrics : "r2", "mse", "max_error", "explained_variance" in magnification units; "balanced_accuracy" and "kappa"
        (Cohen's, quadratic weights) after both are put to the nearest class. "r2" of one image is NaN
    """
    return {
        "r2": ScaleR2(),
        "mse": MeanSquaredError(),
        "max_error": MaxError(),
        "explained_variance": ExplainedVariance(),
        "balanced_accuracy": BalancedScaleAccuracy(classes),
        "kappa": ScaleKappa(classes),
    }


class ScaleR2(R2Score):
    """R2, which is NaN where there are fewer than two images: torchmetrics raises there, after an epoch's work."""

    def compute(self) -> Tensor:
        """R2 of all images, or NaN."""
        if self.total < 2:
            return torch.full_like(self.residual, torch.nan)
        return super().compute()


class MaxError(Metric):
    """Largest absolute difference."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        self.largest = torch.maximum(self.largest, (predictions - targets).abs().max())

    def compute(self) -> Tensor:
        """The largest so far."""
        return self.largest


class ScaleKappa(MulticlassCohenKappa):
    """Cohen's kappa with quadratic weights between nearest classes."""

    classes: Tensor

    def __init__(self, classes: Sequence[float] = SCALE_CLASSES) -> None:
        super().__init__(len(classes), weights="quadratic", validate_args=False)
        self.register_buffer("classes", torch.tensor(sorted(classes)), persistent=False)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch of magnifications in."""
        super().update(nearest_class(predictions, self.classes), nearest_class(targets, self.classes))


class BalancedScaleAccuracy(MulticlassConfusionMatrix):
    """Mean, over the classes that occur in the truth, of the share of each that is recognized."""

    classes: Tensor

    def __init__(self, classes: Sequence[float] = SCALE_CLASSES) -> None:
        super().__init__(len(classes), validate_args=False)
        self.register_buffer("classes", torch.tensor(sorted(classes)), persistent=False)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch of magnifications in."""
        super().update(nearest_class(predictions, self.classes), nearest_class(targets, self.classes))

    def compute(self) -> Tensor:
        """The balanced accuracy."""
        counts = super().compute().double()
        occurs = counts.sum(1) > 0
        return (counts.diagonal()[occurs] / counts.sum(1)[occurs]).mean().float()
