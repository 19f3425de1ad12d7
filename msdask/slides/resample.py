"""Exact area averages of a level at any ratio, independent of how the result is cut into blocks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["area_mean", "read_span"]

_EXACT = 1e-9
_HALF_UP = 0.5 + 1e-6
"""Exact halves go up whatever the last bits of the running sums, which differ from block to block, say."""
_BAND_BYTES = 2**20
"""Of what is averaged at once."""


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
    if not (height and width):
        return _in_bands(read, origin, first, shape, ratio)
    whole = _whole_means(read[: height * steps, : width * steps], steps)
    if (height, width) == shape:
        return whole
    mean = np.empty((*shape, 3), np.uint8)
    mean[:height, :width] = whole
    # What is left at the lower and the right edge, and what lies under it: the last px where there is none.
    top, left = (min(n * steps, size - 1) for n, size in zip((height, width), read.shape[:2], strict=True))
    if height < shape[0]:
        begin, size = (first[0] + height, first[1]), (shape[0] - height, shape[1])
        mean[height:] = _in_bands(read[top:], (origin[0] + top, origin[1]), begin, size, ratio)
    if width < shape[1]:
        begin, size = (first[0], first[1] + width), (height, shape[1] - width)
        mean[:height, width:] = _in_bands(
            read[: height * steps, left:], (origin[0], origin[1] + left), begin, size, ratio
        )
    return mean


def _in_bands(
    read: NDArray[np.uint8], origin: tuple[int, int], first: tuple[int, int], shape: tuple[int, int], ratio: float
) -> NDArray[np.uint8]:
    """`area_mean` by running sums, some rows at once: the sums are float64, and fit a processor's cache."""
    mean = np.empty((*shape, 3), np.uint8)
    band = max(1, int(_BAND_BYTES / (read.shape[1] * 3 * 8 * max(1.0, ratio))))
    end = origin[0] + len(read)
    for top in range(0, shape[0], band):
        stop = min(top + band, shape[0])
        begin, last = read_span(first[0] + top, first[0] + stop, ratio=ratio, size=end)
        under = read[max(begin, origin[0]) - origin[0] : last - origin[0]].astype(np.float64)
        rows = _mean_along(under, max(begin, origin[0]), first[0] + top, stop - top, ratio)
        both = _mean_along(rows.swapaxes(0, 1), origin[1], first[1], shape[1], ratio).swapaxes(0, 1)
        mean[top:stop] = np.floor(both + _HALF_UP)
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
