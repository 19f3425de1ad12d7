"""Rows of an experiment's table: which model each is, made of the grid that the configuration spans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from msdask.models.backbones import PRECOMPUTED
from msdask.models.fusion import MultiScaleClassifier
from msdask.models.hooknet import HookNet
from msdask.models.registry import create
from msdask.models.segmentation import SegmentationModel
from msdask.models.unet import UNet
from msdask.spec import format_magnification
from msdask.training.classify_task import ClassifyTask, Losses
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.segment_task import SegmentTask

__all__ = ["Row", "rows_of"]

Kind = Literal["single", "features", "predictions", "attention", "matched", "pooled", "unet", "hooknet"]
_CLASSES = {
    "single": "SingleScale",
    "features": "FeatureFusion",
    "predictions": "PredictionFusion",
    "attention": "AttentionFusion",
    "pooled": "PooledContext",
}
_TITLES = {
    "single": "single scale",
    "features": "combine features",
    "predictions": "combine predictions",
    "attention": "combine by attention",
    "pooled": "fine patches for contexts",
    "unet": "U-Net",
    "hooknet": "HookNet",
}
_FUSIONS = ("features", "predictions", "attention", "hooknet")


@dataclass(frozen=True)
class Row:
    """One row: a model, which is trained and tested once a split.

    Attributes
    ----------
    kind : what brings magnifications together, or which baseline it is
    magnifications : that it sees; of "pooled" those of the fusion that it stands for
    losses : that it is trained with
    copies : branches of its one magnification, for "matched"
    head : of "matched", what brings the copies together
    """

    kind: Kind
    magnifications: tuple[float, ...]
    losses: Losses = "one"
    copies: int = 1
    head: str = ""

    @property
    def scales(self) -> str:
        """Its magnifications, as in the paper's tables: "5x/10x"; of HookNet the target first: "20x, 5x"."""
        if self.kind == "hooknet":
            return ", ".join(map(format_magnification, self.magnifications))
        return "/".join(format_magnification(m) for m in reversed(self.magnifications))

    @property
    def title(self) -> str:
        """What kind of model it is, in words."""
        if self.head == "hooknet":
            return "U-Net, as many parameters"
        return f"single scale, {self.copies} branches" if self.kind == "matched" else _TITLES[self.kind]

    @property
    def name(self) -> str:
        """Unique in a table; the name of its folder."""
        scales = "-".join(format_magnification(m) for m in self.magnifications)
        copies = f"-{self.copies}-branches" if self.copies > 1 else ""
        if self.kind in ("unet", "hooknet") or self.head == "hooknet":
            return f"{self.kind}-{scales}"
        return f"{self.kind}-{scales}{copies}-{'n+1' if self.losses == 'n+1' else 'one'}"

    @property
    def is_single(self) -> bool:
        """Whether it is one of the models that a fusion is compared with the best of."""
        return self.kind in ("single", "unet")

    @property
    def is_fusion(self) -> bool:
        """Whether it is one of the models that the experiment asks about."""
        return self.kind in _FUSIONS

    def model(
        self, config: ExperimentConfig, classes: int, *, width: int | None = None
    ) -> MultiScaleClassifier | SegmentationModel:
        """The network, not trained yet.

        Parameters
        ----------
        config : backbone, weights (None, "imagenet" or a file: decided before), embedding, dropout
        classes : how many
        width : of the features that were computed before; None: it takes images
        """
        if config.task == "segment":
            return segmentation_model(self, config, classes)
        kind = self.head if self.kind == "matched" else self.kind
        options: dict[str, Any] = {"dropout": config.dropout}
        options["backbone"] = config.backbone if width is None else f"{PRECOMPUTED}{width}"
        options["weights"] = None if config.weights == "none" or width is not None else config.weights
        if config.embedding is not None:
            options["embedding"] = config.embedding or None
        if kind == "predictions":
            options["fuse"] = config.fuse
        if self.copies > 1:
            options["copies"] = self.copies
        model = create(_CLASSES[kind], classes=classes, magnifications=list(self.magnifications), **options)
        assert isinstance(model, MultiScaleClassifier)
        return model

    def parameters(self, config: ExperimentConfig, classes: int, *, width: int | None = None) -> int:
        """How many parameters its network has, counted on one that takes no memory."""
        with torch.device("meta"):
            model = self.model(replace(config, weights="none"), classes, width=width)
        return sum(p.numel() for p in model.parameters())

    def task(self, config: ExperimentConfig, classes: tuple[str, ...]) -> ClassifyTask | SegmentTask:
        """What it learns."""
        if config.task == "segment":
            of_target, of_context = config.loss_weights or (1.0, 0.0)
            shares = (of_target, *[of_context] * (len(self.magnifications) - 1))
            return SegmentTask(classes, loss_weights=shares, monitor=config.monitor)
        scales = self.magnifications if self.losses == "n+1" else ()
        weights = None
        if config.loss_weights is not None and scales:
            whole, each = config.loss_weights
            weights = (whole, *[each] * len(scales))
        return ClassifyTask(classes, self.losses, magnifications=scales, loss_weights=weights, monitor=config.monitor)


def rows_of(config: ExperimentConfig, classes: int, *, width: int | None = None) -> list[Row]:
    """All rows, in the order of the paper's Table 4: single scales, fusions, then the baselines.

    The baseline with a fusion's parameters has a branch of one magnification for each branch of the fusion. It has the
    head of the largest fusion of these magnifications, so that it is never smaller than one of them; there is one for
    each magnification. Pooled contexts are there with each of the losses: with n + 1 each branch learns the class of
    the coarse patch whose area it pools, as the fusion's branches do.

    Parameters
    ----------
    config : of the experiment
    classes, width : see `Row.model`; for the counting of parameters
    """
    if config.task == "segment":
        return _segment_rows(config)
    singles = sorted(s for s in config.magnifications if len(s) == 1)
    fused = sorted((s for s in config.magnifications if len(s) > 1), key=lambda s: (len(s), s))
    fusions = [m for m in _FUSIONS if m in config.models]
    rows = [Row("single", s) for s in singles if "single" in config.models]
    for kind in fusions:
        rows += [Row(kind, s, losses) for s in fused for losses in config.losses]  # type: ignore[arg-type]
    if fusions and "matched" in config.baselines:
        for s in fused:
            largest = max(fusions, key=lambda kind: Row(kind, s).parameters(config, classes, width=width))  # type: ignore[arg-type]
            rows += [Row("matched", (m,), copies=len(s), head=largest) for m in reversed(s)]
    if fusions and "pooled" in config.baselines:
        rows += [Row("pooled", s, losses) for s in fused for losses in config.losses]
    return list(dict.fromkeys(rows))


def _segment_rows(config: ExperimentConfig) -> list[Row]:
    """In the order of the paper's Tables 5 and 6: U-Nets, the coarsest first, then HookNets, then what is as large."""
    singles = sorted(s for s in config.magnifications if len(s) == 1)
    rows = [Row("unet", s) for s in singles if "unet" in config.models]
    hooked = (
        sorted((s for s in config.magnifications if len(s) > 1), reverse=True) if "hooknet" in config.models else []
    )
    rows += [Row("hooknet", s) for s in hooked]
    if "matched" in config.baselines:
        for target in sorted({s[0] for s in hooked}):
            contexts = min(len(s) for s in hooked if s[0] == target)
            rows.append(Row("matched", (target,), copies=contexts, head="hooknet"))
    return rows


def segmentation_model(row: Row, config: ExperimentConfig, classes: int) -> SegmentationModel:
    """The U-Net or HookNet of a row, not trained yet."""
    made = partial(UNet, classes, row.magnifications, depth=config.depth)
    if row.kind == "unet":
        return made(filters=config.unet_filters or config.filters)
    hooknet = partial(HookNet, classes, filters=config.filters, depth=config.depth, merge=config.merge)
    if row.kind == "hooknet":
        return hooknet(row.magnifications, context_size=config.context_size)
    with torch.device("meta"):
        aim = _count(hooknet([row.magnifications[0] / 2**k for k in range(row.copies)]))
        about = round(config.filters * row.copies**0.5)
        near = range(max(1, about - 2), about + 3)
        filters = min(near, key=lambda n: abs(_count(made(filters=n)) - aim))
    return made(filters=filters)


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
