"""What `scaling.py` extracts: a huge slide made by repeating encoded tiles, a cohort, small slides, or your own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peers
import tifffile

from msdask.cutting.lazy_patches import read_plans
from msdask.extraction.slide_job import plan_slide
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.masks.choice import MaskChoice
from msdask.sample.slides import make_slide, write_labels, write_masks
from msdask.spec import ExtractionSpec

__all__ = ["ROWS", "Cohort", "Job", "generated_cohorts", "own_cohort", "repeat_slide", "spec_of", "unit_slide"]

PATCH_SIZE = 224
UNIT = 4096
"""px of the sides of what is repeated to make a larger slide: a whole number of tiles at each of its levels."""
SMALL = (1500, 2000)
DIFFERENT = 4
"""Slides of a cohort that differ; the others are links to them, and msdask takes them for files of their own."""
OWN, TISSUE, ANNOTATED = "found by msdask", "tissue masks", "annotated masks"

ROWS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "grid 40x": ("grid", (40.0,)),
    "grid 20x": ("grid", (20.0,)),
    "grid 10x": ("grid", (10.0,)),
    "grid 5x": ("grid", (5.0,)),
    "multi-center 5x/10x": ("centroids", (10.0, 5.0)),
    "multi-center 5x/10x/20x": ("centroids", (20.0, 10.0, 5.0)),
}
"""Rows of both tables, as in the original."""


@dataclass(frozen=True)
class Cohort:
    """Slides, and where their masks are: kind of mask -> options of `msdask.extract`."""

    name: str
    rows: tuple[SlideRow, ...]
    masks: dict[str, dict[str, Any]]


def spec_of(row: str) -> ExtractionSpec:
    """What a row of the tables extracts; the original's thresholds."""
    mode, magnifications = ROWS[row]
    return ExtractionSpec(mode, magnifications, patch_size=PATCH_SIZE, min_tissue=0.7, min_label=0.7)


class Job:
    """One row of the tables for one cohort with one kind of masks."""

    def __init__(self, cohort: Cohort, kind: str, row: str) -> None:
        self.cohort, self.kind, self.row = cohort, kind, row
        self.options = cohort.masks[kind]
        self.spec = spec_of(row)

    @cached_property
    def cuts(self) -> list[tuple[str, peers.Cut]]:
        """(path, what is to be cut) of every slide that has patches."""
        masks = MaskChoice.of(self.options.get("masks"), self.options.get("labels"), self.options.get("values"))
        found = []
        for row in self.cohort.rows:
            slide, (table,), _ = plan_slide(row, [self.spec], masks)
            x0, y0 = (table[name].values.astype(np.int64) for name in ("x0", "y0"))
            sides = tuple(float(side) for side in table.attrs["footprint"])
            if len(x0):
                found.append((row.path, peers.Cut(x0, y0, sides, read_plans(slide, self.spec), PATCH_SIZE)))
        return found

    @property
    def patches(self) -> int:
        """Patches, or tuples."""
        return sum(len(cut.x0) for _, cut in self.cuts)


def repeat_slide(source: str | os.PathLike[str], target: Path, times: int) -> None:
    """Write a slide of `times` x `times` copies of another one, by copying its encoded tiles.

    Parameters
    ----------
    source : a tiled TIFF whose levels are whole numbers of tiles
    target : file to write
    times : copies along each axis
    """
    part = target.with_name(f"part-{target.name}")
    with tifffile.TiffFile(source) as tif, tifffile.TiffWriter(part, bigtiff=True) as out:
        pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        for page in pages:
            height, width = page.imagelength, page.imagewidth
            if height % page.tilelength or width % page.tilewidth:
                raise ValueError(f"{source}: a level of {width} x {height} px is no whole number of tiles")
            out.write(
                _repeated(tif.filehandle, page, times),
                shape=(height * times, width * times, 3),
                dtype=np.uint8,
                tile=(page.tilelength, page.tilewidth),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=page.subsampling,
                description=page.description,
                software=False,
                metadata=None,
            )
            if page is pages[0]:  # readers of this layout take the next page for the thumbnail
                out.write(np.full((64, 64, 3), 240, np.uint8), description=page.description, metadata=None)
    part.rename(target)


def _repeated(file: Any, page: tifffile.TiffPage, times: int) -> Iterator[bytes]:
    """Encoded tiles of a page, row by row, each row of tiles and all rows so many times."""
    across = page.imagewidth // page.tilewidth
    tiles = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        tiles.append(file.read(count))
    for row in range(times * (len(tiles) // across)):
        first = row * across % len(tiles)
        for _ in range(times):
            yield from tiles[first : first + across]


def generated_cohorts(folder: Path, *, side: int, count: int, cohort_side: int, small: int) -> list[Cohort]:
    """A huge slide, a cohort and small slides at 40x; what is there from an earlier run is used again.

    Parameters
    ----------
    folder : for the slides
    side : px of the huge slide's sides, a multiple of 4,096
    count, cohort_side : slides of the cohort, and px of their sides
    small : slides of 1,500 x 2,000 px
    """
    folder.mkdir(parents=True, exist_ok=True)
    huge = folder / f"huge-{side}.svs"
    if not huge.exists():
        repeat_slide(unit_slide(folder, 0, (UNIT, UNIT)), huge, side // UNIT)
    cohort = _linked(folder, f"cohort-{cohort_side}", count, (cohort_side, cohort_side))
    smalls = _linked(folder, "small", small, SMALL)
    inside = folder / f"cohort-{cohort_side}"
    masks = {
        OWN: {},
        TISSUE: {"masks": inside / "masks"},
        ANNOTATED: {"labels": inside / "labels", "values": (50, 100, 150)},
    }
    return [
        Cohort(f"one slide of {side:,} px", (SlideRow(str(huge), huge.stem),), {OWN: {}}),
        Cohort(f"{count} slides of {cohort_side:,} px", cohort, masks),
        Cohort(f"{small} slides of {SMALL[0]:,} x {SMALL[1]:,} px", smalls, {OWN: {}}),
    ]


def unit_slide(folder: Path, seed: int, size: tuple[int, int]) -> Path:
    """A generated slide, made if it is not there."""
    path = folder / f"unit-{size[0]}x{size[1]}-{seed}.svs"
    if not path.exists():
        print(f"making a slide of {size[0]:,} x {size[1]:,} px", file=sys.stderr)
        part = path.with_name(f"part-{path.name}")
        make_slide(part, size=size, seed=seed, copies=seed % 3 == 1, pen=seed % 3 == 2, tissue_fraction=0.6)
        part.rename(path)
    return path


def _linked(folder: Path, name: str, count: int, size: tuple[int, int]) -> tuple[SlideRow, ...]:
    """A few slides under many names, with masks of both kinds."""
    inside = folder / name
    inside.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        path = inside / f"slide-{i:03d}.svs"
        if not path.exists():
            seed = i % DIFFERENT
            if i < DIFFERENT:
                sample = make_slide(path, size=size, seed=seed, copies=seed % 3 == 1, tissue_fraction=0.6)
                write_masks(sample, inside / "masks")
                write_labels(sample, inside / "labels")
            else:
                first = f"slide-{seed:03d}"
                os.link(inside / f"{first}.svs", path)
                mask = inside / "masks" / path.name
                mask.mkdir(parents=True, exist_ok=True)
                shutil.copy(
                    inside / "masks" / f"{first}.svs" / f"{first}.svs_mask_use.png",
                    mask / f"{path.name}_mask_use.png",
                )
                for label in (inside / "labels").glob(f"{first}*"):
                    shutil.copy(label, label.with_name(label.name.replace(first, path.stem)))
        rows.append(SlideRow(str(path), path.stem))
    return tuple(rows)


def own_cohort(slides: str, *, masks: str | None, labels: str | None, values: tuple[int, ...]) -> Cohort:
    """The user's slides; without any masks msdask finds the tissue itself."""
    kinds: dict[str, dict[str, Any]] = {}
    if masks or not labels:
        kinds[TISSUE if masks else OWN] = {"masks": masks} if masks else {}
    if labels:
        kinds[ANNOTATED] = {"labels": labels, **({"values": values} if values else {})}
    rows = tuple(read_slides(slides))
    return Cohort(f"{Path(slides).stem}, {len(rows)} slides", rows, kinds)
