"""The pictures of README.md and the docs that show slides: ``python docs/pictures.py`` draws them on a generated slide.

docs/images/selection.jpg, tuples.jpg and sheet.jpg. Of the others, any_scale.png and class_map.jpg come from
benchmarks/any_scale.py, scale_detector.png from benchmarks/scale_detector.py, those of networks from
docs/architectures.py, and rooms.svg from docs/rooms.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import msdask as ms

IMAGES = Path(__file__).resolve().parent / "images"


def main() -> None:
    """Draw all of them."""
    with tempfile.TemporaryDirectory() as folder:
        sample = ms.sample.make_slide(Path(folder, "slide.svs"), size=(6000, 8000), seed=3)
        slide = ms.open_slide(sample.path)
        mask = ms.tissue_mask(slide)
        tuples = ms.centroids(slide, mask, magnifications=[20, 10, 5], patch_size=224)
        store = ms.PatchStore(Path(folder, "store.zarr"))
        store.write(ms.patches(slide, tuples))
        patch_set = store["centroids-20x-10x-5x-224"]
        rows = np.linspace(0, len(patch_set) - 1, 3).astype(int)
        figures = {
            "selection": ms.plots.selection(slide, tuples, mask=mask, max_size=1000),
            "tuples": ms.plots.patches(patch_set.open("slide.svs"), rows=rows),
            "sheet": ms.plots.sheet(patch_set, by="focus", n=5),
        }
        for name, figure in figures.items():
            figure.savefig(IMAGES / f"{name}.jpg", pil_kwargs={"quality": 80, "optimize": True})
            print(IMAGES / f"{name}.jpg")


if __name__ == "__main__":
    main()
