"""`msdask train | test | predict scale`: the scale detector on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from msdask.cli.groups import LEARNING, MODELS
from msdask.cli.numbers import ABOVE_ZERO, COUNT
from msdask.cli.options import BatchSize, Output, Quiet, TrainingRecipe
from msdask.cli.scale_options import Draws, Network, Parts, said_of
from msdask.cli.terminal import err, out
from msdask.errors import MsdaskError
from msdask.extras import require

__all__ = ["predict", "test", "train"]

Data = Annotated[Path, Parameter(name=["--input", "-i"])]

train = App(name="train", group=MODELS, help="Train a model on a patch store, or on images.")
test = App(name="test", group=MODELS, help="Measure a model on a patch store, or on images.")
predict = App(name="predict", group=MODELS, help="Apply a model to images or slides.")


@train.command(name="scale")
def scale_train(
    data: Data,
    *,
    output: Output,
    parts: Parts = Parts(),
    network: Network = Network(),
    loss: Annotated[
        Literal["l1", "mse", "huber"], Parameter(name=["--loss", "--loss_function"], group=LEARNING)
    ] = "l1",
    delta: Annotated[float, ABOVE_ZERO, Parameter(group=LEARNING)] = 1.0,
    recipe: TrainingRecipe = TrainingRecipe(),
    draws: Draws = Draws(),
    about: Path | None = None,
    resume: bool = False,
    quiet: Quiet = False,
) -> int:
    """Train the scale detector on the grid sets of a patch store, one set a magnification, or on images.

    Example: `msdask train scale -i cohort.zarr -o run --ratios 60 20 20`.

    Parameters
    ----------
    data
        patch store, made by `msdask extract ... --mode grid -m 40 30 20 15 10 8 5`; or crops of tissue: a folder, or a
        CSV with path, magnification or mpp, and split
    output
        run folder: weights, settings, log, curves, metrics
    loss
        in the target's unit
    delta
        where the huber loss turns linear
    about
        JSON file with what to say of the model: data, licence, notice
    resume
        go on with the run in the output folder
    """
    require("msdask train", module="pytorch_lightning")
    from msdask.storage.files import check_folder_writable
    from msdask.training import ScaleTask, fit

    check_folder_writable(output, what="run folder")
    source = draws.source(data, parts)
    split = source.split(lists=parts.lists, ratios=parts.ratios, seed=parts.seed)
    settings = recipe.recipe(parts.seed)
    settings.seed_weights()
    result = fit(
        network.model(),
        ScaleTask(loss, delta=delta, classes=source.magnifications),
        draws.batches(source, split.train, parts),
        source.measured(split.valid, batch_size=parts.batch_size),
        output,
        recipe=settings,
        resume=resume,
        progress=not quiet,
        about=said_of(source, about),
    )
    split.write(output / "lists")
    out.print(f"{output}: epoch {result.best_epoch} of {result.epochs} is the best", markup=False)
    _print_metrics(result.valid)
    return 0


@test.command(name="scale")
def scale_test(
    data: Data,
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])],
    parts: Parts = Parts(),
    everything: Annotated[bool, Parameter(name="--all")] = False,
    quiet: Quiet = False,
) -> int:
    """Measure a scale detector on the test slides of a patch store, or on images.

    Example: `msdask test scale -i cohort.zarr -p run`.

    Parameters
    ----------
    data
        patch store with grid sets, or images as for `msdask train scale`
    model
        run folder of `msdask train scale` (its lists are taken before the stored split, its metrics.json gets the
        result), a .safetensors file, default or free
    everything
        all slides, whatever the split
    """
    require("msdask test", module="pytorch_lightning")
    from msdask.inference.scale import load_regressor
    from msdask.storage.files import check_folder_writable
    from msdask.training import ScaleSource, ScaleTask, evaluate

    run = Path(model) if os.path.isdir(model) else None
    if run is not None:
        check_folder_writable(run, what="run folder")
    network, crop = load_regressor(model)
    source = ScaleSource(data, magnifications=parts.magnification, crop=crop)
    if run is not None and not parts.is_split_given and (run / "lists").is_dir():
        parts = replace(parts, lists=run / "lists")
    if everything:
        slides: Sequence[str] = source.slides
    else:
        is_given = parts.is_split_given
        given = source.split(lists=parts.lists, ratios=parts.ratios, seed=parts.seed) if is_given else None
        slides = given.test if given is not None else source.stored_split()["test"]
    if not slides:
        raise MsdaskError("no slide is in the test split: give --lists, --ratios or --all")
    batches = source.measured(slides, batch_size=parts.batch_size)
    task = ScaleTask(classes=source.magnifications)
    _print_metrics(evaluate(network, task, batches, folder=run, progress=not quiet))
    return 0


@predict.command(name="scale")
def scale_predict(
    images: Annotated[Path, Parameter(name=["--input", "-i"])],
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])] = "default",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    crops: Annotated[int, COUNT] = 64,
    batch_size: BatchSize = 128,
) -> int:
    """Estimate the magnification of images from their pixels, one row an image, in input order.

    Example: `msdask predict scale -i images/ -o estimates.csv`.

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
    from msdask.storage.files import check_writable, write_file

    if output is not None:
        check_writable(output, what="table")
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


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        out.print(f"{name.replace('_', ' '):<20} {value:.4f}", markup=False)
