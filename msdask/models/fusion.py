"""Classifiers of tissue at one magnification or several: a branch for each, and four ways to bring them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.backbones import PRECOMPUTED, Normalization, Weights, make_backbone
from msdask.models.registry import register
from msdask.spec import format_magnification

__all__ = [
    "AttentionFusion",
    "Branch",
    "FeatureFusion",
    "Fuse",
    "FusionOutput",
    "MultiScaleClassifier",
    "PredictionFusion",
    "SingleScale",
]

Fuse = Literal["logits", "probabilities"]


class FusionOutput(NamedTuple):
    """What a classifier says of a batch.

    Attributes
    ----------
    logits : (B, C) of the whole
    branch_logits : (B, M, C) of each magnification alone
    attention : (B, M), how much each magnification was looked at, adding up to 1; None for models without attention
    """

    logits: Tensor
    branch_logits: Tensor
    attention: Tensor | None = None


class Branch(nn.Module):
    """One magnification: backbone, optional embedding, and classes of its own.

    Attributes
    ----------
    n_features : of what `forward` gives first
    """

    def __init__(self, backbone: str, classes: int, *, embedding: int | None, dropout: float, weights: Weights) -> None:
        super().__init__()
        self.normalize = Normalization(backbone)
        self.backbone = make_backbone(backbone, weights=weights)
        self.n_features = embedding or self.backbone.n_features
        self.embedding = nn.Linear(self.backbone.n_features, embedding) if embedding is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.n_features, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, n_features), not dropped out, and logits (B, C) of images (B, 3, S, S)."""
        features: Tensor = self.embedding(self.backbone(self.normalize(images)))
        logits: Tensor = self.head(self.dropout(features))
        return features, logits


class MultiScaleClassifier(nn.Module):
    """What all classifiers share: a branch for each magnification, of one architecture, with weights of its own.

    Parameters
    ----------
    classes : how many
    magnifications : of a tuple's images; sorted, the highest first, which is the order of a batch's images
    backbone : a classification network of torchvision by name, or "scalenet", which trains on two cores
    embedding : width of the linear layer behind each backbone, None for none
    dropout : probability, before each branch's own classes; off in evaluation. The features that are fused are not
        dropped out
    copies : branches of each magnification, with weights of their own; their logits are averaged. A fusion of one
        magnification in three copies has the parameters of one of three magnifications, and sees no context: the
        baseline that tells what of a gain is size
    weights : of the backbones: None, "imagenet" or a file, see `make_backbone`

    Attributes
    ----------
    branches : one a magnification, or `copies` of it one after the other
    n_features : of one branch
    config : what is saved with the model

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    branches: nn.ModuleList

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = 128,
        dropout: float = 0.0,
        copies: int = 1,
        weights: Weights = None,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise SpecError(f"classes={classes!r}: expected at least 2")
        if not magnifications or len(set(magnifications)) < len(magnifications):
            raise SpecError(f"magnifications={list(magnifications)!r}: expected one or more, each once")
        if not all(math.isfinite(m) and m > 0 for m in magnifications):
            raise SpecError(f"magnifications={list(magnifications)!r}: expected numbers above 0, such as 20")
        if not 0 <= dropout < 1:
            raise SpecError(f"dropout={dropout!r}: expected a probability from 0 to below 1")
        if embedding is not None and embedding < 1:
            raise SpecError(f"embedding={embedding!r}: expected a width of at least 1, or None")
        if copies < 1:
            raise SpecError(f"copies={copies!r}: expected at least 1")
        self.classes, self.copies = classes, copies
        self.magnifications: tuple[float, ...] = tuple(sorted(map(float, magnifications), reverse=True))
        self.config: dict[str, Any] = {
            "classes": classes,
            "magnifications": list(self.magnifications),
            "backbone": backbone,
            "embedding": embedding,
            "dropout": dropout,
            "copies": copies,
        }
        made = [
            Branch(backbone, classes, embedding=embedding, dropout=dropout, weights=weights)
            for _ in range(len(self.magnifications) * copies)
        ]
        self.branches, self.n_features = nn.ModuleList(made), made[0].n_features

    @property
    def uses_branch_logits(self) -> bool:
        """Whether the logits of the whole follow from those of the branches: then one loss teaches these, too."""
        return False

    def forward(self, images: Tensor) -> FusionOutput:
        """Logits of the whole and of every branch; no softmax is applied.

        Parameters
        ----------
        images : (B, M, 3, S, S) uint8, or float from 0 to 1; RGB, the highest magnification first. With a backbone
            such as "features-512": (B, M, 512) float, what a frozen backbone says of them

        Raises
        ------
        SpecError
            Images at another number of magnifications.
        """
        return self.combine(*self.encode(images))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, N, F), not dropped out, and logits (B, N, C) of N branches; what `forward` combines."""
        takes_features = self.config["backbone"].startswith(PRECOMPUTED)
        if images.ndim != (3 if takes_features else 5) or images.shape[1] != len(self.magnifications):
            named = ", ".join(format_magnification(m) for m in self.magnifications)
            shape, what = ("F", "features") if takes_features else ("3, S, S", "an image")
            raise SpecError(
                f"images of shape {tuple(images.shape)}: expected (B, {len(self.magnifications)}, {shape}), {what} "
                f"for each of {named}"
            )
        found = [branch(images[:, i // self.copies]) for i, branch in enumerate(self.branches)]
        features, branch_logits = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
        return features, branch_logits

    def combine(self, features: Tensor, branch_logits: Tensor) -> FusionOutput:
        """What the whole says, of what `encode` gave."""
        logits, attention = self.fuse(features, branch_logits)
        by_scale = (len(self.magnifications), self.copies)
        # Losses and probabilities are float32 whatever precision the layers had.
        return FusionOutput(
            logits.float(),
            branch_logits.float().unflatten(1, by_scale).mean(2),
            None if attention is None else attention.float().unflatten(1, by_scale).sum(2),
        )

    def fuse(self, features: Tensor, branch_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C) of the whole and attention, from features (B, N, F) and logits (B, N, C) of N branches."""
        raise NotImplementedError

    def branch(self, magnification: float) -> SingleScale:
        """One branch as a model of its own, which shares its weights: what this magnification says alone."""
        if magnification not in self.magnifications:
            raise SpecError(f"magnification {magnification:g}: the model has {list(self.magnifications)}")
        if self.copies > 1:
            raise SpecError(f"{self.copies} branches see {magnification:g}x: none of them alone is what it says")
        options = {name: self.config[name] for name in ("backbone", "embedding", "dropout")}
        with torch.device("meta"):  # its own branch is replaced: no memory is taken for it
            single = SingleScale(self.classes, [magnification], **options)
        single.branches[0] = self.branches[self.magnifications.index(magnification)]
        return single.train(self.training)


@register
class SingleScale(MultiScaleClassifier):
    """The baseline: one magnification, one branch, whose logits are those of the whole.

    Parameters
    ----------
    classes, magnifications, backbone, embedding, dropout, weights : see `MultiScaleClassifier`; one magnification

    Examples
    --------
    >>> model = SingleScale(5, [10], backbone="scalenet").eval()
    >>> model(torch.zeros(2, 1, 3, 64, 64, dtype=torch.uint8)).logits.shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = None,
        dropout: float = 0.0,
        weights: Weights = None,
    ) -> None:
        if len(magnifications) != 1:
            raise SpecError(f"magnifications={list(magnifications)!r}: expected one for SingleScale")
        super().__init__(
            classes, magnifications, backbone=backbone, embedding=embedding, dropout=dropout, weights=weights
        )

        del self.config["copies"]  # there is one branch, always

    @property
    def uses_branch_logits(self) -> bool:
        """They are the same."""
        return True

    def fuse(self, features: Tensor, branch_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `MultiScaleClassifier.fuse`."""
        return branch_logits[:, 0], None


@register
class FeatureFusion(MultiScaleClassifier):
    """One linear layer over the features of all branches ("combine features").

    It is a sum of one function a magnification: a class that is the XOR of what two magnifications show is beyond it.

    Parameters
    ----------
    classes, magnifications, backbone, embedding, dropout, copies, weights : see `MultiScaleClassifier`
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = 128,
        dropout: float = 0.0,
        copies: int = 1,
        weights: Weights = None,
    ) -> None:
        super().__init__(
            classes,
            magnifications,
            backbone=backbone,
            embedding=embedding,
            dropout=dropout,
            copies=copies,
            weights=weights,
        )
        self.head = nn.Linear(len(self.branches) * self.n_features, classes)

    def fuse(self, features: Tensor, branch_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `MultiScaleClassifier.fuse`."""
        return self.head(features.flatten(1)), None


@register
class PredictionFusion(MultiScaleClassifier):
    """One linear layer over the branches' classes ("combine predictions").

    Over logits it is a sum of one function a magnification, as `FeatureFusion` is, and so it is over probabilities.

    Parameters
    ----------
    classes, magnifications, backbone, embedding, dropout, copies, weights : see `MultiScaleClassifier`
    fuse : what is combined: the branches' "logits", as in the original, or their "probabilities"
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = 128,
        dropout: float = 0.0,
        copies: int = 1,
        fuse: Fuse = "logits",
        weights: Weights = None,
    ) -> None:
        super().__init__(
            classes,
            magnifications,
            backbone=backbone,
            embedding=embedding,
            dropout=dropout,
            copies=copies,
            weights=weights,
        )
        if fuse not in get_args(Fuse):
            raise SpecError(f"fuse={fuse!r}: expected one of {', '.join(get_args(Fuse))}")
        self.config["fuse"] = fuse
        self.fuses: Fuse = fuse
        self.head = nn.Linear(len(self.branches) * classes, classes)

    @property
    def uses_branch_logits(self) -> bool:
        """They are what is fused."""
        return True

    def fuse(self, features: Tensor, branch_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `MultiScaleClassifier.fuse`."""
        given = branch_logits.softmax(-1) if self.fuses == "probabilities" else branch_logits
        return self.head(given.flatten(1)), None


@register
class AttentionFusion(MultiScaleClassifier):
    """Magnifications as tokens of one transformer layer, their mean, one linear layer.

    Each token is the features of a branch and a learnt vector for its magnification; the layer normalizes before
    attention and before its two linear layers. Unlike the sums above it can learn the XOR of two magnifications.

    Parameters
    ----------
    classes, magnifications, backbone, embedding, dropout, copies, weights : see `MultiScaleClassifier`
    heads : of the attention; they divide the width of the features
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = 128,
        dropout: float = 0.0,
        copies: int = 1,
        heads: int = 4,
        weights: Weights = None,
    ) -> None:
        super().__init__(
            classes,
            magnifications,
            backbone=backbone,
            embedding=embedding,
            dropout=dropout,
            copies=copies,
            weights=weights,
        )
        width = self.n_features
        if heads < 1 or width % heads:
            raise SpecError(f"heads={heads!r}: expected a divisor of the width of the features, {width}")
        self.config["heads"] = heads
        self.scales = nn.Parameter(0.02 * torch.randn(len(self.branches), width))
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mix_norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def fuse(self, features: Tensor, branch_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `MultiScaleClassifier.fuse`; the attention is the mean over heads and over the tokens that look."""
        tokens = features + self.scales
        normal = self.attention_norm(tokens)
        seen, weights = self.attention(normal, normal, normal, need_weights=True)
        tokens = tokens + seen
        tokens = tokens + self.mix(self.mix_norm(tokens))
        return self.head(tokens.mean(1)), weights.mean(1)
