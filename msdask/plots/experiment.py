"""The figure of an experiment: scores of every model with their spread over the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from msdask.errors import SpecError

__all__ = ["experiment_scores"]


def experiment_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]], *, baselines: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw each score of each model: a point a split, the mean, and a line of one standard deviation to both sides.

    Parameters
    ----------
    scores : score ("kappa") -> model -> its values, one a split
    baselines : models that are drawn in gray
    title : above the figure

    Raises
    ------
    SpecError
        There is no score.
    """
    models = list(dict.fromkeys(name for of in scores.values() for name in of))
    if not models:
        raise SpecError("experiment_scores: no scores given; expected one or more models with values")
    figure = Figure(figsize=(2.8 + 2.6 * len(scores), 1.3 + 0.27 * len(models)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(scores), sharey=True))
    for axes, (score, of) in zip(panels, scores.items(), strict=True):
        for place, name in enumerate(models):
            values = np.asarray(of.get(name, ()), np.float64)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            color = "0.45" if name in baselines else "C0"
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.35, markersize=3, zorder=1)
            axes.errorbar(values.mean(), place, xerr=spread, fmt="D", color=color, markersize=5, capsize=3, zorder=2)
        axes.set(xlabel=score.replace("_", " ").replace("f1", "F1"))
        axes.set_yticks(range(len(models)), models)
        axes.grid(axis="x", color="0.9")
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    figure.suptitle(title, fontsize="medium")
    return figure
