"""Repair of a patch store: what is broken is read from the slides again, and only that."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from msdask.engines.threads import Engine, JobTrace, Stopped
from msdask.errors import MaskError, MsdaskError, StoreError
from msdask.extraction.cohort import open_engine
from msdask.extraction.mending import finish_repair, mend_block, reopen, same_slide
from msdask.extraction.slide_job import MaskSource, begin_slide, run_block
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.progress import Progress
from msdask.spec import ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import SlideLock, slide_lock
from msdask.store import layout
from msdask.store.damage import Damage, find_damage
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.writing import commit

if TYPE_CHECKING:
    from msdask.engines.dask_cluster import Client

__all__ = ["RepairReport", "SlideRepair", "repair"]


@dataclass(frozen=True, slots=True)
class SlideRepair:
    """What was broken in one slide of one patch set, and what was done about it.

    Attributes
    ----------
    problems : what was found
    action : "blocks": these shards were read again; "slide": all of it was extracted afresh; "none": it could not be
    blocks : numbers of the shards, for action "blocks"
    patches : that were read again
    reason : why nothing could be done, or what to know of what was done
    """

    slide_id: str
    set_name: str
    problems: tuple[str, ...]
    action: Literal["blocks", "slide", "none"]
    blocks: tuple[int, ...] = ()
    patches: int = 0
    reason: str = ""

    def __str__(self) -> str:
        done = {
            "blocks": f"read {len(self.blocks)} shards again ({self.patches:,} patches)",
            "slide": f"extracted afresh ({self.patches:,} patches)",
            "none": "not repaired",
        }[self.action]
        return f"{self.set_name}: slide '{self.slide_id}': {done}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair` found and did.

    Attributes
    ----------
    store : path
    slides : how many were checked, over all patch sets
    repairs : one a slide and set that was not sound
    """

    store: str
    slides: int
    repairs: tuple[SlideRepair, ...] = field(default_factory=tuple)

    @property
    def failures(self) -> tuple[SlideRepair, ...]:
        """Those that are still broken."""
        return tuple(r for r in self.repairs if r.action == "none")

    @property
    def is_complete(self) -> bool:
        """Whether all is sound now."""
        return not self.failures

    def to_frame(self) -> pd.DataFrame:
        """One row a repair."""
        columns = ("slide_id", "set_name", "action", "blocks", "patches", "reason", "problems")
        return pd.DataFrame([{c: getattr(r, c) for c in columns} for r in self.repairs], columns=list(columns))

    def summary(self) -> str:
        """A sentence for a terminal."""
        shards = sum(len(r.blocks) for r in self.repairs if r.action == "blocks")
        afresh = sum(r.action == "slide" for r in self.repairs)
        patches = sum(r.patches for r in self.repairs)
        return (
            f"{self.slides} slides checked, {len(self.repairs)} broken: {shards} shards read again, {afresh} slides "
            f"extracted afresh ({patches:,} patches), {len(self.failures)} not repaired"
        )


@dataclass(frozen=True)
class _Repairs:
    """What is the same for every slide."""

    store: PatchStore
    rows: Mapping[str, SlideRow]
    masks: MaskSource
    engine: Engine
    bar: Progress


def repair(
    store: str | os.PathLike[str] | PatchStore,
    *,
    slides: Slides | None = None,
    masks: str | os.PathLike[str] | None = None,
    values: Mapping[int, int] | Sequence[int] | None = None,
    client: Client | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    timeout: float | None = None,
    progress: bool = True,
) -> RepairReport:
    """Read every byte of a store, and read again from the slides what is missing or damaged, and only that.

    A broken shard is replaced in one step, if what is read measures as what was stored; its slide stays complete
    meanwhile and ends with the bytes that it had. An unfinished slide is finished. Where tables or documents are
    damaged, that slide is extracted afresh.

    Parameters
    ----------
    store : path or PatchStore
    slides : where the slides are now, as for `extract`; by default where they were (`source`)
    masks, values : as for `extract`; only where a slide with such masks has to be extracted afresh
    client, workers, threads, tries, timeout : what it runs on, as for `extract`
    progress : show a progress bar

    Returns
    -------
    report : what was broken, and what was done

    Raises
    ------
    StoreError
        There is no patch store.
    """
    target = store if isinstance(store, PatchStore) else PatchStore(store)
    names = list(target)
    if not names:
        raise StoreError(f"'{target.path}' is no patch store, or has no patch set yet")
    rows = {row.slide_id: row for row in read_slides(slides)} if slides is not None else {}
    todo = [(name, slide_id) for name in names for slide_id in target[name].states()]
    source = MaskSource(os.fspath(masks) if masks is not None else None, values)
    repairs: list[SlideRepair] = []
    with (
        open_engine(client, workers=workers, threads=threads, jobs=len(todo), tries=tries, timeout=timeout) as engine,
        Progress(len(todo), enabled=progress) as bar,
    ):
        work = _Repairs(target, rows, source, engine, bar)
        with ThreadPoolExecutor(min(engine.jobs_in_flight, 64), thread_name_prefix="msdask-slide") as pool:
            try:
                for found in pool.map(lambda i: _repair_slide(i, *todo[i], work), range(len(todo))):
                    repairs += [found] if found is not None else []
            except BaseException:
                engine.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if any(r.action == "slide" for r in repairs):
        for name in names:
            try:
                target[name].index()
            except StoreError as error:
                warnings.warn(f"the index of '{name}' could not be made: {error}", UserWarning, stacklevel=2)
    return RepairReport(target.path, len(todo), tuple(repairs))


def _repair_slide(order: int, name: str, slide_id: str, work: _Repairs) -> SlideRepair | None:
    """Check one slide of one set, and mend it; whatever goes wrong is told and the others go on."""
    path = places.join(work.store.path, name, slide_id)
    damage: Damage | None = None
    failed = True
    try:
        with work.engine.job(order) as trace:
            label = f"{name}/{slide_id}"
            damage = work.engine.call(f"verify: {label}", trace, find_damage, path, work.store.codec)
            done: SlideRepair | None = None
            if damage is not None:
                with slide_lock(work.store.path, name, slide_id) as lock:
                    patch_set = work.store[name]
                    mend = _mend_slide if damage.part == "slide" else _mend_blocks
                    done = mend(patch_set, slide_id, path, damage, lock, trace, work)
        failed = False
        return done
    except Stopped:
        raise
    except Exception as error:
        expected = isinstance(error, (MsdaskError, OSError))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        return SlideRepair(slide_id, name, damage.problems if damage else (), "none", reason=reason)
    finally:
        work.bar.slide_done(failed=failed)


def _mend_blocks(
    patch_set: PatchSet, slide_id: str, path: str, damage: Damage, lock: SlideLock, trace: JobTrace, work: _Repairs
) -> SlideRepair:
    if damage.part == "label_map":
        raise StoreError("its label maps were given to store.write, which alone can write them again, with overwrite")
    row = work.rows.get(slide_id)
    source = row.path if row is not None else str(layout.read_attrs(path)["source"])
    label = f"{patch_set.name}/{slide_id}"
    job = work.engine.call(
        f"reopen: {label}", trace, reopen, path, work.store.codec, patch_set.spec, source, damage.blocks
    )
    counts: list[int] = []

    def count(patches: int) -> None:
        counts.append(patches)
        work.bar.patches_done(patches)

    work.engine.run(mend_block, job, damage.blocks, count, label=f"mend: {label}", trace=trace)
    lock.check()
    if not work.engine.call(f"finish: {label}", trace, finish_repair, job.arrays):
        raise StoreError(
            f"shards {list(damage.blocks)[:10]} were read again, but the slide is not what it was when it was "
            "completed: extract it again with overwrite"
        )
    return SlideRepair(slide_id, patch_set.name, damage.problems, "blocks", damage.blocks, sum(counts))


def _mend_slide(
    patch_set: PatchSet, slide_id: str, path: str, damage: Damage, lock: SlideLock, trace: JobTrace, work: _Repairs
) -> SlideRepair:
    attrs = _readable_attrs(path)
    row = _row(slide_id, attrs, path, work)
    if attrs:
        work.engine.call(f"check: {patch_set.name}/{slide_id}", trace, _check_file, attrs, row.path, patch_set.spec)
    links = _links(patch_set, attrs)
    coarser = [work.store[link["set"]].spec for link in links.values()]
    # Its tables are not to be trusted: what was begun must not be gone on with.
    if places.at(path).is_folder(path):
        layout.remove_tree(path)
    job = work.engine.call(
        f"begin: {patch_set.name}/{slide_id}",
        trace,
        begin_slide,
        row,
        [patch_set.spec, *coarser],
        [path, *[None] * len(coarser)],
        codec=work.store.codec,
        masks=work.masks,
        links=links,
    )[0]
    if job is None:
        raise StoreError(f"'{path}' was not begun")
    label = f"{patch_set.name}/{slide_id}"
    work.engine.run(run_block, job, job.todo, work.bar.patches_done, label=f"extract: {label}", trace=trace)
    lock.check()
    complete = work.engine.call(f"commit: {label}", trace, commit, job.arrays)
    changed = bool(attrs.get("checksum")) and attrs["checksum"] != complete["checksum"]
    note = "its contents are not what they were: its mask, or what selects on it, has changed since" if changed else ""
    return SlideRepair(slide_id, patch_set.name, damage.problems, "slide", patches=job.arrays.shape[0], reason=note)


def _check_file(attrs: dict[str, Any], source: str, spec: ExtractionSpec) -> None:
    """Raise if the slide's file is gone or another one: what is stored must not be given up for it."""
    same_slide(attrs, source, spec)


def _readable_attrs(path: str) -> dict[str, Any]:
    try:
        return layout.read_attrs(path)
    except StoreError:
        return {}


def _row(slide_id: str, attrs: dict[str, Any], path: str, work: _Repairs) -> SlideRow:
    """The slide's row of the table that it came from, as far as it is stored; what the caller gives goes before it."""
    given = work.rows.get(slide_id)
    if given is None and not attrs:
        raise StoreError(
            f"'{path}' has lost its document, which says where the slide is: give a table of the slides (slides=)"
        )
    if not attrs:
        assert given is not None
        return given
    mask = given.mask if given is not None else None
    if mask is None and work.masks.folder is None:
        mask = _stored_mask(path)
        if "classes" in attrs and work.masks.values is None:
            raise MaskError(f"'{path}' was made with an annotated mask: give its values (values=)")
    return SlideRow(
        path=given.path if given is not None else str(attrs["source"]),
        slide_id=slide_id,
        mask=mask,
        mpp=attrs["mpp"] if attrs.get("mpp_source") == "user" else None,
        magnification=10 / attrs["mpp"] if attrs.get("mpp_source") == "user magnification" else None,
        cohort=attrs.get("cohort", {}),
    )


def _stored_mask(path: str) -> str | None:
    """Where the mask was read; None for one that msdask made."""
    try:
        source = layout.read_attrs(places.join(path, "mask")).get("source", "msdask")
    except StoreError:
        return None
    return None if source == "msdask" else str(source)


def _links(patch_set: PatchSet, attrs: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What the slide's `parent_<m>x` columns point into; those of a neighbour where its own document is lost."""
    if attrs:
        return dict(attrs.get("links", {}))
    for slide_id in patch_set.slides:
        return dict(patch_set.attrs(slide_id).get("links", {}))
    return {}
