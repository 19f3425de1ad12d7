"""What is asked of each pixel of a whole image, in a fraction of the time that NumPy takes for it as it is."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.computing import side_by_side

__all__ = ["extremes", "largest_channel", "looked_up", "taken"]

S = TypeVar("S", bound=np.generic)

_STRIP_PIXELS: Final = 2**17
"""px that are looked up at once: their indices stay in the processor's cache."""


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


def taken(table: NDArray[S], labels: NDArray[np.int32]) -> NDArray[S]:
    """What a table (n,) says of each number in `labels` (y, x), which must be below n: as ``table[labels]``.

    In strips, which stay in the processor's cache, on as many threads as dask has.
    """
    found = np.empty(labels.shape, table.dtype)
    rows = max(1, _STRIP_PIXELS // max(1, labels.shape[1]))

    def take(start: int) -> None:
        # "clip" looks at no bounds, and writes straight to where it goes.
        table.take(labels[start : start + rows], out=found[start : start + rows], mode="clip")

    side_by_side(take, range(0, len(labels), rows))
    return found
