"""What is drawn for a patch: a record of numbers that pixels are changed by, one patch or a whole batch at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["DRAW", "as_draws", "as_tensor", "blur_kernel", "noise_field", "noise_table"]

DRAW = np.dtype(
    [
        ("vertical", np.bool_),
        ("horizontal", np.bool_),
        ("quarters", np.int8),
        ("stains", np.bool_),
        ("stain", np.float64, (2, 3)),
        ("tones", np.bool_),
        ("tone", np.float64, 3),
        ("shifts", np.bool_),
        ("hsv", np.float64, 3),
        ("noise", np.float64),
        ("noise_place", np.int64),
        ("blur", np.float64),
        ("sharpen", np.float64, 2),
        ("jpeg", np.int16),
        ("halves_colour", np.bool_),
    ]
)
"""A draw; all zeros change nothing.

``vertical``, ``horizontal``, ``quarters``: mirrored, then turned counterclockwise. ``stains``: whether stains change;
``stain``: factors and terms of "hed". ``tones``; ``tone``: saturation, contrast, brightness. ``shifts``; ``hsv``: of
hue, saturation, value. ``noise``: standard deviation, of 255; ``noise_place``: where in the table of noise. ``blur``:
sigma, px. ``sharpen``: sigma and gain. ``jpeg``: quality; ``halves_colour``: whether 4:2:0.
"""

_NOISE = 2**22
"""Numbers in the table of noise: two patches rarely share a stretch, and never the place in it."""


def as_tensor(draws: NDArray[Any]) -> torch.Tensor:
    """Draws as bytes, (n, bytes of a draw) uint8: a column of a batch, which travels as the others do."""
    return torch.from_numpy(np.ascontiguousarray(draws).view(np.uint8).reshape(len(draws), DRAW.itemsize))


def as_draws(column: torch.Tensor) -> NDArray[Any]:
    """The draws of a batch's column: (n,) records."""
    return np.ascontiguousarray(column.numpy()).view(DRAW).reshape(-1)


@cache
def noise_table() -> NDArray[np.float32]:
    """Standard normal numbers that all noise is taken from, so that every device has the same: (2 ** 22,) float32."""
    return np.random.default_rng(0).standard_normal(_NOISE, np.float32)


def noise_field(place: int, count: int) -> NDArray[np.float32]:
    """A stretch of the table of noise, round its end: (count,) float32."""
    return np.take(noise_table(), np.arange(place, place + count), mode="wrap")


def blur_kernel(sigma: float) -> NDArray[np.float64]:
    """Weights of a Gaussian blur of 8-bit images as OpenCV has them: whole numbers that add up to 256.

    The weights are rounded from the ends to the middle, what rounding takes from one is given to the next, and the
    middle gets the rest. The size is the odd number at or above 6 sigma + 1.
    """
    size = int(np.rint(6 * sigma + 1)) | 1
    exact = 256 * cv2.getGaussianKernel(size, sigma, cv2.CV_64F)[:, 0]
    ends = np.diff(np.rint(np.cumsum(exact[: size // 2])), prepend=0.0)
    return np.concatenate([ends, [256 - 2 * ends.sum()], ends[::-1]])
