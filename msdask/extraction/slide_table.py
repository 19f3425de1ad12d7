"""The slides of a cohort: a CSV (the seed's headerless list of paths, or with columns), a folder, or a list."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from msdask.errors import SlideError, SpecError
from msdask.readers.listing import is_slide, slides_in
from msdask.storage.places import is_url, local_path
from msdask.storage.tables import read_table
from msdask.store.layout import check_slide_id

__all__ = ["SlideRow", "Slides", "read_slides"]

Slides: TypeAlias = (
    str | os.PathLike[str] | pd.DataFrame | Sequence["str | os.PathLike[str] | Mapping[str, Any] | SlideRow"]
)

_OWN = ("path", "slide_id", "mask", "mpp", "magnification")


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide of a cohort.

    Attributes
    ----------
    path : file or URL
    slide_id : names it inside the store; by default its file name
    mask : path of its mask, or None
    mpp, magnification : override what the file says
    cohort : every other column of the table (split, patient, label ...)
    """

    path: str
    slide_id: str
    mask: str | None = None
    mpp: float | None = None
    magnification: float | None = None
    cohort: Mapping[str, Any] = field(default_factory=dict)


def read_slides(slides: Slides) -> list[SlideRow]:
    """The slides of a cohort, in order.

    Parameters
    ----------
    slides : a CSV file (one path a line without a header, or with a column `path` and optionally slide_id, mask, mpp,
        magnification, split, patient, label ...; relative paths are relative to the CSV), a folder of slides (see
        `msdask.readers.slides_in`), a single slide, a DataFrame with such columns, or a list of paths or mappings

    Raises
    ------
    SlideError
        The CSV or folder is missing, empty, or has no column `path`.
    SpecError
        Two slides have one id; the way out is a column slide_id.
    StoreError
        An id that would leave the store.
    """
    if isinstance(slides, pd.DataFrame):
        rows = [_row({str(k): v for k, v in record.items()}, Path()) for record in slides.to_dict("records")]
    elif isinstance(slides, (str, os.PathLike)):
        rows = _from_path(os.fspath(slides))
    else:
        rows = [
            s if isinstance(s, SlideRow) else _row(s if isinstance(s, Mapping) else {"path": s}, Path()) for s in slides
        ]
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
    return rows


def _from_path(path: str) -> list[SlideRow]:
    if is_url(path):
        return [_row({"path": path}, Path())]
    found = Path(local_path(path))
    if found.is_dir():
        folder = str(found)
        return [_row({"path": slide}, Path()) for slide in ([folder] if is_slide(folder) else slides_in(folder))]
    if not found.exists():
        raise SlideError(f"'{path}' does not exist: expected a CSV of slides, a folder of slides, or a slide")
    if found.suffix.lower() != ".csv":
        return [_row({"path": found}, Path())]
    return [_row(record, found.parent) for record in _records(found)]


def _records(path: Path) -> list[dict[str, str]]:
    table = read_table(path, "path", error=SlideError)
    if table.header:
        return table.records()
    if not table.rows:
        raise SlideError(f"'{path}' is empty: expected one path a line, or a header with a column 'path'")
    if wide := [i for i, row in enumerate(table.rows) if len(row) > 1]:
        raise SlideError(
            f"'{path}' line {table.lines[wide[0]]} has columns {list(table.rows[wide[0]])}: expected one named 'path', "
            "separated by commas, or one path a line without a header (a path with a comma in quotes)"
        )
    return [{"path": row[0]} for row in table.rows]


def _row(record: Mapping[str, Any], base: Path) -> SlideRow:
    values = {
        str(k): v
        for k, v in record.items()
        if not (v is None or v is pd.NA or v == "" or (isinstance(v, float) and math.isnan(v)))
    }
    if "path" not in values:
        raise SlideError(f"a row of the slides' table has no path: {dict(record)}")

    def located(value: Any) -> str:
        text = os.fspath(value)
        return text if is_url(text) else local_path(os.path.join(base, os.path.expanduser(text)))

    def number(name: str) -> float | None:
        try:
            return float(values[name]) if name in values else None
        except (TypeError, ValueError):
            raise SpecError(f"slide '{values['path']}': {name} is {values[name]!r}, expected a number") from None

    path = located(values["path"])
    return SlideRow(
        path=path,
        slide_id=str(values.get("slide_id", os.path.basename(path.rstrip("/")))),
        mask=located(values["mask"]) if "mask" in values else None,
        mpp=number("mpp"),
        magnification=number("magnification"),
        cohort={k: v.item() if hasattr(v, "item") else v for k, v in values.items() if k not in _OWN},
    )
