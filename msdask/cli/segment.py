"""`msdask segment`: the class of every px of whole slides, as label pyramids, outlines and figures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.groups import RUN
from msdask.cli.numbers import ABOVE_ZERO, COUNT
from msdask.cli.options import Elsewhere, OnBadTile, Output, Quiet
from msdask.cli.slide_results import print_slides, running
from msdask.extras import require

__all__ = ["segment"]


def segment(
    slides: Annotated[list[str], Parameter(name=["--slides", "-i"], consume_multiple=True)],
    *,
    model: Annotated[Path, Parameter(name=["--model", "-p"])],
    output: Output,
    masks: Annotated[str | None, Parameter(name=["--masks", "-t"])] = None,
    outline_mpp: Annotated[float, ABOVE_ZERO] = 1.0,
    outlines: Annotated[bool, Parameter(negative="--no-outlines")] = True,
    probabilities: Literal["uint8", "float16"] | None = None,
    tile: Annotated[int | None, COUNT, Parameter(group=RUN)] = None,
    precision: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(group=RUN)] = "float32",
    names: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    batch_size: Annotated[int, COUNT, Parameter(name=["--batch-size", "-b"]), Parameter(group=RUN)] = 1,
    threads: Annotated[int, COUNT, Parameter(group=RUN)] = 4,
    device: Annotated[str | None, Parameter(group=RUN)] = None,
    on_bad_tile: OnBadTile = "raise",
    overwrite: bool = False,
    elsewhere: Elsewhere = Elsewhere(),
    quiet: Quiet = False,
) -> int:
    """Segment whole slides: OME-Zarr label pyramids, outlines for QuPath, figures.

    Example: `msdask segment a.svs b.svs --model run -o out`. The same command again goes on where it was stopped. A
    slide that fails does not stop the others; then the exit code is 1.

    Parameters
    ----------
    slides
        slides, a folder of them, or a CSV as for `msdask extract`
    model
        run folder of `msdask train segmenter`, or a .safetensors file
    output
        folder for segmentations/SLIDE.ome.zarr, outlines/SLIDE.geojson.gz, overlays/SLIDE.png and slides.csv
    masks
        folder of tissue masks; without it the tissue is found by msdask
    outline_mpp
        um/px that the outlines have at most
    outlines
        write them
    probabilities
        keep those of each class, too
    tile
        px of a tile's side, a multiple of the model's lattice; default by memory and tissue
    precision
        that the network computes in
    names
        of the classes; default what the model says
    batch_size
        tiles at once
    threads
        that read
    device
        cpu, cuda, ...; default a GPU if there is one
    on_bad_tile
        a slide with an unreadable tile fails, or what lies under the tile gets no class, is counted and warned of
    overwrite
        replace segmentations of other models or options
    """
    require("msdask segment")
    from msdask.inference.segment_cohort import segment_slides
    from msdask.storage.files import check_folder_writable

    check_folder_writable(output, what="folder of the segmentations")
    with running(elsewhere, quiet=quiet, unit="px") as where:
        found = segment_slides(
            slides[0] if len(slides) == 1 else slides,
            model,
            output,
            masks=masks,
            outline_mpp=outline_mpp if outlines else None,
            probabilities=probabilities,
            tile=tile,
            precision=precision,
            classes=names,
            batch_size=batch_size,
            threads=threads,
            device=device,
            overwrite=overwrite,
            on_bad_tile=on_bad_tile,
            **where,
        )
    return print_slides(found, output, _areas)


def _areas(row: Mapping[Hashable, Any]) -> str:
    areas = {str(n).removeprefix("area_mm2_"): v for n, v in row.items() if str(n).startswith("area_mm2_")}
    return ", ".join(f"{name} {area:.2f} mm2" for name, area in areas.items())
