"""A fusion without other magnifications: each context is replaced by the fine patches of the same area."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.backbones import PRECOMPUTED, Weights
from msdask.models.fusion import Branch, FeatureFusion, FusionOutput
from msdask.models.registry import register

__all__ = ["PooledContext"]


@register
class PooledContext(FeatureFusion):
    """Feature fusion whose coarser branches see, at the finest magnification, what a coarse patch would cover.

    The branch of a coarser magnification encodes the fine patches in that area, and the mean of their features,
    weighted by how much of the area each covers, takes the place of the coarse patch's. It has the parameters of
    `FeatureFusion` and its context, but no other magnification: the baseline that tells how much of a gain is
    magnification. With n + 1 losses the branch of an area learns the class of the coarse patch that it stands for.

    Parameters
    ----------
    classes, backbone, embedding, dropout, weights : see `FeatureFusion`
    magnifications : of the fusion that it stands for; the highest one is seen, the others say how large the areas are
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        backbone: str = "resnet34",
        embedding: int | None = 128,
        dropout: float = 0.0,
        weights: Weights = None,
    ) -> None:
        if len(magnifications) < 2:
            raise SpecError(f"magnifications={list(magnifications)!r}: expected two or more for PooledContext")
        super().__init__(
            classes, magnifications, backbone=backbone, embedding=embedding, dropout=dropout, weights=weights
        )
        del self.config["copies"]  # a branch for each area, always

    def forward(self, images: Tensor, area: Tensor | None = None) -> FusionOutput:
        """Logits of the whole and of every branch.

        Parameters
        ----------
        images : (B, K, 3, S, S) uint8, or float from 0 to 1: fine patches; (B, M, F) where features are precomputed,
            means over the areas
        area : (B, M, K) float, share of each area that a patch covers, 0 for patches outside of it
        """
        return self.combine(*self.encode(images, area))

    def encode(self, images: Tensor, area: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `MultiScaleClassifier.encode`."""
        if self.config["backbone"].startswith(PRECOMPUTED):
            return super().encode(images)
        count = len(self.magnifications)
        if images.ndim != 5 or area is None or area.shape != (len(images), count, images.shape[1]):
            found = None if area is None else tuple(area.shape)
            raise SpecError(
                f"images of shape {tuple(images.shape)}, area of shape {found}: expected (B, K, 3, S, S) fine patches "
                f"and (B, {count}, K), the share of each area that each of them covers"
            )
        pooled = [_pooled(branch, images, area[:, i]) for i, branch in enumerate(self.branches)]
        features = torch.stack([of[0] for of in pooled], dim=1)
        return features, torch.stack([of[1] for of in pooled], dim=1)


def _pooled(branch: nn.Module, images: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features (B, F) of a branch over an area, and their logits (B, C)."""
    assert isinstance(branch, Branch)
    weights = area / area.sum(1, keepdim=True)
    tuples, patches = weights.nonzero(as_tuple=True)
    encoded = branch.backbone(branch.normalize(images[tuples, patches]))
    # The embedding is linear: the mean of embeddings is the embedding of the mean.
    mean = encoded.new_zeros(len(images), encoded.shape[1], dtype=torch.float32)
    mean = mean.index_add(0, tuples, encoded.float() * weights[tuples, patches, None].float())
    features = branch.embedding(mean)
    return features, branch.head(branch.dropout(features))
