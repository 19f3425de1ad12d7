"""`msdask info` and `msdask mask`: one slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from msdask.cli.numbers import ABOVE_ZERO, NOT_NEGATIVE
from msdask.cli.options import Output
from msdask.cli.slide_scale import StatedScale
from msdask.cli.terminal import out
from msdask.errors import SpecError
from msdask.spec import MAX_HOLE_UM2, MIN_AREA_UM2

if TYPE_CHECKING:
    from msdask.slides.slide import Slide
    from msdask.store.patch_store import PatchStore

__all__ = ["info", "mask"]


def info(
    slide: str | None = None,
    *,
    scale: StatedScale = StatedScale(),
    strict: Annotated[bool, Parameter(negative="--no-strict")] = False,
    readers: bool = False,
) -> int:
    """Say what a slide is: size, scale and where it came from, levels, associated images; or what a patch store holds.

    Examples: `msdask info slide.svs`; `msdask info cohort.zarr`.

    Parameters
    ----------
    slide
        file to open, a folder that is one slide, or a patch store
    strict
        refuse a doubtful scale instead of warning
    readers
        list the readers instead: what they read, in which order they are asked, and what an extra would add
    """
    if readers:
        from msdask.cli.readers import print_readers

        return print_readers()
    if slide is None:
        raise SpecError("msdask info: expected a slide, a patch store, or --readers")
    if (store := _store_at(slide)) is not None:
        from msdask.cli.tidy import print_store

        return print_store(store)
    for key, value in _facts(scale.open(slide, strict=strict)):
        out.print(f"{key:<11} {value}", markup=False)
    return 0


def _store_at(path: str) -> PatchStore | None:
    """The patch store at a path or URL, if there is one."""
    from msdask.storage import places
    from msdask.store.documents import DOCUMENT
    from msdask.store.patch_store import PatchStore

    place = places.location(path)
    try:
        text = places.at(place).read(places.join(place, DOCUMENT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return PatchStore(path) if b"msdask_schema" in text else None


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
    mask_magnification: Annotated[float, ABOVE_ZERO, Parameter(name=["--mask-magnification", "-w"])] = 1.25,
    min_area_um2: Annotated[float, NOT_NEGATIVE, Parameter(name="--min-area-um2")] = MIN_AREA_UM2,
    max_hole_um2: Annotated[float, NOT_NEGATIVE, Parameter(name="--max-hole-um2")] = MAX_HOLE_UM2,
    scale: StatedScale = StatedScale(),
) -> int:
    """Find the tissue on a slide and write it as a PNG, 255 = tissue.

    Example: `msdask mask slide.svs -o slide.png`.

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
    from msdask.storage.files import check_writable, write_file

    if output.suffix.lower() != ".png":
        raise SpecError(f"'{output}': masks are written as PNG; give a name that ends in .png")
    check_writable(output, what="mask")
    areas = {"min_area_um2": min_area_um2, "max_hole_um2": max_hole_um2}
    tissue = tissue_mask(scale.open(slide), mpp=10 / mask_magnification, **areas)
    write_file(output, cv2.imencode(".png", tissue.values.astype("uint8") * 255)[1].tobytes())
    out.print(f"{output}: {tissue.shape[1]} x {tissue.shape[0]} px, {float(tissue.mean()):.1%} tissue", markup=False)
    return 0
