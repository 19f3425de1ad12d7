"""`msdask extract`: the patches of a cohort into a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from msdask.cli.options import Cut, Masks, Mpp, Slides, Where
from msdask.cli.slides import slides_with_scale
from msdask.cli.terminal import err, out

if TYPE_CHECKING:
    from msdask.extraction.outcome import ExtractionReport
    from msdask.spec import ExtractionSpec

__all__ = ["extract"]


def extract(
    slides: Slides,
    *,
    output: Annotated[str, Parameter(name=["--output", "-o"])],
    cut: Cut,
    masks: Masks = Masks(),
    mpp: Mpp = None,
    where: Where = Where(),
    name: str | None = None,
    on_bad_tile: Literal["raise", "fill"] = "raise",
    overwrite: bool = False,
    resume: bool = True,
    report: list[Path] | None = None,
    explain: bool = False,
) -> int:
    """Cut patches of a cohort into a Zarr store. Run it again to finish what failed or was interrupted.

    Parameters
    ----------
    slides
        CSV (one path a line, or with a column "path" and optionally slide_id, slide_region, mask ...), folder, or one
        slide
    output
        patch store to write, such as cohort.zarr
    mpp
        um/px of slides whose scale neither their file nor the table states; "estimate" asks the scale detector
    name
        of the patch set, instead of one like grid-10x-224
    on_bad_tile
        a slide with an unreadable tile fails, or the tile is filled white and counted
    overwrite
        replace slides that are there, and sets that were made with another spec
    resume
        go on where an earlier run stopped: what always happens without --overwrite
    report
        write a report of the run there: HTML, or its record as JSON if the name ends in .json; may be given twice
    explain
        print how many processes and threads the run would have, and why, and do nothing
    """
    from msdask.extraction.cohort import extract

    specs = cut.specs()
    if explain:
        out.print(_explained(slides, specs, where), markup=False)
        return 0
    with where.started() as running:
        result = extract(
            slides_with_scale(slides, mpp),
            output,
            specs[0] if len(specs) == 1 else specs,
            name=name,
            masks=masks.masks,
            labels=masks.labels,
            values=masks.values,
            mask_magnification=cut.mask_magnification,
            overwrite=overwrite,
            on_bad_tile=on_bad_tile,
            **running,
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


def _explained(slides: str, specs: Sequence[ExtractionSpec], where: Where) -> str:
    from msdask.extraction.cohort_work import cohort_plan
    from msdask.extraction.slide_table import read_slides

    if where.scheduler is not None:
        return f"the workers of the Dask scheduler at {where.scheduler}, as said by --scheduler"
    if where.workers is not None:
        each = where.threads or "as many as cores are free, 4 at most"
        return f"{where.workers} worker processes, as said by --workers; threads of each: {each}"
    if where.threads is not None:
        return f"{where.threads} threads of this process, as said by --threads"
    return str(cohort_plan(read_slides(slides), specs, timeout=where.timeout))


def _write_report(path: Path, result: ExtractionReport) -> Path:
    if path.suffix.lower() == ".json":
        from msdask.extraction.outcome import write_log

        return write_log(path, result)
    from msdask.report.run import report_run

    return report_run(path, result)
