"""Inference: trained models on images and slides; one file a task."""

from msdask.inference.scale import ScaleEstimate, estimate_scale, load_regressor

__all__ = ["ScaleEstimate", "estimate_scale", "load_regressor"]
