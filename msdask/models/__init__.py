"""Models: networks, their registry, and their files."""

# ruff: noqa: E402 - a clear error about a missing PyTorch goes first
from __future__ import annotations

from msdask.extras import require

require("msdask.models")

from msdask.models.backbones import make_backbone
from msdask.models.regressor import ScaleRegressor, Target
from msdask.models.scalenet import ScaleNet

__all__ = ["ScaleNet", "ScaleRegressor", "Target", "make_backbone"]
