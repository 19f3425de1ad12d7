"""Groups of options of the commands for segmentation: what is learnt from, what a network is made of, how it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.groups import LEARNING, NETWORK, SPLITS
from msdask.cli.numbers import ABOVE_ZERO, COUNT, NATURAL, SHARE, WHOLE
from msdask.cli.options import BatchSize, Magnifications, TrainingRecipe
from msdask.errors import SpecError

if TYPE_CHECKING:
    from msdask.models import SegmentationModel
    from msdask.training import SegmentSource, Split

__all__ = ["Mapped", "Network", "SegmenterRecipe"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Which patches with label maps, and which slides are for what."""

    magnification: Magnifications | None = None
    """the target, then its contexts: 20 5, or 20 1.25; one for a U-Net; default all that the set has"""
    patch_set: Annotated[str | None, Parameter(name="--set")] = None
    """where several would do"""
    classes: Annotated[int | None, COUNT, Parameter(name=["--classes", "-n"])] = None
    """how many; default as many as the store has names of, or up to the highest label"""
    batch_size: BatchSize = 8
    """patches or tuples a batch"""
    lists: Annotated[Path | None, Parameter(group=SPLITS)] = None
    """folder with list_train.csv, list_valid.csv, list_test.csv; default the split that is stored with the slides"""
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True), Parameter(group=SPLITS)] = None
    """split by these instead, by patient and stratified by class: training, validation, test"""
    seed: Annotated[int, WHOLE, Parameter(group=SPLITS)] = 0
    """decides splits, and in training order, augmentation and initial weights"""

    @property
    def is_split_given(self) -> bool:
        """Whether the options say which slides are for what."""
        return self.lists is not None or self.ratios is not None

    def source(self, place: Path, *, magnifications: list[float] | None = None) -> SegmentSource:
        """The patches of a store."""
        from msdask.training import SegmentSource

        wanted = magnifications or self.magnification
        return SegmentSource(place, magnifications=wanted, name=self.patch_set, classes=self.classes)

    def split(self, source: SegmentSource) -> Split:
        """Which slides are for what."""
        return source.split(lists=self.lists, ratios=self.ratios, seed=self.seed)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Network:
    """What a segmentation model is made of."""

    model: Literal["hooknet", "unet"] = "hooknet"
    """hooknet: a target and its contexts; unet: one magnification"""
    filters: Annotated[int, COUNT, Parameter(group=NETWORK)] = 16
    """of the first block; a block a level deeper has twice as many"""
    depth: Annotated[int, COUNT, Parameter(group=NETWORK)] = 4
    """how often the size is halved"""
    bottleneck: Annotated[int | None, COUNT, Parameter(group=NETWORK)] = None
    """filters of the deepest block, in units of --filters; default 2 (depth + 1): 10"""
    padding: Annotated[Literal["valid", "same"], Parameter(group=NETWORK)] = "valid"
    """same: what comes out is as large as what goes in, but slides are not segmented alike for all sizes of tiles"""
    merge: Annotated[Literal["concat", "add", "subtract", "multiply"], Parameter(group=NETWORK)] = "concat"
    """how a context comes to the target"""
    context_size: Annotated[int | None, COUNT, Parameter(group=NETWORK)] = None
    """px a side of the middle of a context's patch that is looked at; default all of it"""

    def made(self, classes: int, magnifications: tuple[float, ...], patch_size: int) -> SegmentationModel:
        """The network, not trained yet."""
        from msdask.models import HookNet, UNet

        options: dict[str, Any] = {
            "filters": self.filters,
            "depth": self.depth,
            "bottleneck": self.bottleneck,
            "padding": self.padding,
        }
        wanted = "one magnification (-m 20)" if self.model == "unet" else "two or three (-m 20 5)"
        if (len(magnifications) == 1) != (self.model == "unet"):
            raise SpecError(f"--model {self.model} with magnifications {list(magnifications)}: expected {wanted}")
        if self.model == "unet" and self.context_size is not None:
            raise SpecError(f"--context-size {self.context_size}: a U-Net has no context")
        made: SegmentationModel
        if self.model == "unet":
            made = UNet(classes, magnifications, **options)
        else:
            made = HookNet(classes, magnifications, merge=self.merge, context_size=self.context_size, **options)
        made.check_size(patch_size)
        return made


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe(TrainingRecipe):
    """The same, but as it is sensible from random weights; HookNet's authors took --lr 5e-6 --schedule constant."""

    learning_rate: Annotated[float, ABOVE_ZERO, Parameter(name=["--lr", "-lr"])] = 2e-3
    """at its highest"""
    schedule: Annotated[Literal["constant", "step", "cosine"], Parameter(group=LEARNING)] = "cosine"
    """of the learning rate; cosine falls to 1 % over all epochs"""
    warmup: Annotated[float, SHARE, Parameter(group=LEARNING)] = 0.1
    """share of the steps over which the learning rate rises"""
    patience: Annotated[int, NATURAL, Parameter(group=LEARNING)] = 0
    """epochs without a better validation after which training stops; 0 for never"""
    epochs: Annotated[int, COUNT, Parameter(name=["--epochs", "-e"])] = 20
    """at most"""
