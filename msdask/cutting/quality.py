"""How sharp a patch is, and which share of it is glass, ink or dark: measured on every eighth row of its pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["BLANK_FROM", "DARK_BELOW", "INK_ABOVE", "QUALITIES", "qualities"]

QUALITIES = ("focus", "blank", "pen", "dark")
"""What is measured here, in the order of the columns."""

BLANK_FROM = 215
"""A px whose darkest channel is at least this counts as glass."""
INK_ABOVE = 30
"""A px whose green is more than so many levels above its red counts as ink: no stain of H&E is so."""
DARK_BELOW = 50
"""A px whose brightest channel is below this counts as dark."""

EVERY = 8
"""Of the rows, one in so many is looked at: shares within 0.007 of those of all px for 95 patches of 100, in a fifth of
the time."""
_FAR = 4
"""px: the distance over which a sharp edge and a blurred one change alike."""


def qualities(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measures of images that say what may be wrong with them.

    Parameters
    ----------
    images : (image, y, x, 3) uint8, C-contiguous

    Returns
    -------
    qualities : (image, quality) float32, in the order of `QUALITIES`
        focus: mean change of green from a px to the next in its row, divided by that to the px 4 further. 0.25 where
        the next px says nothing new (out of focus, or enlarged), about 0.35 to 0.6 in sharp tissue, 1 in noise, 0 in an
        image of one colour; blank, pen, dark: shares of px, 0 to 1, see `BLANK_FROM`, `INK_ABOVE` and `DARK_BELOW`.
    """
    count, height, width, channels = images.shape
    if height % EVERY:  # rows of one image would be counted from another's
        first = min(EVERY // 2, height - 1)
        rows = np.ascontiguousarray(images[:, first::EVERY]).reshape(-1, width, channels)
    else:
        rows = images.reshape(count * height, width, channels)[EVERY // 2 :: EVERY]
    red, green, blue = cv2.split(rows)
    lowest = cv2.min(cv2.min(red, green), blue)
    highest = cv2.max(cv2.max(red, green), blue)
    found = np.zeros((count, len(QUALITIES)), np.float32)
    found[:, 0] = _focus(green, count)
    for column, (values, above, kind) in enumerate(
        (
            (lowest, BLANK_FROM - 1, cv2.THRESH_BINARY),
            (cv2.subtract(green, red), INK_ABOVE, cv2.THRESH_BINARY),
            (highest, DARK_BELOW - 1, cv2.THRESH_BINARY_INV),
        ),
        1,
    ):
        found[:, column] = _sums(cv2.threshold(values, above, 1, kind)[1], count) / (green.size // count)
    return found


def _focus(values: NDArray[np.uint8] | cv2.typing.MatLike, count: int) -> NDArray[np.float64]:
    width = values.shape[1]
    if width <= _FAR:
        return np.zeros(count)
    near, far = (_sums(cv2.absdiff(values[:, step:], values[:, :-step]), count) / (width - step) for step in (1, _FAR))
    return np.divide(near, far, out=np.zeros(count), where=far > 0)


def _sums(rows: NDArray[np.uint8] | cv2.typing.MatLike, count: int) -> NDArray[np.int64]:
    """Sums over each image's rows."""
    sums = np.asarray(cv2.reduce(rows, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    return sums.reshape(count, -1).sum(1, dtype=np.int64)
