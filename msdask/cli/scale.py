"""`msdask train | test | predict scale`, and `--mpp estimate`: the scale detector on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

import msdask as ms
from msdask.cli.terminal import Quiet, err, out
from msdask.errors import MsdaskError, SpecError
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.extras import require
from msdask.slides.slide import Slide
from msdask.storage.files import write_file
from msdask.store.patch_set import PatchSet
from msdask.store.splits import PARTS, stored_split

if TYPE_CHECKING:
    from msdask.data import PatchLoader
    from msdask.inference.scale import ScaleEstimate
    from msdask.training import Split

__all__ = ["Mpp", "estimated", "predict", "slides_with_scale", "test", "train"]

Mpp = Annotated[float | Literal["estimate"] | None, Parameter(name="--mpp")]
Store = Annotated[Path, Parameter(name=["--input", "-i"])]
Magnifications = Annotated[
    list[float] | None, Parameter(name=["--magnification", "-m"], consume_multiple=True, negative=())
]
Ratios = Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())]
BatchSize = Annotated[int, Parameter(name=["--batch-size", "-b"])]

train = App(name="train", help="Train a model on a patch store.")
test = App(name="test", help="Measure a model on a patch store.")
predict = App(name="predict", help="Apply a model to images or slides.")


@train.command(name="scale")
def scale_train(
    store: Store,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    magnification: Magnifications = None,
    backbone: Annotated[str, Parameter(name=["--backbone", "-c"])] = "resnet34",
    weights: str | None = None,
    embedding: Annotated[int, Parameter(name=["--embedding", "-f"])] = 128,
    dropout: Annotated[float, Parameter(name=["--dropout", "-d"])] = 0.0,
    target: Literal["linear", "log2"] = "linear",
    loss: Annotated[Literal["l1", "mse", "huber"], Parameter(name=["--loss", "--loss_function"])] = "l1",
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Parameter(name=["--optimizer", "-optimizer"])] = "adam",
    learning_rate: Annotated[float, Parameter(name=["--lr", "-lr"])] = 1e-3,
    epochs: Annotated[int, Parameter(name=["--epochs", "-e"])] = 10,
    patience: int = 5,
    batch_size: BatchSize = 128,
    precision: Literal["32", "bf16", "16"] = "32",
    scale_augment: Literal["enlarge", "exact", "none"] = "enlarge",
    lists: Path | None = None,
    ratios: Ratios = None,
    seed: int = 0,
    workers: Annotated[int, Parameter(name=["--workers", "-p"])] = 0,
    resume: Annotated[bool, Parameter(negative=())] = False,
    quiet: Quiet = False,
) -> int:
    """Train the scale detector on the grid sets of a patch store, one set a magnification.

    Parameters
    ----------
    store
        patch store, made by `msdask extract ... --mode grid -m 40 30 20 15 10 8 5`
    output
        run folder: weights, settings, log, curves, metrics
    magnification
        which of the sets; default all
    backbone
        a classification network of torchvision, or scalenet
    weights
        imagenet, or a file; default random
    embedding
        width of the layer before the output, 0 for none
    dropout
        probability
    target
        what is regressed: the magnification, or its base-2 logarithm
    loss
        in that unit
    optimizer
        adam, adamw or sgd
    learning_rate
        at its start
    epochs
        at most
    patience
        epochs without a better validation loss after which training stops
    batch_size
        patches a batch
    precision
        bf16 and 16 are mixed precision
    scale_augment
        enlarge the middle of patches, read other scales from the slides exactly, or neither
    lists
        folder with list_train.csv and list_valid.csv; default the split that is stored with the slides
    ratios
        split the slides by these instead: training, validation, test
    seed
        decides splits, order, augmentation and initial weights
    workers
        processes that read and augment; 0 means threads
    resume
        go on with the run in the output folder
    quiet
        no progress bar
    """
    require("msdask train", module="pytorch_lightning")
    from msdask.data import Augment, PatchDataset, ScaleAugment, VirtualSet, loader
    from msdask.models import ScaleRegressor
    from msdask.training import Recipe, ScaleTask, fit

    sets = _sets(store, magnification)
    scales = sorted({s.spec.magnifications[0] for s in sets})
    split = _split(sets, lists, ratios, seed)
    changed_scale = ScaleAugment(scales) if scale_augment != "none" else None
    augment = Augment(scale=changed_scale if scale_augment == "enlarge" else None)
    sources: Sequence[Any] = [VirtualSet.of(s) for s in sets] if scale_augment == "exact" else sets
    dataset = PatchDataset(
        sources,
        slides=split.train,
        target="magnification",
        scale=changed_scale if scale_augment == "exact" else None,
    )
    batches = loader(dataset, batch_size=batch_size, balanced=True, augment=augment, seed=seed, num_workers=workers)
    model = ScaleRegressor(backbone, embedding=embedding or None, dropout=dropout, target=target, weights=weights)
    size = sets[0].spec.patch_size
    result = fit(
        model,
        ScaleTask(loss, classes=scales),
        batches,
        _in_order(sets, split.valid, batch_size),
        output,
        recipe=Recipe(
            epochs=epochs, optimizer=optimizer, lr=learning_rate, patience=patience, precision=precision, seed=seed
        ),
        resume=resume,
        progress=not quiet,
        about={"crop": size, "magnifications": [scales[0], scales[-1]]},
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
    magnification: Magnifications = None,
    batch_size: BatchSize = 128,
    lists: Path | None = None,
    ratios: Ratios = None,
    seed: int = 0,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    quiet: Quiet = False,
) -> int:
    """Measure a scale detector on the test slides of a patch store.

    Parameters
    ----------
    store
        patch store with grid sets
    model
        run folder of `msdask train scale` (its metrics.json gets the result), a .safetensors file, default or free
    magnification
        which of the sets; default all
    batch_size
        patches a batch
    lists
        folder with list_test.csv; default the run's own, or the split that is stored with the slides
    ratios
        split the slides by these instead, as in training
    seed
        of that split
    everything
        all slides, whatever the split
    quiet
        no progress bar
    """
    require("msdask test", module="pytorch_lightning")
    from msdask.inference.scale import load_regressor
    from msdask.training import ScaleTask, evaluate

    network, _ = load_regressor(model)
    sets = _sets(store, magnification)
    scales = sorted({s.spec.magnifications[0] for s in sets})
    run = Path(model) if os.path.isdir(model) else None
    if everything:
        slides: Sequence[str] = _slides(sets)
    else:
        own = run / "lists" if run is not None and lists is None and ratios is None else None
        lists = own if own is not None and own.is_dir() else lists
        is_given = lists is not None or ratios is not None
        slides = _split(sets, lists, ratios, seed).test if is_given else stored_split(sets)["test"]
    if not slides:
        raise MsdaskError("no slide is in the test split: give --lists, --ratios or --all")
    found = evaluate(
        network, ScaleTask(classes=scales), _in_order(sets, slides, batch_size), folder=run, progress=not quiet
    )
    _print_metrics(found)
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


def estimated(slide: str | os.PathLike[str], mpp: float | Literal["estimate"] | None) -> float | None:
    """`--mpp` as a number: for "estimate" what the scale detector says of the slide, and says so."""
    if mpp != "estimate":
        return mpp
    from msdask.inference.scale import estimate_scale

    found: ScaleEstimate = estimate_scale(slide)
    stated = Slide(slide).mpp
    beside = f"; the file states {stated:g} um/px" if stated is not None else ""
    err.print(f"{os.fspath(slide)}: {_said(found)}{beside}", markup=False)
    return found.mpp


def _said(found: ScaleEstimate) -> str:
    spread = f"spread {found.spread:.0%} over {found.n_crops} crops" if found.n_crops > 1 else "a single crop"
    return f"{found.magnification:.1f}x, {found.mpp:.3g} um/px by the scale detector ({spread})"


def slides_with_scale(slides: str, mpp: float | Literal["estimate"] | None) -> list[SlideRow] | str:
    """The slides of an extraction, with `--mpp` for those whose scale neither their file nor the table states."""
    if mpp is None:
        return slides
    rows = []
    for row in read_slides(slides):
        try:
            rows.append(_with_scale(row, mpp))
        except MsdaskError as error:  # the extraction reports what is wrong with it, and the others go on
            if mpp == "estimate":
                err.print(f"{row.path}: its scale cannot be estimated: {error}", markup=False)
            rows.append(row)
    return rows


def _with_scale(row: SlideRow, mpp: float | Literal["estimate"]) -> SlideRow:
    from msdask.inference.scale import estimate_scale

    if row.mpp is not None or row.magnification is not None or Slide(row.path).mpp is not None:
        return row
    if mpp != "estimate":
        return replace(row, mpp=mpp)
    found: ScaleEstimate = estimate_scale(row.path)
    err.print(f"{row.path}: {_said(found)}", markup=False)
    # kept with the slide: whoever reads the store must be able to tell an estimate from a scale that was stated
    return replace(row, mpp=found.mpp, cohort={**row.cohort, "scale_estimate": _said(found)})


def _sets(store: Path, magnifications: Sequence[float] | None) -> list[PatchSet]:
    """Grid sets of a store, one a magnification."""
    opened = ms.PatchStore(store)
    if not len(opened):
        raise MsdaskError(f"'{store}' is no patch store, or has no patch set yet")
    grids = [s for s in opened.values() if s.spec.mode == "grid"]
    wanted = [s for s in grids if magnifications is None or s.spec.magnifications[0] in magnifications]
    if len({s.spec.magnifications[0] for s in wanted}) < 2:
        raise SpecError(
            f"'{store}' has grid sets at {sorted(s.spec.magnifications[0] for s in grids)}"
            f"{f', asked for {sorted(magnifications)}' if magnifications is not None else ''}: a scale detector needs "
            "two or more magnifications: msdask extract SLIDES -o STORE --mode grid -m 40 30 20 15 10 8 5"
        )
    return wanted


def _slides(sets: Sequence[PatchSet]) -> list[str]:
    return sorted({slide for s in sets for slide in s.slides})


def _split(sets: Sequence[PatchSet], lists: Path | None, ratios: Sequence[float] | None, seed: int) -> Split:
    from msdask.training import splits

    slides = _slides(sets)
    if lists is not None and ratios is not None:
        raise SpecError(f"--lists {lists} and --ratios: each says which slides are for training; give one of them")
    if lists is not None:
        given = splits(slides, lists=lists)
        if len(given) > 1:
            raise SpecError(f"--lists {lists}: lists of {len(given)} repeats; give the folder of one of them")
        return given[0]
    if ratios is not None:
        return splits(slides, ratios=ratios, seed=seed)[0]
    stored = {part: slides for part, slides in stored_split(sets).items() if part in PARTS}
    if not stored["train"] or not stored["valid"]:
        raise SpecError(
            "the slides have no split, or none for training or validation: extract from a table with a column 'split' "
            "(train, valid, test), or give --lists or --ratios"
        )
    return splits(slides, lists=stored)[0]


def _in_order(sets: Sequence[PatchSet], slides: Sequence[str], batch_size: int) -> PatchLoader:
    from msdask.data import PatchDataset, loader

    dataset = PatchDataset(sets, slides=slides, target="magnification")
    return loader(dataset, batch_size=batch_size, shuffle=False)


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        out.print(f"{name.replace('_', ' '):<20} {value:.4f}", markup=False)
