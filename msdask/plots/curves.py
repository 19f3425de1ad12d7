"""The figure of a run: loss and metrics over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from msdask.storage.files import replacing

__all__ = ["best_epoch", "draw_curves"]

_SHOWN = ("valid_r2", "valid_explained_variance", "valid_kappa", "valid_balanced_accuracy", "valid_macro_f1")
"""Metrics up to 1 that are drawn where a run has them."""


def best_epoch(rows: Sequence[Mapping[str, float]], monitor: str, mode: Literal["min", "max"]) -> int:
    """Position of the first row whose `monitor` is the best; a value that is no number is worse than any other."""
    sign = 1 if mode == "min" else -1
    values = [sign * row[monitor] for row in rows]
    return min(range(len(rows)), key=lambda i: math.inf if math.isnan(values[i]) else values[i])


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    *,
    monitor: str = "valid_loss",
    mode: Literal["min", "max"] = "min",
) -> Figure:
    """Draw a run's log.

    Parameters
    ----------
    rows : one an epoch, as in log.csv
    path : PNG to write
    monitor, mode : column that says which epoch is the best, and whether it is to be small or large
    """
    figure = Figure(figsize=(9, 3.4))  # places are fixed: finding them would take longer than drawing
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.95, wspace=0.2)
    losses, scores = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in ("train_loss", "valid_loss"):
        losses.plot(epochs, [row[name] for row in rows], marker=".", label=name.replace("_", " "))
    best = best_epoch(rows, monitor, mode)
    for axes in (losses, scores):
        axes.axvline(epochs[best], color="0.7", zorder=0, label=f"best: epoch {epochs[best]:g}")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    for name in dict.fromkeys((*_SHOWN, monitor)):
        if name in rows[0] and name != "valid_loss":
            label = name.removeprefix("valid_").replace("_", " ")
            scores.plot(epochs, [row[name] for row in rows], marker=".", label=label)
    scores.set(xlabel="epoch", ylabel="validation", ylim=(min(0.0, scores.get_ylim()[0]), 1.02))
    if scores.get_legend_handles_labels()[0]:
        scores.legend(frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
    return figure
