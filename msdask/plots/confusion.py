"""The figure of a confusion matrix: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["confusion_matrix"]

_DARK = 0.5
"""Share above which a cell is so dark that its text is white."""


def confusion_matrix(counts: NDArray[np.integer[Any]], classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw a confusion matrix: colors are shares of each true class, texts are counts.

    Parameters
    ----------
    counts : (C, C) int, rows are the true classes, columns the predicted ones
    classes : names
    title : above it
    """
    counts = np.asarray(counts)
    if counts.shape != (len(classes), len(classes)):
        raise SpecError(f"confusion matrix of shape {counts.shape}: expected a row and a column for {len(classes)}")
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    side = 2.2 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, f"{count:,}", ha="center", va="center", color="white" if shares[i, j] > _DARK else "black")
    places = range(len(classes))
    axes.set_xticks(places, classes)
    axes.set_yticks(places, classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(drawn, ax=axes, label="share of the true class", fraction=0.046)
    return figure
