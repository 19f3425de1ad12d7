"""Many slides into one store: plan, run on threads or a cluster, set the failing ones aside, report."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msdask.engines.threads import Engine, JobTrace, Stopped, ThreadEngine
from msdask.errors import MsdaskError, SpecError, StoreError
from msdask.extraction.outcome import ExtractionReport, SlideOutcome
from msdask.extraction.slide_job import BlockJob, MaskSource, begin_slide, check_source, run_block
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.progress import Progress
from msdask.slides.region import OnBadTile
from msdask.spec import ExtractionSpec, format_magnification
from msdask.storage import places
from msdask.storage.locks import SlideLock, slide_lock
from msdask.store import layout
from msdask.store.patch_store import PatchStore
from msdask.store.writing import commit

if TYPE_CHECKING:
    from msdask.engines.dask_cluster import Client

__all__ = ["extract", "grid_specs", "open_engine"]

_MOST_SLIDES = 256
"""Threads of the client at most; an engine asks for fewer."""


@dataclass(frozen=True)
class _Run:
    """What is the same for every slide of a run."""

    store: PatchStore
    specs: tuple[ExtractionSpec, ...]
    names: tuple[str, ...]
    masks: MaskSource
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
    values: Mapping[int, int] | Sequence[int] | None = None,
    mask_magnification: float | None = None,
    client: Client | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    timeout: float | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    progress: bool = True,
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
    values : the masks are annotated pixel by pixel: mask value -> class (0-based), or a sequence of values
    mask_magnification : masks that are read must be of this magnification, within 2 %
    client : Dask client; its workers must see slides and store under the same paths. None: a thread pool here
    workers : instead of a client, start so many worker processes on this machine for this call
    threads : size of the thread pool; None means all cores
    tries : how often work whose worker is lost (crashed, killed, out of memory) is tried before its slide fails
    timeout : seconds that one block, or the beginning of a slide, may take on a worker before its process is ended and
        that counts as lost; None: any. Needs a client or workers: a thread cannot be ended
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
    run = _Run(
        target,
        specs,
        names,
        MaskSource(os.fspath(masks) if masks is not None else None, values, mask_magnification),
        {
            f"parent_{format_magnification(s.magnifications[0])}": {"set": set_name, "spec_hash": s.hash}
            for s, set_name in zip(specs, names, strict=True)
        },
        on_bad_tile,
        overwrite,
    )
    started, now = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    with open_engine(client, workers=workers, threads=threads, jobs=len(rows), tries=tries, timeout=timeout) as engine:
        with Progress(len(rows), enabled=progress) as bar:
            outcomes = _run(rows, run, engine, bar)
        facts = engine.facts()
    _tidy(target.path, names)
    for set_name in names:
        try:
            target[set_name].index()
        except StoreError as error:  # what this run has written is whole, and its report must not be lost
            warnings.warn(f"the index of '{set_name}' could not be made: {error}", UserWarning, stacklevel=2)
    return ExtractionReport(target.path, names, tuple(outcomes), time.perf_counter() - started, now, facts)


def _tidy(store: str, names: Sequence[str]) -> None:
    """Remove half-written documents of a killed run, of store and sets: those of a slide go when it is gone on with."""
    for folder in (store, *(places.join(store, name) for name in names)):
        if not places.is_remote(folder):
            for part in Path(folder).glob("zarr.json.*.part"):
                part.unlink(missing_ok=True)


@contextmanager
def open_engine(
    client: Client | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    jobs: int,
    tries: int = 3,
    timeout: float | None = None,
) -> Iterator[Engine]:
    """The engine that a caller's options mean: the client's cluster, worker processes of its own, or threads.

    Raises
    ------
    SpecError
        The options contradict each other.
    """
    if sum(option is not None for option in (client, workers, threads)) > 1:
        raise SpecError("client, workers and threads are three ways to run: give one of them")
    if timeout is not None and client is None and workers is None:
        raise SpecError("timeout needs workers or a client: what hangs in a thread of this process cannot be ended")
    if tries < 1 or (workers is not None and workers < 1) or (timeout is not None and timeout <= 0):
        raise SpecError(f"tries={tries}, workers={workers}, timeout={timeout}: expected more than 0")
    with ExitStack() as stack:
        engine: Engine
        if client is None and workers is None:
            engine = ThreadEngine(threads)
        else:
            from msdask.engines.dask_cluster import ClusterEngine, local_cluster

            client = client or stack.enter_context(local_cluster(workers or 1))
            engine = ClusterEngine(client, jobs=jobs, tries=tries, timeout=timeout)
        stack.callback(engine.close)
        yield engine


def _run(rows: list[SlideRow], run: _Run, engine: Engine, bar: Progress) -> list[SlideOutcome]:
    """Keep a few slides in flight, in order; their outcomes in the order of `rows`."""
    outcomes: dict[int, list[SlideOutcome]] = {}
    waiting = iter(enumerate(rows))
    running: dict[Future[list[SlideOutcome]], int] = {}
    pool = ThreadPoolExecutor(_MOST_SLIDES, thread_name_prefix="msdask-slide")
    try:
        while True:
            most = min(_MOST_SLIDES, engine.jobs_in_flight)
            while len(running) < most and (following := next(waiting, None)) is not None:
                running[pool.submit(_extract_slide, *following, run, engine, bar)] = following[0]
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


def _extract_slide(order: int, row: SlideRow, run: _Run, engine: Engine, bar: Progress) -> list[SlideOutcome]:
    """One slide into all sets. Whatever goes wrong with it is an outcome: one bad slide never stops a cohort."""
    outcomes: dict[str, SlideOutcome] = {}
    started = time.perf_counter()
    with engine.job(order) as trace:
        try:
            _extract_into(row, run, engine, trace, bar, outcomes)
        except Stopped:
            raise
        except Exception as error:
            expected = isinstance(error, (MsdaskError, OSError))
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - started
            for name in run.names:
                failed = SlideOutcome(row.slide_id, row.path, name, "failed", reason=reason, seconds=seconds)
                outcomes.setdefault(name, replace(failed, tries=trace.tries, workers=tuple(sorted(trace.workers))))
    return [outcomes[name] for name in run.names]


def _extract_into(
    row: SlideRow, run: _Run, engine: Engine, trace: JobTrace, bar: Progress, outcomes: dict[str, SlideOutcome]
) -> None:
    """Fill `outcomes`, set by set, so that what is done stays done when a later set fails."""
    paths = {name: places.join(run.store.path, name, row.slide_id) for name in run.names}
    if not run.overwrite:
        for name, path in paths.items():
            _look_for_complete(row, run, engine, trace, name, path, outcomes)
    todo = [name for name in run.names if name not in outcomes]
    if not todo:
        return
    with ExitStack() as stack:
        locks: dict[str, SlideLock] = {}
        for name in todo:
            locks[name] = stack.enter_context(slide_lock(run.store.path, name, row.slide_id))
            if not run.overwrite:  # another run may have finished it before the lock was ours
                _look_for_complete(row, run, engine, trace, name, paths[name], outcomes)
            elif places.at(paths[name]).is_folder(paths[name]):
                layout.remove_tree(paths[name])
        # All specs are planned, also where only the finest is left to write: its parents are rows of the others.
        jobs = engine.call(
            f"begin: {row.slide_id}",
            trace,
            begin_slide,
            row,
            run.specs,
            [None if name in outcomes else paths[name] for name in run.names],
            codec=run.store.codec,
            masks=run.masks,
            links=run.links,
            on_bad_tile=run.on_bad_tile,
        )
        for name, job in zip(run.names, jobs, strict=True):
            if job is not None:
                outcomes[name] = _write_set(row, name, job, locks[name], engine, trace, bar)


def _look_for_complete(
    row: SlideRow,
    run: _Run,
    engine: Engine,
    trace: JobTrace,
    name: str,
    path: str,
    outcomes: dict[str, SlideOutcome],
) -> None:
    """Put a slide that is complete in a set into `outcomes`.

    Raises
    ------
    StoreError
        It was made from another file or mask, or at another scale.
    """
    found = layout.read_attrs(path)
    if found.get("state") != "complete":
        return
    own = run.specs[run.names.index(name)]
    notes = engine.call(f"check: {name}/{row.slide_id}", trace, check_source, row, path, own, run.masks)
    coarser = [s for s in run.specs if s.patch_size / s.magnifications[0] > own.patch_size / own.magnifications[0]]
    wanted = [f"parent_{format_magnification(s.magnifications[0])}" for s in coarser]
    links = found.get("links", {})
    if unlinked := [run.links[column]["set"] for column in wanted if links.get(column) != run.links[column]]:
        notes = (*notes, f"complete without links into {unlinked}: extract it again with overwrite to have them")
    outcomes[name] = SlideOutcome(row.slide_id, row.path, name, "present", "", found["counts"], warnings=notes)


def _write_set(
    row: SlideRow, name: str, job: BlockJob, lock: SlideLock, engine: Engine, trace: JobTrace, bar: Progress
) -> SlideOutcome:
    started = time.perf_counter()
    where = f"{name}/{row.slide_id}"
    # What travels with every block need not say which blocks there are.
    travels = replace(job, todo=(), notes=())
    engine.run(run_block, travels, job.todo, bar.patches_done, label=f"extract: {where}", trace=trace)
    lock.check()  # a slide that another run has taken over is that run's to commit
    complete = engine.call(f"commit: {where}", trace, commit, job.arrays)
    return SlideOutcome(
        row.slide_id,
        row.path,
        name,
        "complete",
        "",
        complete["counts"],
        job.arrays.shape[0] - job.done,
        time.perf_counter() - started,
        job.notes,
        trace.tries,
        tuple(sorted(trace.workers)),
    )


def grid_specs(spec: ExtractionSpec, magnifications: Sequence[float]) -> tuple[ExtractionSpec, ...]:
    """One grid spec a magnification, otherwise like `spec`."""
    return tuple(replace(spec, mode="grid", magnifications=(float(m),)) for m in magnifications)
