"""What the tests of streaming share: a small cohort in a store, and the stored pixels as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from msdask.cutting.lazy_patches import patches
from msdask.sample.slides import make_slide
from msdask.selection.select import centroids, grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore

from .store_tools import use_small_blocks

SIZE = 32
SPLITS = {"a.svs": "train", "b.svs": "train", "c.svs": "test"}
GRID, COARSE, TUPLES = f"grid-20x-{SIZE}", f"grid-10x-{SIZE}", f"centroids-20x-10x-5x-{SIZE}"


@dataclass(frozen=True)
class Cohort:
    """Three labelled slides (one off the nominal scale) with a grid at 20x and at 10x, and tuples with label maps."""

    store: PatchStore
    folder: Path

    def __getitem__(self, name: str) -> PatchSet:
        return self.store[name]

    def images(self, name: str) -> dict[str, np.ndarray]:
        """Slide id -> all stored patches."""
        return {s: self.store[name].open(s)["image"].to_numpy() for s in self.store[name].slides}


def write_cohort(
    folder: Path,
    *,
    codec: Codec = "raw",
    path: str | None = None,
    names: tuple[str, ...] = (GRID, COARSE, TUPLES),
    slides: tuple[str, ...] = tuple(SPLITS),
) -> Cohort:
    """Make the slides and the store (at `path`), in blocks of at most 16 images."""
    store = PatchStore(path or folder / "cohort.zarr", codec=codec)
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        for seed, (slide_id, split) in enumerate(SPLITS.items()):
            if slide_id not in slides:
                continue
            mpp = 0.2425 if slide_id == "b.svs" else 0.25
            sample = make_slide(folder / slide_id, size=(640, 896), mpp=mpp, seed=seed, levels=(1, 4), threads=1)
            slide, labels = open_slide(sample.path), sample.labels // 50
            options: dict[str, Any] = {"labels": labels, "patch_size": SIZE, "min_tissue": 0, "unlabeled": "keep"}
            made = {
                GRID: grid(slide, magnification=20, **options),
                COARSE: grid(slide, magnification=10, **options),
                TUPLES: centroids(slide, magnifications=[20, 10, 5], **options),
            }
            for name in names:
                maps = xr.DataArray(labels, dims=("y", "x")) if name == TUPLES else None
                store.write(patches(slide, made[name], labels=maps), attrs={"cohort": {"split": split}})
    return Cohort(store, folder)
