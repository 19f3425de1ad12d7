"""The least and the largest gray value of each pixel: numpy takes tens of times longer over an axis of three."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["extremes", "largest_channel", "looked_up"]


def extremes(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(y, x, 3) uint8 -> the smallest and the largest channel of each pixel, (y, x) uint8 each."""
    red, green, blue = cv2.split(image)
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def largest_channel(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(y, x, 3) uint8 -> the largest channel of each pixel, (y, x) uint8."""
    red, green, blue = cv2.split(image)
    return np.maximum(np.maximum(red, green), blue)


def looked_up(plane: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a table (256,) float32 says of each gray value: as ``table[plane]``, without an index of 8 bytes a px."""
    return np.asarray(cv2.LUT(plane, table), np.float32)
