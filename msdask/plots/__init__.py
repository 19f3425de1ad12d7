"""Plots: figures of slides, selections, patches and trainings."""

from msdask.colors import LABEL_COLORS
from msdask.plots.architecture import architecture
from msdask.plots.by_mpp import scores_by_mpp
from msdask.plots.confusion import confusion_matrix
from msdask.plots.drawing import SCALE_COLORS, scale_bar
from msdask.plots.experiment import experiment_scores
from msdask.plots.figures import mask, pyramid, selection
from msdask.plots.maps import class_map, heat_map
from msdask.plots.sheets import patches, sheet

__all__ = [
    "LABEL_COLORS",
    "SCALE_COLORS",
    "architecture",
    "class_map",
    "confusion_matrix",
    "experiment_scores",
    "heat_map",
    "mask",
    "patches",
    "pyramid",
    "scale_bar",
    "scores_by_mpp",
    "selection",
    "sheet",
]
