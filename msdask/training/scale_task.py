"""ScaleTask: learning the magnification of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from msdask.errors import SpecError
from msdask.models.regressor import ScaleRegressor
from msdask.training.scale_metrics import SCALE_CLASSES, scale_metrics
from msdask.training.task import Batch

__all__ = ["ScaleLoss", "ScaleTask"]

ScaleLoss = Literal["l1", "mse", "huber"]


class ScaleTask:
    """Loss in the target space of a ScaleRegressor, metrics in magnification units.

    Parameters
    ----------
    loss : "l1" (the original's default), "mse" or "huber"
    delta : where Huber's loss turns linear, in target units: 0.25 is a quarter of an octave for a log2 target
    classes : nominal magnifications for balanced accuracy and kappa
    """

    monitor = "loss"
    mode: Literal["min"] = "min"

    def __init__(self, loss: ScaleLoss = "l1", *, delta: float = 1.0, classes: Sequence[float] = SCALE_CLASSES) -> None:
        if loss not in get_args(ScaleLoss):
            raise SpecError(f"loss={loss!r}: expected one of {', '.join(get_args(ScaleLoss))}")
        if not delta > 0:
            raise SpecError(f"delta={delta!r}: expected a number above 0")
        if len(set(classes)) < 2:
            raise SpecError(f"classes={list(classes)!r}: expected two or more different magnifications")
        self.kind: ScaleLoss = loss
        self.delta = delta
        self.classes = tuple(sorted(set(classes)))

    @property
    def config(self) -> dict[str, Any]:
        """What the task is."""
        return {"task": "scale", "loss": self.kind, "delta": self.delta, "classes": list(self.classes)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Loss of a batch, and (estimated, true) magnifications; every magnification of a tuple is an image."""
        assert isinstance(model, ScaleRegressor)
        truth = batch["magnification"].flatten()
        output = model(batch["image"].flatten(0, 1))
        target = model.to_target(truth)
        if self.kind == "l1":
            loss = F.l1_loss(output, target)
        elif self.kind == "mse":
            loss = F.mse_loss(output, target)
        else:
            loss = F.huber_loss(output, target, delta=self.delta)
        return loss, (model.calibrated(output.detach()), truth)

    def metrics(self) -> dict[str, Metric]:
        """New metrics."""
        return scale_metrics(self.classes)
