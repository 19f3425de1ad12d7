"""Task: what a model learns - its loss and its metrics; the one part of training that differs between models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["Batch", "PreparesModel", "Task"]

Batch = Mapping[str, Tensor]
"""What a loader gives: "image" (B, M, 3, S, S) uint8, "label", "magnification" (B, M), "slide", "row" ..."""


class Task(Protocol):
    """Loss and metrics of a kind of model, and which of them says what is best."""

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that say what the task is; saved with the run."""
        ...

    @property
    def monitor(self) -> str:
        """What of the validation decides which epoch is the best and when to stop: "loss", or the name of a metric."""
        ...

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether it is to be small or large."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[Any, Tensor]]:
        """The mean loss of a batch, and (predictions, targets) as the metrics take them; targets (images, ...)."""
        ...

    def metrics(self) -> nn.ModuleDict | dict[str, Metric]:
        """New metrics by name, each updated with (predictions, targets)."""
        ...


@runtime_checkable
class PreparesModel(Protocol):
    """A task that does something to a model before it is trained, such as freezing what its loss does not reach."""

    def prepare(self, model: nn.Module) -> None:
        """Done once by `fit`, before the optimizer is made."""
        ...
