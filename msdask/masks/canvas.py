"""The parts of an image that were never scanned: a canvas of one color around the rectangles that were.

A scanner that skips empty places, or a program that puts several scanned areas into one image, fills the rest with
white, gray or black. It is not glass: judged against its white, all the glass inside a scanned rectangle looks stained.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.masks.planes import extremes, largest_channel, taken

__all__ = ["find_canvas"]

_WORK_SIDE: Final = 512
"""The canvas is looked for in an image reduced to this side, px."""
_MAX_COLORS: Final = 3
_MIN_SHARE: Final = 0.01
"""A canvas takes at least this share of the image."""
_RUN: Final = 5
_MIN_STRAIGHT: Final = 0.6
"""Share of the border between canvas and scanned areas that must run along rows or columns, `_RUN` px at least:
rectangles reach nearly 1, a disc 0.2, tissue less."""
_MIN_RECTANGLES: Final = 0.95
"""Share of the scanned area that must lie in such rectangles: where an irregular piece lies on it, it is glass."""
_MAX_CHROMA: Final = 14
"""A canvas is white, gray or black: largest difference between its channels, gray values."""
_SAME: Final = 2
"""Gray values by which a canvas may differ from its color, after JPEG."""


def find_canvas(image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Find what was not scanned: exactly even in color, and bounded by straight rows and columns.

    Glass is never exactly even, and tissue on glass that is overexposed to an even white has no straight borders.

    Parameters
    ----------
    image : (y, x, 3) uint8, RGB

    Returns
    -------
    canvas : (y, x) bool, or None where all of the image was scanned
    """
    height, width = image.shape[:2]
    factor = max(1.0, max(height, width) / _WORK_SIDE)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    # Single pixels, not means: the mean over much glass is as even as a canvas.
    small = (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8) if factor > 1 else image
    )
    canvas: NDArray[np.bool_] | None = None
    for color in _even_colors(small):
        # Opened against thin lines of the color inside the scanned areas, closed over thin lines on it (walls of fat).
        opened = cv2.morphologyEx(_of_color(small, color).view(np.uint8), cv2.MORPH_OPEN, _square(3))
        region = np.asarray(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, _square(7)), dtype=np.uint8)
        if region.mean() < _MIN_SHARE or not _is_around_rectangles(region):
            continue
        near = cv2.dilate(region, _square(3))
        whole = cv2.resize(near, (width, height), interpolation=cv2.INTER_NEAREST) if factor > 1 else near
        found = _reaching_the_edge(whole.astype(np.bool_) & _of_color(image, color))
        canvas = found if canvas is None else canvas | found
    return canvas


def _square(side: int) -> NDArray[np.uint8]:
    return np.ones((side, side), np.uint8)


def _even_colors(small: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The most frequent colors of nearly neutral pixels whose neighbours are all of the same color."""
    kernel = np.ones((3, 3), np.uint8)
    even = largest_channel(cv2.subtract(cv2.dilate(small, kernel), cv2.erode(small, kernel))) == 0
    darkest, largest = extremes(small)
    even &= largest - darkest <= _MAX_CHROMA
    if even.mean() < _MIN_SHARE:
        return []
    packed = small[even].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MAX_COLORS]
    chosen = values[order][counts[order] >= 0.5 * _MIN_SHARE * even.size]
    return [np.array([v >> 16, v >> 8 & 255, v & 255], np.uint8) for v in chosen.tolist()]


def _of_color(image: NDArray[np.uint8], color: NDArray[np.uint8]) -> NDArray[np.bool_]:
    low = np.maximum(color.astype(np.int16) - _SAME, 0).tolist()
    high = np.minimum(color.astype(np.int16) + _SAME, 255).tolist()
    return np.asarray(cv2.inRange(image, np.array(low), np.array(high)) > 0)


def _is_around_rectangles(region: NDArray[np.uint8]) -> bool:
    """Whether what `region` leaves free is bounded by straight rows and columns, nearly all of it."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - region, connectivity=4, ltype=cv2.CV_32S)
    total, straight = np.zeros(count), np.zeros(count)
    for axis, kernel in ((0, np.ones((1, _RUN), np.uint8)), (1, np.ones((_RUN, 1), np.uint8))):
        before, after = (region[:-1], region[1:]) if axis == 0 else (region[:, :-1], region[:, 1:])
        edges = np.ascontiguousarray(before ^ after)
        if not edges.size:
            continue
        free = np.maximum(labels[:-1], labels[1:]) if axis == 0 else np.maximum(labels[:, :-1], labels[:, 1:])
        total += np.bincount(free[edges > 0], minlength=count)
        runs = cv2.morphologyEx(edges, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        straight += np.bincount(free[runs > 0], minlength=count)
    area = stats[1:, cv2.CC_STAT_AREA]
    are_rectangles = straight[1:] >= _MIN_STRAIGHT * total[1:]
    return bool(total.any() and area[are_rectangles].sum() >= _MIN_RECTANGLES * area.sum())


def _reaching_the_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask that touch the edge of the image: a canvas does, a white hole in tissue does not."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    left, top, width, height = (stats[:, column] for column in range(4))
    keep = (left == 0) | (top == 0) | (left + width == mask.shape[1]) | (top + height == mask.shape[0])
    keep[0] = False
    return taken(keep, np.asarray(labels, np.int32))
