"""Models: networks, their registry, and their files."""

# ruff: noqa: E402 - a clear error about a missing PyTorch goes first
from __future__ import annotations

from msdask.extras import require

require("msdask.models")

from msdask.models.backbones import make_backbone
from msdask.models.files import Released, load_model, load_released, released, save_model
from msdask.models.fusion import (
    AttentionFusion,
    FeatureFusion,
    FusionOutput,
    MultiScaleClassifier,
    PredictionFusion,
    SingleScale,
)
from msdask.models.hooknet import HookNet
from msdask.models.pooled import PooledContext
from msdask.models.registry import create, register
from msdask.models.registry import names as list
from msdask.models.regressor import ScaleRegressor, Target
from msdask.models.scalenet import ScaleNet
from msdask.models.segmentation import SegmentationModel, SegmentOutput
from msdask.models.unet import UNet

__all__ = [
    "AttentionFusion",
    "FeatureFusion",
    "FusionOutput",
    "HookNet",
    "MultiScaleClassifier",
    "PooledContext",
    "PredictionFusion",
    "Released",
    "ScaleNet",
    "ScaleRegressor",
    "SegmentOutput",
    "SegmentationModel",
    "SingleScale",
    "Target",
    "UNet",
    "create",
    "list",
    "load_model",
    "load_released",
    "make_backbone",
    "register",
    "released",
    "save_model",
]
