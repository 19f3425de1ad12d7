"""Predictions of a classifier as one table: where each patch is, what it is, and what was said of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from msdask.errors import MsdaskError
from msdask.spec import format_magnification
from msdask.storage.files import replacing
from msdask.training.class_metrics import ClassPredictions
from msdask.training.class_scores import confusion
from msdask.training.task import Batch

__all__ = ["PredictionTable"]


class PredictionTable:
    """Collects what `evaluate` hears, as its `listener`.

    Parameters
    ----------
    slides : ids, in the order that a batch's ``slide`` counts (`PatchDataset.slide_ids`)
    classes : their names
    views : what is measured, see `ClassifyTask.views`
    magnifications : of the model, for the names of the columns of attention
    patients : patient of each slide; without one the slide itself
    """

    def __init__(
        self,
        slides: Sequence[str],
        classes: Sequence[str],
        *,
        views: Sequence[str] = ("",),
        magnifications: Sequence[float] = (),
        patients: Mapping[str, str] | None = None,
    ) -> None:
        self._slides, self._classes, self._views = np.asarray(list(slides), object), list(classes), list(views)
        self._scales = [format_magnification(m) for m in magnifications]
        self._patients = dict(patients or {})
        self._parts: list[dict[str, NDArray[Any]]] = []

    def __call__(self, batch: Batch, predictions: ClassPredictions, targets: Tensor) -> None:
        """Take a batch in."""
        part = {name: batch[name].cpu().numpy() for name in ("slide", "row", "x0", "y0")}
        part |= {"target": targets.cpu().numpy(), "probability": predictions.probabilities.float().cpu().numpy()}
        if predictions.attention is not None:
            part["attention"] = predictions.attention.float().cpu().numpy()
        self._parts.append(part)

    def table(self) -> pd.DataFrame:
        """A row a patch.

        Returns
        -------
        table : slide, patient, row, x0, y0 (level-0 px), label, predicted (-1 none), probability_<class> (float32);
            with n + 1 losses the last three again of every magnification, with "_20x" at the end; attention_20x ...
        """
        if not self._parts:
            raise MsdaskError("predictions: nothing was evaluated yet: give this table to evaluate(listener=...)")
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        slides = self._slides[joined["slide"]]
        columns: dict[str, NDArray[Any]] = {
            "slide": slides,
            "patient": np.asarray([self._patients.get(slide, slide) for slide in slides], object),
            **{name: joined[name] for name in ("row", "x0", "y0")},
        }
        for view, name in enumerate(self._views):
            end = f"_{name}" if name else ""
            columns[f"label{end}"] = joined["target"][:, view].astype(np.int16)
            columns[f"predicted{end}"] = joined["probability"][:, view].argmax(-1).astype(np.int16)
            for number, one in enumerate(self._classes):
                columns[f"probability_{one}{end}"] = joined["probability"][:, view, number]
        for i, scale in enumerate(self._scales if "attention" in joined else []):
            columns[f"attention_{scale}"] = joined["attention"][:, i]
        return pd.DataFrame(columns)

    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix of the whole: rows are the true classes."""
        table = self.table()
        return confusion(table["label"].to_numpy(), table["predicted"].to_numpy(), len(self._classes))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as Parquet, in one step."""
        path = Path(path)
        with replacing(path, what="predictions") as part:
            self.table().to_parquet(part, index=False)
        return path
