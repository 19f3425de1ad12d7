"""`msdask train | test | predict scale`: the scale detector on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from msdask.cli.options import BatchSize, Magnifications, Output, Quiet, TrainingRecipe
from msdask.cli.store import open_store
from msdask.cli.terminal import err, out
from msdask.errors import MsdaskError, SpecError
from msdask.extras import require

if TYPE_CHECKING:
    from msdask.data import PatchLoader
    from msdask.models import ScaleRegressor
    from msdask.store.patch_set import PatchSet
    from msdask.training import Split

__all__ = ["predict", "test", "train"]

Store = Annotated[Path, Parameter(name=["--input", "-i"])]

train = App(name="train", help="Train a model on a patch store.")
test = App(name="test", help="Measure a model on a patch store.")
predict = App(name="predict", help="Apply a model to images or slides.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Parts:
    """What of a store is learned from: grid sets, one a magnification, and which slides are for what."""

    magnification: Magnifications | None = None
    """which of the sets; default all"""
    batch_size: BatchSize = 128
    """patches a batch"""
    lists: Path | None = None
    """folder with list_train.csv, list_valid.csv, list_test.csv; default the split that is stored with the slides"""
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None
    """split the slides by these instead: training, validation, test"""
    seed: int = 0
    """decides splits, and in training order, augmentation and initial weights"""

    @property
    def is_split_given(self) -> bool:
        """Whether the options say which slides are for what."""
        return self.lists is not None or self.ratios is not None

    def sets(self, path: Path) -> list[PatchSet]:
        """Grid sets of a store, one a magnification."""
        grids = [s for s in open_store(path).values() if s.spec.mode == "grid"]
        asked = self.magnification
        wanted = [s for s in grids if asked is None or s.spec.magnifications[0] in asked]
        if len(_scales(wanted)) < 2:
            raise SpecError(
                f"'{path}' has grid sets at {sorted(s.spec.magnifications[0] for s in grids)}"
                f"{f', asked for {sorted(asked)}' if asked is not None else ''}: a scale detector needs two or more "
                "magnifications: msdask extract SLIDES -o STORE --mode grid -m 40 30 20 15 10 8 5"
            )
        return wanted

    def split(self, sets: Sequence[PatchSet]) -> Split:
        """Which slides are for training, validation and test."""
        from msdask.store.splits import PARTS, stored_split
        from msdask.training import splits

        slides = _slides(sets)
        if self.lists is not None and self.ratios is not None:
            raise SpecError(
                f"--lists {self.lists} and --ratios: each says which slides are for training; give one of them"
            )
        if self.lists is not None:
            given = splits(slides, lists=self.lists)
            if len(given) > 1:
                raise SpecError(f"--lists {self.lists}: lists of {len(given)} repeats; give the folder of one of them")
            return given[0]
        if self.ratios is not None:
            return splits(slides, ratios=self.ratios, seed=self.seed)[0]
        stored = {part: slides for part, slides in stored_split(sets).items() if part in PARTS}
        if not stored["train"] or not stored["valid"]:
            raise SpecError(
                "the slides have no split, or none for training or validation: extract from a table with a column "
                "'split' (train, valid, test), or give --lists or --ratios"
            )
        return splits(slides, lists=stored)[0]

    def in_order(self, sets: Sequence[PatchSet], slides: Sequence[str]) -> PatchLoader:
        """Every patch of the slides once."""
        from msdask.data import PatchDataset, loader

        return loader(
            PatchDataset(sets, slides=slides, target="magnification"), batch_size=self.batch_size, shuffle=False
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Network:
    """What the scale detector is made of."""

    backbone: Annotated[str, Parameter(name=["--backbone", "-c"])] = "resnet34"
    """a classification network of torchvision, or scalenet"""
    weights: str | None = None
    """imagenet, or a file; default random"""
    embedding: Annotated[int, Parameter(name=["--embedding", "-f"])] = 128
    """width of the layer before the output, 0 for none"""
    dropout: Annotated[float, Parameter(name=["--dropout", "-d"])] = 0.0
    """probability"""
    target: Literal["linear", "log2"] = "linear"
    """what is regressed: the magnification, or its base-2 logarithm"""

    def model(self) -> ScaleRegressor:
        """The network, not trained yet."""
        from msdask.models import ScaleRegressor

        return ScaleRegressor(
            self.backbone,
            embedding=self.embedding or None,
            dropout=self.dropout,
            target=self.target,
            weights=self.weights,
        )


@train.command(name="scale")
def scale_train(
    store: Store,
    *,
    output: Output,
    parts: Parts = Parts(),
    network: Network = Network(),
    loss: Annotated[Literal["l1", "mse", "huber"], Parameter(name=["--loss", "--loss_function"])] = "l1",
    recipe: TrainingRecipe = TrainingRecipe(),
    scale_augment: Literal["enlarge", "exact", "none"] = "enlarge",
    workers: Annotated[int, Parameter(name=["--workers", "-p"])] = 0,
    resume: bool = False,
    quiet: Quiet = False,
) -> int:
    """Train the scale detector on the grid sets of a patch store, one set a magnification.

    Parameters
    ----------
    store
        patch store, made by `msdask extract ... --mode grid -m 40 30 20 15 10 8 5`
    output
        run folder: weights, settings, log, curves, metrics
    loss
        in the target's unit
    scale_augment
        enlarge the middle of patches, read other scales from the slides exactly, or neither
    workers
        processes that read and augment; 0 means threads
    resume
        go on with the run in the output folder
    """
    require("msdask train", module="pytorch_lightning")
    from msdask.data import Augment, PatchDataset, ScaleAugment, VirtualSet, loader
    from msdask.training import ScaleTask, fit

    sets = parts.sets(store)
    scales = _scales(sets)
    split = parts.split(sets)
    changed_scale = ScaleAugment(scales) if scale_augment != "none" else None
    is_exact = scale_augment == "exact"
    sources: Sequence[Any] = [VirtualSet.of(s) for s in sets] if is_exact else sets
    dataset = PatchDataset(
        sources, slides=split.train, target="magnification", scale=changed_scale if is_exact else None
    )
    result = fit(
        network.model(),
        ScaleTask(loss, classes=scales),
        loader(
            dataset,
            batch_size=parts.batch_size,
            balanced=True,
            augment=Augment(scale=None if is_exact else changed_scale),
            seed=parts.seed,
            num_workers=workers,
        ),
        parts.in_order(sets, split.valid),
        output,
        recipe=recipe.recipe(parts.seed),
        resume=resume,
        progress=not quiet,
        about={"crop": sets[0].spec.patch_size, "magnifications": [scales[0], scales[-1]]},
    )
    split.write(output / "lists")
    out.print(f"{output}: epoch {result.best_epoch} of {result.epochs} is the best", markup=False)
    _print_metrics(result.valid)
    return 0


@test.command(name="scale")
def scale_test(
    store: Store,
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])],
    parts: Parts = Parts(),
    everything: Annotated[bool, Parameter(name="--all")] = False,
    quiet: Quiet = False,
) -> int:
    """Measure a scale detector on the test slides of a patch store.

    Parameters
    ----------
    store
        patch store with grid sets
    model
        run folder of `msdask train scale` (its lists are taken before the stored split, its metrics.json gets the
        result), a .safetensors file, default or free
    everything
        all slides, whatever the split
    """
    require("msdask test", module="pytorch_lightning")
    from msdask.inference.scale import load_regressor
    from msdask.store.splits import stored_split
    from msdask.training import ScaleTask, evaluate

    network, _ = load_regressor(model)
    sets = parts.sets(store)
    run = Path(model) if os.path.isdir(model) else None
    if run is not None and not parts.is_split_given and (run / "lists").is_dir():
        parts = replace(parts, lists=run / "lists")
    if everything:
        slides: Sequence[str] = _slides(sets)
    else:
        slides = parts.split(sets).test if parts.is_split_given else stored_split(sets)["test"]
    if not slides:
        raise MsdaskError("no slide is in the test split: give --lists, --ratios or --all")
    task = ScaleTask(classes=_scales(sets))
    _print_metrics(evaluate(network, task, parts.in_order(sets, slides), folder=run, progress=not quiet))
    return 0


@predict.command(name="scale")
def scale_predict(
    images: Annotated[Path, Parameter(name=["--input", "-i"])],
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])] = "default",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    crops: int = 64,
    batch_size: BatchSize = 128,
) -> int:
    """Estimate the magnification of images from their pixels, one row an image, in input order.

    Parameters
    ----------
    images
        one image or slide, a folder, or a CSV of paths
    model
        default, free, a run folder or a .safetensors file
    output
        CSV to write; default the rows go to the terminal
    crops
        at most so many crops an image
    batch_size
        crops at once
    """
    require("msdask predict")
    from msdask.inference.scale import estimate_scale, listed_paths
    from msdask.storage.files import write_file

    table = estimate_scale(listed_paths(images), model, n_crops=crops, batch_size=batch_size)
    for path, reason in zip(table["path"], table["error"], strict=True):
        if reason:
            err.print(f"failed: {path}: {reason}", markup=False)
    if output is not None:
        write_file(output, table.to_csv(index=False))
        failed = int(table["error"].astype(bool).sum())
        out.print(f"{output}: {len(table)} images{f', {failed} failed' if failed else ''}", markup=False)
    else:
        out.print(table.drop(columns="error").to_csv(index=False, float_format="%.4g").rstrip(), markup=False)
    return 1 if table["error"].astype(bool).any() else 0


def _scales(sets: Sequence[PatchSet]) -> list[float]:
    return sorted({s.spec.magnifications[0] for s in sets})


def _slides(sets: Sequence[PatchSet]) -> list[str]:
    return sorted({slide for s in sets for slide in s.slides})


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        out.print(f"{name.replace('_', ' '):<20} {value:.4f}", markup=False)
