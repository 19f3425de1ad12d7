"""The slides of a cohort: a CSV (the seed's headerless list of paths, or with columns), a folder, or a list."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from msdask.errors import SlideError, SpecError
from msdask.extraction.facts import CellReader, Fact, known_names, nearest_name, warn_of_misspelt
from msdask.readers.listing import is_slide, slides_in
from msdask.readers.quantities import read_number
from msdask.storage.places import is_url, local_path
from msdask.storage.tables import Table, read_table
from msdask.store.layout import check_slide_id

__all__ = ["SlideRow", "Slides", "read_slides"]

Slides: TypeAlias = (
    str | os.PathLike[str] | pd.DataFrame | Sequence["str | os.PathLike[str] | Mapping[str, Any] | SlideRow"]
)

_OWN = ("path", "slide_id", "slide_region", "mask", "mpp", "magnification")
_KNOWN = (*_OWN, "split", "patient", "label")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide of a cohort.

    Attributes
    ----------
    path : file or URL
    slide_id : names it inside the store; by default its file name
    mask : path of its mask, or None
    mpp, magnification : override what the file says
    cohort : every other column of the table (split, patient, label ...): its fact, None where the cell is empty
    slide_region : which of several images in the file, by name or number; None lets `open_slide` choose
    """

    path: str
    slide_id: str
    mask: str | None = None
    mpp: float | None = None
    magnification: float | None = None
    cohort: Mapping[str, Fact | None] = field(default_factory=dict)
    slide_region: str | None = None

    @property
    def facts(self) -> dict[str, Fact]:
        """What is known of the slide: the columns of `cohort` that are not empty. This is what a store keeps."""
        return {name: value for name, value in self.cohort.items() if value is not None}


def read_slides(slides: Slides) -> list[SlideRow]:
    """The slides of a cohort, in order.

    Parameters
    ----------
    slides : a CSV file (one path a line without a header, or with a column `path` and optionally slide_id,
        slide_region, mask, mpp, magnification, split, patient, label ...; relative paths are relative to the CSV), a
        folder of slides (see `msdask.readers.slides_in`), a pattern such as "batch*/*.svs", a single slide, a DataFrame
        with such columns, or a list of paths or mappings; each path in a list may be any of these

    Raises
    ------
    SlideError
        The CSV or folder is missing, empty, or has no column `path`.
    SpecError
        Two slides have one id (the way out is a column slide_id), a number is none, or a cell holds what is no fact
        (see `msdask.extraction.facts`).
    StoreError
        An id that would leave the store.

    Warns
    -----
    UserWarning
        Once a column: words such as NaN and NA are read as empty, dates and infinite numbers kept as text; and for a
        name that looks like a known one misspelt.
    """
    cells = CellReader()
    if isinstance(slides, (str, os.PathLike)):
        rows = _from_path(os.fspath(slides), cells)
    elif isinstance(slides, pd.DataFrame):
        names = list(known_names(slides.columns, _KNOWN).values())
        rows = _rows((dict(zip(names, line, strict=True)) for line in slides.itertuples(index=False)), names, cells)
    else:
        rows = _listed(slides, cells)
    for row in rows:
        check_slide_id(row.slide_id)
    if not rows:
        given = f"'{os.fspath(slides)}'" if isinstance(slides, (str, os.PathLike)) else "an empty table"
        raise SlideError(f"no slides in {given}: expected at least one path")
    repeated = [slide_id for slide_id, n in Counter(r.slide_id for r in rows).items() if n > 1]
    if repeated:
        where = [r.path for r in rows if r.slide_id == repeated[0]]
        raise SpecError(
            f"{len(repeated)} slide ids stand for several slides, such as {repeated[0]!r} for {where[:3]}: give each "
            "an id of its own in a column 'slide_id'"
        )
    cells.warn(stacklevel=3)
    return rows


def _listed(slides: Iterable[Any], cells: CellReader) -> list[SlideRow]:
    """Rows of a list of paths, mappings and rows."""
    rows = []
    seen: dict[str, None] = {}
    for given in slides:
        if isinstance(given, SlideRow):
            where = f"slide '{given.path}'"
            rows.append(replace(given, cohort={k: cells.read(k, v, where) for k, v in given.cohort.items()}))
            continue
        if isinstance(given, (str, os.PathLike)) and _stands_for_several(os.fspath(given)):
            rows += _from_path(os.fspath(given), cells)
            continue
        record = given if isinstance(given, Mapping) else {"path": given}
        names = known_names(record, _KNOWN)
        seen.update(dict.fromkeys(names.values()))
        rows.append(_row({names[column]: value for column, value in record.items()}, Path(), cells))
    warn_of_misspelt(seen, _KNOWN, stacklevel=4)
    return rows


def _stands_for_several(path: str) -> bool:
    """Whether a path is a table, a folder, or a pattern: what stands for a number of slides, not for one."""
    if is_url(path):
        return False
    place = local_path(path)
    if os.path.isdir(place):
        return not is_slide(place)
    return place.lower().endswith(".csv") or (glob.has_magic(place) and not os.path.exists(place))


def _rows(
    records: Iterable[Mapping[str, Any]], columns: Sequence[str], cells: CellReader, base: Path = Path()
) -> list[SlideRow]:
    """Rows of a table with these columns."""
    if "path" not in columns:
        like = [column for column in columns if nearest_name(column, ["path"])]
        hint = f"; '{like[0]}' looks like it" if like else ""
        raise SlideError(f"the slides' table has columns {list(columns)}: expected one named 'path'{hint}")
    warn_of_misspelt(columns, _KNOWN, stacklevel=4)
    return [_row(record, base, cells) for record in records]


def _from_path(path: str, cells: CellReader) -> list[SlideRow]:
    if is_url(path):
        return [_row({"path": path}, Path(), cells)]
    found = Path(local_path(path))
    if found.is_dir():
        folder = str(found)
        return [_row({"path": slide}, Path(), cells) for slide in ([folder] if is_slide(folder) else slides_in(folder))]
    if not found.exists() and glob.has_magic(str(found)):
        matches = sorted(glob.glob(str(found), recursive=True))
        if not matches:
            raise SlideError(f"'{path}': nothing matches this pattern; expected slides, such as 'batch1/*.svs'")
        return _listed(matches, cells)
    if not found.exists():
        raise SlideError(f"'{path}' does not exist: expected a CSV of slides, a folder of slides, or a slide")
    if found.suffix.lower() != ".csv":
        return [_row({"path": found}, Path(), cells)]
    table = _table(found)
    return _rows(table.records(), table.header, cells, found.parent)


def _table(path: Path) -> Table:
    """A CSV of slides; one without a header has the column path."""
    table = read_table(path, "path", columns=_KNOWN, error=SlideError)
    if table.header:
        return table
    if not table.rows:
        raise SlideError(f"'{path}' is empty: expected one path a line, or a header with a column 'path'")
    if wide := [i for i, row in enumerate(table.rows) if len(row) > 1]:
        cells = table.rows[wide[0]]
        raise SlideError(
            f"'{path}' line {table.lines[wide[0]]} has columns {list(cells)}: expected one named 'path', separated by "
            "commas, or one path a line without a header (a path with a comma in quotes)"
        )
    return replace(table, header=("path",))


def _row(record: Mapping[str, Any], base: Path, cells: CellReader) -> SlideRow:
    """One slide; `record` has msdask's own names of columns."""
    own = {k: record[k] for k in _OWN if k in record and not cells.is_empty(k, record[k])}
    if "path" not in own:
        raise SlideError(f"a row of the slides' table has no path: {dict(record)}")
    where = f"slide '{own['path']}'"

    def located(value: Any) -> str:
        text = os.fspath(value)
        return text if is_url(text) else local_path(os.path.join(base, os.path.expanduser(text)))

    def number(name: str) -> float | None:
        if name not in own:
            return None
        value = read_number(own[name])
        if value is None:
            raise SpecError(f"{where}: {name} is {own[name]!r}, expected a number, or nothing where it is not known")
        return value

    path = located(own["path"])
    region = _cell_text(own["slide_region"]) if "slide_region" in own else None
    # two regions of one file are two slides
    name = os.path.basename(path.rstrip("/")) + (f"#{region}" if region is not None else "")
    return SlideRow(
        path=path,
        slide_id=str(own["slide_id"]).strip() if "slide_id" in own else name,
        mask=located(own["mask"]) if "mask" in own else None,
        mpp=number("mpp"),
        magnification=number("magnification"),
        slide_region=region,
        cohort={name: cells.read(name, value, where) for name, value in record.items() if name not in _OWN},
    )


def _cell_text(value: Any) -> str:
    """A cell as text; whole numbers without the ".0" that a column with gaps gives them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
