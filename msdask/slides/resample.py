"""Exact area averages of a level at any ratio, independent of how the result is cut into blocks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["area_mean", "read_span"]

_EXACT = 1e-9
_HALF_UP = 0.5 + 1e-6
"""Exact halves go up whatever the last bits of the running sums, which differ from block to block, say."""


def read_span(first: int, last: int, *, ratio: float, size: int) -> tuple[int, int]:
    """Px [first, last) of the level that lie under output px [first, last), clipped to its `size`."""
    start = int(np.floor(first * ratio + _EXACT))
    stop = int(np.ceil(last * ratio - _EXACT))
    start = min(start, size - 1)
    return start, max(start + 1, min(stop, size))


def area_mean(
    read: NDArray[np.uint8], *, origin: tuple[int, int], first: tuple[int, int], shape: tuple[int, int], ratio: float
) -> NDArray[np.uint8]:
    """Mean of what is read over the square under each output px; fractional edges weigh by their share.

    Parameters
    ----------
    read : (height, width, 3) uint8, the part of the level that lies under the output (see `read_span`)
    origin : (y, x) of read[0, 0] in the level, px
    first : (y, x) of the first output px in the whole output
    shape : (height, width) of the output block
    ratio : px read per output px, at least 1

    Returns
    -------
    mean : (height, width, 3) uint8, rounded to the nearest
        Where the level ends early, the mean over what there is.
    """
    steps = round(ratio)
    is_aligned = abs(ratio - steps) < _EXACT and (first[0] * steps, first[1] * steps) == origin
    # Px with a whole square under them always go through cv2, whatever block they stand in: its halves round otherwise.
    height, width = (min(n, s // steps) if is_aligned else 0 for n, s in zip(shape, read.shape[:2], strict=True))
    if (height, width) == shape:
        return _whole_means(read[: height * steps, : width * steps], steps)
    rows = _mean_along(read.astype(np.float64), origin[0], first[0], shape[0], ratio)
    both = _mean_along(rows.swapaxes(0, 1), origin[1], first[1], shape[1], ratio).swapaxes(0, 1)
    mean = np.ascontiguousarray(np.floor(both + _HALF_UP).astype(np.uint8))
    if height and width:
        mean[:height, :width] = _whole_means(read[: height * steps, : width * steps], steps)
    return mean


def _whole_means(read: NDArray[np.uint8], steps: int) -> NDArray[np.uint8]:
    if steps == 1:
        return read
    shape = read.shape[1] // steps, read.shape[0] // steps
    return cv2.resize(read, shape, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _mean_along(values: NDArray[np.float64], origin: int, first: int, count: int, ratio: float) -> NDArray[np.float64]:
    """Area means along axis 0, from running sums that are interpolated at the fractional edges."""
    size = len(values)
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    edges = np.clip((first + np.arange(count + 1)) * ratio - origin, 0, size)
    low = np.minimum(edges.astype(np.int64), size - 1)
    weight = (edges - low)[:, None, None]
    at_edges = sums[low] + weight * values[low]
    widths = np.diff(edges)
    empty = widths < _EXACT
    means = np.diff(at_edges, axis=0) / np.where(empty, 1, widths)[:, None, None]
    means[empty] = values[-1]
    return means
