"""Training lists for Multi_Scale_Tools' trainers: which exported patches, with which label, belong to which split.

Its scripts Create_csv_from_partitions, Create_csv and Generate_csv_single_scale, _multicenter and _upper_region make
the same lists from folders of PNG files; here they come from the store. None has a header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msdask.errors import StoreError
from msdask.exports.exported_set import StoredRows, magnification_text
from msdask.exports.folders import PatchFolders
from msdask.selection.parents import CONTAINMENT_TOLERANCE
from msdask.spec import format_magnification
from msdask.storage.tables import write_table
from msdask.store.splits import EXTERNAL, Lists, Partition, read_partitions, stored_split

__all__ = ["ListPlan", "Partitions", "TrainingList", "plan_lists", "write_lists"]

Partitions = Literal[True] | Lists
"""True: the column `split` of the slides' table; else lists, see `msdask.store.splits.read_partitions`."""

_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class TrainingList:
    """One list that was written.

    Attributes
    ----------
    path : of the file
    rows : in it
    dropped : exported patches of its slides that are left out: without a label, or without a parent
    """

    path: str
    rows: int
    dropped: int = 0


@dataclass(frozen=True)
class _UpperRegion:
    """A grid set and the coarser sets that its parent columns point into, highest magnification first."""

    fine: PatchFolders
    coarse: tuple[PatchFolders, ...]

    @property
    def name(self) -> str:
        """Of its folder: "20_10_5"."""
        return "_".join(magnification_text(s.magnifications[0]) for s in (self.fine, *self.coarse))


@dataclass(frozen=True)
class ListPlan:
    """What is to be listed, decided before any work.

    Attributes
    ----------
    partitions : one, or one a repeat
    missing : names in the partitions that are no complete slide of the exported sets
    """

    partitions: tuple[Partition, ...]
    missing: tuple[str, ...]
    upper_regions: tuple[_UpperRegion, ...]


def plan_lists(partitions: Partitions, sets: Sequence[PatchFolders]) -> ListPlan:
    """Match the partitions with the slides of the sets, and find the sets that are linked.

    Raises
    ------
    StoreError
        The partitions cannot be read, name no slide of the sets or one slide in two splits, or a link is out of date.
    """
    known = {slide_id for s in sets for slide_id in s.patch_set.slides}
    stored = stored_split(s.patch_set for s in sets) if partitions is True else {}
    if partitions is True and not any(stored.values()):
        raise StoreError(
            "training lists: no slide has a split: give a folder with list_train.csv, list_valid.csv and "
            "list_test.csv, or extract from a table with a column 'split'"
        )
    found, missing = read_partitions(stored if partitions is True else partitions, known, error=StoreError)
    for split in dict.fromkeys(split for partition in found for split in partition.parts):
        _check_file_name(split)
    if not any(ids for partition in found for ids in partition.parts.values()):
        raise StoreError(
            f"training lists: none of the names in the partitions ({list(missing)[:3]} ...) is a complete slide of the "
            f"exported sets, which have {sorted(known)[:3]} ...: the partitions must name slides as the store does"
        )
    return ListPlan(tuple(found), missing, _upper_regions(sets))


def _check_file_name(split: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise StoreError(
            f"split {split!r} cannot name a file: expected letters, digits, '_', '-' and '.', such as 'train'"
        )


def _upper_regions(sets: Sequence[PatchFolders]) -> tuple[_UpperRegion, ...]:
    """Labelled grid sets with links into other exported sets."""
    labelled = {s.patch_set.name: s for s in sets if s.is_grid and s.is_labelled}
    found = []
    for fine in labelled.values():
        links: dict[str, str] = {}
        for slide_id in fine.patch_set.slides:
            links |= {v["set"]: v["spec_hash"] for v in fine.patch_set.attrs(slide_id).get("links", {}).values()}
        for name, spec_hash in links.items():
            if name in labelled and labelled[name].patch_set.spec_hash != spec_hash:
                raise StoreError(
                    f"patch set '{fine.patch_set.name}' is linked to another '{name}' than the one in the store (their "
                    "specs differ): extract both again in one run"
                )
        coarse = sorted((labelled[name] for name in links if name in labelled), key=lambda s: -s.magnifications[0])
        if coarse:
            found.append(_UpperRegion(fine, tuple(coarse)))
    return tuple(found)


def write_lists(
    output: str | os.PathLike[str], plan: ListPlan, sets: Sequence[PatchFolders], exported: Mapping[str, frozenset[str]]
) -> tuple[list[TrainingList], list[str]]:
    """Write every list that the exported sets allow, below ``<output>/csv_folder``.

    Parameters
    ----------
    exported : set name -> slides whose patches are on disk; no others are listed

    Returns
    -------
    lists : in the order written
    problems : sentences, for slides whose links do not fit any more
    """
    lists: list[TrainingList] = []
    problems: list[str] = []
    base = Path(os.path.abspath(output), "csv_folder")

    grids = sorted((s for s in sets if s.is_grid), key=lambda s: (-s.magnifications[0], not s.is_labelled))
    for partition in plan.partitions:
        detector, classifier = (base / n / partition.repeat for n in ("scale_regression", "classification"))
        supervised = {split: ids for split, ids in partition.parts.items() if split != EXTERNAL}
        if grids:
            lists += _write(detector, partition.parts, partial(_detector_rows, grids, exported))
        for s in (s for s in sets if s.is_labelled and supervised):
            texts = [magnification_text(m) for m in s.magnifications]
            place = (
                f"single_scales_partitions/magnification_{texts[0]}x"
                if s.is_grid
                else f"multicenter_partitions/{'_'.join(texts)}"
            )
            lists += _write(classifier / place, supervised, partial(_labelled_rows, s, exported))
        for region in plan.upper_regions if supervised else ():
            folder = classifier / "upper_region_partitions" / region.name
            lists += _write(folder, supervised, partial(_upper_rows, region, exported, problems))
    return lists, list(dict.fromkeys(problems))


def _write(
    folder: Path, splits: Mapping[str, tuple[str, ...]], rows_of: Callable[[str], tuple[list[Any], int]]
) -> list[TrainingList]:
    """One list a split, slide by slide; `rows_of` gives a slide's rows and how many of its patches are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = []
    for split, ids in splits.items():
        dropped: list[int] = []
        path = folder / f"{split}.csv"
        count = write_table(path, _counted(ids, rows_of, dropped))
        lists.append(TrainingList(str(path), count, sum(dropped)))
    return lists


def _counted(
    ids: Iterable[str], rows_of: Callable[[str], tuple[list[Any], int]], dropped: list[int]
) -> Iterator[Sequence[Any]]:
    for slide_id in ids:
        rows, left_out = rows_of(slide_id)
        dropped.append(left_out)
        yield from rows


def _detector_rows(
    grids: Sequence[PatchFolders], exported: Mapping[str, frozenset[str]], slide_id: str
) -> tuple[list[Any], int]:
    """(path, magnification), highest magnification first; of two sets at one, the labelled set."""
    rows: list[Any] = []
    seen: set[float] = set()
    for s in grids:
        magnification = s.magnifications[0]
        if slide_id in exported[s.patch_set.name] and magnification not in seen:
            seen.add(magnification)
            paths = s.paths(slide_id, 0, range(len(s.stored_rows(slide_id).rows)))
            rows += [(path, magnification) for path in paths]
    return rows, 0


def _labelled_rows(s: PatchFolders, exported: Mapping[str, frozenset[str]], slide_id: str) -> tuple[list[Any], int]:
    """(path at each magnification ..., label of the centroid) for patches that have one."""
    if slide_id not in exported[s.patch_set.name]:
        return [], 0
    label = s.stored_rows(slide_id).label[:, 0]
    numbers = np.flatnonzero(label >= 0)
    paths = [s.paths(slide_id, column, numbers.tolist()) for column in range(len(s.magnifications))]
    return list(zip(*paths, label[numbers].tolist(), strict=True)), len(label) - len(numbers)


def _upper_rows(
    region: _UpperRegion, exported: Mapping[str, frozenset[str]], problems: list[str], slide_id: str
) -> tuple[list[Any], int]:
    """(path at each magnification ..., label at each ...), for patches with a labelled parent at all of them."""
    fine = region.fine
    if slide_id not in exported[fine.patch_set.name]:
        return [], 0
    stored = fine.stored_rows(slide_id)
    numbers, labels = [np.arange(len(stored.rows))], [stored.label[:, 0]]
    for coarse in region.coarse:
        parents = coarse.stored_rows(slide_id) if slide_id in exported[coarse.patch_set.name] else None
        if parents is None:
            number = label = np.full(len(stored.rows), -1)
        else:
            number = _parent_numbers(fine, coarse, slide_id, stored, parents, problems)
            label = np.append(parents.label[:, 0], -1)[number]
        numbers.append(number)
        labels.append(label)
    complete = np.flatnonzero((np.stack(numbers) >= 0).all(axis=0) & (np.stack(labels) >= 0).all(axis=0))
    folders = (fine, *region.coarse)
    paths = [s.paths(slide_id, 0, number[complete].tolist()) for s, number in zip(folders, numbers, strict=True)]
    rows = list(zip(*paths, *(label[complete].tolist() for label in labels), strict=True))
    return rows, len(stored.rows) - len(complete)


def _parent_numbers(
    fine: PatchFolders,
    coarse: PatchFolders,
    slide_id: str,
    stored: StoredRows,
    parents: StoredRows,
    problems: list[str],
) -> NDArray[np.int64]:
    """Number in the export of each fine patch's parent, -1 where it has none or where that is left out."""
    attrs, above = (s.patch_set.attrs(slide_id) for s in (fine, coarse))
    variable = f"parent_{format_magnification(coarse.magnifications[0])}"
    none = np.full(len(stored.rows), -1, np.int64)
    if attrs.get("links", {}).get(variable, {}).get("set") != coarse.patch_set.name:
        return none
    parent = fine.patch_set.columns(slide_id, [variable])[0][stored.rows].astype(np.int64)
    is_fitting = parent.max(initial=-1) < len(parents.number)
    number = np.append(parents.number, -1)[parent] if is_fitting else none
    if is_fitting:
        # The coarse slide may have been extracted again, with another mask: then the rows mean other patches.
        has = np.flatnonzero(number >= 0)
        room = float(above["footprint"][0]) - float(attrs["footprint"][0]) + CONTAINMENT_TOLERANCE + _SLACK
        for child, origin in ((stored.x0, parents.x0), (stored.y0, parents.y0)):
            inset = child[has, 0].astype(np.int64) - origin[number[has], 0]
            is_fitting &= bool(((inset >= -CONTAINMENT_TOLERANCE - _SLACK) & (inset <= room)).all())
    if not is_fitting:
        problems.append(
            f"slide '{slide_id}': {variable} of '{fine.patch_set.name}' does not fit '{coarse.patch_set.name}' any "
            "more: extract the slide again with overwrite, both sets in one run"
        )
        return none
    return number
