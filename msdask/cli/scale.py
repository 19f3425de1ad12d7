"""`msdask train | test | predict scale`, and `--mpp estimate`: the scale detector on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from msdask.cli.scale_options import BatchSize, Magnifications, Ratios, ScaleOptions
from msdask.cli.terminal import Quiet, err, out
from msdask.errors import MsdaskError
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.extras import require
from msdask.slides.slide import Slide

if TYPE_CHECKING:
    from msdask.inference.scale import ScaleEstimate

__all__ = ["Mpp", "estimated", "predict", "slides_with_scale", "test", "train"]

Mpp = Annotated[float | Literal["estimate"] | None, Parameter(name="--mpp")]
Data = Annotated[Path, Parameter(name=["--input", "-i"])]

train = App(name="train", help="Train a model on a patch store, or on images.")
test = App(name="test", help="Measure a model on a patch store, or on images.")
predict = App(name="predict", help="Apply a model to images or slides.")


@train.command(name="scale")
def scale_train(
    data: Data,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    options: ScaleOptions | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    quiet: Quiet = False,
) -> int:
    """Train the scale detector on the grid sets of a patch store, one set a magnification, or on images.

    Parameters
    ----------
    data
        patch store, made by `msdask extract ... --mode grid -m 40 30 20 15 10 8 5`; or crops of tissue: a folder, or a
        CSV with path, magnification or mpp, and split
    output
        run folder: weights, settings, log, curves, metrics
    resume
        go on with the run in the output folder
    quiet
        no progress bar
    """
    require("msdask train", module="pytorch_lightning")
    result = (options or ScaleOptions()).train(data, output, resume=resume, progress=not quiet)
    out.print(f"{output}: epoch {result.best_epoch} of {result.epochs} is the best", markup=False)
    _print_metrics(result.valid)
    return 0


@test.command(name="scale")
def scale_test(
    data: Data,
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
    """Measure a scale detector on the test slides of a patch store, or on images.

    Parameters
    ----------
    data
        patch store with grid sets, or images as for `msdask train scale`
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
    from msdask.training import ScaleSource, ScaleTask, evaluate

    network, crop = load_regressor(model)
    source = ScaleSource(data, magnifications=magnification, crop=crop)
    run = Path(model) if os.path.isdir(model) else None
    if everything:
        slides: Sequence[str] = source.slides
    else:
        own = run / "lists" if run is not None and lists is None and ratios is None else None
        lists = own if own is not None and own.is_dir() else lists
        is_given = lists is not None or ratios is not None
        slides = source.split(lists=lists, ratios=ratios, seed=seed).test if is_given else source.stored_split()["test"]
    if not slides:
        raise MsdaskError("no slide is in the test split: give --lists, --ratios or --all")
    batches = source.measured(slides, batch_size=batch_size)
    task = ScaleTask(classes=source.magnifications)
    _print_metrics(evaluate(network, task, batches, folder=run, progress=not quiet))
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
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(output, index=False)
        except OSError as error:
            raise MsdaskError(f"cannot write '{output}': {error.strerror}") from error
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


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        out.print(f"{name.replace('_', ' '):<20} {value:.4f}", markup=False)
