"""Plots: figures of slides, selections, patches and trainings."""

from msdask.plots.confusion import confusion_matrix
from msdask.plots.experiment import experiment_scores
from msdask.plots.figures import LABEL_COLORS, SCALE_COLORS, patches, pyramid, scale_bar, selection

__all__ = [
    "LABEL_COLORS",
    "SCALE_COLORS",
    "confusion_matrix",
    "experiment_scores",
    "patches",
    "pyramid",
    "scale_bar",
    "selection",
]
