"""Accuracy against um/px of classifiers that learnt from one scale, from a few, and from any: generated slides.

    python benchmarks/any_scale.py WORK    # minutes on one core; WORK gets slides, store, runs, tables and the figures

any_scale.png and class_map.jpg, the map of a test slide by the model of 10x, are those of docs/images.

The classes are those of `msdask.sample` (three tissues made of real texture), slides at 0.25 um/px, patches of 64 px.
All models see the same places and labels, as often and with the same augmentation; only the scale of a draw differs.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

import msdask as ms
from msdask.data import MppRange

RANGE = (0.25, 2.0)
NOMINAL = (0.25, 0.5, 1.0, 2.0)
SPLIT = ("train",) * 5 + ("valid",) * 2 + ("test",) * 3
SIZE = (3000, 4000)
CLASSES = ["epithelium", "stroma", "dense"]
MAPPED = 7
"""A slide of the test split."""


class OneOf(MppRange):
    """One of a few scales, each as often: what a model of several nominal magnifications learns from."""

    def draw(
        self, magnifications: NDArray[np.floating[Any]], seed: int, *, limits: tuple[float, float] = (0.0, np.inf)
    ) -> NDArray[np.float32]:
        """See `MppRange.draw`."""
        mpp = np.random.default_rng([int(seed), 1]).choice(NOMINAL)
        return np.asarray(10 / mpp * np.asarray(magnifications) / magnifications[0], np.float32)


def made_store(work: Path) -> ms.PatchStore:
    """Slides with labels, and their patches at 10x."""
    rows = []
    for number, split in enumerate(SPLIT):
        path = work / f"slide-{number}.svs"
        made = ms.sample.make_slide(path, size=SIZE, seed=100 + number, tissue_fraction=0.7, associated=False)
        labels = ms.sample.write_labels(made, work / "labels")
        rows.append({"path": path, "mask": labels, "split": split})
    store = ms.PatchStore(work / "store.zarr")
    spec = ms.ExtractionSpec("centroids", (10.0,), 64)
    report = ms.extract(rows, store, spec, values=made.values, threads=1, progress=False)
    assert report.is_complete, report.failures
    return store


def trained(source: ms.training.ClassifySource, name: str, folder: Path, epochs: int) -> torch.nn.Module:
    """ScaleNet, learnt from one scale, from a few, or from any."""
    split = source.split()
    recipe = ms.training.Recipe(epochs=epochs, lr=2e-3, schedule="cosine", patience=None, seed=0)
    recipe.seed_weights()
    model = ms.models.SingleScale(source.classes, source.magnifications, backbone="scalenet")
    mpp = None if name == "10x" else RANGE
    learnt, valid = source.dataset(split.train, mpp=mpp), source.measured(split.valid, batch_size=64, mpp=mpp)
    if name == "40x, 20x, 10x, 5x":
        learnt.scale = valid.dataset.scale = OneOf(*RANGE)
    train = ms.data.loader(learnt, batch_size=32, balanced=True, augment=ms.data.Augment(), seed=0)
    task = ms.training.ClassifyTask(source.classes)
    return ms.training.fit(model, task, train, valid, folder, recipe=recipe).model


def draw_map(work: Path, run: Path) -> str:
    """Draw a test slide's classes as a run's model sees them; says how many centers have the class drawn there."""
    path = work / f"slide-{MAPPED}.svs"
    slide = ms.open_slide(path)
    found = ms.classify_slide(slide, run, patch_size=64, stride=16, classes=CLASSES)
    figure = ms.plots.class_map(slide, found, max_size=700)
    figure.savefig(work / "class_map.jpg", pil_kwargs={"quality": 80, "optimize": True})
    with Image.open(work / "labels" / f"{path.stem}.png") as image:
        drawn = np.asarray(image).astype(int) // 50 - 1
    table = ms.prediction_table(found)
    half, px = 64 / slide.mpp_used / 2, slide.shape[0] / drawn.shape[0]
    rows, columns = (((table[name] + half) / px).astype(int) for name in ("y0", "x0"))
    right = drawn[rows, columns] == table["predicted"].map(CLASSES.index)
    return f"class_map.jpg: {right.mean():.1%} of {len(table):,} centers have the class that was drawn there"


def main() -> None:
    """Make slides, train three models, measure them at 12 scales."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    source = ms.training.ClassifySource(made_store(given.work).path)
    tables: dict[str, pd.DataFrame] = {}
    for number, name in enumerate(("10x", "40x, 20x, 10x, 5x", "any scale")):
        folder = given.work / f"run-{number}"
        model = trained(source, name, folder, given.epochs)
        tables[name] = ms.training.accuracy_by_mpp(model, source, source.split().test, mpp=RANGE, folder=folder)
    scores = pd.DataFrame({name: table["balanced_accuracy"] for name, table in tables.items()})
    scores.insert(0, "um/px", next(iter(tables.values()))["mpp"])
    print(scores.round(3).to_string(index=False))
    scores.to_csv(given.work / "any_scale.csv", index=False)
    ms.plots.scores_by_mpp(tables, marked=NOMINAL).savefig(given.work / "any_scale.png", dpi=100)
    print(draw_map(given.work, given.work / "run-0"))


if __name__ == "__main__":
    main()
