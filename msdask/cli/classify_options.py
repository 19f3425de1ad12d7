"""Groups of options of the classifiers' commands: what they learn from, what they are made of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter

from msdask.cli.groups import LEARNING, NETWORK, SPLITS
from msdask.cli.numbers import COUNT, SHARE, WHOLE
from msdask.cli.options import BatchSize, Magnifications, TrainingRecipe
from msdask.errors import MsdaskError, SpecError

if TYPE_CHECKING:
    from msdask.models import MultiScaleClassifier
    from msdask.training import ClassifySource, Split

__all__ = ["Branches", "ClassifierRecipe", "Combine", "Tuples"]

Combine = Literal["features", "predictions", "attention", "single"]
_MODELS = {
    "features": "FeatureFusion",
    "predictions": "PredictionFusion",
    "attention": "AttentionFusion",
    "single": "SingleScale",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tuples:
    """Which patches or tuples, and which slides are for what."""

    relation: Annotated[
        Literal["multicenter", "multi_center", "upper_region"] | None, Parameter(name=["--relation", "-r"])
    ] = None
    """multicenter: tuples around centroids, one loss; upper_region: linked grids, n + 1 losses; default multicenter, or
    what a trained model learnt from"""
    magnification: Magnifications | None = None
    """which of the set's, default all"""
    patch_set: Annotated[str | None, Parameter(name="--set")] = None
    """set of centroids, or one of the grids, where several would do"""
    classes: Annotated[int | None, COUNT, Parameter(name=["--classes", "-n"])] = None
    """how many; default up to the highest label"""
    batch_size: BatchSize = 64
    """tuples a batch"""
    lists: Annotated[Path | None, Parameter(group=SPLITS)] = None
    """folder with list_train.csv, list_valid.csv, list_test.csv; default the split that is stored with the slides"""
    ratios: Annotated[list[float] | None, Parameter(consume_multiple=True), Parameter(group=SPLITS)] = None
    """split by these instead, by patient and stratified by class: training, validation, test"""
    mpp_range: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None
    """finest and coarsest um/px, such as 0.25 2.0: training draws the scale of every sample from the range and reads it
    from the slide; both train and test measure accuracy at 12 scales of it"""
    seed: Annotated[int, WHOLE, Parameter(group=SPLITS)] = 0
    """decides splits, and in training order, augmentation and initial weights"""

    @property
    def is_upper_region(self) -> bool:
        """Whether tuples are linked grids."""
        return self.relation == "upper_region"

    @property
    def is_split_given(self) -> bool:
        """Whether the options say which slides are for what."""
        return self.lists is not None or self.ratios is not None

    @property
    def range_of_mpp(self) -> tuple[float, float] | None:
        """Finest and coarsest um/px, where they are given."""
        if self.mpp_range is None:
            return None
        if len(self.mpp_range) != 2 or not 0 < self.mpp_range[0] < self.mpp_range[1]:
            given = " ".join(f"{value:g}" for value in self.mpp_range)
            raise SpecError(
                f"--mpp-range {given}: expected the finest and the coarsest um/px, such as --mpp-range 0.25 2.0"
            )
        return self.mpp_range[0], self.mpp_range[1]

    def source(self, place: Path, *, losses: str, magnifications: list[float] | None = None) -> ClassifySource:
        """The tuples of a store."""
        from msdask.training import ClassifySource

        return ClassifySource(
            place,
            "upper_region" if self.is_upper_region else "multicenter",
            magnifications=magnifications or self.magnification,
            losses="n+1" if losses == "n+1" else "one",
            name=self.patch_set,
            classes=self.classes,
        )

    def split(self, source: ClassifySource) -> Split:
        """Which slides are for what."""
        return source.split(lists=self.lists, ratios=self.ratios, seed=self.seed)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Branches:
    """What a classifier is made of."""

    combine: Combine = "features"
    """what of the magnifications is brought together: features, predictions, features by attention; single: one
    magnification"""
    backbone: Annotated[str, Parameter(name=["--backbone", "-c"])] = "resnet34"
    """a classification network of torchvision, efficientnet_lite0, or scalenet"""
    weights: Annotated[str, Parameter(group=NETWORK)] = "auto"
    """imagenet, a file, none; auto: imagenet where they can be loaded, else none, which is said and noted"""
    embedding: Annotated[str | None, Parameter(name=["--embedding", "-f"]), Parameter(group=NETWORK)] = None
    """width of the linear layer behind each backbone, True for 128, False for none; default 128, none with single"""
    dropout: Annotated[float, SHARE, Parameter(name=["--dropout", "-d"]), Parameter(group=NETWORK)] = 0.0
    """probability, before the branches' own classes"""
    fuse: Annotated[Literal["logits", "probabilities"], Parameter(group=NETWORK)] = "logits"
    """what predictions are"""
    copies: Annotated[int, COUNT, Parameter(group=NETWORK)] = 1
    """branches of each magnification: 3 of one magnification have as many parameters as a fusion of three"""

    def losses(self, chosen: str | None, *, is_upper_region: bool) -> Literal["one", "n+1"]:
        """One loss or n + 1: as chosen, else as the tuples say."""
        if self.combine == "single" and chosen == "n+1":
            raise SpecError("--losses n+1 with --combine single: one magnification has one loss")
        if chosen is not None:
            return "n+1" if chosen == "n+1" else "one"
        return "n+1" if is_upper_region and self.combine != "single" else "one"

    def check(self, magnifications: tuple[float, ...]) -> None:
        """Refuse a single classifier of several magnifications, and a fusion of one."""
        is_single = self.combine == "single"
        if is_single and self.copies != 1:
            raise SpecError(f"--combine single --copies {self.copies}: one branch is meant; take --combine features")
        if (len(magnifications) * self.copies == 1) != is_single:
            expected = "one magnification (-m 10)" if is_single else "two or more (-m 20 10 5), or --copies"
            raise SpecError(f"--combine {self.combine} with magnifications {list(magnifications)}: expected {expected}")

    def model(self, classes: int, magnifications: tuple[float, ...]) -> tuple[MultiScaleClassifier, str]:
        """The network, not trained yet, and what its backbones begin with."""
        weights = None if self.weights in ("auto", "none") else self.weights
        if self.weights != "auto" or self.backbone == "scalenet":
            return self._made(classes, magnifications, weights), weights or "random"
        try:
            return self._made(classes, magnifications, "imagenet"), "imagenet"
        except SpecError:  # of another option: it would be so with any weights
            raise
        except MsdaskError as error:
            warnings.warn(f"training begins with random weights: {error}", UserWarning, stacklevel=2)
            return self._made(classes, magnifications, None), "random"

    def _made(self, classes: int, magnifications: tuple[float, ...], weights: str | None) -> MultiScaleClassifier:
        from msdask.models import MultiScaleClassifier, create

        options: dict[str, Any] = {"backbone": self.backbone, "dropout": self.dropout, "weights": weights}
        if self.embedding is not None:
            options["embedding"] = _width(self.embedding)
        if self.combine == "predictions":
            options["fuse"] = self.fuse
        if self.combine != "single":
            options["copies"] = self.copies
        made = create(_MODELS[self.combine], classes=classes, magnifications=list(magnifications), **options)
        assert isinstance(made, MultiScaleClassifier)
        return made


def _width(text: str) -> int | None:
    """The original's -f is True or False; a width is a number."""
    named = {"true": 128, "false": None, "none": None, "0": None}
    if text.lower() in named:
        return named[text.lower()]
    if not text.isdecimal():
        raise SpecError(f"--embedding {text!r}: expected a width, True or False")
    return int(text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(TrainingRecipe):
    """The same, but that the learning rate falls to a tenth every 5 epochs."""

    schedule: Annotated[Literal["constant", "step", "cosine"], Parameter(group=LEARNING)] = "step"
    """of the learning rate; step: a tenth every 5 epochs; cosine falls to 1 % over all epochs"""


assert set(_MODELS) == set(get_args(Combine))
