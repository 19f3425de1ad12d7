"""`msdask train | test classifier`: classifiers of one magnification or several on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.classify_options import Branches, ClassifierRecipe, Tuples
from msdask.cli.groups import LEARNING
from msdask.cli.numbers import NATURAL
from msdask.cli.options import Output, Quiet
from msdask.cli.scale import Data, test, train
from msdask.cli.terminal import out, print_dropped, print_metrics
from msdask.errors import MsdaskError
from msdask.extras import require

if TYPE_CHECKING:
    from msdask.training import ClassifySource, ClassifyTask

__all__ = ["classifier_test", "classifier_train", "test", "train"]

Loss = Annotated[Literal["cross_entropy"], Parameter(name=["--loss", "--loss_function"], group=LEARNING)]
LossWeights = Annotated[list[float] | None, Parameter(consume_multiple=True, group=LEARNING)]


@train.command(name="classifier")
def classifier_train(
    data: Data,
    *,
    output: Output,
    tuples: Tuples = Tuples(),
    branches: Branches = Branches(),
    losses: Literal["one", "n+1"] | None = None,
    loss_weights: LossWeights = None,
    loss: Loss = "cross_entropy",
    monitor: Annotated[str, Parameter(group=LEARNING)] = "loss",
    recipe: ClassifierRecipe = ClassifierRecipe(),
    augment: Literal["original", "strong", "none"] = "original",
    workers: Annotated[int, NATURAL, Parameter(name=["--workers", "-p"])] = 0,
    resume: bool = False,
    verbose: Annotated[Literal["True", "False", "true", "false"], Parameter(name=["--verbose", "-verbose"])] = "True",
    quiet: Quiet = False,
) -> int:
    """Train a classifier of tissue on the labeled tuples of a patch store, and measure it on the test slides.

    Examples: `msdask train classifier -i cohort.zarr -o run -m 20 10 5 --ratios 60 20 20`; of any scale from 40x to 5x:
    `msdask train classifier -i cohort.zarr -o run -m 10 --combine single --mpp-range 0.25 2.0`.

    Parameters
    ----------
    data
        patch store, extracted with annotated masks: `msdask extract ... --values ... -m 20 10 5` for multicenter, with
        `--mode grid` too for upper_region
    output
        run folder: weights, settings, log, curves, metrics, lists; predictions.parquet and confusion.png of the test
    losses
        one: of the whole; n+1: of each magnification too; default as the relation says
    loss_weights
        with n+1: of the whole, then of each magnification, the highest first
    loss
        there is this one
    monitor
        what of the validation says which epoch is the best: loss, kappa, balanced_accuracy, ...
    augment
        original: flips, turns, hue, saturation, value; strong: stain, contrast, blur, JPEG too; none
    workers
        processes that read and augment; 0 means threads
    resume
        go on with the run in the output folder
    verbose
        False is the same as --quiet
    """
    require("msdask train", module="pytorch_lightning")
    from msdask.data import Augment, loader
    from msdask.storage.files import check_folder_writable
    from msdask.training import ClassifyTask, fit

    check_folder_writable(output, what="run folder")
    chosen = branches.losses(losses, is_upper_region=tuples.is_upper_region)
    source = tuples.source(data, losses=chosen)
    branches.check(source.magnifications)
    split = tuples.split(source)
    source.check(split)
    print_dropped(source.dropped, "tuples")
    settings = recipe.recipe(tuples.seed)
    settings.seed_weights()
    model, begins_with = branches.model(source.classes, source.magnifications)
    scales = source.magnifications if chosen == "n+1" else ()
    task = ClassifyTask(source.classes, chosen, magnifications=scales, loss_weights=loss_weights, monitor=monitor)
    is_quiet = quiet or verbose.lower() == "false"
    mpp = tuples.range_of_mpp
    result = fit(
        model,
        task,
        loader(
            source.dataset(split.train, mpp=mpp),
            batch_size=tuples.batch_size,
            balanced=True,
            augment=Augment.named(augment),
            seed=tuples.seed,
            num_workers=workers,
        ),
        source.measured(split.valid, batch_size=tuples.batch_size, mpp=mpp),
        output,
        recipe=settings,
        resume=resume,
        progress=not is_quiet,
        about={**source.about(task), "dropped": source.dropped, "initial_weights": begins_with, "mpp": mpp},
    )
    split.write(output / "lists")
    out.print(f"{output}: epoch {result.best_epoch} of {result.epochs} is the best", markup=False)
    if not split.test:
        print_metrics(result.valid)
        return 0
    _measure(result.model, task, source, split.test, output, tuples=tuples, progress=not is_quiet)
    return 0


@test.command(name="classifier")
def classifier_test(
    data: Data,
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])],
    tuples: Tuples = Tuples(),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    ablate: Annotated[int, NATURAL] = 0,
    quiet: Quiet = False,
) -> int:
    """Measure a classifier on the test slides of a patch store: metrics, predictions, confusion matrix.

    Example: `msdask test classifier -i cohort.zarr -p run`.

    Parameters
    ----------
    data
        patch store, as for `msdask train classifier`
    model
        run folder of `msdask train classifier` (its lists are taken before the stored split), or a .safetensors file
    output
        folder for metrics.json, predictions.parquet and confusion.png; default the run folder
    everything
        all slides, whatever the split
    ablate
        of a fusion: permute the inputs of each branch over the test patches so often, and say how much scores fall
    """
    require("msdask test", module="pytorch_lightning")
    from msdask.models import MultiScaleClassifier, load_model
    from msdask.storage.files import check_folder_writable
    from msdask.training import ClassifyTask

    run = Path(model) if os.path.isdir(model) else None
    if (folder := output or run) is not None:
        check_folder_writable(folder, what="folder of the test")
    network, about = load_model(model)
    if not isinstance(network, MultiScaleClassifier):
        raise MsdaskError(f"model '{model}' is a {type(network).__name__}, no classifier of tissue")
    losses: Literal["one", "n+1"] = "n+1" if about.get("losses") == "n+1" else "one"
    scales = list(network.magnifications)
    if tuples.magnification is not None and sorted(tuples.magnification, reverse=True) != scales:
        raise MsdaskError(f"model '{model}' is for magnifications {scales}, asked for {tuples.magnification}")
    tuples = replace(tuples, classes=network.classes, relation=tuples.relation or about.get("relation"))
    if run is not None and not tuples.is_split_given and (run / "lists").is_dir():
        tuples = replace(tuples, lists=run / "lists")
    source = tuples.source(data, losses=losses, magnifications=scales)
    split = tuples.split(source) if tuples.is_split_given and not everything else None
    slides = source.measured_slides(split, everything=everything)
    print_dropped(source.dropped, "tuples")
    task = ClassifyTask(network.classes, losses, magnifications=scales if losses == "n+1" else ())
    _measure(network, task, source, slides, folder, tuples=tuples, progress=not quiet)
    if ablate:
        _ablate(network, source, slides, folder, repeats=ablate, seed=tuples.seed, batch_size=tuples.batch_size)
    return 0


def _measure(
    model: Any,
    task: ClassifyTask,
    source: ClassifySource,
    slides: Sequence[str],
    folder: Path | None,
    *,
    tuples: Tuples,
    progress: bool,
) -> None:
    """Evaluate, print, and leave metrics, predictions and figures in a folder."""
    from msdask.training import accuracy_by_mpp, measure

    mpp = tuples.range_of_mpp
    if mpp is not None:
        mpp = source.common_range(slides, mpp)
    batches = source.measured(slides, batch_size=tuples.batch_size)
    scales, patients = source.magnifications, source.patients
    print_metrics(measure(model, task, batches, folder, magnifications=scales, patients=patients, progress=progress))
    if mpp is not None:
        rows = accuracy_by_mpp(model, source, slides, mpp=mpp, batch_size=tuples.batch_size, folder=folder)
        for row in rows.itertuples(index=False):
            out.print(f"balanced accuracy at {row.mpp:.3f} um/px {row.balanced_accuracy:.4f}", markup=False)


def _ablate(
    model: Any,
    source: ClassifySource,
    slides: Sequence[str],
    folder: Path | None,
    *,
    repeats: int,
    seed: int,
    batch_size: int,
) -> None:
    """Print how much scores fall where a branch sees other patches, and leave it in a folder."""
    from msdask.storage.files import replacing
    from msdask.training import permute_branches

    found = permute_branches(model, source.measured(slides, batch_size=batch_size), repeats=repeats, seed=seed)
    if folder is not None:
        with replacing(folder / "ablation.csv", what="ablation") as part:
            found.to_csv(part, index=False)
    means = found.drop(columns="repeat").groupby("branch", sort=False).mean()
    for branch, fall in (means.loc["none"] - means.drop(index="none")).iterrows():
        said = ", ".join(f"{str(name).replace('_', ' ')} {value:.4f}" for name, value in fall.items())
        out.print(f"{branch} permuted, scores fall by: {said}", markup=False)
