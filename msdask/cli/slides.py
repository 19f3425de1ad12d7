"""`msdask info` and `msdask mask`: one slide; and `--mpp`, also of a cohort's slides."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from msdask.cli.options import Mpp, Output
from msdask.cli.terminal import err, out
from msdask.errors import MsdaskError, SpecError
from msdask.spec import MAX_HOLE_UM2, MIN_AREA_UM2

if TYPE_CHECKING:
    from msdask.extraction.slide_table import SlideRow
    from msdask.inference.scale import ScaleEstimate
    from msdask.slides.slide import Slide

__all__ = ["info", "mask", "slides_with_scale"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StatedScale:
    """Which image of a file is opened, and its scale, where the file's own is not to be used."""

    mpp: Mpp = None
    """um/px of level 0, overrides the file; "estimate" asks the scale detector"""
    slide_magnification: float | None = None
    """the same as 10 / mpp"""
    region: str | None = None
    """which of several images in the file, by name or number from 0 on; `msdask info` lists them"""

    def open(self, path: Path, *, strict: bool = False) -> Slide:
        """The slide, with the scale that was given; an estimate is printed."""
        from msdask.slides.slide import Slide, open_slide

        mpp = self.mpp
        if mpp == "estimate":
            found = _estimate(path, self.region)
            stated = Slide(path, region=self.region).mpp
            beside = f"; the file states {stated:g} um/px" if stated is not None else ""
            err.print(f"{os.fspath(path)}: {_said(found)}{beside}", markup=False)
            mpp = found.mpp
        return open_slide(path, mpp=mpp, magnification=self.slide_magnification, strict=strict, region=self.region)


def info(
    slide: Path | None = None,
    *,
    scale: StatedScale = StatedScale(),
    strict: Annotated[bool, Parameter(negative="--no-strict")] = False,
    readers: bool = False,
) -> int:
    """Say what a slide is: size, scale and where it came from, levels, associated images.

    Parameters
    ----------
    slide
        file to open, or a folder that is one slide
    strict
        refuse a doubtful scale instead of warning
    readers
        list the readers instead: what they read, in which order they are asked, and what an extra would add
    """
    if readers:
        from msdask.cli.readers import print_readers

        return print_readers()
    if slide is None:
        raise SpecError("msdask info: expected a slide, or --readers")
    for key, value in _facts(scale.open(slide, strict=strict)):
        out.print(f"{key:<11} {value}", markup=False)
    return 0


def _facts(slide: Slide) -> list[tuple[str, str]]:
    height, width = slide.shape
    facts = [("slide", slide.path), ("format", f"{slide.format}, {slide.vendor}"), ("size", f"{width} x {height} px")]
    if slide.mpp:
        used = slide.mpp_used
        facts += [
            ("mpp", f"{slide.mpp:g} um/px ({slide.mpp_source}, {slide.quality})"),
            ("mpp used", f"{used:g} um/px ({slide.magnification:g}x)"),
            ("extent", f"{width * used / 1000:.2f} x {height * used / 1000:.2f} mm"),
        ]
    else:
        facts.append(("mpp", f"unknown: {slide.scale.problem}"))
    facts.append(("objective", f"{slide.objective_power:g}x" if slide.objective_power else "unknown"))
    for i, level in enumerate(slide.level_infos):
        size = f"{level.shape[1]} x {level.shape[0]} px"
        facts.append((f"level {i}", f"{size}, 1/{level.downsample:g}, tiles {level.tile[1]} x {level.tile[0]}"))
    regions = [(key.replace(".", " "), text) for key, text in slide.properties.items() if key.startswith("region.")]
    return [*facts, *regions, ("associated", ", ".join(slide.associated) or "none")]


def mask(
    slide: Path,
    *,
    output: Output,
    mask_magnification: Annotated[float, Parameter(name=["--mask-magnification", "-w"])] = 1.25,
    min_area_um2: Annotated[float, Parameter(name="--min-area-um2")] = MIN_AREA_UM2,
    max_hole_um2: Annotated[float, Parameter(name="--max-hole-um2")] = MAX_HOLE_UM2,
    scale: StatedScale = StatedScale(),
) -> int:
    """Find the tissue on a slide and write it as a PNG, 255 = tissue.

    Parameters
    ----------
    slide
        file to open
    output
        PNG to write
    mask_magnification
        of the mask
    min_area_um2
        pieces of tissue smaller than this are left out, um^2
    max_hole_um2
        holes up to this size belong to the tissue, um^2
    """
    import cv2

    from msdask.masks.tissue import tissue_mask
    from msdask.storage.files import write_file

    areas = {"min_area_um2": min_area_um2, "max_hole_um2": max_hole_um2}
    tissue = tissue_mask(scale.open(slide), mpp=10 / mask_magnification, **areas)
    if output.suffix.lower() != ".png":
        raise SpecError(f"'{output}': masks are written as PNG; give a name that ends in .png")
    write_file(output, cv2.imencode(".png", tissue.values.astype("uint8") * 255)[1].tobytes())
    out.print(f"{output}: {tissue.shape[1]} x {tissue.shape[0]} px, {float(tissue.mean()):.1%} tissue", markup=False)
    return 0


def slides_with_scale(slides: str, mpp: float | Literal["estimate"] | None) -> list[SlideRow] | str:
    """The slides of an extraction, with `--mpp` for those whose scale neither their file nor the table states."""
    if mpp is None:
        return slides
    from msdask.extraction.slide_table import read_slides

    rows = []
    for row in read_slides(slides):
        try:
            rows.append(_with_scale(row, mpp))
        except MsdaskError as error:  # the extraction reports what is wrong with it, and the others go on
            if mpp == "estimate":
                err.print(f"{row.path}: its scale cannot be estimated: {error}", markup=False)
            rows.append(row)
    return rows


def _with_scale(row: SlideRow, mpp: float | Literal["estimate"]) -> SlideRow:
    from msdask.slides.slide import Slide

    is_given = row.mpp is not None or row.magnification is not None
    if is_given or Slide(row.path, region=row.slide_region).mpp is not None:
        return row
    if mpp != "estimate":
        return replace(row, mpp=mpp)
    found = _estimate(row.path, row.slide_region)
    err.print(f"{row.path}: {_said(found)}", markup=False)
    # kept with the slide: whoever reads the store must be able to tell an estimate from a scale that was stated
    return replace(row, mpp=found.mpp, cohort={**row.cohort, "scale_estimate": _said(found)})


def _estimate(path: str | Path, region: str | None) -> ScaleEstimate:
    from msdask.inference.scale import estimate_scale
    from msdask.slides.slide import Slide

    return estimate_scale(path) if region is None else estimate_scale(Slide(path, region=region))


def _said(found: ScaleEstimate) -> str:
    spread = f"spread {found.spread:.0%} over {found.n_crops} crops" if found.n_crops > 1 else "a single crop"
    sure = f"{spread}, give or take {found.uncertainty:.0%}"
    return f"{found.magnification:.1f}x, {found.mpp:.3g} um/px by the scale detector ({sure})"
