"""ScaleRegressor: the magnification of an image of tissue, from its pixels alone."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.backbones import Normalization, Weights, make_backbone
from msdask.models.registry import register

__all__ = ["ScaleRegressor", "Target"]

Target = Literal["linear", "log2"]

_CENTER = 14.0
"""Magnification that an untrained network says, about the middle of 5x to 40x."""


@register
class ScaleRegressor(nn.Module):
    """Backbone, global average pooling, optional embedding with dropout, one output.

    Parameters
    ----------
    backbone : a classification network of torchvision by name, or "scalenet"
    embedding : width of the layer between features and output, None for none
    dropout : probability, before and after the embedding; off in evaluation
    target : what the output is: the magnification ("linear"), or its base-2 logarithm ("log2": errors in scale are
        relative)
    weights : of the backbone: None, "imagenet" or a file, see `make_backbone`

    Attributes
    ----------
    calibration : (2,) buffer, slope and offset in target space, that `magnification` applies to the output

    Examples
    --------
    >>> model = ScaleRegressor("scalenet", target="log2").eval()
    >>> model.magnification(torch.zeros(2, 3, 96, 96, dtype=torch.uint8)).shape
    torch.Size([2])
    """

    calibration: Tensor

    def __init__(
        self,
        backbone: str = "resnet34",
        *,
        embedding: int | None = 128,
        dropout: float = 0.0,
        target: Target = "linear",
        weights: Weights = None,
    ) -> None:
        super().__init__()
        if target not in get_args(Target):
            raise SpecError(f"target={target!r}: expected one of {', '.join(get_args(Target))}")
        if not 0 <= dropout < 1:
            raise SpecError(f"dropout={dropout!r}: expected a probability from 0 to below 1")
        if embedding is not None and embedding < 1:
            raise SpecError(f"embedding={embedding!r}: expected a width of at least 1, or None")
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "embedding": embedding,
            "dropout": dropout,
            "target": target,
        }
        self.target: Target = target
        self.backbone = make_backbone(backbone, weights=weights)
        features = self.backbone.n_features
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if embedding is not None:
            layers += [nn.Linear(features, embedding), nn.ReLU(), nn.Dropout(dropout)]
            features = embedding
        output = nn.Linear(features, 1)
        nn.init.constant_(output.bias, float(self.to_target(torch.tensor(_CENTER, device="cpu"))))
        self.head = nn.Sequential(*layers, output)
        self.normalize = Normalization(backbone)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        """Output in target space, not calibrated: what the loss compares with `to_target`.

        Parameters
        ----------
        images : (B, 3, H, W) uint8, or float from 0 to 1; RGB

        Returns
        -------
        output : (B,) float32
        """
        output: Tensor = self.head(self.backbone(self.normalize(images))).squeeze(1)
        return output.float()

    def magnification(self, images: Tensor) -> Tensor:
        """Calibrated magnification (B,) of images as in `forward`."""
        return self.calibrated(self(images))

    def calibrated(self, output: Tensor) -> Tensor:
        """Magnification that an output stands for."""
        slope, offset = self.calibration
        return self.from_target(output * slope + offset)

    def to_target(self, magnification: Tensor) -> Tensor:
        """Target of a magnification."""
        return torch.log2(magnification) if self.target == "log2" else magnification

    def from_target(self, value: Tensor) -> Tensor:
        """Magnification of a target; never below 0.01, whatever a linear output says."""
        return torch.exp2(value) if self.target == "log2" else value.clamp_min(0.01)

    def calibrate(self, output: Tensor, magnification: Tensor) -> None:
        """Fit `calibration` on outputs for images whose magnification is known, by least squares in target space.

        Use images that the network did not learn from. The fit is of the target on the output, so a network that
        pulls the ends of its range to the middle is stretched, as far as its outputs are informative.
        """
        x, y = output.double(), self.to_target(magnification.double())
        if len(x) < 2 or not math.isfinite(float(x.var(unbiased=False))) or float(x.var(unbiased=False)) < 1e-12:
            raise SpecError(f"calibration: {len(x)} outputs that are all alike: nothing to fit a line to")
        slope = ((x - x.mean()) * (y - y.mean())).mean() / x.var(unbiased=False)
        self.calibration.copy_(torch.stack([slope, y.mean() - slope * x.mean()]))
