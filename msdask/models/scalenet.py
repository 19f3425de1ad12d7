"""ScaleNet: a small network whose features are the mean and the standard deviation of every stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ScaleNet"]

_FLOOR = 1e-4
"""Added to a variance before its root: the root's slope is infinite at 0."""


class ScaleNet(nn.Module):
    """Statistics of texture at several resolutions, for images of any size from about 32 px.

    A stage halves the resolution. What tells the scale of tissue is how much of its texture lives at which
    resolution, so every stage gives its channels' mean and standard deviation over the image, not only the last one
    its mean.

    Parameters
    ----------
    widths : channels of each stage
    depths : 3x3 convolutions of each stage, the first with stride 2
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 96), depths: Sequence[int] = (2, 2, 2, 2)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width, depth in zip(widths, depths, strict=True):
            layers = [_convolution(channels, width, stride=2)]
            layers += [_convolution(width, width, stride=1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.normalize = nn.BatchNorm1d(2 * sum(widths))
        self.n_features = 2 * sum(widths)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, n_features) of normalized images (B, 3, H, W)."""
        statistics: list[Tensor] = []
        x = images
        for stage in self.stages:
            x = stage(x)
            values = x.float()  # a variance in bfloat16 would be rounding
            statistics += [values.mean((2, 3)), (values.var((2, 3), unbiased=False) + _FLOOR).sqrt()]
        features: Tensor = self.normalize(torch.cat(statistics, 1))
        return features


def _convolution(channels: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
