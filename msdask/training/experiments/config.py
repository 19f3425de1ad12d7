"""ExperimentConfig: everything that decides an experiment, as one frozen value that TOML, a dict or code can give."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from msdask.errors import SpecError
from msdask.models.hooknet import Merge
from msdask.training.class_scores import SCORES
from msdask.training.classify_source import Relation
from msdask.training.classify_task import Losses
from msdask.training.recipe import Recipe

__all__ = ["ExperimentConfig", "Features", "Learnt"]

Learnt = Literal["classify", "segment"]

Features = Literal["trained", "frozen"]
MODELS = ("single", "features", "predictions", "attention")
BASELINES = ("matched", "pooled")
AUGMENT = ("original", "strong", "hed", "spatial", "none")
SEGMENT_MODELS = ("unet", "hooknet")
SEGMENT: dict[str, Any] = {
    "models": SEGMENT_MODELS,
    "baselines": ("matched",),
    "metric": "macro_f1",
    "monitor": "macro_f1",
    "batch_size": 8,
    "augment": "hed",
}
"""What is the default where px are classified."""
STEP = Recipe(schedule="step")
"""The default: the learning rate falls to a tenth every 5 epochs."""
FROM_SCRATCH = Recipe(epochs=20, lr=2e-3, schedule="cosine", warmup=0.1, patience=None)
"""The same for segmentation, as for `msdask train segmenter`."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """An experiment: data, grid of models, splits, and how each model is made and trained.

    Attributes
    ----------
    store : patch store
    output : folder of the experiment
    magnifications : what models see, one list a model: ``[[20], [10], [10, 5]]``; one magnification for "single", two
        or more for the fusions
    task : "classify" patches, or "segment" them: U-Nets and HookNets learn from label maps, and are judged on the px
        that the finest target of all shows, at its scale
    relation : "multicenter" or "upper_region", see `ClassifySource`; of patches that are classified
    models : "single", "features", "predictions", "attention"; of segmentation "unet" and "hooknet"
    losses : of fusions, "one" and "n+1"; a single scale has one
    loss_weights : with n + 1 losses, of the loss of the whole, and of that of each magnification; None: 1 and 1. Of
        segmentation, of the target and of each context; None: 1 and 0
    baselines : "matched": one magnification with the parameters of a fusion; "pooled": fine patches for contexts
    repeats : splits by `ratios`; None: 5, or as many as `lists` has
    ratios : of training, validation and test, by patient and stratified by class
    lists : folder with one folder of lists a split, instead; with neither, the split that is stored with the slides
    seed : decides splits, initial weights, order and augmentation; split k has ``seed + k`` for the last three
    metric : what comparisons are of: "kappa", "balanced_accuracy", "macro_f1" or "accuracy"
    ablate : how often the inputs of each branch of a fusion are permuted over the test patches; 0: not
    features : "trained": networks learn from images; "frozen": heads learn from the features of a frozen backbone
    backbone : network of torchvision, or "scalenet"
    weights : it begins with: "imagenet", a file, "none"; "auto": imagenet's where they can be loaded, else none
    embedding : width of the linear layer behind each backbone, 0 for none; None: 128 for fusions, none for one scale
    dropout : before the branches' own classes
    fuse : what predictions are: "logits" or "probabilities"
    classes : names, or how many; None: up to the highest label
    patch_set : set of centroids, or one of the grids, where several would do
    pooled_set : name of a set, or of several, whose patches cover the contexts, for "pooled": one at the highest
        magnification of each fusion; where there is none, the tuples' own patches
    batch_size : tuples a batch
    augment : "original", "strong", "hed", "spatial" or "none"; images only
    monitor : what of the validation says which epoch is the best
    recipe : how each is trained; in TOML a table ``[recipe]``
    filters, depth, merge, context_size : of segmentation, see `msdask.models.HookNet`
    unet_filters : of U-Nets; None: `filters`. With 11 for 8, or 23 for 16, they have about HookNet's parameters

    Raises
    ------
    SpecError
        A name is not known, or a value makes no sense; says which, and what is expected.
    """

    store: str
    output: str
    magnifications: tuple[tuple[float, ...], ...]
    task: Learnt = "classify"
    relation: Relation = "multicenter"
    models: tuple[str, ...] = ("single", "features", "predictions")
    losses: tuple[Losses, ...] = ("one",)
    loss_weights: tuple[float, float] | None = None
    baselines: tuple[str, ...] = BASELINES
    repeats: int | None = None
    ratios: tuple[float, ...] | None = None
    lists: str | None = None
    seed: int = 0
    metric: str = "kappa"
    ablate: int = 0
    features: Features = "trained"
    backbone: str = "resnet34"
    weights: str = "auto"
    embedding: int | None = None
    dropout: float = 0.0
    fuse: Literal["logits", "probabilities"] = "logits"
    classes: int | tuple[str, ...] | None = None
    patch_set: str | None = None
    pooled_set: str | tuple[str, ...] = ()
    batch_size: int = 64
    augment: str = "original"
    monitor: str = "loss"
    recipe: Recipe = field(default=STEP)
    filters: int = 16
    unet_filters: int | None = None
    depth: int = 4
    merge: Merge = "concat"
    context_size: int | None = None

    def __post_init__(self) -> None:
        segments = self.task == "segment"
        models, baselines = (SEGMENT_MODELS, ("matched",)) if segments else (MODELS, BASELINES)
        for name, known in {"models": models, "losses": get_args(Losses), "baselines": baselines}.items():
            self._check_each(name, known)
        for name, choices in {
            "task": get_args(Learnt),
            "merge": get_args(Merge),
            "relation": get_args(Relation),
            "metric": tuple(SCORES),
            "features": get_args(Features),
            "fuse": ("logits", "probabilities"),
            "augment": AUGMENT,
        }.items():
            if getattr(self, name) not in choices:
                raise SpecError(f"experiment: {name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if segments and (self.losses != ("one",) or self.ablate or self.features != "trained"):
            raise SpecError(
                f"experiment: losses={list(self.losses)}, ablate={self.ablate}, features={self.features!r}: with "
                "task='segment' expected ['one'], 0 and 'trained'; loss_weights say what the contexts learn"
            )
        least_of = {"repeats": 1, "seed": 0, "ablate": 0, "embedding": 0, "batch_size": 1, "filters": 1, "depth": 1}
        for name, least in {**least_of, "unet_filters": 1}.items():
            value = getattr(self, name)
            if value is None and name in ("repeats", "embedding", "unet_filters"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"experiment: {name}={value!r}: expected a whole number of at least {least}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise SpecError(f"experiment: dropout={self.dropout!r}: expected a probability from 0 to below 1")
        pooled = (self.pooled_set,) if isinstance(self.pooled_set, str) else _listed("pooled_set", self.pooled_set)
        object.__setattr__(self, "pooled_set", pooled)
        for name in ("store", "output", "lists", "backbone", "weights", "patch_set", "monitor"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("lists", "patch_set")):
                raise SpecError(f"experiment: {name}={value!r}: expected a text")
        for name in ("ratios", "loss_weights"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _listed(name, getattr(self, name)))
        if self.loss_weights is not None and len(self.loss_weights) != 2:
            raise SpecError(
                f"experiment: loss_weights={self.loss_weights!r}: expected two numbers, for the loss of the whole and "
                "for that of each magnification"
            )
        if "://" in self.output:
            raise SpecError(f"experiment: output='{self.output}': expected a folder that all processes see, no URL")
        if not isinstance(self.classes, (int, type(None))):
            object.__setattr__(self, "classes", tuple(map(str, _listed("classes", self.classes))))
        self._check_scales()
        if self.ratios is not None and self.lists is not None:
            raise SpecError("experiment: ratios and lists each say which slides are for training; give one of them")
        if self.ratios is None and self.lists is None and (self.repeats or 1) > 1:
            raise SpecError(
                f"experiment: repeats={self.repeats} of the one split that is stored with the slides would be the same "
                "test every time: give ratios = [60, 20, 20], or lists of several splits"
            )

    def _check_each(self, name: str, known: tuple[str, ...]) -> None:
        values = _listed(name, getattr(self, name))
        object.__setattr__(self, name, values)
        for value in values:
            if value not in known:
                raise SpecError(f"experiment: {name}: {value!r}: expected some of {', '.join(known)}")
        if len(set(values)) < len(values) or (not values and name != "baselines"):
            raise SpecError(f"experiment: {name}={list(values)}: expected one or more, each once")

    def _check_scales(self) -> None:
        wanted = "lists of numbers above 0, each once, such as [[20], [10], [10, 5]]"
        scales: list[tuple[float, ...]] = []
        for one in _listed("magnifications", self.magnifications):
            if isinstance(one, str) or not isinstance(one, Iterable):
                raise SpecError(f"experiment: magnifications: {one!r} is no list; expected {wanted}")
            values = list(one)
            if not values or not all(isinstance(m, (int, float)) and not isinstance(m, bool) and m > 0 for m in values):
                raise SpecError(f"experiment: magnifications: {values!r}: expected {wanted}")
            scales.append(tuple(sorted((float(m) for m in values), reverse=True)))
            if len(set(values)) < len(values) or scales.count(scales[-1]) > 1:
                raise SpecError(f"experiment: magnifications: {values!r} has one twice, or is twice; expected {wanted}")
        if not scales:
            raise SpecError(f"experiment: magnifications=[]: expected {wanted}")
        object.__setattr__(self, "magnifications", tuple(scales))
        of_one = {"single", "unet"}
        has_single, has_fusion = bool(of_one & set(self.models)), set(self.models) - of_one
        if not (has_single and any(len(s) == 1 for s in scales)) and not (
            has_fusion and any(len(s) > 1 for s in scales)
        ):
            raise SpecError(
                f"experiment: models={list(self.models)}, magnifications={[list(s) for s in scales]}: none fits: "
                "'single' and 'unet' take one magnification, the others two or more"
            )

    @property
    def scales(self) -> tuple[float, ...]:
        """All magnifications, the highest first: those of the tuples that every model is trained and judged on."""
        return tuple(sorted({m for of in self.magnifications for m in of}, reverse=True))

    @property
    def class_count(self) -> int | None:
        """How many classes are said to be there."""
        return self.classes if isinstance(self.classes, int) or self.classes is None else len(self.classes)

    def recipe_of(self, repeat: int) -> Recipe:
        """The recipe of a split's runs: the same random numbers for all models."""
        return replace(self.recipe, seed=self.seed + repeat)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def read(cls, config: ExperimentConfig | Mapping[str, Any] | str | os.PathLike[str]) -> ExperimentConfig:
        """A configuration as it is given: itself, a dict, or a TOML file, in which paths are relative to it."""
        if isinstance(config, ExperimentConfig):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config)
        path = Path(config)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SpecError(f"experiment '{path}': no such file; expected a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
            raise SpecError(f"experiment '{path}' is no TOML file: {error}") from error
        for name in ("store", "output", "lists", "weights"):
            value = values.get(name)
            if (
                isinstance(value, str)
                and "://" not in value
                and (name != "weights" or Path(path.parent, os.path.expanduser(value)).is_file())
            ):
                values[name] = os.path.join(path.parent, os.path.expanduser(value))
        return cls.from_dict(values, where=f"experiment '{path}'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "experiment") -> ExperimentConfig:
        """The same from plain values; unknown names are refused."""
        known = [f.name for f in fields(cls)]
        _refuse_unknown(where, values, known)
        if missing := [name for name in ("store", "output", "magnifications") if name not in values]:
            raise SpecError(
                f"{where}: {', '.join(missing)} missing: they say what is learnt from, where to and at which"
            )
        segments = values.get("task") == "segment"
        given = {**(SEGMENT if segments else {}), **values}
        usual = FROM_SCRATCH if segments else STEP
        recipe = given.setdefault("recipe", usual)
        if isinstance(recipe, Mapping):
            _refuse_unknown(f"{where}: recipe", recipe, [f.name for f in fields(Recipe) if f.name != "seed"])
            given["recipe"] = replace(usual, **recipe)
        for name in ("store", "output", "lists"):
            if isinstance(given.get(name), os.PathLike):
                given[name] = os.fspath(given[name])
        return cls(**given)


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise SpecError(f"experiment: {name}={value!r}: expected a list")
    return tuple(value)


def _refuse_unknown(where: str, values: Mapping[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {similar[0]!r}? " if similar else ""
            raise SpecError(f"{where}: {name!r} is not known: {hint}there are {', '.join(known)}")
