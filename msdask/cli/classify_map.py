"""`msdask predict classifier`: what a classifier says of whole slides, as maps, tables and figures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from msdask.cli.numbers import COUNT, SHARE
from msdask.cli.options import BatchSize, Elsewhere, OnBadTile, Output, Quiet, Slides, given_slides
from msdask.cli.scale import predict
from msdask.cli.slide_results import print_slides, running
from msdask.cli.slide_scale import Scale
from msdask.extras import require

__all__ = ["classifier_predict", "predict"]


@predict.command(name="classifier")
def classifier_predict(
    model: Annotated[Path, Parameter(name=["--model", "-p"])],
    slides: Slides,
    *,
    output: Output,
    masks: Annotated[str | None, Parameter(name=["--masks", "-t"])] = None,
    stride: Annotated[int | None, COUNT] = None,
    size: Annotated[int | None, COUNT, Parameter(name=["--size", "-s"])] = None,
    threshold: Annotated[float, SHARE, Parameter(name=["--threshold", "-x"])] = 0.7,
    allow_upsampling: bool = False,
    names: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    table: Literal["parquet", "csv"] = "parquet",
    scale: Scale = Scale(),
    batch_size: BatchSize = 64,
    threads: Annotated[int, COUNT] = 4,
    device: str | None = None,
    on_bad_tile: OnBadTile = "raise",
    overwrite: bool = False,
    elsewhere: Elsewhere = Elsewhere(),
    quiet: Quiet = False,
) -> int:
    """Classify whole slides on a grid over their tissue: OME-Zarr maps, tables of predictions, figures.

    Example: `msdask predict classifier run a.svs b.svs -o maps --stride 112`. The same command again goes on where it
    was stopped. A slide that fails does not stop the others; then the exit code is 1.

    Parameters
    ----------
    model
        run folder of `msdask train classifier`, or a .safetensors file
    slides
        slides, a folder of them, or a CSV as for `msdask extract`
    output
        folder for maps/SLIDE.ome.zarr, predictions/SLIDE.parquet, overlays/SLIDE.png and slides.csv
    masks
        folder of tissue masks; without it the tissue is found by msdask
    stride
        px between patches at the highest magnification; default the size of a patch
    size
        side of a patch, px; default what the model learnt from
    threshold
        least fraction of tissue
    allow_upsampling
        enlarge where a slide is coarser than the model's highest magnification
    names
        of the classes; default what the model says
    table
        format of the predictions
    batch_size
        tuples at once
    threads
        that read
    device
        cpu, cuda, ...; default a GPU if there is one
    on_bad_tile
        a slide with an unreadable tile fails, or what lies under the tile gets no class, is counted and warned of
    overwrite
        replace maps of other models or options
    """
    require("msdask predict")
    from msdask.extraction.slide_table import read_slides
    from msdask.inference.classify_cohort import classify_slides
    from msdask.storage.files import check_folder_writable

    check_folder_writable(output, what="folder of the maps")
    with running(elsewhere, quiet=quiet) as where:
        found = classify_slides(
            scale.rows(read_slides(given_slides(slides))),
            model,
            output,
            masks=masks,
            table=table,
            patch_size=size,
            stride=stride,
            min_tissue=threshold,
            allow_upsampling=allow_upsampling,
            classes=names,
            batch_size=batch_size,
            threads=threads,
            device=device,
            overwrite=overwrite,
            on_bad_tile=on_bad_tile,
            **where,
        )
    return print_slides(found, output, _shares)


def _shares(row: Mapping[Hashable, Any]) -> str:
    named = {str(name): value for name, value in row.items()}
    shares = ", ".join(f"{n.removeprefix('share_')} {v:.1%}" for n, v in named.items() if n.startswith("share_"))
    return f"{int(named['tuples']):,} tuples: {shares}"
