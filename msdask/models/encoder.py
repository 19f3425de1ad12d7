"""Encoder: a frozen backbone that gives features, and what becomes of a model of features when it gets one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from msdask.errors import MsdaskError
from msdask.models.backbones import Normalization, make_backbone
from msdask.models.files import weights_hash
from msdask.models.fusion import Branch, MultiScaleClassifier

__all__ = ["Encoder", "encoder_of", "with_encoder"]


class Encoder(nn.Module):
    """A frozen backbone: features (B, F) float32 of images (B, 3, S, S) uint8.

    Attributes
    ----------
    about : what it is made from again: backbone, weights, seed, and its digest
    width : F
    digest : SHA-256 (hex) of its name and weights
    """

    def __init__(self, backbone: str, weights: str | None, seed: int) -> None:
        super().__init__()
        self.normalize = Normalization(backbone)
        self.backbone = make_backbone(backbone, weights=weights)
        self.width = self.backbone.n_features
        self.digest = hashlib.sha256(f"{backbone} {weights_hash(self.backbone)}".encode()).hexdigest()
        self.about = {"backbone": backbone, "weights": weights or "none", "seed": seed, "digest": self.digest}
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        features: Tensor = self.backbone(self.normalize(images)).float()
        return features


_MAKING = threading.Lock()
"""Held while weights are drawn: random numbers are one state of the whole process."""


def encoder_of(backbone: str, weights: str, seed: int) -> Encoder:
    """A frozen backbone, made once in a process; random weights ("none") follow from the seed.

    Raises
    ------
    SpecError, MsdaskError
        See `make_backbone`.
    """
    with _MAKING:
        return _made(backbone, weights, seed)


@lru_cache(maxsize=1)
def _made(backbone: str, weights: str, seed: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(backbone, None if weights == "none" else weights, seed)


def with_encoder(network: MultiScaleClassifier, about: Mapping[str, Any]) -> None:
    """Make a model of features take images: every branch gets the backbone that the features are of.

    Parameters
    ----------
    network : whose backbone is "features-<width>"; changed in place
    about : of the encoder, see `Encoder.about`

    Raises
    ------
    MsdaskError
        The backbone cannot be made again, or has other weights than it had.
    """
    encoder = encoder_of(about["backbone"], about["weights"], about["seed"])
    if encoder.digest != about["digest"]:
        raise MsdaskError(
            f"backbone {about['backbone']!r}: weights {about['weights']!r} are others than those whose features the "
            "model learnt from: put these back, or train it again"
        )
    device = next(network.parameters()).device
    for branch in network.branches:
        assert isinstance(branch, Branch)
        branch.normalize, branch.backbone = encoder.normalize, encoder.backbone
    network.to(device)
    network.config["backbone"] = about["backbone"]
