"""ClassifyTask: learning the class of tissue, with one loss or with one for the whole and one a magnification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from msdask.errors import SpecError
from msdask.models.fusion import FusionOutput, MultiScaleClassifier
from msdask.spec import format_magnification
from msdask.training.class_metrics import ClassPredictions, class_metrics
from msdask.training.task import Batch

__all__ = ["ClassifyTask", "Losses", "inputs"]

Losses = Literal["one", "n+1"]


class ClassifyTask:
    """Cross-entropy of the whole, and with n + 1 losses of every magnification too.

    One loss: CE(logits, label), the label being that of the centroid or of the finest patch. n + 1 losses: the same
    plus the sum over the magnifications of CE(branch_logits[i], label at i). A label of -1 at a coarser magnification
    adds nothing; the finest must have a class. Where a batch has ``whole`` (B,), that is the label of the whole.

    Parameters
    ----------
    classes : how many, or their names
    losses : "one" or "n+1"
    magnifications : of the model, for the names of the metrics of each; needed with "n+1"
    loss_weights : with "n+1", of the loss of the whole, then of that of each magnification, the highest first; None for
        1
    monitor : what of the validation decides which epoch is the best: "loss", or a metric such as "kappa"

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        losses: Losses = "one",
        *,
        magnifications: Sequence[float] = (),
        loss_weights: Sequence[float] | None = None,
        monitor: str = "loss",
    ) -> None:
        self.classes = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise SpecError(f"classes={classes!r}: expected two or more, each with a name of its own")
        if losses not in get_args(Losses):
            raise SpecError(f"losses={losses!r}: expected one of {', '.join(get_args(Losses))}")
        if losses == "n+1" and len(magnifications) < 2:
            raise SpecError(
                f"losses='n+1' with magnifications={list(magnifications)!r}: expected two or more; a single "
                "magnification has one loss"
            )
        if loss_weights is not None and losses == "one":
            raise SpecError(f"loss_weights={list(loss_weights)!r}: they go with losses='n+1'")
        self.losses: Losses = losses
        self.magnifications = tuple(sorted(map(float, magnifications), reverse=True))
        self.loss_weights = tuple(map(float, loss_weights)) if loss_weights is not None else None
        if self.loss_weights is not None and (
            len(self.loss_weights) != len(self.magnifications) + 1
            or not all(math.isfinite(w) and w >= 0 for w in self.loss_weights)
            or not self.loss_weights[0] > 0
        ):
            raise SpecError(
                f"loss_weights={list(self.loss_weights)!r}: expected {len(self.magnifications) + 1} numbers not below "
                "0, for the whole (above 0) and for each magnification"
            )
        self.monitor = monitor
        self.mode: Literal["min", "max"] = "min" if monitor == "loss" or monitor.startswith("ece") else "max"

    @property
    def config(self) -> dict[str, Any]:
        """What the task is."""
        return {
            "task": "classify",
            "classes": list(self.classes),
            "losses": self.losses,
            "magnifications": list(self.magnifications),
            "weights": None if self.loss_weights is None else list(self.loss_weights),
        }

    @property
    def views(self) -> list[str]:
        """What is measured: "" for the whole, and with n + 1 losses each magnification, such as "20x"."""
        taught = self.magnifications if self.losses == "n+1" else ()
        return ["", *map(format_magnification, taught)]

    def prepare(self, model: nn.Module) -> None:
        """Freeze what no loss reaches: with one loss the branches' own classes, unless the whole follows from them.

        They stay as they are, whatever the weight decay, and distributed training does not wait for their gradients.
        """
        self._check_model(model)
        assert isinstance(model, MultiScaleClassifier)
        is_taught = self.losses == "n+1" or model.uses_branch_logits
        for branch in model.branches:
            assert isinstance(branch.head, nn.Linear)
            branch.head.requires_grad_(is_taught)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[ClassPredictions, Tensor]]:
        """Loss of a batch; probabilities of the whole and of each magnification that is taught, and their labels."""
        self._check_model(model)
        targets = self._targets(batch["label"], batch.get("whole"))
        output: FusionOutput = model(*inputs(batch))
        logits = output.logits.unsqueeze(1)
        if self.losses == "n+1":
            logits = torch.cat([logits, output.branch_logits], dim=1)
        weights = self.loss_weights or (1.0,) * len(self.views)
        loss = sum(
            (weight * _cross_entropy(logits[:, i], targets[:, i]) for i, weight in enumerate(weights)),
            start=logits.new_zeros(()),
        )
        attention = None if output.attention is None else output.attention.detach()
        return loss, (ClassPredictions(logits.detach().softmax(-1), attention), targets)

    def metrics(self) -> dict[str, Metric]:
        """New metrics."""
        return dict(class_metrics(self.classes, self.views))

    def _targets(self, label: Tensor, whole: Tensor | None) -> Tensor:
        """Labels (B, V) of the whole, and with n + 1 losses of each magnification."""
        finest = whole if whole is not None else label if label.ndim == 1 else label[:, 0]
        lowest, highest = int(finest.min()), max(int(finest.max()), int(label.max()))
        if lowest < 0 or highest >= len(self.classes):
            wrong = lowest if lowest < 0 else highest
            raise SpecError(
                f"label {wrong} in a batch: expected classes 0 to {len(self.classes) - 1}; take labeled patches only "
                "(PatchDataset(..., labels='labeled')) and say how many classes there are (classes=, --classes)"
            )
        if self.losses == "one":
            return finest.unsqueeze(1)
        if label.ndim == 1 or label.shape[1] != len(self.magnifications):
            raise SpecError(
                f"labels of shape {tuple(label.shape)}: n + 1 losses need one at each of {len(self.magnifications)} "
                "magnifications: PatchDataset(..., target='labels')"
            )
        return torch.cat([finest.unsqueeze(1), label], dim=1)

    def _check_model(self, model: nn.Module) -> None:
        if not isinstance(model, MultiScaleClassifier):
            raise SpecError(f"model of class {type(model).__name__}: expected a classifier such as FeatureFusion")
        if model.classes != len(self.classes):
            raise SpecError(f"the model has {model.classes} classes, the task {len(self.classes)}")
        if self.losses == "n+1" and model.magnifications != self.magnifications:
            raise SpecError(f"the model is for {list(model.magnifications)}, the task for {list(self.magnifications)}")


def inputs(batch: Batch) -> tuple[Tensor, ...]:
    """What a classifier's `forward` and `encode` take of a batch: images or features, and areas if there are some."""
    given = batch["features"] if "features" in batch else batch["image"]
    return (given, batch["area"]) if "area" in batch else (given,)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over what has a label; 0 where nothing has one."""
    summed = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return summed / (targets >= 0).sum().clamp_min(1)
