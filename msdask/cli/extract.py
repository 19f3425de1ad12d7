"""`msdask extract`: the patches of a cohort into a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from msdask.cli.groups import RUN
from msdask.cli.options import Cut, Masks, OnBadTile, Slides, Where, given_slides
from msdask.cli.slide_scale import Scale
from msdask.cli.terminal import err, out

if TYPE_CHECKING:
    from msdask.extraction.outcome import ExtractionReport
    from msdask.extraction.slide_table import SlideRow
    from msdask.spec import ExtractionSpec

__all__ = ["extract"]


def extract(
    slides: Slides,
    *,
    output: Annotated[str, Parameter(name=["--output", "-o"])],
    cut: Cut,
    masks: Masks = Masks(),
    scale: Scale = Scale(),
    where: Where = Where(),
    name: str | None = None,
    on_bad_tile: OnBadTile = "raise",
    overwrite: bool = False,
    resume: bool = True,
    report: list[Path] | None = None,
    explain: Annotated[bool, Parameter(group=RUN)] = False,
    dry_run: bool = False,
) -> int:
    """Cut patches of a cohort into a Zarr store. Run it again to finish what failed or was interrupted.

    Examples: `msdask extract slides/ -o cohort.zarr -m 10`; tuples, with masks, and only what there would be: `msdask
    extract slides.csv -t masks/ -o cohort.zarr -m 20 10 5 -s 224 -x 0.7 --dry-run`.

    Parameters
    ----------
    slides
        CSV (one path a line, or with a column "path" and optionally slide_id, slide_region, mask ...), folder, slide,
        or pattern such as "batch*/*.svs"; several may be given
    output
        patch store to write, such as cohort.zarr
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
    dry_run
        open and select on every slide, say how many patches, bytes and seconds there would be and what would fail, and
        write nothing
    """
    from msdask.engines.origin import have_one_thread

    have_one_thread()  # before numpy comes: a process of one thread can be forked into workers
    from msdask.extraction.cohort import extract
    from msdask.extraction.slide_table import read_slides
    from msdask.storage import places
    from msdask.storage.files import check_folder_writable, check_writable

    specs = cut.specs()
    rows = read_slides(given_slides(slides))
    if not dry_run:
        where.fork()
    if explain:
        out.print(_explained(rows, specs, where), markup=False)
        return 0
    if dry_run:
        return _print_plan(rows=scale.rows(rows), cut=cut, masks=masks, store=output, name=name, overwrite=overwrite)
    if not places.is_url(output):
        check_folder_writable(output, what="store")
    for path in report or ():
        check_writable(path, what="report")
    with where.started() as running:
        result = extract(
            scale.rows(rows),
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


def _print_plan(*, rows: list[SlideRow], cut: Cut, masks: Masks, store: str, name: str | None, overwrite: bool) -> int:
    """Say what a run would do; 1 where something would fail."""
    from msdask.extraction.dry_run import plan

    specs = cut.specs()
    found = plan(
        rows,
        specs[0] if len(specs) == 1 else specs,
        store=store,
        name=name,
        masks=masks.masks,
        labels=masks.labels,
        values=masks.values,
        mask_magnification=cut.mask_magnification,
        overwrite=overwrite,
    )
    table = found.to_frame().drop(columns=["reason", "path"])
    table["seconds"] = table["seconds"].round(1)
    out.print(table.to_string(index=False), markup=False)
    for slide in found.slides:
        for sentence in slide.warnings:
            err.print(f"warning: {slide.slide_id}: {sentence}", markup=False)
    for slide_id, why in found.failures.items():
        err.print(f"would fail: {slide_id}: {why}", markup=False)
    if found.problem:
        err.print(f"would fail: {found.problem}", markup=False)
    out.print(found.summary(), markup=False)
    return 0 if found.is_sound else 1


def _explained(rows: Sequence[SlideRow], specs: Sequence[ExtractionSpec], where: Where) -> str:
    from msdask.extraction.cohort_work import cohort_plan

    if where.scheduler is not None:
        return f"the workers of the Dask scheduler at {where.scheduler}, as said by --scheduler"
    if where.workers is not None:
        each = where.threads or "as many as cores are free, 4 at most"
        return f"{where.workers} worker processes, as said by --workers; threads of each: {each}"
    if where.threads is not None:
        return f"{where.threads} threads of this process, as said by --threads"
    return str(cohort_plan(rows, specs, timeout=where.timeout))


def _write_report(path: Path, result: ExtractionReport) -> Path:
    if path.suffix.lower() == ".json":
        from msdask.extraction.outcome import write_log

        return write_log(path, result)
    from msdask.report.run import report_run

    return report_run(path, result)
