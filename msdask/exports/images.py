"""From a store to files: patches as PNG or JPEG with tables, in two layouts, training lists; CSV and Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from msdask.errors import SpecError, StoreError
from msdask.exports.claims import check_claims, claim
from msdask.exports.exported_set import ExportedSet, StoredRows
from msdask.exports.flat import FlatFolder
from msdask.exports.folders import PatchFolders
from msdask.exports.image_form import Form, ImageForm
from msdask.exports.training_lists import Partitions, TrainingList, plan_lists, write_lists
from msdask.progress.bar import Progress
from msdask.progress.events import BlockWritten, Listener, Listeners, Outcome, RunBegun, RunDone, SlideBegun, SlideDone
from msdask.progress.report import Recorder, Report
from msdask.storage.files import check_folder_writable, replacing
from msdask.storage.tables import write_table
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.reading import ShardArray

__all__ = ["ExportSummary", "Layout", "SlideExport", "export", "export_table"]

Layout = Literal["folders", "flat"]


@dataclass(frozen=True, slots=True)
class SlideExport(Outcome):
    """What became of one slide of one patch set.

    Attributes
    ----------
    state : "exported", "empty" (no patch to write, and no folder) or "failed"
    folder : with the slide's patches, if it was exported
    """

    state: Literal["exported", "empty", "failed"]
    folder: str = ""

    def row(self) -> dict[str, Any]:
        """The outcome as a row of a table."""
        return {**Outcome.row(self), "folder": self.folder}


@dataclass(frozen=True, slots=True)
class ExportSummary(Report[SlideExport]):
    """Outcome of one call of `export`.

    Attributes
    ----------
    output : absolute path of the folder
    lists : training lists, in the order written
    missing : names in the partitions that are no complete slide of the exported sets
    problems : sentences about links that do not fit their sets any more
    """

    output: str = ""
    lists: tuple[TrainingList, ...] = ()
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    states = ("exported", "empty", "failed")

    @property
    def is_complete(self) -> bool:
        """Whether every slide was exported, every link fits, and every name in the partitions was found."""
        return not (self.failed or self.missing or self.problems)

    def summary(self) -> str:
        """A sentence for a terminal."""
        lists = f", {len(self.lists)} lists" if self.lists else ""
        missing = f", {len(self.missing)} names not in the store" if self.missing else ""
        return f"{Report.summary(self)}{lists}{missing}"


def export(
    store: str | os.PathLike[str] | PatchStore,
    output: str | os.PathLike[str],
    *,
    name: str | Sequence[str] | None = None,
    slides: Sequence[str] | None = None,
    form: Form = "png",
    quality: int | None = None,
    layout: Layout = "folders",
    keep: Keep = True,
    lists: Partitions | None = None,
    threads: int | None = None,
    progress: bool = False,
    listeners: Iterable[Listener] = (),
) -> ExportSummary:
    """Write patches as images, with tables and training lists.

    Every slide's images are written beside the old ones and then put in their place, so a rerun overwrites and a killed
    run leaves no half slide in a table. Memory: one shard, and one image a thread.

    Parameters
    ----------
    store : path or PatchStore
    output : folder; made if it does not exist
    name : of the patch set, or several; None means all of the store
    slides : ids of the slides; None means all. A slide that is not complete is reported as failed
    form : "png", which loses nothing, or "jpeg" (4:4:4), which is smaller and changes px
    quality : of JPEG, 1 to 100. None means 90; and where the store's codec is JPEG, its bytes as they are (quality 95)
    layout : "folders" are those of Multi_Scale_Tools' scripts, with their tables and absolute paths; "flat" has all
        images of a set in one folder of its name, with one table, see `msdask.exports.flat`
    keep : only patches whose verdict `keep` is True, as the original does; or those that a rule on the columns of
        `PatchSet.table` takes, or rows, see `msdask.store.keep_rule.Keep`. They are numbered in the order of the store
    lists : write training lists too: True takes the `split` stored with each slide; or a folder with list_train.csv,
        list_valid.csv, list_test.csv of slide names (one folder a repeat inside is fine); or a mapping split -> names.
        With layout "folders" only
    threads : that encode images; None means all cores
    progress : show a progress bar
    listeners : functions that are called with every event of the run, as for `extract`

    Returns
    -------
    summary : one outcome a set and slide; damaged slides are there with a reason, the others go on

    Raises
    ------
    StoreError
        Before any work: no such set or slide, a folder that another set has, partitions that do not fit, an output
        that cannot be written. Later: `output` cannot be written any more.
    """
    if threads is not None and threads < 1:
        raise SpecError(f"threads={threads}: expected a whole number, at least 1; leave it out for all cores")
    opened = store if isinstance(store, PatchStore) else PatchStore(store)
    sets = [opened[n] for n in _set_names(opened, name)]
    exported = _exported(output, sets, keep=keep, form=ImageForm(form, quality), layout=layout)
    folders = [s for s in exported if isinstance(s, PatchFolders)]
    if lists is not None and not folders:
        raise SpecError(f"lists={lists!r} and layout={layout!r}: training lists are of layout='folders'")
    jobs = [(s, slide_id) for s in exported for slide_id in _slide_ids(s.patch_set, slides)]
    _check_slides(opened, jobs, slides)
    plan = None if lists is None else plan_lists(lists, folders)
    written: list[TrainingList] = []
    problems: list[str] = []
    recorder = Recorder()
    with _refusals_of(output):
        check_folder_writable(output)
        claim(output, exported)
        with (
            ThreadPoolExecutor(threads or CPU_COUNT, "msdask-export") as pool,
            Progress(enabled=progress) as bar,
        ):
            tell = Listeners((recorder, bar, *listeners))
            tell(RunBegun("export", opened.path, tuple(s.name for s in sets), len(jobs)))
            for s in exported:
                s.begin({slide_id for one, slide_id in jobs if one is s})
            _export_slides(jobs, pool, tell)
        done = {s.name: frozenset(_done(recorder, s)) for s in sets}
        for s in exported:
            s.finish(done[s.patch_set.name])
        if plan is not None:
            written, problems = write_lists(output, plan, folders, done)
    tell(RunDone({"kind": "threads", "threads": threads or CPU_COUNT}))
    return ExportSummary(
        **recorder.facts(),
        output=os.path.abspath(output),
        lists=tuple(written),
        missing=plan.missing if plan is not None else (),
        problems=tuple(problems),
    )


@contextmanager
def _refusals_of(output: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot export to '{output}': {error}; check that the place is writable and has room, then run again"
        ) from error


def _exported(
    output: str | os.PathLike[str], sets: Sequence[PatchSet], *, keep: Keep, form: ImageForm, layout: Layout
) -> list[ExportedSet]:
    """The sets in a layout; what lies in the output already lets them in."""
    layouts: dict[str, type[PatchFolders | FlatFolder]] = {"folders": PatchFolders, "flat": FlatFolder}
    if layout not in layouts:
        raise SpecError(f"layout={layout!r}: expected one of {list(layouts)}")
    exported: list[ExportedSet] = [layouts[layout].below(output, s, keep=keep, form=form) for s in sets]
    check_claims(output, exported)
    for s in exported:
        s.check()
    return exported


def _done(recorder: Recorder, patch_set: PatchSet) -> list[str]:
    """Slides of a set whose images are in place."""
    return [o.slide_id for o in recorder.outcomes if o.state == "exported" and o.set_name == patch_set.name]


def _set_names(store: PatchStore, name: str | Sequence[str] | None) -> list[str]:
    names = list(store) if name is None else [name] if isinstance(name, str) else list(dict.fromkeys(name))
    if not names:
        raise StoreError(f"'{store.path}' has no patch set to export: expected a store that msdask has written")
    return names


def _slide_ids(patch_set: PatchSet, slides: Sequence[str] | None) -> list[str]:
    known = patch_set.states()
    return list(known) if slides is None else [s for s in dict.fromkeys(slides) if s in known]


def _check_slides(store: PatchStore, jobs: Sequence[tuple[ExportedSet, str]], slides: Sequence[str] | None) -> None:
    unknown = sorted(set(slides or ()) - {slide_id for _, slide_id in jobs})
    if unknown:
        raise StoreError(
            f"'{store.path}' has no slides {unknown[:5]} in the sets to export: "
            "expected ids as `PatchSet.slides` lists them"
        )


def _export_slides(jobs: Sequence[tuple[ExportedSet, str]], pool: ThreadPoolExecutor, tell: Listener) -> None:
    """All slides, one after the other; their outcomes are told."""
    for order, (s, slide_id) in enumerate(jobs):
        own = (s.patch_set.name,)
        tell(SlideBegun(slide_id, own))
        tell(SlideDone(slide_id, own, order, (_export_slide(s, slide_id, pool, tell),)))


def _export_slide(s: ExportedSet, slide_id: str, pool: ThreadPoolExecutor, tell: Listener) -> SlideExport:
    """One slide. What is wrong with it in the store is its outcome; what is wrong with the output is an OSError."""
    name = s.patch_set.name
    columns = range(len(s.magnifications))
    try:
        with s.placing(slide_id) as part:
            stored = s.stored_rows(slide_id)
            if len(stored.rows):
                paths = [[part / file for file in s.files(slide_id, stored, column)] for column in columns]
                for place in {of_one[0].parent for of_one in paths}:
                    place.mkdir(parents=True, exist_ok=True)
                for column in columns:
                    for file, rows in s.tables(slide_id, stored, column).items():
                        write_table(part / file, rows)
                for block, images, taken in _blocks(s, slide_id, stored):
                    for column in columns:
                        # Consuming the results raises what a thread has raised.
                        list(pool.map(partial(_write, s.form), images[:, column], paths[column][taken]))
                    tell(BlockWritten(slide_id, name, block, len(images), len(columns)))
    except StoreError as error:
        return SlideExport(slide_id, name, "failed", str(error))
    if not len(stored.rows):
        return SlideExport(slide_id, name, "empty")
    folder = s.slide_folder(slide_id)
    return SlideExport(slide_id, name, "exported", "", len(stored.rows), len(columns), folder=folder)


def _blocks(s: ExportedSet, slide_id: str, stored: StoredRows) -> Iterator[tuple[int, NDArray[Any], slice]]:
    """(block, patches of its shard, which of the slide's they are), shard by shard.

    Patches are (n, magnification, y, x, 3) uint8, or (n, magnification) bytes that are in the right form already.
    """
    arrays = s.patch_set.arrays(slide_id)
    shards = ShardArray(arrays, "image")
    read = shards.read_encoded if s.form.is_stored(s.patch_set.codec) else shards.read
    bounds = np.searchsorted(stored.rows, [arrays.block(i).stop for i in range(arrays.blocks)])
    for block, (first, last) in enumerate(pairwise([0, *bounds.tolist()])):
        if last > first:
            yield block, read(stored.rows[first:last]), slice(first, last)


def _write(form: ImageForm, image: NDArray[np.uint8] | bytes, path: Path) -> None:
    path.write_bytes(image if isinstance(image, bytes) else form.encode(image))


def export_table(patch_set: PatchSet, path: str | os.PathLike[str], *, keep: Keep = False) -> Path:
    """Write a set's table (`PatchSet.table`) to a file, in one atomic step.

    Parameters
    ----------
    path : ending in .csv (UTF-8, with a header) or .parquet
    keep : only patches whose verdict `keep` is True, or that a rule takes, as for `export`

    Returns
    -------
    path : of the file

    Raises
    ------
    SpecError
        Another ending.
    StoreError
        The file cannot be written, or a slide's tables cannot be read.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise SpecError(f"'{file}': the ending says the format; found {ending or 'none'!r}, expected .csv or .parquet")
    table = patch_set.table(keep=keep)
    try:
        with replacing(file) as part:
            if ending == ".csv":
                table.to_csv(part, index=False, lineterminator="\n")
            else:
                table.to_parquet(part, index=False)
    except OSError as error:
        raise StoreError(str(error)) from error
    return file
