"""`msdask train | test segmenter`: U-Nets and HookNets on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.classify import test, train
from msdask.cli.groups import RUN
from msdask.cli.numbers import NATURAL
from msdask.cli.options import Output, Quiet
from msdask.cli.scale import Data
from msdask.cli.segment_options import Mapped, Network, SegmenterRecipe
from msdask.cli.terminal import out, print_dropped, print_metrics
from msdask.errors import MsdaskError
from msdask.extras import require

if TYPE_CHECKING:
    from msdask.training import SegmentSource, SegmentTask

__all__ = ["segmenter_test", "segmenter_train", "test", "train"]


@train.command(name="segmenter")
def segmenter_train(
    data: Data,
    *,
    output: Output,
    patches: Mapped = Mapped(),
    network: Network = Network(),
    loss_weights: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    class_weights: Literal["none", "balanced"] = "none",
    monitor: str = "macro_f1",
    recipe: SegmenterRecipe = SegmenterRecipe(),
    augment: Literal["hed", "spatial", "original", "strong", "none"] = "hed",
    balanced: Literal["pixels", "none"] = "pixels",
    workers: Annotated[int, NATURAL, Parameter(name=["--workers", "-p"]), Parameter(group=RUN)] = 0,
    resume: bool = False,
    quiet: Quiet = False,
) -> int:
    """Train a U-Net or a HookNet on the label maps of a patch store, and measure it on the test slides.

    Examples: `msdask train segmenter -i cohort.zarr -o run --model unet -m 20`, with its context:
    `msdask train segmenter -i cohort.zarr -o run --model hooknet -m 20 5 --ratios 60 20 20`.

    Parameters
    ----------
    data
        patch store, extracted with label maps: `msdask extract ... --values ... --label-maps -m 20 5`
    output
        run folder: weights, settings, log, curves, metrics, lists; pixels.csv and confusion.png of the test
    loss_weights
        of the target, then of each context; default 1 0, HookNet's authors took 0.75 0.25 for breast
    class_weights
        balanced: 1 / px of each class in training
    monitor
        what of the validation says which epoch is the best: macro_f1, loss, dice, ...
    augment
        hed: flips, turns, stain; spatial: flips and turns; original: these, hue, saturation, value; strong; none
    balanced
        pixels: patches are drawn such that classes have as many px; none: each patch once
    workers
        processes that read and augment; 0 means threads
    resume
        go on with the run in the output folder
    """
    require("msdask train", module="pytorch_lightning")
    from msdask.data import Augment, loader
    from msdask.storage.files import check_folder_writable
    from msdask.training import SegmentTask, fit

    check_folder_writable(output, what="run folder")
    source = patches.source(data)
    split = patches.split(source)
    source.check(split)
    print_dropped(source.dropped, "patches")
    settings = recipe.recipe(patches.seed)
    settings.seed_weights()
    model = network.made(source.classes, source.magnifications, source.patch_size)
    weights = source.class_weights(split.train) if class_weights == "balanced" else None
    task = SegmentTask(source.names, loss_weights=loss_weights or (1.0,), class_weights=weights, monitor=monitor)
    learnt = loader(
        source.dataset(split.train),
        batch_size=patches.batch_size,
        balanced="pixels" if balanced == "pixels" else False,
        augment=Augment.named(augment),
        seed=patches.seed,
        num_workers=workers,
    )
    result = fit(
        model,
        task,
        learnt,
        source.measured(split.valid, batch_size=patches.batch_size),
        output,
        recipe=settings,
        resume=resume,
        progress=not quiet,
        about={**source.about(task), "dropped": source.dropped},
    )
    split.write(output / "lists")
    out.print(f"{output}: epoch {result.best_epoch} of {result.epochs} is the best", markup=False)
    if not split.test:
        print_metrics(result.valid)
        return 0
    _measure(result.model, task, source, split.test, output, batch_size=patches.batch_size, progress=not quiet)
    return 0


@test.command(name="segmenter")
def segmenter_test(
    data: Data,
    *,
    model: Annotated[str, Parameter(name=["--model", "-p"])],
    patches: Mapped = Mapped(),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    quiet: Quiet = False,
) -> int:
    """Measure a U-Net or a HookNet on the test slides of a patch store: F1 of each class, macro F1, Dice.

    Example: `msdask test segmenter -i cohort.zarr --model run --ratios 60 20 20`.

    Parameters
    ----------
    data
        patch store, as for `msdask train segmenter`
    model
        run folder of `msdask train segmenter` (its lists are taken before the stored split), or a .safetensors file
    output
        folder for metrics.json, pixels.csv and confusion.png; default the run folder
    everything
        all slides, whatever the split
    """
    require("msdask test", module="pytorch_lightning")
    from msdask.models import SegmentationModel, load_model
    from msdask.storage.files import check_folder_writable
    from msdask.training import SegmentTask

    run = Path(model) if os.path.isdir(model) else None
    if (folder := output or run) is not None:
        check_folder_writable(folder, what="folder of the test")
    network, about = load_model(model)
    if not isinstance(network, SegmentationModel):
        raise MsdaskError(f"model '{model}' is a {type(network).__name__}, none of segmentation")
    scales = list(network.magnifications)
    if patches.magnification is not None and sorted(patches.magnification, reverse=True) != scales:
        raise MsdaskError(f"model '{model}' is for magnifications {scales}, asked for {patches.magnification}")
    patches = replace(patches, classes=network.classes)
    if run is not None and not patches.is_split_given and (run / "lists").is_dir():
        patches = replace(patches, lists=run / "lists")
    source = patches.source(data, magnifications=scales)
    network.check_size(source.patch_size)
    split = patches.split(source) if patches.is_split_given and not everything else None
    slides = source.measured_slides(split, everything=everything)
    print_dropped(source.dropped, "patches")
    task = SegmentTask(about.get("classes") or source.names)
    batch = patches.batch_size
    _measure(network, task, source, slides, folder, batch_size=batch, progress=not quiet)
    return 0


def _measure(
    model: Any,
    task: SegmentTask,
    source: SegmentSource,
    slides: Sequence[str],
    folder: Path | None,
    *,
    batch_size: int,
    progress: bool,
) -> None:
    """Evaluate, print, and leave metrics and confusion in a folder."""
    from msdask.training import measure_segmenter

    batches = source.measured(slides, batch_size=batch_size)
    print_metrics(measure_segmenter(model, task, batches, folder, patients=source.patients, progress=progress))
