"""Measuring a segmentation model: metrics, the confusion of px of each slide, and its figure, in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from msdask.errors import MsdaskError
from msdask.storage.files import replacing
from msdask.training.fit import evaluate
from msdask.training.measure import write_confusion
from msdask.training.recipe import Recipe
from msdask.training.segment_metrics import PixelPredictions
from msdask.training.segment_task import SegmentTask
from msdask.training.task import Batch

__all__ = ["PixelTable", "measure_segmenter"]


class PixelTable:
    """Counts the px of each slide by class and prediction, as the `listener` of `evaluate`.

    Parameters
    ----------
    slides : ids, in the order that a batch's ``slide`` counts (`PatchDataset.slide_ids`)
    classes : their names
    patients : patient of each slide; without one the slide itself
    """

    def __init__(
        self, slides: Sequence[str], classes: Sequence[str], *, patients: Mapping[str, str] | None = None
    ) -> None:
        self._slides, self._classes, self._patients = list(slides), list(classes), dict(patients or {})
        self._counts = np.zeros((len(self._slides), len(self._classes), len(self._classes)), np.int64)
        self._is_measured = np.zeros(len(self._slides), bool)

    def __call__(self, batch: Batch, predictions: PixelPredictions, targets: Tensor) -> None:
        """Take a batch in."""
        slide = batch["slide"].cpu().numpy()
        np.add.at(self._counts, slide, predictions.counts.cpu().numpy())
        self._is_measured[slide] = True

    def table(self) -> pd.DataFrame:
        """A row for every class, prediction and slide that was measured: slide, patient, label, predicted, pixels."""
        measured = np.flatnonzero(self._is_measured)
        if not measured.size:
            raise MsdaskError("confusion of px: nothing was evaluated yet: give this table to evaluate(listener=...)")
        slide, label, predicted = np.indices((len(measured), *self._counts.shape[1:])).reshape(3, -1)
        ids = np.asarray(self._slides, object)[measured][slide]
        return pd.DataFrame(
            {
                "slide": ids,
                "patient": [self._patients.get(one, one) for one in ids],
                "label": label,
                "predicted": predicted,
                "pixels": self._counts[measured].ravel(),
            }
        )

    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix of all slides: rows are the true classes."""
        return np.asarray(self._counts.sum(0))


def measure_segmenter(
    model: nn.Module,
    task: SegmentTask,
    batches: Any,
    folder: Path | None,
    *,
    patients: Mapping[str, str],
    recipe: Recipe | None = None,
    progress: bool = False,
    figure: bool = True,
) -> dict[str, float]:
    """Evaluate a segmentation model on its test patches.

    Parameters
    ----------
    model, task : trained
    batches : loader whose `dataset` has `slide_ids`
    folder : gets "test" in metrics.json, pixels.csv and confusion.png; None: none
    patients : patient of each slide that has one
    recipe : device and precision
    figure : draw confusion.png, too

    Returns
    -------
    metrics : of the test patches
    """
    table = PixelTable(batches.dataset.slide_ids, task.classes, patients=patients)
    found = evaluate(model, task, batches, folder=folder, listener=table, recipe=recipe, progress=progress)
    if folder is not None:
        with replacing(folder / "pixels.csv", what="table") as part:
            table.table().to_csv(part, index=False)
        if figure:
            write_confusion(table.confusion(), task.classes, folder)
    return found
