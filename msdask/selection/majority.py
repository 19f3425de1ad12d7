"""Which class a footprint shows: the class that covers most of it, if it covers enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.selection.coverage import FRACTION_SLACK, SummedArea

__all__ = ["NO_LABEL", "majority_labels"]

NO_LABEL = -1


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
    label = np.full(x.shape, NO_LABEL, dtype=np.int16)
    best = np.zeros(x.shape, dtype=np.float64)
    present = np.flatnonzero(np.bincount(labels.ravel().astype(np.intp))) if x.size else np.empty(0, dtype=np.intp)
    for value in present[present > 0]:
        table = SummedArea(labels == value)
        for column, side in enumerate(sides):
            fraction = table.fractions(x[:, column], y[:, column], side, slide_shape)
            better = fraction > best[:, column] + FRACTION_SLACK
            best[better, column] = fraction[better]
            label[better, column] = value - 1
    unsure = best + FRACTION_SLACK < min_label
    label[unsure] = NO_LABEL
    best[label == NO_LABEL] = 0.0
    return label, best.astype(np.float32)
