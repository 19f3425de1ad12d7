"""Repair of a patch store: what is broken is read from the slides again, and only that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from msdask.engines.in_flight import run_jobs
from msdask.engines.open_engine import check_options, open_engine
from msdask.errors import MaskError, StoreError, UnreachableError
from msdask.extraction.cohort import make_indexes
from msdask.extraction.cohort_work import repair_work
from msdask.extraction.mending import finish_repair, mend_block, mend_maps, reopen, same_slide
from msdask.extraction.slide_job import Target, begin_slide, commit_slide, run_block
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.extraction.slide_work import SlideWork, reason, slide_work
from msdask.masks.choice import MaskChoice
from msdask.masks.labels import Values
from msdask.progress.bar import Progress
from msdask.progress.counting import counted
from msdask.progress.events import Listener, Listeners, Outcome, RunBegun, RunDone
from msdask.progress.report import Recorder, Report
from msdask.spec import ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import SlideLock, slide_lock
from msdask.store import documents
from msdask.store.damage import Damage, find_damage
from msdask.store.manifest import restore_documents, slide_entries, slide_entry
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.replacing import building_path, finish_replacement
from msdask.store.slide_arrays import SCHEMA
from msdask.store.slide_place import SlidePlace
from msdask.store.sources import mask_of, note_source, source_of

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["RepairReport", "SlideRepair", "repair"]


@dataclass(frozen=True, slots=True)
class SlideRepair(Outcome):
    """What was broken in one slide of one patch set, and what was done about it.

    Attributes
    ----------
    state : "mended": some shards were read again; "renewed": all of it was extracted afresh; "failed": it is still
        broken
    reason : why nothing could be done, or what to know of what was done
    patches : that were read again
    problems : what was found
    blocks : numbers of the shards that were read again, of a slide that was mended
    """

    state: Literal["mended", "renewed", "failed"]
    _: KW_ONLY
    problems: tuple[str, ...]
    blocks: tuple[int, ...] = ()

    @property
    def action(self) -> Literal["blocks", "slide", "none"]:
        """What was read again: "blocks", the whole "slide", or "none"."""
        actions: dict[str, Literal["blocks", "slide", "none"]] = {"mended": "blocks", "renewed": "slide"}
        return actions.get(self.state, "none")

    def row(self) -> dict[str, Any]:
        """The repair as a row of a table."""
        return {**Outcome.row(self), "blocks": self.blocks, "problems": self.problems}

    def __str__(self) -> str:
        done = {
            "mended": f"read {len(self.blocks)} shards again ({counted([(self.patches, self.magnifications)])})",
            "renewed": f"extracted afresh ({counted([(self.patches, self.magnifications)])})",
            "failed": "not repaired",
        }[self.state]
        return f"{self.set_name}: slide '{self.slide_id}': {done}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class RepairReport(Report[SlideRepair]):
    """What `repair` found and did: one outcome a slide and set that was not sound.

    Attributes
    ----------
    slides : how many were checked, over all patch sets
    """

    slides: int = 0
    states = ("mended", "renewed", "failed")

    @property
    def repairs(self) -> tuple[SlideRepair, ...]:
        """One a slide and set that was not sound: the report's outcomes."""
        return self.outcomes

    def summary(self) -> str:
        """A sentence for a terminal."""
        shards = sum(len(r.blocks) for r in self.outcomes)
        return (
            f"{self.slides} slides checked, {len(self.outcomes)} broken: {shards} shards read again, "
            f"{self._totals()['renewed']} slides extracted afresh ({self.counted()}), {len(self.failed)} not "
            "repaired"
        )


@dataclass(frozen=True)
class _Run:
    """What is the same for every slide."""

    store: PatchStore
    rows: Mapping[str, SlideRow]
    masks: MaskChoice
    expected: Mapping[str, Mapping[str, str]]
    """Of each set, the checksum that the store's manifest has for each slide."""


def repair(
    store: str | os.PathLike[str] | PatchStore,
    *,
    slides: Slides | None = None,
    masks: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    values: Values | None = None,
    client: Client | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    timeout: float | None = None,
    progress: bool = True,
    listeners: Iterable[Listener] = (),
) -> RepairReport:
    """Read every byte of a store, and read again from the slides what is missing or damaged, and only that.

    A broken shard is replaced in one step, if what is read measures as what was stored; its slide stays complete
    meanwhile and ends with the bytes that it had. An unfinished slide is finished. Where tables or documents are
    damaged, that slide is extracted afresh.

    Parameters
    ----------
    store : path or PatchStore
    slides : where the slides are now, as for `extract`; by default where they were (`source`)
    masks, labels, values : as for `extract`; only where a slide with such masks has to be extracted afresh
    client, workers, threads, tries, timeout : what it runs on, as for `extract`
    progress : show a progress bar
    listeners : functions that are called with every event of the run, as for `extract`

    Returns
    -------
    report : what was broken, and what was done

    Raises
    ------
    StoreError
        There is no patch store.
    """
    check_options(client, workers=workers, threads=threads, tries=tries, timeout=timeout)
    choice = MaskChoice.of(masks, labels, values)
    if choice.folder is not None:
        choice.check()
    if not isinstance(store, PatchStore):
        restore_documents(places.location(store))
    opened = store if isinstance(store, PatchStore) else PatchStore(store)
    names = list(opened)
    if not names:
        raise StoreError(f"'{opened.path}' is no patch store, or has no patch set yet")
    rows = {row.slide_id: row for row in read_slides(slides)} if slides is not None else {}
    todo = [(name, slide_id) for name in names for slide_id in opened[name].states()]
    expected = {name: slide_entries(opened.path, name) for name in names}
    run = _Run(opened, rows, choice, expected)
    recorder = Recorder()
    with (
        open_engine(
            client,
            workers=workers,
            threads=threads,
            jobs=len(todo),
            tries=tries,
            timeout=timeout,
            work=repair_work(len(todo)),
        ) as engine,
        Progress(enabled=progress) as bar,
    ):
        tell = Listeners((recorder, bar, *listeners))
        tell(RunBegun("repair", opened.path, tuple(names), len(todo)))

        def work(order: int, which: tuple[str, str]) -> None:
            name, slide_id = which
            with slide_work(engine, tell, order, slide_id, [name]) as slide:
                slide.done(_repair_slide(name, slide_id, run, slide))

        run_jobs(engine, todo, work)
        facts = engine.facts()
    if any(outcome.state == "renewed" for outcome in recorder.outcomes):
        make_indexes(opened, names)
    tell(RunDone(facts))
    return RepairReport(**recorder.facts(), slides=len(todo))


def _repair_slide(name: str, slide_id: str, run: _Run, work: SlideWork) -> list[SlideRepair]:
    """Check one slide of one set, and mend it; whatever goes wrong is told and the others go on."""
    damage: Damage | None = None
    try:
        patch_set = run.store[name]
        place = patch_set.place(slide_id)
        judged = (place, run.store.codec, patch_set.spec_hash, run.expected[name].get(slide_id))
        damage = work.call(f"verify: {name}/{slide_id}", find_damage, *judged)
        if damage is None:
            return []
        with slide_lock(run.store.path, name, slide_id) as lock:
            run.store.check_set(name, patch_set.spec)
            finish_replacement(place)
            damage = work.call(f"verify: {name}/{slide_id}", find_damage, *judged)
            if damage is None:  # somebody else has mended it, or a kill had come between
                return []
            mend = _renew_slide if damage.part == "slide" else _mend_blocks
            return [mend(patch_set, place, damage, lock, run, work)]
    except Exception as error:
        problems = damage.problems if damage else ()
        return [SlideRepair(slide_id, name, "failed", reason(error), problems=problems)]


def _mend_blocks(
    patch_set: PatchSet, place: SlidePlace, damage: Damage, lock: SlideLock, run: _Run, work: SlideWork
) -> SlideRepair:
    """Read again the shards that are broken."""
    if damage.part == "label_map":
        raise StoreError("its label maps were given to store.write, which alone can write them again, with overwrite")
    slide_id, name = place.slide_id, place.set_name
    row = run.rows.get(slide_id)
    attrs = documents.read_slide(place.path)
    file = row.path if row is not None else source_of(place.store, attrs) or str(attrs["source"])
    given = row.mask if row is not None else None
    job = work.call(
        f"reopen: {name}/{slide_id}",
        reopen,
        place,
        run.store.codec,
        patch_set.spec,
        file,
        damage.blocks,
        with_maps=bool(damage.maps) or damage.state != "complete",
        mask=given or (mask_of(place.store, attrs) if run.masks.folder is None else None),
        masks=replace(run.masks, kind="labels"),
    )
    patches = work.run("mend", name, mend_block, job, damage.images, magnifications=job.arrays.shape[1])
    # Where images were read again their patches are counted already.
    with_images = set(damage.images)
    scales = job.arrays.shape[1]
    for is_counted in (False, True):
        blocks = [block for block in damage.maps if (block in with_images) is not is_counted]
        mended = work.run("mend", name, mend_maps, job, blocks, magnifications=scales)
        patches += mended if is_counted else 0
    lock.check()
    if not work.call(f"finish: {name}/{slide_id}", finish_repair, job):
        raise StoreError(
            f"shards {list(damage.blocks)[:10]} were read again, but the slide is not what it was when it was "
            "completed: extract it again with overwrite"
        )
    note_source(place.store, attrs, file)
    done = SlideRepair(slide_id, name, "mended", "", patches, problems=damage.problems, blocks=damage.blocks)
    return replace(done, magnifications=job.arrays.shape[1])


def _renew_slide(
    patch_set: PatchSet, place: SlidePlace, damage: Damage, lock: SlideLock, run: _Run, work: SlideWork
) -> SlideRepair:
    """Extract a slide afresh, beside its place: what is there stays until what replaces it is complete."""
    slide_id, name = place.slide_id, place.set_name
    attrs = _readable_attrs(place)
    row = _row(place, attrs or slide_entry(place), run)
    if attrs.get("fingerprint"):
        work.call(f"check: {name}/{slide_id}", _check_file, attrs, row.path, patch_set.spec)
    links = _links(patch_set, attrs)
    coarser = [run.store[link["set"]].spec for link in links.values()]
    # Its tables are not to be trusted: what was begun must not be gone on with.
    target = Target(place, building_path(place, afresh=True))
    job = work.call(
        f"begin: {name}/{slide_id}",
        begin_slide,
        row,
        [patch_set.spec, *coarser],
        [target, *[None] * len(coarser)],
        codec=run.store.codec,
        masks=run.masks,
        links=links,
    )[0]
    if job is None:
        raise StoreError(f"{place} was not begun")
    magnifications = job.arrays.shape[1]
    work.run("extract", name, run_block, job, job.todo, magnifications=magnifications)
    lock.check()
    complete = work.call(f"commit: {name}/{slide_id}", commit_slide, job)
    expected = run.expected[name].get(slide_id)
    note = ""
    if expected and expected != complete["checksum"] and attrs.get("schema", SCHEMA) == SCHEMA:
        note = "its contents are not what they were: its mask, or what selects on it, has changed since"
    done = SlideRepair(slide_id, name, "renewed", note, job.arrays.shape[0], problems=damage.problems)
    return replace(done, magnifications=magnifications)


def _check_file(attrs: dict[str, Any], path: str, spec: ExtractionSpec) -> None:
    """Raise if the slide's file is gone or another one: what is stored must not be given up for it."""
    same_slide(attrs, path, spec)


def _readable_attrs(place: SlidePlace) -> dict[str, Any]:
    """What a damaged document still says of this slide; {} where it says nothing, or is of another slide."""
    try:
        found = documents.read_attrs(place.path)
    except UnreachableError:
        raise
    except StoreError:
        return {}
    return found if found.get("slide_id", place.slide_id) == place.slide_id else {}


def _row(place: SlidePlace, attrs: dict[str, Any], run: _Run) -> SlideRow:
    """The slide's row of the table that it came from, as far as it is stored; what the caller gives goes before it."""
    given, known = run.rows.get(place.slide_id), source_of(place.store, attrs)
    if given is None and known is None:
        raise StoreError(f"nothing says any more where {place} was read: give a table of the slides (slides=)")
    if not attrs and given is not None:
        return given
    mask = given.mask if given is not None else None
    if mask is None and run.masks.folder is None:
        mask = mask_of(place.store, attrs) or _stored_mask(place.path, attrs)
        if "classes" in attrs and run.masks.values is None:
            raise MaskError(f"{place} was made with an annotated mask: give its values (values=)")
    cohort = dict(attrs.get("cohort", {}))
    return SlideRow(
        path=given.path if given is not None else str(known),
        slide_id=place.slide_id,
        mask=mask,
        mpp=attrs["mpp"] if attrs.get("mpp_source") == "user" else None,
        magnification=10 / attrs["mpp"] if attrs.get("mpp_source") == "user magnification" else None,
        slide_region=attrs.get("slide_region"),
        cohort=cohort if given is None else {**cohort, **given.cohort},
    )


def _stored_mask(path: str, attrs: Mapping[str, Any]) -> str | None:
    """Where the mask was read, as stores of schema 1 have it; None for one that msdask made.

    Raises
    ------
    MaskError
        It was a file, and nobody knows where that is.
    """
    if attrs.get("schema", SCHEMA) >= SCHEMA:
        source = attrs.get("mask_source", "msdask")
        if source != "msdask":
            raise MaskError(f"'{path}' was made with the mask '{source}', and nobody knows where that is: give masks=")
        return None
    try:
        stored = documents.read_attrs(places.join(path, "mask")).get("source", "msdask")
    except UnreachableError:
        raise
    except StoreError:
        return None
    return None if stored == "msdask" else str(stored)


def _links(patch_set: PatchSet, attrs: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What the slide's `parent_<m>x` columns point into; those of a neighbour where its own document is lost."""
    if attrs:
        return dict(attrs.get("links", {}))
    for slide_id in patch_set.slides:
        return dict(patch_set.attrs(slide_id).get("links", {}))
    return {}
