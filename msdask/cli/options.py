"""Options that several commands share, each described once.

A dataclass here is a group of options: a command takes it as one argument, and cyclopts flattens its fields into the
command's own options. Nothing heavy is imported before a command runs, so that `msdask --help` is quick.

Annotations are values here, not text: cyclopts reads those of a class that inherits a group in another module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.groups import LEARNING, PIXELS, RUN, SELECTION
from msdask.cli.numbers import ABOVE_ZERO, COUNT, NATURAL, NOT_NEGATIVE, SHARE, WHOLE
from msdask.cli.terminal import open_client
from msdask.errors import SpecError
from msdask.spec import MAX_HOLE_UM2, MIN_AREA_UM2, PATCH_SIZE, SEGMENTATION_SIZE, Codec, ExtractionSpec, Mode, Roi

if TYPE_CHECKING:
    from msdask.training import Recipe

__all__ = [
    "BatchSize",
    "Cut",
    "Elsewhere",
    "Magnifications",
    "Masks",
    "OnBadTile",
    "Output",
    "Quiet",
    "Slides",
    "Threads",
    "TrainingRecipe",
    "Where",
    "given_slides",
]

Slides = Annotated[list[str], Parameter(name=["--slides", "-i"], consume_multiple=True)]
"""CSV, folder, slide or pattern; several may be given."""
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Magnifications = Annotated[list[float], Parameter(name=["--magnification", "-m"], consume_multiple=True)]
Threads = Annotated[
    int | None,
    NATURAL,
    Parameter(name=["--threads", "-p"], help="of this machine; default: threads or processes by the work"),
]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], help="no progress bar")]
OnBadTile = Annotated[Literal["raise", "fill"], Parameter(group=PIXELS)]
BatchSize = Annotated[int, COUNT, Parameter(name=["--batch-size", "-b"])]


def given_slides(slides: list[str]) -> str | list[str]:
    """What was typed, as `msdask.extract` takes it: a single word stands for itself, so that a typing error is one."""
    return slides[0] if len(slides) == 1 else slides


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which patches are cut, and how they are read and stored."""

    magnification: Magnifications
    """one for a grid; several for tuples around the patches of the highest (see --mode)"""
    mode: Mode | None = None
    """"grid" of several makes a set each, linked to the coarser ones; default: grid for one, centroids for several"""
    size: Annotated[int | None, COUNT, Parameter(name=["--size", "-s"])] = None
    """side of a patch, px; default: 224, and 284 with --label-maps"""
    threshold: Annotated[float, SHARE, Parameter(name=["--threshold", "-x"])] = 0.7
    """least fraction of tissue, or of a class"""
    gap: Annotated[int, WHOLE, Parameter(name=["--gap", "-y"])] = 0
    """between neighbours, px at the (highest) magnification; negative overlaps"""
    overlap: Annotated[float | None, SHARE] = None
    """the same as the share of a patch's side that neighbours have in common: 0.5 is a gap of minus half a patch"""
    roi: Annotated[str, Parameter(name=["--roi", "-r"]), Parameter(group=SELECTION)] = "whole"
    """"whole", "auto" (one of several copies of a section), or x,y,width,height in level-0 px"""
    mask_magnification: Annotated[
        float | None, ABOVE_ZERO, Parameter(name=["--mask-magnification", "-w"]), Parameter(group=SELECTION)
    ] = None
    """of the masks: those that are read are checked against it, those that msdask makes have it (1.25)"""
    min_area_um2: Annotated[float, NOT_NEGATIVE, Parameter(name="--min-area-um2"), Parameter(group=SELECTION)] = (
        MIN_AREA_UM2
    )
    """pieces of tissue smaller than this are left out of masks that msdask makes, um^2"""
    max_hole_um2: Annotated[float, NOT_NEGATIVE, Parameter(name="--max-hole-um2"), Parameter(group=SELECTION)] = (
        MAX_HOLE_UM2
    )
    """holes up to this size belong to the tissue in masks that msdask makes, um^2"""
    unlabeled: Annotated[Literal["drop", "keep"], Parameter(group=SELECTION)] = "drop"
    """with annotated masks, drop patches without a label or keep them with -1"""
    label_maps: bool = False
    """also store the label map under every patch, for segmentation; the slides need annotated masks"""
    codec: Annotated[Codec, Parameter(group=PIXELS)] = "raw"
    """raw, lossless or jpeg"""
    source: Annotated[Literal["coarsest", "finest"], Parameter(group=PIXELS)] = "coarsest"
    """read the coarsest level that is fine enough, or the finest always"""
    decode: Annotated[Literal["scaled", "exact"], Parameter(group=PIXELS)] = "scaled"
    """let the JPEG decoder reduce, or decode in full"""
    allow_upsampling: Annotated[bool, Parameter(group=SELECTION)] = False
    """enlarge where a slide is too coarse"""

    def specs(self) -> list[ExtractionSpec]:
        """One spec for tuples; one a magnification for grids."""
        magnifications = tuple(sorted(set(self.magnification), reverse=True))
        usual = SEGMENTATION_SIZE if self.label_maps else PATCH_SIZE
        size = usual if self.size is None else self.size
        if self.overlap is not None and self.gap:
            raise SpecError(f"--gap {self.gap} and --overlap {self.overlap:g}: give one of them")
        if self.gap <= -size:
            raise SpecError(f"--gap {self.gap}: expected more than -{size}, or neighbours are one patch")
        mode = self.mode or ("grid" if len(magnifications) == 1 else "centroids")
        return [
            ExtractionSpec(
                mode=mode,
                magnifications=group,
                patch_size=size,
                stride=None if self.overlap is not None else size + self.gap,
                overlap=self.overlap,
                min_tissue=self.threshold,
                min_label=self.threshold,
                unlabeled=self.unlabeled,
                roi=_roi(self.roi),
                source=self.source,
                decode=self.decode,
                allow_upsampling=self.allow_upsampling,
                mask_mpp=10 / (self.mask_magnification or 1.25),
                codec=self.codec,
                min_area_um2=self.min_area_um2,
                max_hole_um2=self.max_hole_um2,
                label_maps=self.label_maps,
            )
            for group in ([magnifications] if mode == "centroids" else [(m,) for m in magnifications])
        ]


def _roi(text: str) -> Roi:
    """The original's -r is True or False; a rectangle is four numbers."""
    named: dict[str, Roi] = {"whole": "whole", "false": "whole", "auto": "auto", "true": "auto"}
    if text.lower() in named:
        return named[text.lower()]
    try:
        x, y, width, height = (float(v) for v in text.split(","))
    except ValueError:
        raise SpecError(f"--roi {text!r}: expected whole, auto, or x,y,width,height in level-0 px") from None
    return (x, y, width, height)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Masks:
    """Where the masks of the slides lie."""

    masks: Annotated[str | None, Parameter(name=["--masks", "-t"])] = None
    """folder of masks (HistoQC's, `<name>.png`, annotations as `<name>.xml` or `<name>.geojson`); without it the tissue
    is found by msdask"""
    labels: str | None = None
    """folder of annotated masks instead: coded 1, 2, ..., or as --values says, or with named classes"""
    values: Annotated[list[int | str] | None, Parameter(consume_multiple=True)] = None
    """the masks are annotated: their values, or the names of classes in them, in the order of the classes, such as 50
    100 150 200 250"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Other processes that a job runs on."""

    scheduler: Annotated[str | None, Parameter(group=RUN)] = None
    """address of a Dask scheduler (tcp://...) to run on instead"""
    workers: Annotated[int | None, COUNT, Parameter(group=RUN)] = None
    """so many worker processes of this machine; --threads are those of each then"""

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """The arguments that say it; a cluster that they name is there meanwhile."""
        if self.scheduler is not None and self.workers is not None:
            raise SpecError("--scheduler and --workers are two ways to run: give one of them")
        with open_client(self.scheduler) as client:
            yield {"client": client, "workers": self.workers}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where(Elsewhere):
    """What a job runs on."""

    threads: Threads = None
    tries: Annotated[int, COUNT, Parameter(group=RUN)] = 3
    """how often work whose worker is lost is tried before its slide fails"""
    timeout: Annotated[float | None, ABOVE_ZERO, Parameter(group=RUN)] = None
    """seconds that one block may take on a worker before that counts as lost"""
    quiet: Quiet = False

    def fork(self) -> None:
        """Have worker processes at hand, should the job have some."""
        if self.scheduler is None and (self.threads is None or self.workers is not None):
            from msdask.engines.origin import fork_from_here
            from msdask.extraction.cohort_work import setup_of_workers

            fork_from_here(setup_of_workers())

    @contextmanager
    def started(self) -> Iterator[dict[str, Any]]:
        """The arguments of `extract` and `repair` that say it; a cluster that they name is there meanwhile."""
        with self.opened() as where:
            yield {
                **where,
                "threads": self.threads,
                "tries": self.tries,
                "timeout": self.timeout,
                "progress": not self.quiet,
            }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How a model is trained, whatever it is."""

    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"], Parameter(name=["--optimizer", "-optimizer"]), Parameter(group=LEARNING)
    ] = "adam"
    """adam, adamw or sgd"""
    learning_rate: Annotated[float, ABOVE_ZERO, Parameter(name=["--lr", "-lr"])] = 1e-3
    """at its highest"""
    weight_decay: Annotated[float, NOT_NEGATIVE, Parameter(group=LEARNING)] = 0.0
    """not on biases and normalization"""
    schedule: Annotated[Literal["constant", "step", "cosine"], Parameter(group=LEARNING)] = "constant"
    """of the learning rate; cosine falls to 1 % over all epochs"""
    warmup: Annotated[float, SHARE, Parameter(group=LEARNING)] = 0.0
    """share of the steps over which the learning rate rises"""
    ema: Annotated[float, SHARE, Parameter(group=LEARNING)] = 0.0
    """decay of averaged weights, which are then measured and kept; 0 for none"""
    keep: Annotated[Literal["best", "last"], Parameter(group=LEARNING)] = "best"
    """weights of the best epoch, or of the last"""
    epochs: Annotated[int, COUNT, Parameter(name=["--epochs", "-e"])] = 10
    """at most"""
    patience: Annotated[int, NATURAL, Parameter(group=LEARNING)] = 5
    """epochs without a better validation loss after which training stops; 0 for never"""
    precision: Annotated[Literal["32", "bf16", "16"], Parameter(group=LEARNING)] = "32"
    """bf16 and 16 are mixed precision"""

    def recipe(self, seed: int) -> "Recipe":
        """The same for `msdask.training.fit`."""
        from msdask.training import Recipe

        return Recipe(
            epochs=self.epochs,
            optimizer=self.optimizer,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            ema=self.ema or None,
            keep=self.keep,
            patience=self.patience or None,
            precision=self.precision,
            seed=seed,
        )
