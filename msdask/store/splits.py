"""Which slides are for training, validation and test: as lists say, or as their table said when they were extracted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from msdask.errors import MsdaskError, SpecError
from msdask.storage.slide_names import names_of
from msdask.storage.tables import read_table
from msdask.store.patch_set import PatchSet

__all__ = ["EXTERNAL", "PARTS", "Lists", "Partition", "check_disjoint", "parts_of", "read_partitions", "stored_split"]

Lists: TypeAlias = "str | os.PathLike[str] | Mapping[str, Sequence[str]]"
"""A folder of list_train.csv, list_valid.csv and list_test.csv, or of one such folder a repeat; or part -> names."""

PARTS = ("train", "valid", "test")
EXTERNAL = "external_data"
"""Slides of another source, for the scale detector only (the original's Create_csv)."""

_FILES = {
    "list_train.csv": "train",
    "list_valid.csv": "valid",
    "list_val.csv": "valid",
    "list_test.csv": "test",
    "external_dataset_source.csv": EXTERNAL,
}
_ALIASES = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}


@dataclass(frozen=True)
class Partition:
    """One way to split the slides.

    Attributes
    ----------
    repeat : names its folder; "" where there is only one
    parts : "train", "valid", "test" ... -> ids of slides, in the order of the lists, each once
    """

    repeat: str
    parts: Mapping[str, tuple[str, ...]]


def read_partitions(
    lists: Lists, known: Iterable[str], *, error: type[MsdaskError] = SpecError
) -> tuple[list[Partition], tuple[str, ...]]:
    """Read lists of slides and match them with the slides that there are.

    A list has a slide a line, or a header with a column `slide_id` or `path`; without one, what follows the first cell
    of a line is not read, unless the file has a single line. A name may have the slide's ending or lack it.

    Parameters
    ----------
    lists : a folder that holds list_train.csv, list_valid.csv (or list_val.csv) and list_test.csv, or has a folder
        `partitions` that does, or one folder a repeat; or a mapping of parts to names. "training", "val",
        "validation" and "testing" are other words for train, valid and test
    known : ids of the slides
    error : class to raise

    Returns
    -------
    partitions : one, or one a repeat
    missing : names that are none of the slides

    Raises
    ------
    error
        There are no lists, one cannot be read, a name may be any of several slides, or a slide is in two parts.
    """
    ids = set(known)
    goes_by: dict[str, list[str]] = {}
    for slide_id in sorted(ids):
        for name in names_of(slide_id):
            goes_by.setdefault(name, []).append(slide_id)
    missing: dict[str, None] = {}

    def find(name: str) -> list[str]:
        found = [name] if name in ids else goes_by.get(name) or [n for n in names_of(name) if n in ids]
        if len(found) > 1:
            raise error(f"lists: '{name}' may be any of {found}: give the full name")
        missing.update({} if found else {name: None})
        return found

    partitions = []
    for repeat, named in _named(lists, error).items():
        parts = {part: tuple(dict.fromkeys(s for n in names for s in find(n))) for part, names in named.items()}
        check_disjoint(f"lists {repeat!r}" if repeat else "lists", parts, error=error)
        partitions.append(Partition(repeat, parts))
    return partitions, tuple(missing)


def stored_split(sets: Iterable[PatchSet]) -> dict[str, list[str]]:
    """Slides of each part, by the `split` that the cohort's table had when they were extracted.

    Returns
    -------
    parts : train, valid and test, each maybe empty, and what other splits there are
    """
    return parts_of(
        {
            slide_id: str(patch_set.attrs(slide_id).get("cohort", {}).get("split", ""))
            for patch_set in sets
            for slide_id in patch_set.slides
        }
    )


def parts_of(split: Mapping[str, str]) -> dict[str, list[str]]:
    """The same of slides whose split is at hand: id -> split as the table writes it, "" where it is in none."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for slide_id, name in split.items():
        if name:
            parts.setdefault(_part(name), []).append(slide_id)
    return parts


def check_disjoint(where: str, parts: Mapping[str, tuple[str, ...]], *, error: type[MsdaskError] = SpecError) -> None:
    """Refuse a slide in two parts; external slides may be in others too."""
    first: dict[str, str] = {}
    for part, ids in parts.items():
        for slide_id in ids if part != EXTERNAL else ():
            if slide_id in first:
                raise error(
                    f"{where}: slide '{slide_id}' is in '{first[slide_id]}' and in '{part}': put it into one of them"
                )
            first[slide_id] = part


def _part(split: str) -> str:
    return _ALIASES.get(split.lower(), split)


def _named(lists: Lists, error: type[MsdaskError]) -> dict[str, dict[str, list[str]]]:
    """Repeat -> part -> names, as given."""
    if isinstance(lists, Mapping):
        parts: dict[str, list[str]] = {}
        for split, names in lists.items():
            parts.setdefault(_part(split), []).extend(str(name) for name in names)
        return {"": parts}
    return {repeat: _read_folder(folder, error) for repeat, folder in _repeats(Path(lists), error).items()}


def _repeats(folder: Path, error: type[MsdaskError]) -> dict[str, Path]:
    """The folder itself, its folder `partitions`, or one folder a repeat (0, 1, 2 ...) in either."""

    def has_lists(path: Path) -> bool:
        return any((path / file).is_file() for file in _FILES)

    for place in (folder / "partitions", folder):
        if has_lists(place):
            return {"": place}
        found = {p.name: p for p in sorted(place.iterdir()) if has_lists(p)} if place.is_dir() else {}
        if found:
            return found
    raise error(
        f"lists '{folder}': none of {', '.join(_FILES)} is there, in a folder 'partitions' or in one folder a repeat"
    )


def _read_folder(folder: Path, error: type[MsdaskError]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for file, part in _FILES.items():
        if part not in parts and (folder / file).is_file():
            table = read_table(folder / file, "slide_id", "path", error=error)
            is_one_line = not table.header and len(table.rows) == 1
            cells = table.rows[0] if is_one_line else table.column("slide_id", "path")
            parts[part] = [cell for cell in cells if cell]
    return parts
