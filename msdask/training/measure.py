"""Measuring a classifier: metrics, predictions and the figure of its confusion matrix, in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from msdask.plots.confusion import confusion_matrix
from msdask.storage.files import replacing
from msdask.training.classify_task import ClassifyTask
from msdask.training.fit import evaluate
from msdask.training.predictions import PredictionTable
from msdask.training.recipe import Recipe

__all__ = ["measure", "write_confusion"]


def measure(
    model: nn.Module,
    task: ClassifyTask,
    batches: Any,
    folder: Path | None,
    *,
    magnifications: Sequence[float],
    patients: Mapping[str, str],
    recipe: Recipe | None = None,
    progress: bool = False,
    figure: bool = True,
) -> dict[str, float]:
    """Evaluate a classifier on its test patches.

    Parameters
    ----------
    model, task : trained
    batches : loader whose `dataset` has `slide_ids`
    folder : gets "test" in metrics.json, predictions.parquet and confusion.png; None: none
    magnifications : of the model, for the columns of attention
    patients : patient of each slide that has one
    recipe : device and precision
    figure : draw confusion.png, too

    Returns
    -------
    metrics : of the test patches
    """
    table = PredictionTable(
        batches.dataset.slide_ids, task.classes, views=task.views, magnifications=magnifications, patients=patients
    )
    found = evaluate(model, task, batches, folder=folder, listener=table, recipe=recipe, progress=progress)
    if folder is not None:
        table.write(folder / "predictions.parquet")
        if figure:
            write_confusion(table.confusion(), task.classes, folder)
    return found


def write_confusion(counts: NDArray[np.int64], classes: Sequence[str], folder: Path) -> None:
    """Draw a confusion matrix (its rows are the true classes) into ``confusion.png`` of a folder."""
    with replacing(folder / "confusion.png", what="figure") as part:
        confusion_matrix(counts, classes).savefig(part, format="png", dpi=110)
