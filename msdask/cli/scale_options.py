"""Groups of options of the scale detector's commands: what it learns from, what it is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.groups import LEARNING, NETWORK, SPLITS
from msdask.cli.numbers import COUNT, NATURAL, SHARE, WHOLE
from msdask.cli.options import BatchSize, Magnifications
from msdask.errors import SpecError

if TYPE_CHECKING:
    from msdask.data import PatchLoader
    from msdask.models import ScaleRegressor
    from msdask.training import ScaleSource

__all__ = ["Draws", "Network", "Parts", "said_of"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which magnifications, and which slides are for what."""

    magnification: Magnifications | None = None
    """which of a store's sets, default all; of images those to recognize, default 5 8 10 15 20 30 40"""
    batch_size: BatchSize = 128
    """patches a batch"""
    lists: Annotated[Path | None, Parameter(group=SPLITS)] = None
    """folder with list_train.csv, list_valid.csv, list_test.csv; default the split that is stored with the slides"""
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True), Parameter(group=SPLITS)] = None
    """split the slides by these instead: training, validation, test"""
    seed: Annotated[int, WHOLE, Parameter(group=SPLITS)] = 0
    """decides splits, and in training order, augmentation and initial weights"""

    @property
    def is_split_given(self) -> bool:
        """Whether the options say which slides are for what."""
        return self.lists is not None or self.ratios is not None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Network:
    """What the scale detector is made of."""

    backbone: Annotated[str, Parameter(name=["--backbone", "-c"])] = "resnet34"
    """a classification network of torchvision, or scalenet"""
    weights: Annotated[str | None, Parameter(group=NETWORK)] = None
    """imagenet, or a file; default random"""
    embedding: Annotated[int, NATURAL, Parameter(name=["--embedding", "-f"]), Parameter(group=NETWORK)] = 128
    """width of the layer before the output, 0 for none"""
    dropout: Annotated[float, SHARE, Parameter(name=["--dropout", "-d"]), Parameter(group=NETWORK)] = 0.0
    """probability"""
    target: Annotated[Literal["linear", "log2"], Parameter(group=NETWORK)] = "linear"
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


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Draws:
    """At which scales the patches that are learnt from are drawn, and how they are changed."""

    augment: Literal["original", "strong"] = "original"
    """original: flips, turns, hue, saturation, value; strong: stain, saturation, contrast, blur, JPEG too"""
    scale_augment: Annotated[Literal["enlarge", "exact", "range", "none"] | None, Parameter(group=LEARNING)] = None
    """enlarge the middle of patches; exact: read scales up to the next one from the slides; range: read any scale, from
    below the lowest to above the highest; none. Default enlarge for a store, range for images"""
    emphasis: Annotated[float, SHARE, Parameter(group=LEARNING)] = 0.3
    """with range: share of the draws from the upper two octaves alone"""
    mosaic: Annotated[float, SHARE, Parameter(group=LEARNING)] = 0.5
    """with range: share of the patches that are put together from four places"""
    patch_size: Annotated[int, COUNT, Parameter(name=["--patch-size", "-s"])] = 64
    """px of what is learnt from images"""
    crop: Annotated[int, COUNT, Parameter(group=LEARNING)] = 96
    """px of what is measured of images, and of the crops that the model is used on; a store's patches have their own"""
    workers: Annotated[int, NATURAL, Parameter(name=["--workers", "-p"])] = 0
    """processes that read and augment; 0 means threads"""

    def source(self, place: Path, parts: Parts) -> ScaleSource:
        """The store or the images that are learnt from."""
        from msdask.training import ScaleSource

        return ScaleSource(place, magnifications=parts.magnification, patch_size=self.patch_size, crop=self.crop)

    def batches(self, source: ScaleSource, slides: Sequence[str], parts: Parts) -> PatchLoader:
        """Batches to learn from."""
        from msdask.data import Augment, loader

        dataset, enlarge = source.training(slides, self.scale_augment, emphasis=self.emphasis, mosaic=self.mosaic)
        return loader(
            dataset,
            batch_size=parts.batch_size,
            balanced="class" if len(dataset.counts()) > 1 else "slide",
            augment=Augment.strong(scale=enlarge) if self.augment == "strong" else Augment(scale=enlarge),
            seed=parts.seed,
            num_workers=self.workers,
        )


def said_of(source: ScaleSource, about: Path | None) -> dict[str, Any]:
    """What goes into the model's JSON: what a file says, and what the model is to be used on."""
    facts = {"crop": source.crop, "magnifications": [source.magnifications[0], source.magnifications[-1]]}
    if about is None:
        return facts
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"--about '{about}' cannot be read as JSON: {error}") from error
    if not isinstance(said, dict):
        raise SpecError(f'--about \'{about}\': expected an object such as {{"data": ..., "licence": ...}}')
    return {**said, **facts}
