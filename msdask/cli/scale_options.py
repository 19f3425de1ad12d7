"""The options of `msdask train scale`, and the training that they stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from msdask.errors import SpecError

if TYPE_CHECKING:
    from msdask.training import FitResult, Recipe, ScaleSource

__all__ = ["BatchSize", "Magnifications", "Ratios", "ScaleOptions"]

Magnifications = Annotated[
    list[float] | None, Parameter(name=["--magnification", "-m"], consume_multiple=True, negative=())
]
Ratios = Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())]
BatchSize = Annotated[int, Parameter(name=["--batch-size", "-b"])]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """How a scale detector is trained.

    Parameters
    ----------
    magnification
        which of a store's sets, default all; of images those to recognize, default 5 8 10 15 20 30 40
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
    delta
        where the huber loss turns linear
    optimizer
        adam, adamw or sgd
    learning_rate
        at its highest
    weight_decay
        not on biases and normalization
    schedule
        of the learning rate; cosine falls to 1 % over all epochs
    warmup
        share of the steps over which the learning rate rises
    ema
        decay of averaged weights, which are then measured and kept; 0 for none
    keep
        weights of the best epoch, or of the last
    epochs
        at most
    patience
        epochs without a better validation loss after which training stops; 0 for never
    batch_size
        patches a batch
    precision
        bf16 and 16 are mixed precision
    augment
        original: flips, turns, hue, saturation, value; strong: stain, saturation, contrast, blur, JPEG too
    scale_augment
        enlarge the middle of patches; exact: read scales up to the next one from the slides; range: read any scale,
        from below the lowest to above the highest; none. Default enlarge for a store, range for images
    emphasis
        with range: share of the draws from the upper two octaves alone
    mosaic
        with range: share of the patches that are put together from four places
    patch_size
        px of what is learnt from images
    crop
        px of what is measured of images, and of the crops that the model is used on; a store's patches have their own
    lists
        folder with list_train.csv and list_valid.csv; default the split that is stored with the slides
    ratios
        split the slides by these instead: training, validation, test
    about
        JSON file with what to say of the model: data, licence, notice
    seed
        decides splits, order, augmentation and initial weights
    workers
        processes that read and augment; 0 means threads
    """

    magnification: Magnifications = None
    backbone: Annotated[str, Parameter(name=["--backbone", "-c"])] = "resnet34"
    weights: str | None = None
    embedding: Annotated[int, Parameter(name=["--embedding", "-f"])] = 128
    dropout: Annotated[float, Parameter(name=["--dropout", "-d"])] = 0.0
    target: Literal["linear", "log2"] = "linear"
    loss: Annotated[Literal["l1", "mse", "huber"], Parameter(name=["--loss", "--loss_function"])] = "l1"
    delta: float = 1.0
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Parameter(name=["--optimizer", "-optimizer"])] = "adam"
    learning_rate: Annotated[float, Parameter(name=["--lr", "-lr"])] = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    warmup: float = 0.0
    ema: float = 0.0
    keep: Literal["best", "last"] = "best"
    epochs: Annotated[int, Parameter(name=["--epochs", "-e"])] = 10
    patience: int = 5
    batch_size: BatchSize = 128
    precision: Literal["32", "bf16", "16"] = "32"
    augment: Literal["original", "strong"] = "original"
    scale_augment: Literal["enlarge", "exact", "range", "none"] | None = None
    emphasis: float = 0.3
    mosaic: float = 0.5
    patch_size: Annotated[int, Parameter(name=["--patch-size", "-s"])] = 64
    crop: int = 96
    lists: Path | None = None
    ratios: Ratios = None
    about: Path | None = None
    seed: int = 0
    workers: Annotated[int, Parameter(name=["--workers", "-p"])] = 0

    def recipe(self) -> Recipe:
        """How to train."""
        from msdask.training import Recipe

        return Recipe(
            epochs=self.epochs,
            optimizer=self.optimizer,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            patience=self.patience or None,
            ema=self.ema or None,
            keep=self.keep,
            precision=self.precision,
            seed=self.seed,
        )

    def train(self, place: Path, output: Path, *, resume: bool, progress: bool) -> FitResult:
        """Train on a store or on images, into a run folder."""
        from msdask.data import Augment, loader
        from msdask.models import ScaleRegressor
        from msdask.training import ScaleSource, ScaleTask, fit

        source = ScaleSource(place, magnifications=self.magnification, patch_size=self.patch_size, crop=self.crop)
        split = source.split(lists=self.lists, ratios=self.ratios, seed=self.seed)
        dataset, enlarge = source.training(split.train, self.scale_augment, emphasis=self.emphasis, mosaic=self.mosaic)
        augment = Augment.strong(scale=enlarge) if self.augment == "strong" else Augment(scale=enlarge)
        batches = loader(
            dataset,
            batch_size=self.batch_size,
            balanced="class" if len(dataset.counts()) > 1 else "slide",
            augment=augment,
            seed=self.seed,
            num_workers=self.workers,
        )
        recipe = self.recipe()
        recipe.seed_weights()
        model = ScaleRegressor(
            self.backbone,
            embedding=self.embedding or None,
            dropout=self.dropout,
            target=self.target,
            weights=self.weights,
        )
        result = fit(
            model,
            ScaleTask(self.loss, delta=self.delta, classes=source.magnifications),
            batches,
            source.measured(split.valid, batch_size=self.batch_size),
            output,
            recipe=recipe,
            resume=resume,
            progress=progress,
            about={**self._about(), **_range(source)},
        )
        split.write(output / "lists")
        return result

    def _about(self) -> dict[str, Any]:
        if self.about is None:
            return {}
        try:
            said = json.loads(self.about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"--about '{self.about}' cannot be read as JSON: {error}") from error
        if not isinstance(said, dict):
            raise SpecError(f'--about \'{self.about}\': expected an object such as {{"data": ..., "licence": ...}}')
        return said


def _range(source: ScaleSource) -> dict[str, Any]:
    return {"crop": source.crop, "magnifications": [source.magnifications[0], source.magnifications[-1]]}
