"""Tables as CSV: one way to read what people and other programs write, and one way to write.

The rules, everywhere: UTF-8, with or without a byte order mark; commas between cells, spaces around a cell are nothing;
a line without any text is nothing, and one that begins with "# " is a comment. A table has a header if its first line
names a column that its reader knows; the case of names does not matter.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from msdask.errors import MsdaskError, SpecError
from msdask.storage.files import replacing

__all__ = ["Table", "read_table", "write_table"]


@dataclass(frozen=True)
class Table:
    """The text of a CSV.

    Attributes
    ----------
    path : of the file
    header : names of the columns, in lower case; empty where the file has no header
    rows : cells of the lines below the header
    lines : number of each row's line in the file, from 1
    """

    path: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, *names: str) -> list[str]:
        """Cells of the first of these columns that is there; without a header, of the first column."""
        index = next((self.header.index(name) for name in names if name in self.header), 0)
        return [row[index] for row in self.rows]

    def records(self) -> list[dict[str, str]]:
        """One mapping of column to cell a row; needs a header."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]


def read_table(
    path: str | os.PathLike[str], *keys: str, columns: Iterable[str] = (), error: type[MsdaskError] = SpecError
) -> Table:
    """Read a CSV.

    Parameters
    ----------
    path : file
    keys : a first line with one of these names is a header
    columns : other names that the table may have: a line in which one is set off by a semicolon or tab is a header, too
    error : class to raise

    Raises
    ------
    error
        The file cannot be read, names a column twice, has lines of another length than its header, or separates its
        columns by something else than commas; names the file, and the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            numbered = [(reader.line_num, tuple(cell.strip() for cell in line)) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise error(f"'{path}' cannot be read as a CSV in UTF-8: {failure}") from failure
    lines = [(n, cells) for n, cells in numbered if any(cells) and not _is_comment(cells)]
    first = tuple(cell.lower() for cell in lines[0][1]) if lines else ()
    has_header = not set(keys).isdisjoint(first)
    if odd := _separated_otherwise(first, {*keys, *columns}, has_header=has_header):
        raise error(
            f"'{path}' line {lines[0][0]}: {odd!r}; expected columns separated by commas: save the table with commas, "
            "and cells that have one in quotes"
        )
    if has_header:
        if repeated := sorted(name for name, n in Counter(first).items() if n > 1):
            raise error(f"'{path}' has columns {repeated} twice: expected each name once")
        for number, cells in lines:
            if len(cells) != len(first):
                raise error(f"'{path}' line {number}: {len(cells)} cells, the header has {len(first)}")
    below = lines[1:] if has_header else lines
    return Table(
        os.fspath(path),
        first if has_header else (),
        tuple(cells for _, cells in below),
        tuple(number for number, _ in below),
    )


def _is_comment(cells: Sequence[str]) -> bool:
    return cells[0].startswith("# ") or (cells[0] == "#" and not any(cells[1:]))


def _separated_otherwise(first: Sequence[str], known: set[str], *, has_header: bool) -> str | None:
    """The cell of a header in which names are set off by a semicolon or tab; None if there is none.

    A first line is taken for a header if it is one, or if a known name is among its names so separated; "sep=;" is what
    spreadsheets put above theirs.
    """
    for cell in first:
        names = [name.strip().strip('"') for name in re.split("[;\t]", cell)]
        if len(names) > 1 and (has_header or cell.startswith("sep=") or not known.isdisjoint(names)):
            return cell
    return None


def write_table(
    path: str | os.PathLike[str], rows: Iterable[Sequence[Any]], *, header: Sequence[str] | None = None
) -> int:
    """Write rows as a CSV in one step, in UTF-8, a cell with a comma in quotes; returns how many.

    Raises
    ------
    FileWriteError
        The file cannot be written.
    """
    count = 0
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if header is not None:
            writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count
