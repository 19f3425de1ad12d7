"""Training: written once; one recipe, one `fit`, one `evaluate`, one layout of run folders, for every model.

Importing this needs PyTorch and Lightning (the extra "torch").
"""

# ruff: noqa: E402 - a clear error about a missing PyTorch goes first
from __future__ import annotations

from msdask.extras import require

require("msdask.training", module="pytorch_lightning")

from msdask.training.ablation import permute_branches
from msdask.training.any_scale import accuracy_by_mpp
from msdask.training.class_metrics import ClassPredictions, class_metrics
from msdask.training.classify_source import ClassifySource
from msdask.training.classify_task import ClassifyTask
from msdask.training.comparison import bootstrap_patients, compare, corrected_t_test, holm
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.experiment import ExperimentResult
from msdask.training.fit import FitResult, evaluate, fit
from msdask.training.measure import measure
from msdask.training.predictions import PredictionTable
from msdask.training.recipe import Recipe
from msdask.training.scale_metrics import SCALE_CLASSES, scale_metrics
from msdask.training.scale_source import ScaleSource
from msdask.training.scale_task import ScaleTask
from msdask.training.segment_measure import PixelTable, measure_segmenter
from msdask.training.segment_metrics import PixelPredictions, segment_metrics
from msdask.training.segment_source import SegmentSource
from msdask.training.segment_task import SegmentTask
from msdask.training.splits import Split, splits
from msdask.training.task import Task

__all__ = [
    "SCALE_CLASSES",
    "ClassPredictions",
    "ClassifySource",
    "ClassifyTask",
    "ExperimentConfig",
    "ExperimentResult",
    "FitResult",
    "PixelPredictions",
    "PixelTable",
    "PredictionTable",
    "Recipe",
    "ScaleSource",
    "ScaleTask",
    "SegmentSource",
    "SegmentTask",
    "Split",
    "Task",
    "accuracy_by_mpp",
    "bootstrap_patients",
    "class_metrics",
    "compare",
    "corrected_t_test",
    "evaluate",
    "fit",
    "holm",
    "measure",
    "measure_segmenter",
    "permute_branches",
    "scale_metrics",
    "segment_metrics",
    "splits",
]
