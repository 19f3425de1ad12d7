"""How well a classifier does at every scale: its scores against the um/px that it is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from msdask.errors import SpecError
from msdask.plots.by_mpp import scores_by_mpp
from msdask.storage.files import replacing, write_file
from msdask.training.classify_source import ClassifySource
from msdask.training.classify_task import ClassifyTask
from msdask.training.fit import evaluate
from msdask.training.recipe import Recipe

__all__ = ["accuracy_by_mpp"]


def accuracy_by_mpp(
    model: nn.Module,
    source: ClassifySource,
    slides: Sequence[str],
    *,
    mpp: tuple[float, float] = (0.25, 2.0),
    points: int = 12,
    batch_size: int = 64,
    folder: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
) -> pd.DataFrame:
    """Measure a classifier at scales from one to another, evenly in octaves; patches are read from the slides.

    Every point has the same patches with the same labels, each around its own center: the tuples of `source`, whose
    first image has the um/px of the point, the others their ratios to it.

    Parameters
    ----------
    model : classifier, as `fit` returns it or loaded
    source : tuples around centroids, or one grid
    slides : ids of those that are measured
    mpp : finest and coarsest um/px
    points : how many scales, both ends included
    batch_size : tuples a batch
    folder : gets accuracy_by_mpp.csv and accuracy_by_mpp.png
    recipe : device and precision

    Returns
    -------
    table : a row a scale: mpp, magnification, patches, balanced_accuracy, kappa, macro_f1, accuracy, ece, loss

    Raises
    ------
    SpecError
        A range or number of points that makes no sense, or a slide that is coarser than the finest scale.
    """
    if points < 2 or not 0 < mpp[0] < mpp[1]:
        raise SpecError(f"mpp={mpp!r}, points={points!r}: expected two or more points from a finer to a coarser um/px")
    classes = getattr(model, "classes", source.classes)
    task = ClassifyTask(classes)
    rows = []
    for value in np.geomspace(*mpp, points).tolist():
        batches = source.measured(slides, batch_size=batch_size, mpp=(value, value))
        found = evaluate(model, task, batches, recipe=recipe)
        scores = ("balanced_accuracy", "kappa", "macro_f1", "accuracy", "ece", "loss")
        said = {name: found[name] for name in scores}
        rows.append({"mpp": value, "magnification": 10 / value, "patches": len(batches.dataset), **said})
    table = pd.DataFrame(rows)
    if folder is not None:
        write_file(Path(folder) / "accuracy_by_mpp.csv", table.to_csv(index=False), what="table")
        with replacing(Path(folder) / "accuracy_by_mpp.png", what="figure") as part:
            scores_by_mpp(table).savefig(part, format="png", dpi=110)
    return table
