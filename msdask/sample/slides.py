"""Generated slides with masks and labels: real histology texture in made-up sections on glass.

A slide is a function of its arguments: the same ones give the same bytes, on any number of threads. What is tissue and
which class it is comes from the generator itself, so masks and labels are the truth, not an estimate.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SpecError
from msdask.sample.anatomy import Anatomy, Painter
from msdask.sample.svs import Compression, Subsampling, SvsLayout, write_svs
from msdask.sample.texture import CLASS_NAMES
from msdask.storage.files import replacing
from msdask.storage.tables import write_table

__all__ = ["SampleSlide", "make_cohort", "make_slide", "write_labels", "write_masks"]

MASK_MPP = 8.0
"""um/px of the masks and labels that come with a slide (1.25x)."""

LABEL_STEP = 50
"""Class k has the value (k + 1) * 50 in a label image: 50, 100, 150 ..."""


@dataclass(frozen=True, eq=False)
class SampleSlide:
    """A generated slide and what is true of it.

    Attributes
    ----------
    path : the file
    shape : (height, width) of level 0, px
    mpp : um/px of level 0, also where the file does not say it
    mask : (mask height, mask width) bool, True = tissue
    labels : (mask height, mask width) uint8, 0 outside tissue, (k + 1) * 50 for class k
    classes : their names
    mask_mpp : um/px of `mask` and `labels`
    """

    path: Path
    shape: tuple[int, int]
    mpp: float
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    mask_mpp: float = MASK_MPP

    @property
    def values(self) -> tuple[int, ...]:
        """Value of each class in `labels`: (50, 100, 150)."""
        return tuple((k + 1) * LABEL_STEP for k in range(len(self.classes)))


def make_slide(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int],
    mpp: float = 0.25,
    seed: int = 0,
    levels: tuple[int, ...] = (1, 4, 16),
    tile: int = 256,
    quality: int = 90,
    subsampling: Subsampling = "4:2:0",
    compression: Compression = "jpeg",
    classes: int = 3,
    tissue_fraction: float = 0.5,
    pen: bool = False,
    dark_edge: bool = False,
    copies: bool = False,
    associated: bool = True,
    write_mpp: bool = True,
    threads: int | None = None,
) -> SampleSlide:
    """Write a slide in the layout of Aperio's SVS files.

    Tiles are made and encoded row by row: memory does not grow with the height, and grows by a few rows of tiles a
    thread with the width.

    Parameters
    ----------
    path : file to write, conventionally `.svs`; an existing one is replaced
    size : (height, width) of level 0, px
    mpp : um/px of level 0; decides how large the cells are, 0.1 to 2
    seed : decides everything that is random
    levels : downsample of each level; sizes are floor(side / downsample), pixels the area mean of the level above
    tile : side of the tiles, px, a multiple of 16 up to 1024
    quality, subsampling : of JPEG
    compression : "jpeg", "jpeg2000", "deflate" or "none"; all but JPEG are lossless
    classes : number of tissue classes, 1 to 5
    tissue_fraction : share of the slide that is tissue, about; of one half where there are `copies`
    pen : draw a felt pen's line along the right edge
    dark_edge : darken the top edge, as where the scan reaches the slide's frame
    copies : two sections of one block side by side, the right one smaller, with empty glass between
    associated : also write a label and a macro image; a thumbnail is there wherever there are several levels
    write_mpp : state mpp and magnification in the file
    threads : workers, as many as there are cores by default; they change no byte of the file

    Returns
    -------
    sample : the path, and the truth about it

    Raises
    ------
    SpecError
        An argument makes no sense.
    """
    if len(size) != 2 or min(size) < 1:
        raise SpecError(f"size={size!r}: expected (height, width) in px, such as (6000, 8000)")
    if not 0.1 <= mpp <= 2:
        raise SpecError(f"mpp={mpp!r}: generated tissue has cells from 0.1 to 2 um/px")
    if not 1 <= classes <= len(CLASS_NAMES):
        raise SpecError(f"classes={classes!r}: expected 1 to {len(CLASS_NAMES)}")
    if not 0 <= tissue_fraction <= 1:
        raise SpecError(f"tissue_fraction={tissue_fraction!r}: expected a fraction from 0 to 1")
    if tile > 1024:
        raise SpecError(f"tile={tile}: expected at most 1024 px")
    path = Path(path)
    layout = SvsLayout(
        levels=tuple(levels), tile=tile, compression=compression, quality=quality, subsampling=subsampling
    )
    mask_shape = (max(1, round(size[0] * mpp / MASK_MPP)), max(1, round(size[1] * mpp / MASK_MPP)))
    anatomy = Anatomy.make(
        mask_shape,
        classes=classes,
        tissue_fraction=tissue_fraction,
        copies=copies,
        pen=pen,
        dark_edge=dark_edge,
        seed=seed,
    )
    painter = Painter(anatomy, size, mpp=mpp, seed=seed)
    write_svs(
        path,
        painter.tile,
        shape=size,
        mpp=mpp if write_mpp else None,
        layout=layout,
        associated=associated,
        label=("generated", f"seed {seed}"),
        threads=threads,
    )
    mask = anatomy.mask
    labels = np.where(mask, (anatomy.classes + 1) * LABEL_STEP, 0).astype(np.uint8)
    return SampleSlide(path, size, mpp, mask, labels, CLASS_NAMES[:classes])


def write_masks(
    sample: SampleSlide, folder: str | os.PathLike[str], *, layout: Literal["histoqc", "png"] = "histoqc"
) -> Path:
    """Write the tissue mask as an 8-bit PNG, 255 = tissue.

    Parameters
    ----------
    sample : a generated slide
    folder : where; made if it is not there
    layout : "histoqc" for ``<folder>/<name>/<name>_mask_use.png`` with the slide's ending in the name, as HistoQC does
        it, "png" for ``<folder>/<name without ending>.png``

    Returns
    -------
    path : the PNG
    """
    if layout not in ("histoqc", "png"):
        raise SpecError(f"layout={layout!r}: expected 'histoqc' or 'png'")
    name = sample.path.name
    inside = Path(name, f"{name}_mask_use.png") if layout == "histoqc" else Path(f"{sample.path.stem}.png")
    return _write_png(Path(folder) / inside, np.where(sample.mask, 255, 0).astype(np.uint8))


def write_labels(sample: SampleSlide, folder: str | os.PathLike[str]) -> Path:
    """Write the labels as an 8-bit PNG, ``<folder>/<name without ending>.png``: 0 unlabeled, (k + 1) * 50 class k."""
    return _write_png(Path(folder) / f"{sample.path.stem}.png", sample.labels)


def make_cohort(
    folder: str | os.PathLike[str], *, n: int = 3, size: tuple[int, int] = (6000, 8000), classes: int = 3, seed: int = 0
) -> Path:
    """Write a small cohort: slides at 40x, HistoQC-like masks, annotated labels, and a table of them.

    The first slide is plain, the second carries two copies of its section, the third a pen mark and a dark edge, and so
    on in turn.

    Parameters
    ----------
    folder : gets ``slides/*.svs``, ``masks/<name>/<name>_mask_use.png``, ``labels/*.png`` and ``slides.csv``
    n : number of slides
    size : (height, width) of level 0, px
    classes : number of tissue classes
    seed : of the first slide; the others count on from it

    Returns
    -------
    table : ``slides.csv`` with the columns path (absolute), slide_id and split (train, valid, test in turn)
    """
    if n < 1:
        raise SpecError(f"n={n}: expected at least one slide")
    folder = Path(folder).resolve()
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    table = folder / "slides.csv"
    digits = max(1, math.ceil(math.log10(n + 1)))
    rows = []
    for i in range(n):
        path = folder / "slides" / f"sample-{i + 1:0{digits}d}.svs"
        sample = make_slide(
            path, size=size, seed=seed + i, classes=classes, copies=i % 3 == 1, pen=i % 3 == 2, dark_edge=i % 3 == 2
        )
        write_masks(sample, folder / "masks")
        write_labels(sample, folder / "labels")
        rows.append((path, path.stem, ("train", "valid", "test")[i % 3]))
    write_table(table, rows, header=("path", "slide_id", "split"))
    return table


def _write_png(path: Path, values: NDArray[np.uint8]) -> Path:
    with replacing(path) as part:
        Image.fromarray(values).save(part, "PNG")
    return path
