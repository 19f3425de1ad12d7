"""Recipe: everything that decides how a model is trained, as one frozen value that is saved with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from msdask.errors import SpecError

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs : at most
    optimizer : "adam", "adamw" or "sgd" (momentum 0.9)
    lr : learning rate, at its highest
    weight_decay : not on biases and normalization
    schedule : "constant"; "step" multiplies by `step_factor` every `step_epochs`; "cosine" falls to 1 % at the end
        of `epochs`, after a warm-up over the first `warmup` of the steps
    warmup : share of all steps
    patience : epochs without a better validation, by what the task monitors, after which training stops; None: never
    ema : decay of an exponential moving average of the weights, which is then what is validated and saved; None: off
    keep : weights of the "best" epoch by what the task monitors, or of the "last": after a schedule that ends at 0,
        with averaged weights and few validation images, the last are as good and not chosen by chance
    precision : "32", "bf16" (automatic mixed precision on CPU and GPU) or "16" (with loss scaling, GPU)
    clip : largest norm of the gradient; None: not clipped
    accumulate : batches a step
    accelerator, devices, strategy, nodes : as in Lightning's Trainer; "auto" uses a GPU where there is one, "ddp" with
        several devices needs loaders made with their `rank` and `world_size`
    checkpoint_every : steps between checkpoints that a killed run resumes from; None: at the end of each epoch
    seed : of initial weights' and dropout's random numbers
    """

    epochs: int = 10
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    step_epochs: int = 5
    step_factor: float = 0.1
    warmup: float = 0.0
    patience: int | None = 5
    ema: float | None = None
    keep: Literal["best", "last"] = "best"
    precision: Literal["32", "bf16", "16"] = "32"
    clip: float | None = None
    accumulate: int = 1
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    nodes: int = 1
    checkpoint_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adam", "adamw", "sgd"),
            "schedule": ("constant", "step", "cosine"),
            "keep": ("best", "last"),
            "precision": ("32", "bf16", "16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SpecError(f"recipe: {name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("epochs", "accumulate", "devices", "nodes", "step_epochs"):
            if getattr(self, name) < 1:
                raise SpecError(f"recipe: {name}={getattr(self, name)!r}: expected a whole number of at least 1")
        if not self.lr > 0:
            raise SpecError(f"recipe: lr={self.lr!r}: expected a number above 0")
        if not 0 <= self.warmup < 1:
            raise SpecError(f"recipe: warmup={self.warmup!r}: expected a share from 0 to below 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise SpecError(f"recipe: ema={self.ema!r}: expected a decay from 0 to below 1, or None")
        if self.patience is not None and self.patience < 1:
            raise SpecError(f"recipe: patience={self.patience!r}: expected at least 1 epoch, or None")

    def seed_weights(self) -> None:
        """Make the initial weights of the models that are made next follow from the seed."""
        torch.manual_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
