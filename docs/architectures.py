"""The drawings of the classifiers in docs/images, made from the modules: `python docs/architectures.py`."""

from __future__ import annotations

from pathlib import Path

import torch

import msdask as ms

IMAGES = Path(__file__).parent / "images"
DRAWN = (
    ("feature_fusion", ms.models.FeatureFusion, "n+1"),
    ("prediction_fusion", ms.models.PredictionFusion, "n+1"),
    ("feature_fusion_one_loss", ms.models.FeatureFusion, "one"),
    ("prediction_fusion_one_loss", ms.models.PredictionFusion, "one"),
    ("attention_fusion", ms.models.AttentionFusion, "one"),
)


def main() -> None:
    """Draw both fusions with both losses, and attention, as PNG."""
    for name, model, losses in DRAWN:
        with torch.device("meta"):  # shapes are enough: no weights are made
            made = model(5, (20, 10, 5), backbone="resnet34", dropout=0.2)
        figure = ms.plots.architecture(made, losses, patch_size=224)
        figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})
        print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
