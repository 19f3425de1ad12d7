"""Many slides into one store: plan, run on threads or a cluster, set the failing ones aside, report."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from msdask import writing
from msdask.annotations import read_label_mask
from msdask.blocks import OnBadTile
from msdask.engines import ClusterEngine, Engine, Stopped, ThreadEngine
from msdask.errors import MaskError, MsdaskError, SpecError
from msdask.lazy import patches
from msdask.linking import link_upper_regions
from msdask.locks import slide_lock
from msdask.maskfiles import find_mask, read_tissue_mask
from msdask.outcome import ExtractionReport, SlideOutcome
from msdask.progress import Progress
from msdask.scale import magnification_to_mpp
from msdask.selection import select
from msdask.slide import Slide
from msdask.spec import ExtractionSpec, format_magnification
from msdask.store import PatchStore
from msdask.table import SlideRow, Slides, read_slides
from msdask.tissue import tissue_mask

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["extract", "plan_slide"]

_MASK_SIZE_TOLERANCE = 0.02


@dataclass(frozen=True)
class _Job:
    """What is the same for every slide of a run."""

    store: PatchStore
    specs: tuple[ExtractionSpec, ...]
    names: tuple[str, ...]
    masks: str | None
    values: Mapping[int, int] | Sequence[int] | None
    mask_magnification: float | None
    on_bad_tile: OnBadTile
    overwrite: bool


def extract(
    slides: Slides,
    store: str | os.PathLike[str] | PatchStore,
    spec: ExtractionSpec | Sequence[ExtractionSpec],
    *,
    name: str | None = None,
    masks: str | os.PathLike[str] | None = None,
    values: Mapping[int, int] | Sequence[int] | None = None,
    mask_magnification: float | None = None,
    client: Client | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    progress: bool = True,
) -> ExtractionReport:
    """Cut the patches of a cohort into a store.

    A slide that fails is reported and the others go on; the same call again finishes what is left and changes nothing
    that is done. The bytes written do not depend on threads or workers.

    Parameters
    ----------
    slides : CSV, folder, slide or list, see `msdask.table.read_slides`
    store : path or PatchStore
    spec : what to cut; several grid specs give one patch set each, the finest linked to the coarser ones
        (`parent_<m>x`)
    name : of the patch set, for one spec; made from the spec by default
    masks : folder with a mask for every slide (HistoQC's layout, or `<name>.png`); a column `mask` of the table goes
        before it. Without either, msdask makes tissue masks itself
    values : the masks are annotated pixel by pixel: mask value -> class (0-based), or a sequence of values
    mask_magnification : masks that are read must be of this magnification, within 2 %
    client : Dask client; its workers must see slides and store under the same paths. None: a thread pool here
    threads : size of that pool; None means all cores
    overwrite : replace slides that are there, and sets that were made with another spec
    on_bad_tile : "raise" makes a slide with an unreadable tile fail; "fill" makes the tile white, counts and records it
    progress : show a progress bar

    Returns
    -------
    report : one outcome a slide and set, in the order given; `report.failures` has the reasons

    Raises
    ------
    MsdaskError
        Before any work begins: the table is unreadable, ids collide, the store or a set does not fit.
    KeyboardInterrupt
        After running blocks are written; the store can be resumed.
    """
    rows = read_slides(slides)
    specs = (spec,) if isinstance(spec, ExtractionSpec) else tuple(sorted(spec, key=lambda s: s.magnifications[0]))
    if not specs:
        raise SpecError("extract: no spec given")
    if len(specs) > 1 and (name is not None or any(s.mode != "grid" for s in specs)):
        raise SpecError(
            "extract: several specs must all be of mode 'grid', and get their names from their magnifications"
        )
    target = store if isinstance(store, PatchStore) else PatchStore(store, codec=specs[0].codec)
    names = tuple(target.open_set(s, name=name, overwrite=overwrite) for s in specs)
    job = _Job(
        target,
        specs,
        names,
        os.fspath(masks) if masks is not None else None,
        values,
        mask_magnification,
        on_bad_tile,
        overwrite,
    )
    engine: Engine = ThreadEngine(threads) if client is None else ClusterEngine(client)
    started = time.perf_counter()
    try:
        with Progress(len(rows), enabled=progress) as bar:
            outcomes = _run(rows, job, engine, bar)
    finally:
        engine.close()
    for set_name in names:
        target[set_name].index()
    return ExtractionReport(target.path, names, tuple(outcomes), time.perf_counter() - started)


def _run(rows: list[SlideRow], job: _Job, engine: Engine, bar: Progress) -> list[SlideOutcome]:
    """Keep a few slides in flight, in order; their outcomes in the order of `rows`."""
    outcomes: dict[int, list[SlideOutcome]] = {}
    waiting = iter(enumerate(rows))
    running: dict[Future[list[SlideOutcome]], int] = {}
    pool = ThreadPoolExecutor(engine.slides_in_flight, thread_name_prefix="msdask-slide")
    try:
        while True:
            while len(running) < engine.slides_in_flight and (following := next(waiting, None)) is not None:
                running[pool.submit(_extract_slide, following[1], job, engine, bar)] = following[0]
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                outcomes[index] = future.result()
                bar.slide_done(failed=any(o.state == "failed" for o in outcomes[index]))
    except BaseException:
        engine.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [outcome for index in sorted(outcomes) for outcome in outcomes[index]]


def _extract_slide(row: SlideRow, job: _Job, engine: Engine, bar: Progress) -> list[SlideOutcome]:
    """One slide into all sets. Whatever goes wrong with it is an outcome: one bad slide never stops a cohort."""
    outcomes: list[SlideOutcome] = []
    started = time.perf_counter()
    todo = [i for i, n in enumerate(job.names) if job.overwrite or not _is_done(row, job, n)]
    for i in sorted(set(range(len(job.names))) - set(todo)):
        counts = job.store[job.names[i]].attrs(row.slide_id)["counts"]
        outcomes.append(SlideOutcome(row.slide_id, row.path, job.names[i], "present", counts=counts))
    try:
        if todo:
            slide, tables, notes = engine.call(
                plan_slide, row, job.specs, job.masks, job.values, job.mask_magnification
            )
            for i in todo:
                outcomes.append(_write_set(row, job, engine, bar, i, slide, tables, notes))
    except Stopped:
        raise
    except Exception as error:
        expected = isinstance(error, (MsdaskError, OSError))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        written = {o.set_name for o in outcomes}
        seconds = time.perf_counter() - started
        outcomes += [
            SlideOutcome(row.slide_id, row.path, job.names[i], "failed", reason=reason, seconds=seconds)
            for i in todo
            if job.names[i] not in written
        ]
    return outcomes


def _is_done(row: SlideRow, job: _Job, name: str) -> bool:
    """Whether the slide is complete and its file is still the one that it was made from."""
    patch_set = job.store[name]
    if patch_set.states().get(row.slide_id) != "complete":
        return False
    try:
        fingerprint = Slide(row.path, mpp=row.mpp, magnification=row.magnification).fingerprint()
    except MsdaskError:
        return False
    return bool(patch_set.attrs(row.slide_id)["fingerprint"] == fingerprint)


def _write_set(
    row: SlideRow,
    job: _Job,
    engine: Engine,
    bar: Progress,
    i: int,
    slide: Slide,
    tables: Sequence[xr.Dataset],
    notes: tuple[str, ...],
) -> SlideOutcome:
    started = time.perf_counter()
    name = job.names[i]
    lazy = patches(slide, tables[i], on_bad_tile=job.on_bad_tile)
    links = {v: _link(job, str(v)) for v in lazy if str(v).startswith("parent_")}
    attrs: dict[str, Any] = {"cohort": dict(row.cohort)} | ({"links": links} if links else {})
    with slide_lock(job.store.path, name, row.slide_id):
        write = job.store.prepare(name, lazy, overwrite=job.overwrite, attrs=attrs)
        if write is None:
            return SlideOutcome(
                row.slide_id, row.path, name, "present", counts=job.store[name].attrs(row.slide_id)["counts"]
            )
        if write.keys:
            engine.run(write.graph, write.keys, bar.patches_done)
        complete = engine.call(writing.commit, write.target)
    written = write.target.shape[0] - write.done
    seconds = time.perf_counter() - started
    if write.target.shape[0] == 0:
        notes = (*notes, "no patch was selected")
    return SlideOutcome(row.slide_id, row.path, name, "complete", "", complete["counts"], written, seconds, notes)


def _link(job: _Job, variable: str) -> dict[str, str]:
    """Which set a `parent_<m>x` column points into."""
    for spec, name in zip(job.specs, job.names, strict=True):
        if variable == f"parent_{format_magnification(spec.magnifications[0])}":
            return {"set": name, "spec_hash": spec.hash}
    raise SpecError(f"{variable}: no set of this run has that magnification")


def plan_slide(
    row: SlideRow,
    specs: Sequence[ExtractionSpec],
    masks: str | None = None,
    values: Mapping[int, int] | Sequence[int] | None = None,
    mask_magnification: float | None = None,
) -> tuple[Slide, tuple[xr.Dataset, ...], tuple[str, ...]]:
    """Everything about one slide before its pixels: open it, find or make its mask, select for every spec.

    Returns
    -------
    slide : opened
    tables : one selection a spec; with several, the finest has `parent_<m>x` (patch,) int32 for each coarser one
    notes : warnings about scale and mask

    Raises
    ------
    MsdaskError
        The slide, its scale or its mask is not usable; says why.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, tolerance=specs[0].tolerance)
        mask, labels = _masks(row, slide, specs[0], masks, values, mask_magnification)
        tables = [select(slide, spec, mask=mask, labels=labels) for spec in specs]
    notes = (*slide.warnings, *(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    for table in tables:
        table.attrs["slide_id"] = row.slide_id
    if len(tables) > 1:
        finest = max(range(len(specs)), key=lambda i: specs[i].magnifications[0])
        for spec, table in zip(specs, tables, strict=True):
            if table is not tables[finest]:
                parent = link_upper_regions(tables[finest], table)
                tables[finest][f"parent_{format_magnification(spec.magnifications[0])}"] = ("patch", parent)
    return slide, tuple(tables), notes


def _masks(
    row: SlideRow,
    slide: Slide,
    spec: ExtractionSpec,
    masks: str | None,
    values: Mapping[int, int] | Sequence[int] | None,
    mask_magnification: float | None,
) -> tuple[xr.DataArray | None, xr.DataArray | None]:
    """(tissue mask, label mask) of a slide; one of them."""
    path = row.mask
    if path is None and masks is not None:
        found = find_mask(masks, row.path)
        if found is None:
            raise MaskError(
                f"slide '{row.path}': no mask in '{masks}'; expected '{slide.name}/{slide.name}_mask_use.png' "
                "(HistoQC) or "
                f"'{slide.name}.png', with or without the slide's ending"
            )
        path = os.fspath(found)
    if path is None:
        if values is not None:
            raise MaskError(
                f"slide '{row.path}': values= says that masks are annotated, but it has none: give masks= or a "
                "column 'mask'"
            )
        return tissue_mask(slide, mpp=spec.mask_mpp), None
    mask = read_tissue_mask(path, slide=slide) if values is None else read_label_mask(path, values=values, slide=slide)
    if mask_magnification is not None:
        _check_magnification(mask, slide, mask_magnification, path)
    return (mask, None) if values is None else (None, mask)


def _check_magnification(mask: xr.DataArray, slide: Slide, magnification: float, path: str) -> None:
    ratio = magnification_to_mpp(magnification) / slide.mpp_used
    expected = tuple(n / ratio for n in slide.shape)
    if any(abs(n - e) > max(1.0, _MASK_SIZE_TOLERANCE * e) for n, e in zip(mask.shape, expected, strict=True)):
        actual = magnification * mask.shape[1] / expected[1]
        raise MaskError(
            f"mask '{path}' is {mask.shape[1]} x {mask.shape[0]} px, at {magnification:g}x it would be "
            f"{expected[1]:.0f} x "
            f"{expected[0]:.0f}: it is of {actual:.3g}x; give that magnification"
        )


def grid_specs(spec: ExtractionSpec, magnifications: Sequence[float]) -> tuple[ExtractionSpec, ...]:
    """One grid spec a magnification, otherwise like `spec`."""
    return tuple(replace(spec, mode="grid", magnifications=(float(m),)) for m in magnifications)
