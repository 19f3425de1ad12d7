"""Appearance: stain, color, noise, blur and compression that say nothing about scale, changed at random."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Appearance"]

_STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical densities of hematoxylin, eosin and DAB (Ruifrok and Johnston 2001)."""


@dataclass(frozen=True)
class Appearance:
    """Ranges of the changes; a whole batch goes through the color part at once, in PyTorch.

    Attributes
    ----------
    stain : each stain's amount is multiplied by 1 -+ this
    stain_shift : and moved by -+ this, in optical density
    contrast, brightness : -+ this
    gray : share of images whose saturation is scaled by 0 to 1.2
    noise : largest standard deviation, of half the images, 0 to 1
    blur : share of images that are blurred or sharpened
    blur_sigma : smallest and largest, px
    jpeg : share of images that go through JPEG, quality 30 to 95
    """

    stain: float = 0.35
    stain_shift: float = 0.06
    contrast: float = 0.2
    brightness: float = 0.1
    gray: float = 0.5
    noise: float = 0.03
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.3, 1.1)
    jpeg: float = 0.4

    def sharpness(self, crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Blur or sharpen and compress one crop (S, S, 3): a scanner's sharpness must not betray the scale."""
        if rng.random() < self.blur:
            if rng.random() < 0.65:
                crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), rng.uniform(*self.blur_sigma)), np.uint8)
            else:
                soft = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.6, 1.2))
                gain = rng.uniform(0.2, 1.2)
                crop = np.asarray(cv2.addWeighted(crop, 1 + gain, soft, -gain, 0), np.uint8)
        if rng.random() < self.jpeg:
            subsampling = "420" if rng.random() < 0.5 else "444"
            quality = int(rng.integers(30, 95))
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=quality, colorsubsampling=subsampling)
            crop = simplejpeg.decode_jpeg(data)
        return crop

    def color(self, crops: Tensor, seed: int) -> Tensor:
        """Change stain, contrast, saturation and noise of a batch (B, S, S, 3) uint8."""
        generator = torch.Generator().manual_seed(seed)
        count = len(crops)

        def around(spread: float, *shape: int) -> Tensor:
            return (torch.rand(count, *shape, generator=generator) * 2 - 1) * spread

        def for_some(share: float) -> Tensor:
            return torch.rand(count, 1, 1, generator=generator) < share

        stains = _STAINS / _STAINS.norm(dim=1, keepdim=True)
        density = -torch.log((crops.reshape(count, -1, 3).float() + 1) / 256)
        change = torch.linalg.inv(stains) @ torch.diag_embed(1 + around(self.stain, 3)) @ stains
        x = torch.exp(-torch.baddbmm(around(self.stain_shift, 1, 3) @ stains, density, change))
        gray = x.mean(2, keepdim=True)
        saturation = torch.rand(count, 1, 1, generator=generator) * 1.2
        saturation = torch.where(for_some(self.gray), saturation, torch.ones_like(saturation))
        x = gray + (x - gray) * saturation
        x = (x - 0.7) * (1 + around(self.contrast, 1, 1)) + 0.7 + around(self.brightness, 1, 1)
        if self.noise > 0:
            deviation = torch.rand(count, 1, 1, generator=generator) * self.noise * for_some(0.5)
            x = x + torch.randn(x.shape, generator=generator) * deviation
        return (x.clamp(0, 1) * 255).round().to(torch.uint8).reshape(crops.shape)
