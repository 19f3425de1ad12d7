"""Small stores with label maps for the tests of segmentation: slides of two colours, and their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import msdask as ms

SIZE = 68
"""px of a patch: legal at depth 2, with and without a context."""
SIDE = 208
SCALES = (20.0, 10.0)
COHORT = {"a.png": ("train", "A"), "b.png": ("train", "B"), "c.png": ("valid", "C"), "d.png": ("test", "D")}


def write_mapped_cohort(folder: Path) -> ms.PatchStore:
    """Slides of 208 px at 20x: a square of class 1 on class 0, a border of 16 px without a label; tuples of them."""
    rows: list[dict[str, Any]] = []
    (folder / "masks").mkdir()
    for seed, (slide, (split, patient)) in enumerate(COHORT.items()):
        rng = np.random.default_rng(seed)
        x, y = rng.integers(40, 80, 2)
        label = np.zeros((SIDE, SIDE), np.int64)
        label[y : y + 88, x : x + 88] = 1
        noise = np.kron(rng.normal(0, 15, (SIDE // 4, SIDE // 4, 3)), np.ones((4, 4, 1)))
        image = np.array([(150, 60, 140), (215, 150, 185)])[label] + noise
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / slide)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[16:-16, 16:-16] = label[16:-16, 16:-16] + 1
        Image.fromarray(mask).save(folder / "masks" / slide)
        rows.append(
            {"path": folder / slide, "mask": folder / "masks" / slide, "mpp": 0.5, "split": split, "patient": patient}
        )
    store = ms.PatchStore(folder / "mapped.zarr")
    spec = ms.ExtractionSpec("centroids", SCALES, SIZE, min_tissue=0.1, min_label=0.1, label_maps=True)
    report = ms.extract(rows, store, spec, values=[1, 2], threads=1, progress=False)
    assert report.is_complete, report.failures
    return store
