"""Classifiers at one and several magnifications: two generated tasks with known ceilings, and organs of real tissue.

    python benchmarks/classification.py                    # all parts, within an hour on 2 cores
    python benchmarks/classification.py --parts tissue     # organs of the monuseg crops: minutes
    python benchmarks/classification.py --quick            # few sites, one split: whether it runs

"product": 8 classes, the combinations of three bits of which each magnification sees one. "xor": whether the bits of
20x and 5x differ, which no sum over magnifications can tell. In both a score above the ceiling is a leak. "tissue": the
organ of crops that were never seen, 96 px at 40x, 20x and 10x; organ and stain are confounded there, so that a score
says how well crops are told apart, not organs. Its networks are frozen: heads on ImageNet features.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from PIL import Image
from verdict import machine

import msdask as ms
from msdask.training import ExperimentResult

SPLITS = 5
TRAIN = 4
"""Training slides of a split, of 256 sites each: as many sites as the prototype of these tasks had."""
SLACK = 1e-9
ORGANS = {
    "breast": "A7-A13E A7-A13F AR-A1AK AR-A1AS E2-A14V E2-A1B5",
    "kidney": "B0-5698 B0-5710 B0-5711",
    "lung": "18-5592 21-5784 21-5786 38-6178 44-2665 49-4488 50-5931",
    "prostate": "CH-5767 G9-6336 G9-6348 G9-6356 G9-6362 G9-6363",
}
"""Kidney HE-7128 to HE-7130 were scanned at 20x, brain has two crops only: left out."""


@dataclass(frozen=True)
class Part:
    """What a part of the benchmark found.

    Attributes
    ----------
    title, told : for the page
    result : of its experiment
    checks : (what, measured, target, whether it was reached)
    seconds, processor : of wall and processor
    """

    title: str
    told: str
    result: ExperimentResult
    checks: list[tuple[str, str, str, bool]]
    seconds: float = 0.0
    processor: float = 0.0


def bits_store(task_name: Any, folder: Path, *, quick: bool) -> tuple[ms.sample.ScaleBits, ms.PatchStore, Path]:
    """Slides of a generated task, their tuples, and lists of splits, each with training and test slides of its own."""
    splits, side, train = (1, 8, 1) if quick else (SPLITS, 16, TRAIN)
    task = ms.sample.make_scale_bits(folder, task_name, slides=(train * splits, 1, 2 * splits), side=side)
    store = ms.PatchStore(folder / "bits.zarr")
    ms.extract(task.table, store, task.tuples(), values=task.values, progress=False)
    lists = folder / "lists"
    for k in range(splits):
        parts = {
            "train": [f"train-{k * train + i}.svs" for i in range(train)],
            "valid": ["valid-0.svs"],
            "test": [f"test-{2 * k + i}.svs" for i in range(2)],
        }
        (lists / str(k)).mkdir(parents=True, exist_ok=True)
        for name, slides in parts.items():
            (lists / str(k) / f"list_{name}.csv").write_text("".join(f"{slide}\n" for slide in slides))
    return task, store, lists


def bits_config(store: ms.PatchStore, lists: Path, folder: Path, *, epochs: int) -> dict[str, Any]:
    """What experiments on generated tasks share."""
    return {
        "store": store.path,
        "output": str(folder / "experiment"),
        "lists": str(lists),
        "baselines": ["matched"],
        "backbone": "scalenet",
        "augment": "none",  # the truth is in single pixels
        "metric": "balanced_accuracy",
        "recipe": {"epochs": epochs, "lr": 3e-3, "schedule": "cosine", "patience": None},
    }


def product(folder: Path, *, quick: bool, workers: int | None) -> Part:
    """Eight classes: one magnification knows a quarter, two know half, three all."""
    task, store, lists = bits_store("product", folder, quick=quick)
    config = bits_config(store, lists, folder, epochs=1 if quick else 4) | {
        "magnifications": [[20], [10], [5], [20, 5], [20, 10, 5]],
        "models": ["single", "features", "predictions", "attention"],
        "losses": ["one"] if quick else ["one", "n+1"],
        "ablate": 0 if quick else 3,
    }
    result = ms.experiment(config, workers=workers, listener=print)
    checks = []
    for name, found in result.judged.scores.groupby("row", sort=False)["balanced_accuracy"]:
        seen = 1 if str(name).startswith("matched") else str(name).count("x-")
        ceiling = task.ceilings[seen]
        reached = ceiling - 0.02 <= found.min() and found.max() <= ceiling + SLACK
        measured = f"{found.mean():.4f} ({found.min():.4f} to {found.max():.4f})"
        checks.append((f"{name}: balanced accuracy", measured, f"{ceiling:g}", reached))
    told = "1,024 training sites a split, 4 epochs, `scalenet`; the ceilings are exact on the test sites."
    return Part("Three bits, one a magnification", told, result, checks)


def xor(folder: Path, *, quick: bool, workers: int | None) -> Part:
    """Whether the bits of two magnifications differ."""
    _, store, lists = bits_store("xor", folder, quick=quick)
    config = bits_config(store, lists, folder, epochs=1 if quick else 8) | {
        "magnifications": [[20], [5], [20, 5]],
        "models": ["single", "features", "predictions", "attention"],
        "embedding": 0,  # nothing but sums between the branches' features and the classes of feature fusion
    }
    result = ms.experiment(config, workers=workers, listener=print)
    checks = []
    for name, found in result.judged.scores.groupby("row", sort=False)["balanced_accuracy"]:
        loss = cross_entropy(Path(result.folder) / "runs" / str(name))
        measured = f"{found.mean():.4f} ({found.min():.4f} to {found.max():.4f}), cross-entropy {loss:.3f}"
        if str(name).startswith("attention"):
            checks.append((f"{name}: balanced accuracy", measured, ">= 0.98", found.min() >= 0.98))
        else:
            least = 0.5 if str(name).startswith(("single", "matched")) else 0.75
            reached = found.max() <= least + SLACK and loss >= np.log(2) - 1e-6
            checks.append((f"{name}: balanced accuracy", measured, f"<= {least:g}, cross-entropy >= ln 2", reached))
    told = "1,024 training sites a split, 8 epochs, `scalenet`; a sum over magnifications cannot know it."
    return Part("The difference of two bits", told, result, checks)


def cross_entropy(runs: Path) -> float:
    """Mean of -log p(label) over the test patches of all splits, nats."""
    tables = [pd.read_parquet(path) for path in sorted(runs.glob("*/predictions.parquet"))]
    rows = pd.concat(tables, ignore_index=True)
    columns = [name for name in rows if str(name).startswith("probability_") and not str(name).endswith("x")]
    values = rows[columns].to_numpy()[np.arange(len(rows)), rows["label"].to_numpy()]
    return float(-np.log(np.maximum(values, 1e-12)).mean())


def crops(data: Path, folder: Path, *, quick: bool) -> ms.PatchStore:
    """A store of the monuseg crops: tuples whose contexts all lie inside of their crop, and grids that cover it."""
    rows = []
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for number, (organ, places) in enumerate(ORGANS.items()):
        for place in places.split()[: 3 if quick else None]:
            (path,) = (data / "monuseg" / "images").glob(f"*{place}*.tif")
            shape = tifffile.imread(path).shape[:2]
            mask = folder / "labels" / f"{path.stem}.png"
            Image.fromarray(np.full(shape, number + 1, np.uint8)).save(mask)
            rows.append({"path": path, "mask": mask, "mpp": 0.25, "organ": organ})
    store = ms.PatchStore(folder / "crops.zarr")
    size, coarsest = 96, 384
    margin = (coarsest - size) // 2
    tuples = ms.ExtractionSpec(
        "centroids", (40.0, 20.0, 10.0), size, stride=96 if quick else 48, roi=(margin,) * 2 + (1000 - 2 * margin,) * 2
    )
    values = list(range(1, len(ORGANS) + 1))
    ms.extract(rows, store, tuples, values=values, progress=False)
    for scale in (40.0, 20.0):
        fine = ms.ExtractionSpec("grid", (scale,), size, inside=False)
        ms.extract(rows, store, fine, values=values, name=f"fine{scale:g}", progress=False)
    return store


def tissue(folder: Path, *, quick: bool, workers: int | None) -> Part:
    """The seed's grid on crops of four organs."""
    data = Path(os.environ.get("MSDASK_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
    if not (data / "monuseg").is_dir():
        raise SystemExit(f"'{data}' has no monuseg crops: set MSDASK_DATA_DIR, or leave the part 'tissue' out")
    store = crops(data, folder, quick=quick)
    config = {
        "store": store.path,
        "output": str(folder / "experiment"),
        "patch_set": "centroids-40x-20x-10x-96",
        "magnifications": [[40], [20], [10], [20, 10], [40, 20, 10]],
        "models": ["single", "features", "predictions", "attention"],
        "losses": ["one", "n+1"],
        "ratios": [34, 33, 33] if quick else [50, 20, 30],
        "repeats": 1 if quick else SPLITS,
        "classes": list(ORGANS),
        "features": "frozen",
        "backbone": "scalenet" if quick else "efficientnet_lite0",
        "weights": "none" if quick else "imagenet",
        "pooled_set": ["fine40", "fine20"],
        "metric": "balanced_accuracy",
        "ablate": 0 if quick else 3,
        "recipe": {"epochs": 1 if quick else 10},
    }
    result = ms.experiment(config, workers=workers, listener=print)
    told = (
        f"{sum(len(places.split()) for places in ORGANS.values())} crops of four organs, splits by crop, ImageNet "
        "features of a frozen EfficientNet-Lite0. Organ and stain are confounded, and a crop is one patient: what is "
        "measured is how well crops that were never seen are told apart."
    )
    return Part("Organs of real tissue", told, result, [])


PARTS: dict[str, Callable[..., Part]] = {"product": product, "xor": xor, "tissue": tissue}


def page(parts: Sequence[Part]) -> str:
    """The results as Markdown."""
    lines = ["# Classification", "", "; ".join(f"{name} {value}" for name, value in machine().items()), ""]
    for part in parts:
        runs = len(part.result.judged.scores)
        lines += [f"## {part.title}", "", f"{part.told} {runs} runs in {part.seconds:,.0f} s, "]
        lines[-1] += f"{part.processor:,.0f} s of processor time."
        if part.checks:
            lines += ["", "| what | measured | ceiling or target | |", "| --- | --- | --- | --- |"]
            lines += [
                f"| {what} | {found} | {target} | {'pass' if reached else '**FAIL**'} |"
                for what, found, target, reached in part.checks
            ]
        lines += ["", part.result.text.strip(), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write results; 1 where a ceiling or target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir()) / "msdask-classification"
    parser.add_argument("--folder", type=Path, default=scratch, help="slides, stores and runs")
    parser.add_argument("--output", type=Path, default=None, help="where the results go (default: the folder)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--workers", type=int, default=None, help="processes that train (default: this one)")
    parser.add_argument("--quick", action="store_true", help="few sites, one split, one epoch")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1 if given.quick else 2)
    output = given.output or given.folder
    output.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in given.parts:
        began, processor = time.perf_counter(), sum(os.times()[:4])
        found = PARTS[name](given.folder / name, quick=given.quick, workers=given.workers)
        seconds, processor = time.perf_counter() - began, sum(os.times()[:4]) - processor
        parts.append(Part(found.title, found.told, found.result, found.checks, seconds, processor))
        shutil.copy(found.result.folder / "table.png", output / f"classification-{name}.png")
        (output / f"classification-{name}.md").write_text(page(parts[-1:]), encoding="utf-8")
    print(page(parts))
    return int(not given.quick and any(not reached for part in parts for *_, reached in part.checks))


if __name__ == "__main__":
    raise SystemExit(main())
