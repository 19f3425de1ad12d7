"""Which class a footprint shows: the class that covers most of it, if it covers enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.selection.coverage import FRACTION_SLACK, SummedArea, axis_runs

__all__ = ["NO_LABEL", "majority_labels"]

NO_LABEL = -1

_TABLE_PIXEL, _TABLE_FOOTPRINT, _OWN_PIXEL = 10.0, 500.0, 250.0
"""About how many ns a mask px takes in a class's table, a footprint in asking it, a px under a footprint by itself."""
_PIXELS_AT_ONCE = 1 << 20
"""Mask px under the footprints that are evaluated at once: some 100 MiB."""


def majority_labels(
    labels: NDArray[np.generic],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sides: Sequence[float],
    slide_shape: tuple[int, int],
    *,
    min_label: float,
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Label of each footprint and the fraction of it that the class covers.

    The label is the class with the largest fraction (of equal ones the lowest class) if that reaches `min_label`.
    One summed-area table a class is built, asked and dropped: memory is one table, whatever the number of classes.
    Where there are so many classes that this takes longer, the px under each footprint are counted instead, with the
    same result to the last bit.

    Parameters
    ----------
    labels : (height, width) integers, 0 = unlabeled, k + 1 = class k; outside it nothing is labelled
    x, y : (n, m) float64, level-0 px
        Origins of the footprints, one column a magnification.
    sides : m sides of the footprints, level-0 px
    slide_shape : (height, width) of level 0, px
    min_label : least fraction that makes a label

    Returns
    -------
    label : (n, m) int16, 0-based class, -1 = none
    fraction : (n, m) float32, that class's fraction, 0 where there is none

    Raises
    ------
    MaskError
        Values below 0 or above 32,767.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.int16).max:
        raise MaskError(
            f"label mask with values from {lowest} to {highest}: expected 0 for unlabeled and k + 1 for class k, "
            f"at most {np.iinfo(np.int16).max}; map its values to classes first"
        )
    present = np.flatnonzero(np.bincount(labels.ravel().astype(np.intp))) if x.size else np.empty(0, dtype=np.intp)
    present = present[present > 0]
    scales = labels.shape[0] / slide_shape[0], labels.shape[1] / slide_shape[1]
    under = sum((side * scales[0] + 2) * (side * scales[1] + 2) for side in sides)  # mask px under a row of footprints
    by_tables = present.size * (labels.size * _TABLE_PIXEL + x.size * _TABLE_FOOTPRINT)
    find = _by_tables if by_tables <= len(x) * under * _OWN_PIXEL else _by_footprints
    label, best = find(labels, present, x, y, sides, slide_shape)
    unsure = best + FRACTION_SLACK < min_label
    label[unsure] = NO_LABEL
    best[label == NO_LABEL] = 0.0
    return label, best.astype(np.float32)


def _by_tables(
    labels: NDArray[np.generic],
    present: NDArray[np.intp],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sides: Sequence[float],
    slide_shape: tuple[int, int],
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Best label and its fraction, class by class."""
    label = np.full(x.shape, NO_LABEL, dtype=np.int16)
    best = np.zeros(x.shape, dtype=np.float64)
    for value in present:
        table = SummedArea(labels == value)
        for column, side in enumerate(sides):
            fraction = table.fractions(x[:, column], y[:, column], side, slide_shape)
            better = fraction > best[:, column] + FRACTION_SLACK
            best[better, column] = fraction[better]
            label[better, column] = value - 1
    return label, best


def _by_footprints(
    labels: NDArray[np.generic],
    present: NDArray[np.intp],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sides: Sequence[float],
    slide_shape: tuple[int, int],
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The same, footprint by footprint."""
    label = np.full(x.shape, NO_LABEL, dtype=np.int16)
    best = np.zeros(x.shape, dtype=np.float64)
    scale_y, scale_x = labels.shape[0] / slide_shape[0], labels.shape[1] / slide_shape[1]
    for column, side in enumerate(sides):
        at_once = max(1, int(_PIXELS_AT_ONCE / ((side * scale_y + 2) * (side * scale_x + 2))))
        for first in range(0, len(x), at_once):
            rows = slice(first, first + at_once)
            left, top = x[rows, column], y[rows, column]
            down = _Runs(top * scale_y, (top + side) * scale_y, labels.shape[0])
            across = _Runs(left * scale_x, (left + side) * scale_x, labels.shape[1])
            value, area = _largest(labels, down, across)
            label[rows, column] = value - 1
            best[rows, column] = np.clip(area / ((side * scale_x) * (side * scale_y)), 0.0, 1.0)
    return label, best


class _Runs:
    """Intervals of mask px along one axis, px by px.

    Attributes
    ----------
    index : (n, width) mask px from each interval's first one on
    share : (n, width) how much of each px the interval covers
    inside : (n, 3, width) which px belong to the runs of `axis_runs`
    weights : (n, 3) of these runs
    """

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64], size: int) -> None:
        bounds, self.weights = axis_runs(low, high, size)
        starts, stops = bounds[:, ::2], bounds[:, 1::2]
        px = bounds[:, :1] + np.arange(int((stops.max(1) - bounds[:, 0]).max(initial=1)))
        self.inside = ((px[:, None] >= starts[..., None]) & (px[:, None] < stops[..., None])).astype(np.float64)
        self.share = np.einsum("ni,niw->nw", self.weights, self.inside)
        self.index = np.minimum(px, size - 1)


def _largest(labels: NDArray[np.generic], down: _Runs, across: _Runs) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Value that covers most of each footprint, 0 where there is none, and its area in mask px squared."""
    under = labels[down.index[:, :, None], across.index[:, None, :]].astype(np.intp)
    area = down.share[:, :, None] * across.share[:, None, :]
    footprint = np.broadcast_to(np.arange(len(under))[:, None, None], under.shape)
    counts = (under > 0) & (area > 0)
    value = np.zeros(len(under), np.intp)
    if counts.any():
        owner, found, area = footprint[counts], under[counts], area[counts]
        order = np.lexsort((found, owner))
        owner, found, area = owner[order], found[order], area[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(owner) != 0) | (np.diff(found) != 0)])
        owner, found, area = owner[starts], found[starts], np.add.reduceat(area, starts)
        begins = np.flatnonzero(np.r_[True, np.diff(owner) != 0])
        most = np.maximum.reduceat(area, begins)
        is_most = area >= np.repeat(most, np.diff(np.r_[begins, len(owner)])) * (1 - FRACTION_SLACK)
        owners, firsts = np.unique(owner[is_most], return_index=True)  # of equal ones the lowest value
        value[owners] = found[is_most][firsts]
    # The area once more, in the order of `SummedArea.sums`: counts of px first, weights last.
    own = (under == value[:, None, None]) & (value > 0)[:, None, None]
    strips = np.einsum("niy,nyx->nix", down.inside, own.astype(np.float64))
    exact = np.einsum("ni,nij,nj->n", down.weights, np.einsum("nix,njx->nij", strips, across.inside), across.weights)
    return value, exact
