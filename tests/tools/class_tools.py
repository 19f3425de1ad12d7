"""A cohort for the tests of classifiers: slides whose left and right halves are of two classes that colors tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import msdask as ms

SIZE = 32
SIDE = 384
SCALES = (20.0, 10.0, 5.0)
TUPLES = f"centroids-20x-10x-5x-{SIZE}"
COHORT = {  # slide: (split, patient)
    "a0.png": ("train", "A"),
    "a1.png": ("train", "A"),
    "b.png": ("train", "B"),
    "c.png": ("valid", "C"),
    "d.png": ("test", "D"),
    "e.png": ("test", "E"),
}


def write_class_cohort(
    folder: Path,
    *,
    modes: Sequence[str] = ("grid", "centroids"),
    classes: dict[str, Sequence[int]] | None = None,
    scales: Sequence[float] = SCALES,
) -> ms.PatchStore:
    """Slides of 384 px at 20x, their label masks (some places have none), and a store with grids and tuples of them.

    Parameters
    ----------
    classes : slide -> classes of its left and its right half; default 0 and 1
    """
    rows: list[dict[str, Any]] = []
    for seed, (slide, (split, patient)) in enumerate(COHORT.items()):
        rng = np.random.default_rng(seed)
        left, right = (classes or {}).get(slide, (0, 1))
        colors = np.array([(150, 60, 140), (215, 150, 185), (120, 120, 200), (160, 120, 100)])
        label = np.full((SIDE, SIDE), left)
        label[:, SIDE // 2 :] = right
        blocks = rng.normal(0, 25, (SIDE // 8, SIDE // 8, 3))  # coarse: at 5x there is still contrast
        image = colors[label] + np.kron(blocks, np.ones((8, 8, 1)))
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / slide)
        mask = (label + 1).astype(np.uint8)
        mask[: SIDE // 4, : SIDE // 4] = 0
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / slide)
        rows.append(
            {
                "path": folder / slide,
                "mask": folder / "masks" / slide,
                "mpp": 0.5,
                "split": split,
                "patient": patient,
            }
        )
    store = ms.PatchStore(folder / "classes.zarr")
    grids = [ms.ExtractionSpec(mode="grid", magnifications=(m,), patch_size=SIZE) for m in scales]
    tuples = ms.ExtractionSpec(mode="centroids", magnifications=tuple(scales), patch_size=SIZE)
    for spec in [grids] * ("grid" in modes) + [tuples] * ("centroids" in modes):
        report = ms.extract(rows, store, spec, values={v: v - 1 for v in range(1, 5)}, threads=1, progress=False)
        assert report.is_complete, report.failures
    return store
