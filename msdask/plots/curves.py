"""The figure of a run: loss and metrics over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from msdask.storage.files import replacing

__all__ = ["draw_curves"]

_SHOWN = ("valid_r2", "valid_explained_variance", "valid_kappa", "valid_balanced_accuracy", "valid_macro_f1")
"""Metrics up to 1 that are drawn where a run has them."""


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> Figure:
    """Draw a run's log.

    Parameters
    ----------
    rows : one an epoch, as in log.csv
    path : PNG to write
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in ("train_loss", "valid_loss"):
        losses.plot(epochs, [row[name] for row in rows], marker=".", label=name.replace("_", " "))
    best = min(range(len(rows)), key=lambda i: rows[i]["valid_loss"])
    losses.axvline(epochs[best], color="0.7", zorder=0, label=f"best: epoch {epochs[best]:g}")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    for name in _SHOWN:
        if name in rows[0]:
            label = name.removeprefix("valid_").replace("_", " ")
            scores.plot(epochs, [row[name] for row in rows], marker=".", label=label)
    scores.set(xlabel="epoch", ylabel="validation", ylim=(min(0.0, scores.get_ylim()[0]), 1.02))
    if scores.get_legend_handles_labels()[0]:
        scores.legend(frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
    return figure
