"""The figure of a classifier's scores against the scale that it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from msdask.plots.drawing import DPI, SCALE_COLORS, PlainFigure

__all__ = ["scores_by_mpp"]

_TICKS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def scores_by_mpp(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    score: str = "balanced_accuracy",
    marked: Sequence[float] = (),
) -> Figure:
    """Draw a score against um/px, one line a model.

    Parameters
    ----------
    tables : of `msdask.training.accuracy_by_mpp`, or several by the models' names
    score : column that is drawn
    marked : um/px of vertical lines, such as the scales that a model learnt from
    """
    lines = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    figure = PlainFigure(figsize=(6.4, 3.8), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for value in marked:
        axes.axvline(value, color="0.8", linewidth=1, zorder=0)
    for k, (name, table) in enumerate(lines.items()):
        color = SCALE_COLORS[k % len(SCALE_COLORS)]
        axes.plot(table["mpp"], table[score], marker="o", markersize=4, color=color, label=name or None)
    axes.set_xscale("log", base=2)
    low = min(float(table["mpp"].min()) for table in lines.values())
    high = max(float(table["mpp"].max()) for table in lines.values())
    ticks = [tick for tick in _TICKS if low / 1.01 <= tick <= high * 1.01]
    axes.set_xticks(ticks, [f"{tick:g}\n{10 / tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="µm/px", ylabel=score.replace("_", " "), ylim=(min(0.0, axes.get_ylim()[0]), 1.02))
    axes.grid(axis="y", color="0.9")
    if len(lines) > 1:
        axes.legend(frameon=False)
    return figure
