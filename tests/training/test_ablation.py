"""Permuted branches, against permuting the images themselves."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from msdask.errors import SpecError
from msdask.models import AttentionFusion, FeatureFusion, PredictionFusion, SingleScale
from msdask.training import permute_branches
from msdask.training.class_scores import SCORES, confusion


@pytest.mark.parametrize("model", [FeatureFusion, PredictionFusion, AttentionFusion])
def test_permuting_what_comes_out_of_a_branch_is_permuting_its_images(model):
    torch.manual_seed(0)
    network = model(3, (20, 10), backbone="scalenet", embedding=8, dropout=0.5).eval()
    images = torch.randint(0, 256, (23, 2, 3, 16, 16), dtype=torch.uint8)
    labels = torch.randint(0, 3, (23,))
    batches = [{"image": images[i : i + 5], "label": labels[i : i + 5]} for i in range(0, 23, 5)]
    found = permute_branches(network, batches, repeats=3, seed=7)

    def scores(given: torch.Tensor) -> dict[str, float]:
        with torch.inference_mode():
            predicted = network(given).logits.argmax(-1)
        return {name: float(of(confusion(labels.numpy(), predicted.numpy(), 3))) for name, of in SCORES.items()}

    expected = [{"branch": "none", "repeat": 0, **scores(images)}]
    for m, scale in enumerate(("20x", "10x")):
        for repeat in range(3):
            order = np.random.default_rng([7, m, repeat]).permutation(23)
            mixed = images.clone()
            for i in range(23):
                mixed[i, m] = images[order[i], m]
            expected.append({"branch": scale, "repeat": repeat, **scores(mixed)})
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected))
    pd.testing.assert_frame_equal(permute_branches(network, batches, repeats=3, seed=7), found)


def test_one_magnification_cannot_be_ablated():
    batches = [{"image": torch.zeros(2, 1, 3, 16, 16), "label": torch.zeros(2, dtype=torch.int64)}]
    with pytest.raises(SpecError, match=r"ablation of SingleScale at \[10.0\]: expected a fusion of two or more"):
        permute_branches(SingleScale(3, (10,), backbone="scalenet"), batches)
    fusion = FeatureFusion(3, (20, 10), backbone="scalenet")
    with pytest.raises(SpecError, match="the split is empty"):
        permute_branches(fusion, [])
    with pytest.raises(SpecError, match="repeats=0"):
        permute_branches(fusion, batches, repeats=0)
