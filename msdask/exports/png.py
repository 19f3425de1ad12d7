"""From a store to files: PNG patches with tables in Multi_Scale_Tools' layout, training lists, CSV and Parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from msdask.errors import SpecError, StoreError
from msdask.exports.folders import PatchFolders, StoredRows
from msdask.exports.training_lists import Partitions, TrainingList, plan_lists, write_lists
from msdask.progress.bar import Progress
from msdask.progress.events import BlockWritten, Listener, Listeners, Outcome, RunBegun, RunDone, SlideBegun, SlideDone
from msdask.progress.report import Recorder, Report
from msdask.storage.files import replacing, replacing_folder
from msdask.storage.tables import write_table
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.reading import ShardArray

__all__ = ["ExportSummary", "SlideExport", "export", "export_table"]


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
    keep: Keep = True,
    lists: Partitions | None = None,
    threads: int | None = None,
    progress: bool = False,
    listeners: Iterable[Listener] = (),
) -> ExportSummary:
    """Write patches as PNG files, with tables and training lists, in the layout of Multi_Scale_Tools' scripts.

    Every slide's folder is written beside the old one and then put in its place, so a rerun overwrites and a killed run
    leaves no half slide. Paths in tables and lists are absolute. Memory: one shard, and one PNG a thread.

    Parameters
    ----------
    store : path or PatchStore
    output : folder; made if it does not exist
    name : of the patch set, or several; None means all of the store
    slides : ids of the slides; None means all. A slide that is not complete is reported as failed
    keep : only patches whose verdict `keep` is True, as the original does; or those that a rule on the columns of
        `PatchSet.table` takes, or rows, see `msdask.store.keep_rule.Keep`. They are numbered in the order of the store
    lists : write training lists too: True takes the `split` stored with each slide; or a folder with list_train.csv,
        list_valid.csv, list_test.csv of slide names (one folder a repeat inside is fine); or a mapping split -> names
    threads : that encode PNG files; None means all cores
    progress : show a progress bar
    listeners : functions that are called with every event of the run, as for `extract`

    Returns
    -------
    summary : one outcome a set and slide; damaged slides are there with a reason, the others go on

    Raises
    ------
    StoreError
        Before any work: no such set or slide, two sets with one folder, partitions that do not fit. Later: `output`
        cannot be written.
    """
    if threads is not None and threads < 1:
        raise SpecError(f"threads={threads}: expected a whole number, at least 1; leave it out for all cores")
    opened = store if isinstance(store, PatchStore) else PatchStore(store)
    sets = [PatchFolders.below(output, opened[n], keep=keep) for n in _set_names(opened, name)]
    _check_folders(sets)
    jobs = [(s, slide_id) for s in sets for slide_id in _slide_ids(s.patch_set, slides)]
    _check_slides(opened, jobs, slides)
    plan = None if lists is None else plan_lists(lists, sets)
    recorder = Recorder()
    written: list[TrainingList] = []
    problems: list[str] = []
    try:
        with (
            ThreadPoolExecutor(threads or CPU_COUNT, "msdask-png") as pool,
            Progress(enabled=progress) as bar,
        ):
            tell = Listeners((recorder, bar, *listeners))
            tell(RunBegun("export", opened.path, tuple(s.patch_set.name for s in sets), len(jobs)))
            for order, (s, slide_id) in enumerate(jobs):
                own = (s.patch_set.name,)
                tell(SlideBegun(slide_id, own))
                tell(SlideDone(slide_id, own, order, (_export_slide(s, slide_id, pool, tell),)))
        if plan is not None:
            done = [o for o in recorder.outcomes if o.state == "exported"]
            names = [s.patch_set.name for s in sets]
            exported = {n: frozenset(o.slide_id for o in done if o.set_name == n) for n in names}
            written, problems = write_lists(output, plan, sets, exported)
    except OSError as error:
        raise StoreError(
            f"cannot export to '{output}': {error}; check that the place is writable and has room, then run again"
        ) from error
    tell(RunDone({"kind": "threads", "threads": threads or CPU_COUNT}))
    return ExportSummary(
        **recorder.facts(),
        output=os.path.abspath(output),
        lists=tuple(written),
        missing=plan.missing if plan is not None else (),
        problems=tuple(problems),
    )


def _set_names(store: PatchStore, name: str | Sequence[str] | None) -> list[str]:
    names = list(store) if name is None else [name] if isinstance(name, str) else list(dict.fromkeys(name))
    if not names:
        raise StoreError(f"'{store.path}' has no patch set to export: expected a store that msdask has written")
    return names


def _check_folders(sets: Sequence[PatchFolders]) -> None:
    first: dict[str, str] = {}
    for s in sets:
        if s.root in first:
            raise StoreError(
                f"patch sets '{first[s.root]}' and '{s.patch_set.name}' would both go to '{s.root}': the layout names "
                "magnifications only; export them one at a time, into different folders"
            )
        first[s.root] = s.patch_set.name


def _slide_ids(patch_set: PatchSet, slides: Sequence[str] | None) -> list[str]:
    known = patch_set.states()
    return list(known) if slides is None else [s for s in dict.fromkeys(slides) if s in known]


def _check_slides(store: PatchStore, jobs: Sequence[tuple[PatchFolders, str]], slides: Sequence[str] | None) -> None:
    unknown = sorted(set(slides or ()) - {slide_id for _, slide_id in jobs})
    if unknown:
        raise StoreError(
            f"'{store.path}' has no slides {unknown[:5]} in the sets to export: "
            "expected ids as `PatchSet.slides` lists them"
        )


def _export_slide(s: PatchFolders, slide_id: str, pool: ThreadPoolExecutor, tell: Listener) -> SlideExport:
    """One slide. What is wrong with it in the store is its outcome; what is wrong with the output is an OSError."""
    name = s.patch_set.name
    folder = Path(s.slide_folder(slide_id))
    try:
        with replacing_folder(folder) as part:
            stored = s.stored_rows(slide_id)
            _check_foreign(folder, slide_id)
            if len(stored.rows):
                for column in range(len(s.magnifications)):
                    (part / s.subfolder(column)).mkdir(parents=True, exist_ok=True)
                    for file, rows in s.tables(slide_id, stored, column).items():
                        write_table(part / s.subfolder(column) / file, rows)
                for block, images, numbers in _blocks(s, slide_id, stored):
                    _write_images(s, slide_id, images, numbers, part, pool)
                    tell(BlockWritten(slide_id, name, block, len(numbers), len(s.magnifications)))
    except StoreError as error:
        return SlideExport(slide_id, name, "failed", str(error))
    if not len(stored.rows):
        return SlideExport(slide_id, name, "empty")
    return SlideExport(slide_id, name, "exported", "", len(stored.rows), len(s.magnifications), folder=str(folder))


def _blocks(s: PatchFolders, slide_id: str, stored: StoredRows) -> Iterator[tuple[int, NDArray[np.uint8], list[int]]]:
    """(block, patches of its shard, their numbers), shard by shard; patches (n, magnification, y, x, 3) uint8."""
    arrays = s.patch_set.arrays(slide_id)
    shards = ShardArray(arrays, "image")
    bounds = np.searchsorted(stored.rows, [arrays.block(i).stop for i in range(arrays.blocks)])
    for block, (first, last) in enumerate(pairwise([0, *bounds.tolist()])):
        if last > first:
            yield block, shards.read(stored.rows[first:last]), list(range(first, last))


def _write_images(
    s: PatchFolders,
    slide_id: str,
    images: NDArray[np.uint8],
    numbers: Sequence[int],
    part: Path,
    pool: ThreadPoolExecutor,
) -> None:
    for column in range(len(s.magnifications)):
        folder = part / s.subfolder(column)
        paths = [folder / f"{slide_id}_{number}.png" for number in numbers]
        # Consuming the results raises what a thread has raised.
        for _ in pool.map(_write_png, images[:, column], paths):
            pass


def _write_png(image: NDArray[np.uint8], path: Path) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"'{path}' cannot be encoded as PNG")
    path.write_bytes(data.tobytes())


def _check_foreign(folder: Path, slide_id: str) -> None:
    """Refuse to replace a folder with files that no export has written."""
    ours = re.compile(rf"{re.escape(slide_id)}_(\d+\.png|(coords|labels|paths)_densely\.csv)")
    for place, _, files in os.walk(folder):
        foreign = [file for file in sorted(files) if not ours.fullmatch(file)]
        if foreign:
            raise StoreError(
                f"'{place}' holds '{foreign[0]}', which is no exported file: move it away, or export to another folder"
            )


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
