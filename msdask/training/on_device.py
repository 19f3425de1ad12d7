"""Loaders that feed the GPU that is trained on: batches are sent ahead and augmented there, without being told."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from msdask.data.loader import PatchLoader

__all__ = ["OnDevice"]


class OnDevice(Callback):
    """Has msdask's own loaders give their batches on the GPU while Lightning runs; after it they are as before.

    A loader that was told a device keeps it. On a CPU loaders stay as they are: OpenCV changes patch by patch faster
    than PyTorch changes batches there (benchmarks/gpu.py measures both).

    Parameters
    ----------
    loaders : any; those of other kinds are left alone
    """

    def __init__(self, *loaders: Any) -> None:
        self._loaders = [one for one in loaders if isinstance(one, PatchLoader)]
        self._moved: list[PatchLoader] = []

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Move the loaders: in the process that trains, which only now knows its device."""
        device = trainer.strategy.root_device
        if is_fed(device):
            self._moved = [one for one in self._loaders if one.device is None]
            for loader in self._moved:
                loader.to(device)

    def teardown(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Move them back."""
        self._back()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        """Move them back; Lightning does not tear down then."""
        self._back()

    def _back(self) -> None:
        for loader in self._moved:
            loader.to(None)
        self._moved = []


def is_fed(device: torch.device) -> bool:
    """Whether batches are changed on a device rather than before they get there."""
    return device.type == "cuda"
