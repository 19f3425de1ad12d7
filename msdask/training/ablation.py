"""Which magnification does a fusion use? Its scores when the inputs of one branch are those of other test patches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from msdask.errors import SpecError
from msdask.models.fusion import MultiScaleClassifier
from msdask.spec import format_magnification
from msdask.training.class_scores import SCORES, confusion
from msdask.training.classify_task import inputs
from msdask.training.task import Batch

__all__ = ["permute_branches"]

_BATCH = 4096


def permute_branches(
    model: MultiScaleClassifier,
    batches: Iterable[Batch],
    *,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Scores with the inputs of each branch in turn permuted over all test patches.

    A branch sees one magnification and nothing else, so its images are encoded once and what comes out is permuted:
    that is the same as permuting the images.

    Parameters
    ----------
    model : of two or more magnifications
    batches : in order, each test patch once
    repeats : permutations of each branch
    seed : of the permutations
    device : to compute on

    Returns
    -------
    table : a row a branch and repeat: branch ("20x"; "none" for the scores without any permutation, repeat 0), repeat,
        kappa, balanced_accuracy, macro_f1, accuracy

    Raises
    ------
    SpecError
        The model has one magnification, or there is no test patch.
    """
    if len(model.magnifications) < 2 or model.copies > 1:
        raise SpecError(
            f"ablation of {type(model).__name__} at {list(model.magnifications)}: expected a fusion of two or more "
            "magnifications"
        )
    if repeats < 1:
        raise SpecError(f"ablation: repeats={repeats!r}: expected at least 1")
    features, logits, labels = _encoded(model, batches, device)
    rows = [{"branch": "none", "repeat": 0, **_scores(model, features, logits, labels)}]
    for m, magnification in enumerate(model.magnifications):
        for repeat in range(repeats):
            order = torch.from_numpy(np.random.default_rng([seed, m, repeat]).permutation(len(labels)))
            mixed = [values.clone() for values in (features, logits)]
            for values in mixed:
                values[:, m] = values[order, m]
            rows.append(
                {
                    "branch": format_magnification(magnification),
                    "repeat": repeat,
                    **_scores(model, mixed[0], mixed[1], labels),
                }
            )
    return pd.DataFrame(rows)


@torch.inference_mode()
def _encoded(
    model: MultiScaleClassifier, batches: Iterable[Batch], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, M, F), logits (n, M, C) of the branches, and labels (n,) of the whole, on the CPU."""
    model = model.eval().to(device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        features, logits = model.encode(*(values.to(device) for values in inputs(batch)))
        label = batch["whole"] if "whole" in batch else batch["label"]
        found.append((features.cpu(), logits.cpu(), label if label.ndim == 1 else label[:, 0]))
    if not found:
        raise SpecError("ablation: the loader gave no batch: the split is empty")
    model.cpu()
    features, logits, labels = (torch.cat(values) for values in zip(*found, strict=True))
    return features, logits, labels


@torch.inference_mode()
def _scores(model: MultiScaleClassifier, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
    parts = zip(features.split(_BATCH), logits.split(_BATCH), strict=True)
    predicted = torch.cat([model.combine(f, z).logits.argmax(-1) for f, z in parts])
    counts = confusion(labels.cpu().numpy(), predicted.numpy(), model.classes)
    return {name: float(of(counts)) for name, of in SCORES.items()}
