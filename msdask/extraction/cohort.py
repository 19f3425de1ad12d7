"""Many slides into one store: plan, run on an engine, set the failing ones aside, report."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from msdask.engines.in_flight import run_jobs
from msdask.engines.open_engine import check_options, open_engine
from msdask.errors import LockedError, StoreError
from msdask.extraction.cohort_work import cohort_work
from msdask.extraction.outcome import ExtractionReport, SlideOutcome
from msdask.extraction.slide_job import BlockJob, Target, begin_slide, check_source, commit_slide, run_block
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.extraction.slide_work import SlideWork, reason, slide_work
from msdask.extraction.specs import in_order
from msdask.masks.choice import MaskChoice
from msdask.masks.labels import Values
from msdask.progress.bar import Progress
from msdask.progress.events import Listener, Listeners, RunBegun, RunDone
from msdask.progress.report import Recorder
from msdask.slides.region import OnBadTile
from msdask.spec import ExtractionSpec, format_magnification
from msdask.storage import places
from msdask.storage.locks import SlideLock, slide_lock
from msdask.store import documents
from msdask.store.patch_store import PatchStore
from msdask.store.replacing import building_path, clear_work, finish_replacement
from msdask.store.slide_place import WORK_GROUP, SlidePlace
from msdask.store.sources import note_source
from msdask.store.writing import update_facts

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["extract", "make_indexes"]


@dataclass(frozen=True)
class _Run:
    """What is the same for every slide of a run."""

    store: PatchStore
    specs: tuple[ExtractionSpec, ...]
    names: tuple[str, ...]
    masks: MaskChoice
    links: Mapping[str, Mapping[str, str]]
    on_bad_tile: OnBadTile
    overwrite: bool


def extract(
    slides: Slides,
    store: str | os.PathLike[str] | PatchStore,
    spec: ExtractionSpec | Sequence[ExtractionSpec],
    *,
    name: str | None = None,
    masks: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    values: Values | None = None,
    mask_magnification: float | None = None,
    client: Client | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    timeout: float | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    progress: bool = True,
    listeners: Iterable[Listener] = (),
) -> ExtractionReport:
    """Cut the patches of a cohort into a store.

    A slide that fails is reported and the others go on; the same call again finishes what is left and changes nothing
    that is done. The bytes written do not depend on threads or workers.

    Parameters
    ----------
    slides : CSV, folder, slide or list, see `msdask.extraction.slide_table.read_slides`
    store : path or PatchStore
    spec : what to cut; several grid specs give one patch set each, linked to the coarser ones
        (`parent_<m>x`)
    name : of the patch set, for one spec; made from the spec by default
    masks : folder with a mask for every slide (HistoQC's layout, or `<name>.png`); a column `mask` of the table goes
        before it. Without either, msdask makes tissue masks itself
    labels : the same, instead of `masks`, of annotated masks, which show classes: 0 = unlabeled, 1 = class 0, ..., or
        coded as `values` says, or in a format that names its classes
    values : the masks are annotated, in whichever folder or column they are: mask value (or name of a class) -> class
        (0-based), or a sequence of them
    mask_magnification : masks that are read must be of this magnification, within 2 %
    client : Dask client; its workers must see slides and store under the same paths. Without client, workers and
        threads, the run has worker processes or threads of this machine, as `msdask.engines.plan.choose_plan` says
    workers : so many worker processes of this machine, for this call
    threads : size of a thread pool in this process, 0 for no pool: one block after another in the caller's thread; with
        `workers`, threads of each at most
    tries : how often work whose worker is lost (crashed, killed, out of memory) is tried before its slide fails
    timeout : seconds that one block, or the beginning of a slide, may take on a worker before its process is ended and
        that counts as lost; None: any. Needs a client or worker processes: a thread cannot be ended
    overwrite : replace slides that are there, and sets that were made with another spec
    on_bad_tile : "raise" makes a slide with an unreadable tile fail; "fill" makes the tile white, counts and records it
    progress : show a progress bar
    listeners : functions that are called with every event of the run (`msdask.events`), one event at a time, from any
        thread; an error of theirs becomes a warning

    Returns
    -------
    report : one outcome a slide and set, in the order given; `report.failures` has the reasons

    Raises
    ------
    MsdaskError
        Before any work begins: the table is unreadable, ids collide, an option makes no sense, the folder of masks is
        not there, the store or a set does not fit.
    KeyboardInterrupt
        After running blocks are written; the store can be resumed.
    """
    check_options(client, workers=workers, threads=threads, tries=tries, timeout=timeout)
    rows = read_slides(slides)
    specs = in_order(spec, name)
    choice = MaskChoice.of(masks, labels, values, mask_magnification).check(row.mask for row in rows)
    opened = store if isinstance(store, PatchStore) else PatchStore(store, codec=specs[0].codec)
    names = tuple(opened.open_set(s, name=name, overwrite=overwrite) for s in specs)
    run = _Run(
        opened,
        specs,
        names,
        choice,
        _links(specs, names),
        on_bad_tile,
        overwrite,
    )
    recorder = Recorder()
    with (
        open_engine(
            client,
            workers=workers,
            threads=threads,
            jobs=len(rows),
            tries=tries,
            timeout=timeout,
            work=cohort_work(rows, specs),
        ) as engine,
        Progress(enabled=progress) as bar,
    ):
        tell = Listeners((recorder, bar, *listeners))
        tell(RunBegun("extract", opened.path, names, len(rows)))

        def work(order: int, row: SlideRow) -> None:
            with slide_work(engine, tell, order, row.slide_id, names) as slide:
                slide.done(_extract_slide(row, run, slide))

        run_jobs(engine, rows, work)
        facts = engine.facts()
    _tidy(opened.path, names)
    make_indexes(opened, names)
    tell(RunDone(facts))
    return ExtractionReport(**recorder.facts())


def _links(specs: Sequence[ExtractionSpec], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each column `parent_<m>x` points into."""
    return {
        f"parent_{format_magnification(s.magnifications[0])}": {"set": name, "spec_hash": s.hash}
        for s, name in zip(specs, names, strict=True)
    }


def make_indexes(store: PatchStore, names: Iterable[str]) -> None:
    """Make the indexes of patch sets anew; what stops one is a warning: what was written is whole."""
    for name in names:
        try:
            store[name].index()
        except StoreError as error:
            warnings.warn(f"the index of '{name}' could not be made: {error}", UserWarning, stacklevel=3)


def _tidy(store: str, names: Sequence[str]) -> None:
    """Remove what a killed run has left: half-written documents of store and sets, and slides built beside others.

    What belongs to an unfinished slide goes when that is gone on with.
    """
    for name in names:
        work = places.join(store, WORK_GROUP, name)
        for slide_id in places.at(work).folders(work):
            with suppress(LockedError), slide_lock(store, name, slide_id):
                place = SlidePlace(store, name, slide_id)
                if not finish_replacement(place):
                    clear_work(place)
    for folder in (store, *(places.join(store, name) for name in names)):
        documents.remove_half_written(folder)


def _extract_slide(row: SlideRow, run: _Run, work: SlideWork) -> list[SlideOutcome]:
    """One slide into all sets. Whatever goes wrong with it is an outcome: one bad slide never stops a cohort."""
    outcomes: dict[str, SlideOutcome] = {}
    started = time.perf_counter()
    try:
        _extract_into(row, run, work, outcomes)
    except Exception as error:
        seconds = time.perf_counter() - started
        for name in run.names:
            failed = SlideOutcome(row.slide_id, name, "failed", reason(error), path=row.path, seconds=seconds)
            outcomes.setdefault(name, replace(failed, tries=work.trace.tries, workers=work.workers))
    return [outcomes[name] for name in run.names]


def _extract_into(row: SlideRow, run: _Run, work: SlideWork, outcomes: dict[str, SlideOutcome]) -> None:
    """Fill `outcomes`, set by set, so that what is done stays done when a later set fails."""
    specs = dict(zip(run.names, run.specs, strict=True))
    where = {name: SlidePlace(run.store.path, name, row.slide_id) for name in run.names}
    if not run.overwrite:
        for place in where.values():
            _look_for_complete(row, run, work, place, outcomes)
    todo = [name for name in run.names if name not in outcomes]
    if not todo:
        return
    with ExitStack() as stack:
        locks: dict[str, SlideLock] = {}
        targets: dict[str, Target] = {}
        for name in todo:
            place = where[name]
            locks[name] = stack.enter_context(slide_lock(run.store.path, name, row.slide_id))
            run.store.check_set(name, specs[name])
            finish_replacement(place)
            if not run.overwrite:  # another run may have finished it before the lock was ours
                _look_for_complete(row, run, work, place, outcomes, lock=locks[name])
            if name not in outcomes:
                targets[name] = Target(place, building_path(place, afresh=run.overwrite))
        # All specs are planned, also where only the finest is left to write: its parents are rows of the others.
        jobs = work.call(
            f"begin: {row.slide_id}",
            begin_slide,
            row,
            run.specs,
            [targets.get(name) for name in run.names],
            codec=run.store.codec,
            masks=run.masks,
            links=run.links,
            on_bad_tile=run.on_bad_tile,
        )
        for note in dict.fromkeys(note for job in jobs if job is not None for note in job.notes):
            work.warn(note)
        for name, job in zip(run.names, jobs, strict=True):
            if job is not None:
                outcomes[name] = _write_set(row, name, job, locks[name], work)


def _look_for_complete(
    row: SlideRow,
    run: _Run,
    work: SlideWork,
    place: SlidePlace,
    outcomes: dict[str, SlideOutcome],
    *,
    lock: SlideLock | None = None,
) -> None:
    """Put a slide that is complete in a set into `outcomes`; what its table says otherwise now is brought up to date.

    Parameters
    ----------
    lock : of the slide, where it is held already

    Raises
    ------
    StoreError
        It was made from another file or mask, or at another scale; or its document is damaged.
    """
    name = place.set_name
    own = run.specs[run.names.index(name)]
    found = documents.read_slide(place.path, spec_hash=own.hash)
    if found.get("state") != "complete":
        return
    notes = work.call(f"check: {name}/{row.slide_id}", check_source, row, place.path, own, run.masks)
    coarser = [s for s in run.specs if s.patch_size / s.magnifications[0] > own.patch_size / own.magnifications[0]]
    wanted = [f"parent_{format_magnification(s.magnifications[0])}" for s in coarser]
    links = found.get("links", {})
    if unlinked := [run.links[column]["set"] for column in wanted if links.get(column) != run.links[column]]:
        notes = (*notes, f"complete without links into {unlinked}: extract it again with overwrite to have them")
    cohort = _facts_of_now(row, found)
    if cohort != found.get("cohort", {}):
        with nullcontext() if lock is not None else slide_lock(run.store.path, name, row.slide_id):
            update_facts(place, cohort)
        notes = (*notes, f"facts of its table were brought up to date: {_differences(found.get('cohort', {}), cohort)}")
    note_source(place.store, found, row.path, row.mask)
    for note in notes:
        work.warn(note)
    outcomes[name] = SlideOutcome(row.slide_id, name, "present", path=row.path, counts=found["counts"], warnings=notes)


def _facts_of_now(row: SlideRow, found: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a stored slide, as its table has them now; columns that the table has not stay as they are stored."""
    facts = {**found.get("cohort", {}), **row.cohort}
    return {name: value for name, value in facts.items() if value is not None}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in names)


def _write_set(row: SlideRow, name: str, job: BlockJob, lock: SlideLock, work: SlideWork) -> SlideOutcome:
    started = time.perf_counter()
    # What travels with every block need not say which blocks there are.
    travels = replace(job, todo=(), notes=())
    magnifications = job.arrays.shape[1]
    patches = work.run("extract", name, run_block, travels, job.todo, magnifications=magnifications)
    lock.check()  # a slide that another run has taken over is that run's to commit
    complete = work.call(f"commit: {name}/{row.slide_id}", commit_slide, travels)
    return SlideOutcome(
        row.slide_id,
        name,
        "complete",
        patches=patches,
        magnifications=magnifications,
        path=row.path,
        counts=complete["counts"],
        seconds=time.perf_counter() - started,
        warnings=job.notes,
        tries=work.trace.tries,
        workers=work.workers,
    )
