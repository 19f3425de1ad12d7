"""TaskModule: a model and its task as Lightning sees them: steps, optimizer, schedule, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from msdask.errors import MsdaskError
from msdask.training.recipe import Recipe
from msdask.training.task import Batch, Task

__all__ = ["TaskModule"]

_TOO_FEW_FOR_BATCH_NORM = "more than 1 value per channel"
"""What PyTorch says of it; it has no class of error of its own for that."""


class TaskModule(LightningModule):
    """Trains `model` on `task` by `recipe`; validates and tests the averaged weights where there are any.

    Attributes
    ----------
    model : what is trained
    averaged : exponential moving average of it, or None
    results : metrics of the last validation or test
    """

    steps: Tensor

    def __init__(self, model: nn.Module, task: Task, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.averaged: nn.Module | None = None
        if recipe.ema is not None:
            self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.task = task
        self.recipe = recipe
        self.measures = nn.ModuleDict(dict(task.metrics().items()))
        self.results: dict[str, float] = {}
        self._loss_sum = 0.0
        self._images = 0
        self.register_buffer("steps", torch.tensor(0))

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights count: the average, or the model itself."""
        return self.averaged if self.averaged is not None else self.model

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One batch; refuses to go on with a loss that is no number, or with too few images for batch norm."""
        try:
            loss, _ = self.task.loss(self.model, batch)
        except ValueError as error:
            if _TOO_FEW_FOR_BATCH_NORM not in str(error):
                raise
            raise MsdaskError(
                f"training: batch {batch_index} of epoch {self.current_epoch} has one image, and batch norm needs two "
                "to learn from: make the loader with larger batches, or leave the last one out (drop_last=True)"
            ) from error
        if not torch.isfinite(loss):
            raise MsdaskError(
                f"training: the loss is {loss.item()} in epoch {self.current_epoch}, batch {batch_index}: lower the "
                "learning rate, clip the gradient (clip=1.0), or look for broken labels in that batch"
            )
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then move the averaged weights: before any checkpoint of this step is written."""
        super().optimizer_step(*arguments, **options)
        if self.averaged is None:
            return
        self.steps += 1
        steps = int(self.steps)
        decay = min(self.recipe.ema or 0.0, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
                if mean.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Take a batch into the metrics."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Take a batch into the metrics; gives what they took to whoever listens."""
        predictions, targets = self._evaluate(batch)
        return {"predictions": predictions, "targets": targets}

    def on_validation_epoch_start(self) -> None:
        """Begin anew."""
        self._begin()

    def on_test_epoch_start(self) -> None:
        """Begin anew."""
        self._begin()

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics, over all processes."""
        self.results = self._finish()
        self.log_dict({f"valid_{name}": value for name, value in self.results.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Compute the metrics, over all processes."""
        self.results = self._finish()

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the recipe; weight decay spares biases and normalization."""
        recipe = self.recipe
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        else:
            optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](groups, lr=recipe.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(recipe, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _begin(self) -> None:
        self._loss_sum, self._images = 0.0, 0
        for metric in _metrics(self.measures):
            metric.reset()

    def _evaluate(self, batch: Batch) -> tuple[Any, Tensor]:
        loss, (predictions, targets) = self.task.loss(self.evaluated, batch)
        self._loss_sum += loss.item() * len(targets)
        self._images += len(targets)
        for metric in _metrics(self.measures):
            metric.update(predictions, targets)
        return predictions, targets

    def _finish(self) -> dict[str, float]:
        totals = torch.tensor([self._loss_sum, self._images], dtype=torch.float64)
        if self.trainer.world_size > 1:
            gathered = self.all_gather(totals.to(self.device))
            assert isinstance(gathered, Tensor)
            totals = gathered.sum(0).cpu()
        if not totals[1]:
            raise MsdaskError("validation or test: the loader gave no batch: the split is empty")
        results = {"loss": float(totals[0] / totals[1])}
        for name, metric in self.measures.items():
            assert isinstance(metric, Metric)
            results[name] = float(metric.compute())
        return results


def _metrics(measures: nn.ModuleDict) -> Sequence[Metric]:
    return [metric for metric in measures.values() if isinstance(metric, Metric)]


def _factor(recipe: Recipe, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step of `steps`."""
    warmup = recipe.warmup * steps
    rising = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    if recipe.schedule == "step":
        return rising * recipe.step_factor ** (step * recipe.epochs // max(steps, 1) // recipe.step_epochs)
    if recipe.schedule == "cosine":
        done = min(1.0, step / max(steps, 1))
        return rising * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    return rising
