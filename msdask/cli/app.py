"""`msdask ...`: a thin layer that parses, calls and prints."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import msdask as ms
from msdask.cli import scale as cli_scale
from msdask.cli.readers import print_readers
from msdask.cli.scale import Mpp
from msdask.cli.store import export, verify
from msdask.cli.terminal import Quiet, Scheduler, Workers, err, open_client, out
from msdask.errors import MsdaskError, SpecError
from msdask.spec import Codec, ExtractionSpec, Roi

if TYPE_CHECKING:
    from msdask.extraction.outcome import ExtractionReport

__all__ = ["app", "main"]

app = App(
    name="msdask",
    help="Multi-scale patches of whole-slide images, on Dask and Zarr.",
    version=ms.__version__,
    version_flags=["--version"],
    help_flags=["--help", "-h"],
)

app.command(verify)
app.command(export)
for part in (cli_scale.train, cli_scale.test, cli_scale.predict):
    app.command(part)

SlidesArgument = Annotated[str, Parameter(name=["--slides", "-i"])]
Magnification = Annotated[float | None, Parameter(name="--slide-magnification")]


@app.command
def info(
    slide: Path | None = None,
    *,
    mpp: Mpp = None,
    slide_magnification: Magnification = None,
    strict: bool = False,
    readers: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Say what a slide is: size, scale and where it came from, levels, associated images.

    Parameters
    ----------
    slide
        file to open, or a folder that is one slide
    mpp
        um/px of level 0, overrides the file; "estimate" asks the scale detector
    slide_magnification
        the same as 10 / mpp
    strict
        refuse a doubtful scale instead of warning
    readers
        list the readers instead: what they read, in which order they are asked, and what an extra would add
    """
    if readers:
        return print_readers()
    if slide is None:
        raise SpecError("msdask info: expected a slide, or --readers")
    opened = ms.open_slide(slide, mpp=cli_scale.estimated(slide, mpp), magnification=slide_magnification, strict=strict)
    height, width = opened.shape
    rows: list[tuple[str, str]] = [
        ("slide", opened.path),
        ("format", f"{opened.format}, {opened.vendor}"),
        ("size", f"{width} x {height} px"),
        (
            "mpp",
            f"{opened.mpp:g} um/px ({opened.mpp_source}, {opened.quality})"
            if opened.mpp
            else f"unknown: {opened.scale.problem}",
        ),
    ]
    if opened.mpp:
        rows.append(("mpp used", f"{opened.mpp_used:g} um/px ({opened.magnification:g}x)"))
        extent = f"{width * opened.mpp_used / 1000:.2f} x {height * opened.mpp_used / 1000:.2f} mm"
        rows.append(("extent", extent))
    rows.append(("objective", f"{opened.objective_power:g}x" if opened.objective_power else "unknown"))
    rows.extend(
        (
            f"level {i}",
            f"{level.shape[1]} x {level.shape[0]} px, 1/{level.downsample:g}, tiles {level.tile[1]} x {level.tile[0]}",
        )
        for i, level in enumerate(opened.level_infos)
    )
    rows.append(("associated", ", ".join(opened.associated) or "none"))
    for key, value in rows:
        out.print(f"{key:<11} {value}", markup=False)
    return 0


@app.command
def mask(
    slide: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    mask_magnification: Annotated[float, Parameter(name=["--mask-magnification", "-w"])] = 1.25,
    mpp: Mpp = None,
    slide_magnification: Magnification = None,
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
    mpp
        um/px of level 0, overrides the file
    slide_magnification
        the same as 10 / mpp
    """
    import cv2

    opened = ms.open_slide(slide, mpp=cli_scale.estimated(slide, mpp), magnification=slide_magnification)
    tissue = ms.tissue_mask(opened, mpp=10 / mask_magnification)
    if output.suffix.lower() != ".png":
        raise SpecError(f"'{output}': masks are written as PNG; give a name that ends in .png")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(cv2.imencode(".png", tissue.values.astype("uint8") * 255)[1].tobytes())
    except OSError as error:
        raise MsdaskError(f"cannot write '{output}': {error.strerror}") from error
    out.print(f"{output}: {tissue.shape[1]} x {tissue.shape[0]} px, {float(tissue.mean()):.1%} tissue", markup=False)
    return 0


@app.command
def extract(
    slides: SlidesArgument,
    *,
    output: Annotated[str, Parameter(name=["--output", "-o"])],
    magnification: Annotated[
        list[float], Parameter(name=["--magnification", "-m"], consume_multiple=True, negative=())
    ],
    masks: Annotated[str | None, Parameter(name=["--masks", "-t"])] = None,
    mpp: Mpp = None,
    values: Annotated[list[int] | None, Parameter(name="--values", consume_multiple=True, negative=())] = None,
    mode: Literal["grid", "centroids"] | None = None,
    size: Annotated[int, Parameter(name=["--size", "-s"])] = 224,
    threshold: Annotated[float, Parameter(name=["--threshold", "-x"])] = 0.7,
    gap: Annotated[int, Parameter(name=["--gap", "-y"])] = 0,
    roi: Annotated[str, Parameter(name=["--roi", "-r"])] = "whole",
    mask_magnification: Annotated[float | None, Parameter(name=["--mask-magnification", "-w"])] = None,
    threads: Annotated[int | None, Parameter(name=["--threads", "-p"])] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    tries: int = 3,
    timeout: float | None = None,
    unlabeled: Literal["drop", "keep"] = "drop",
    codec: Codec = "raw",
    name: str | None = None,
    source: Literal["coarsest", "finest"] = "coarsest",
    decode: Literal["scaled", "exact"] = "scaled",
    allow_upsampling: Annotated[bool, Parameter(negative=())] = False,
    on_bad_tile: Literal["raise", "fill"] = "raise",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    resume: Annotated[bool, Parameter(negative=())] = True,
    report: Annotated[list[Path] | None, Parameter(negative=())] = None,
    quiet: Quiet = False,
) -> int:
    """Cut patches of a cohort into a Zarr store. Run it again to finish what failed or was interrupted.

    Parameters
    ----------
    slides
        CSV (one path a line, or with a column "path" and optionally slide_id, mask, split, mpp ...), folder, or one
        slide
    output
        patch store to write, such as cohort.zarr
    magnification
        one for a grid; several for tuples around the patches of the highest (see --mode)
    masks
        folder of masks (HistoQC's, or <name>.png); without it the tissue is found by msdask
    mpp
        um/px of slides whose scale neither their file nor the table states; "estimate" asks the scale detector
    values
        the masks are annotated: their values, in the order of the classes, such as 50 100 150 200 250
    mode
        "grid" with several magnifications makes one set each, linked to the coarser ones; default: grid for one,
        centroids for several
    size
        side of a patch, px
    threshold
        least fraction of tissue, or of a class
    gap
        between neighbours, px at the (highest) magnification; negative overlaps
    roi
        "whole", "auto" (one of several copies of a section), or x,y,width,height in level-0 px
    mask_magnification
        of the masks: those that are read are checked against it, those that msdask makes have it (1.25)
    threads
        of this machine; default all cores
    scheduler
        address of a Dask scheduler (tcp://...) to run on instead
    workers
        so many worker processes of this machine instead of threads, with a dashboard
    tries
        how often work whose worker is lost is tried before its slide fails
    timeout
        seconds that one block may take on a worker before that counts as lost
    unlabeled
        with annotated masks, drop patches without a label or keep them with -1
    codec
        raw, lossless or jpeg
    name
        of the patch set, instead of one like grid-10x-224
    source
        read the coarsest level that is fine enough, or the finest always
    decode
        let the JPEG decoder reduce, or decode in full
    allow_upsampling
        enlarge where a slide is too coarse
    on_bad_tile
        a slide with an unreadable tile fails, or the tile is filled white and counted
    overwrite
        replace slides that are there, and sets that were made with another spec
    resume
        go on where an earlier run stopped: what always happens without --overwrite
    report
        write a report of the run there: HTML, or its record as JSON if the name ends in .json; may be given twice
    quiet
        no progress bar
    """
    magnifications = tuple(sorted(set(magnification), reverse=True))
    mode = mode or ("grid" if len(magnifications) == 1 else "centroids")
    common: dict[str, Any] = {
        "patch_size": size,
        "stride": size + gap,
        "min_tissue": threshold,
        "min_label": threshold,
        "unlabeled": unlabeled,
        "roi": _roi(roi),
        "source": source,
        "decode": decode,
        "allow_upsampling": allow_upsampling,
        "mask_mpp": 10 / (mask_magnification or 1.25),
        "codec": codec,
    }
    groups = [magnifications] if mode == "centroids" else [(m,) for m in magnifications]
    specs = [ExtractionSpec(mode=mode, magnifications=group, **common) for group in groups]
    with open_client(scheduler, workers) as client:
        result = ms.extract(
            cli_scale.slides_with_scale(slides, mpp),
            output,
            specs[0] if len(specs) == 1 else specs,
            name=name,
            masks=masks,
            values=values,
            mask_magnification=mask_magnification,
            client=client,
            threads=threads,
            tries=tries,
            timeout=timeout,
            overwrite=overwrite,
            on_bad_tile=on_bad_tile,
            progress=not quiet,
        )
    for outcome in result.outcomes:
        for sentence in outcome.warnings:
            err.print(f"warning: {outcome.slide_id}: {sentence}", markup=False)
    for slide_id, reason in result.failures.items():
        err.print(f"failed: {slide_id}: {reason}", markup=False)
    out.print(f"{', '.join(result.sets)} in {result.store}: {result.summary()}", markup=False)
    for path in report or ():
        out.print(f"report: {_write_report(path, result)}", markup=False)
    return 0 if result.is_complete else 1


@app.command
def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
    threads: Annotated[int | None, Parameter(name=["--threads", "-p"])] = None,
) -> int:
    """Make three slides, run grid and multi-center extraction on them, and write a report to look at.

    Parameters
    ----------
    output
        folder
    threads
        default all cores
    """
    from msdask.cli.demo import run_demo

    report = run_demo(output, threads=threads)
    out.print(f"report: {report.resolve()}", markup=False)
    return 0


def _write_report(path: Path, result: ExtractionReport) -> Path:
    if path.suffix.lower() == ".json":
        from msdask.extraction.outcome import write_log

        return write_log(path, result)
    from msdask.report.run import report_run

    return report_run(path, result)


def _roi(text: str) -> Roi:
    """The original's -r is True or False; a rectangle is four numbers."""
    named: dict[str, Roi] = {"whole": "whole", "false": "whole", "auto": "auto", "true": "auto"}
    if text.lower() in named:
        return named[text.lower()]
    try:
        x, y, width, height = (float(v) for v in text.split(","))
    except ValueError:
        raise SpecError(f"--roi {text!r}: expected whole, auto, or x,y,width,height in level-0 px") from None
    return (x, y, width, height)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    warnings.showwarning = _show_warning
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        err.print(f"msdask: {error}", markup=False)
        err.print("try `msdask --help`", markup=False)
        code = 2
    except (MsdaskError, OSError) as error:
        err.print(f"msdask: {error}", markup=False)
        code = 1
    except KeyboardInterrupt:
        err.print("msdask: interrupted; what is written stays, run the same command again to go on", markup=False)
        code = 130
    sys.exit(code or 0)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        err.print(f"warning: {message}", markup=False)
