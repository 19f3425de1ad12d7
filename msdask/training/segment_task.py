"""SegmentTask: learning the class of every px, with a loss of the target and, if wanted, of its contexts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from msdask.errors import SpecError
from msdask.models.hooknet import HookNet
from msdask.models.segmentation import SegmentationModel, SegmentOutput, center_crop
from msdask.training.segment_metrics import PixelPredictions, pixel_confusion, segment_metrics
from msdask.training.task import Batch

__all__ = ["SegmentTask"]


class SegmentTask:
    """Cross-entropy of the px of the target, and of those of each context: w_t CE(target) + w_c CE(context).

    Label maps are cropped to what comes out of the model. Px without a label, 0 in a label map, count nowhere.

    Parameters
    ----------
    classes : how many, or their names
    loss_weights : of the target, then of each context; shorter ones are filled with 0. HookNet's authors took (1, 0),
        for breast (0.75, 0.25)
    class_weights : of each class in the loss; None: 1
    monitor : what of the validation decides which epoch is the best: "loss", or a metric such as "macro_f1"

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        loss_weights: Sequence[float] = (1.0,),
        class_weights: Sequence[float] | None = None,
        monitor: str = "macro_f1",
    ) -> None:
        self.classes = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise SpecError(f"classes={classes!r}: expected two or more, each with a name of its own")
        self.loss_weights = tuple(map(float, loss_weights))
        if (
            not self.loss_weights
            or not all(math.isfinite(w) and w >= 0 for w in self.loss_weights)
            or not self.loss_weights[0] > 0
        ):
            raise SpecError(
                f"loss_weights={list(loss_weights)!r}: expected numbers not below 0: of the target (above 0), then of "
                "each context, such as [0.75, 0.25]"
            )
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        if self.class_weights is not None and (
            len(self.class_weights) != len(self.classes)
            or not all(math.isfinite(w) and w > 0 for w in self.class_weights)
        ):
            raise SpecError(
                f"class_weights={list(self.class_weights)!r}: expected {len(self.classes)} numbers above 0, one a class"
            )
        self.monitor = monitor
        self.mode: Literal["min", "max"] = "min" if monitor == "loss" else "max"

    @property
    def config(self) -> dict[str, Any]:
        """What the task is."""
        return {
            "task": "segment",
            "classes": list(self.classes),
            "loss_weights": list(self.loss_weights),
            "class_weights": None if self.class_weights is None else list(self.class_weights),
        }

    @property
    def teaches_contexts(self) -> bool:
        """Whether the contexts' own classes are learnt."""
        return any(self.loss_weights[1:])

    def prepare(self, model: nn.Module) -> None:
        """Freeze what no loss reaches: without a loss of its own, what a context has beyond its hook.

        It stays as it is, whatever the weight decay, and distributed training does not wait for its gradients.
        """
        self._check_model(model)
        if isinstance(model, HookNet):
            for module in model.beyond_hooks():
                module.requires_grad_(self.teaches_contexts)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[PixelPredictions, Tensor]]:
        """Loss of a batch; the confusion of its target's px, and their classes (B, s, s)."""
        self._check_model(model)
        if "label_map" not in batch:
            raise SpecError("a batch without label maps: PatchDataset(..., label_maps=True) reads them")
        output: SegmentOutput = model(batch["image"], contexts=self.teaches_contexts)
        targets = self._targets(batch["label_map"][:, 0], output.logits)
        loss = self.loss_weights[0] * self._cross_entropy(output.logits, targets)
        for i, (weight, logits) in enumerate(zip(self.loss_weights[1:], output.context_logits, strict=False), start=1):
            if weight:
                own = self._targets(batch["label_map"][:, i], logits)
                loss = loss + weight * self._cross_entropy(logits, own)
        counts = pixel_confusion(output.logits.detach().argmax(1), targets, len(self.classes))
        return loss, (PixelPredictions(counts), targets)

    def metrics(self) -> dict[str, Metric]:
        """New metrics."""
        return segment_metrics(self.classes)

    def _targets(self, maps: Tensor, logits: Tensor) -> Tensor:
        """Classes (B, s, s) int64 of the px of an output, -1 for none."""
        targets = center_crop(maps, logits.shape[-1]).long() - 1
        if (highest := int(targets.max())) >= len(self.classes):
            raise SpecError(
                f"class {highest} in a label map: expected classes 0 to {len(self.classes) - 1}; say how many there "
                "are (classes=, --classes)"
            )
        return targets

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Weighted mean over what has a label; 0 where nothing has one."""
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        summed = F.cross_entropy(logits, targets, weight, ignore_index=-1, reduction="sum")
        known = targets >= 0
        total = known.sum() if weight is None else weight[targets.clamp_min(0)].where(known, weight.new_zeros(())).sum()
        return summed / total.clamp_min(torch.finfo(logits.dtype).tiny)

    def _check_model(self, model: nn.Module) -> None:
        if not isinstance(model, SegmentationModel):
            raise SpecError(f"model of class {type(model).__name__}: expected one of segmentation, such as HookNet")
        if model.classes != len(self.classes):
            raise SpecError(f"the model has {model.classes} classes, the task {len(self.classes)}")
        contexts = len(model.magnifications) - 1
        if len(self.loss_weights) - 1 > contexts:
            raise SpecError(
                f"loss_weights={list(self.loss_weights)}: {type(model).__name__} has {contexts} contexts, expected at "
                f"most {contexts + 1} weights"
            )
