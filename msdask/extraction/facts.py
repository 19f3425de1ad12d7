"""What the cells of a cohort's table say: one rule for CSVs, DataFrames and mappings, said once a column.

A fact is text, a finite number, or true or false: what JSON can hold, and what reads back as it was. What a program
writes where it has nothing is an empty cell; dates and infinite numbers become text; anything else is refused.
"""

from __future__ import annotations

import datetime
import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd

from msdask.errors import SpecError

__all__ = ["NOTHING", "CellReader", "Fact", "known_names", "nearest_name", "warn_of_misspelt"]

Fact: TypeAlias = str | int | float | bool

_NUMBERS_THAT_ARE_NONE: Final = {"NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
NOTHING: Final = _NUMBERS_THAT_ARE_NONE.union(
    {"NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "null", "None", "NaT"}
)
"""Words that stand for an empty cell: those of pandas.read_csv, which R and spreadsheets write too, and NaT."""

_DATES: Final = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64, pd.Period)
_LEAST_ALIKE: Final = 0.8
"""Similarity (difflib's ratio) from which a name looks like another one misspelt: splt and split have 0.89."""


@dataclass
class CellReader:
    """Reads the cells of one table, and remembers what there is to say of each column.

    Attributes
    ----------
    said : column -> what became of some of its cells -> [how many, an example]
    """

    said: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def read(self, column: str, value: Any, where: str) -> Fact | None:
        """The fact in a cell, None for an empty one.

        Parameters
        ----------
        column, where : name the cell in messages: "split", "slide 'a.svs'"
        value : anything

        Raises
        ------
        SpecError
            The cell holds what is no fact: an array, a list, bytes ...
        """
        if self.is_empty(column, value):
            return None
        if isinstance(value, np.ndarray) and not value.ndim:
            value = value[()]
        if isinstance(value, np.generic) and not isinstance(value, _DATES):
            value = value.item()
        if isinstance(value, (str, os.PathLike)):
            return str(os.fspath(value)).strip()
        if isinstance(value, float) and math.isinf(value):
            return self._noted(column, "infinite, so kept as text,", str(value))
        if isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, _DATES):
            return self._noted(column, "a date or time, kept as text,", _date_text(value))
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        raise SpecError(
            f"{where}: column '{column}' holds a value of type {type(value).__name__}{shape}; expected text, a number, "
            "true or false, or a date: leave the column out, or write what is to be kept of it as text"
        )

    def is_empty(self, column: str, value: Any) -> bool:
        """Whether there is nothing in a cell: no value, no text, or a word that stands for that."""
        if isinstance(value, str):
            text = value.strip()
            if text in NOTHING:
                self._noted(column, "read as empty", text)
            return not text or text in NOTHING
        return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))

    def warn(self, stacklevel: int) -> None:
        """Say what was remembered: a warning a column."""
        for column, kinds in self.said.items():
            cells = [f"{kind} in {n} cell{'s' * (n > 1)}, such as {e!r}" for kind, (n, e) in kinds.items()]
            warnings.warn(f"column '{column}' of the slides' table: {'; '.join(cells)}", UserWarning, stacklevel)

    def _noted(self, column: str, kind: str, text: str) -> str:
        self.said.setdefault(column, {}).setdefault(kind, [0, text])[0] += 1
        return text


def _date_text(value: Any) -> str:
    """A date or time in ISO's way, without a time of day where it is midnight."""
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat().removesuffix("T00:00:00")
    if isinstance(value, (np.timedelta64, datetime.timedelta)):
        return str(pd.Timedelta(value))
    return str(value)


def known_names(columns: Iterable[Any], known: Iterable[str]) -> dict[Any, str]:
    """Names of a table's columns: those that msdask knows in any case, the others as they are.

    Raises
    ------
    SpecError
        Two columns have one name.
    """
    names: dict[Any, str] = {}
    for column in columns:
        text = str(column).strip()
        name = text.lower() if text.lower() in known else text
        if name in names.values():
            raise SpecError(f"the slides' table has the column '{name}' twice: expected each name once")
        names[column] = name
    return names


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one looks like misspelt; None if there is none.

    >>> nearest_name("slideid", ["path", "slide_id", "split"]), nearest_name("centre", ["path", "split"])
    ('slide_id', None)
    """
    plain = {re.sub(r"[^a-z0-9]", "", other.lower()): other for other in known}
    given = re.sub(r"[^a-z0-9]", "", name.lower())
    near = difflib.get_close_matches(given, plain, n=1, cutoff=_LEAST_ALIKE)
    # patient_id is no misspelt patient: what is longer by a word was meant so.
    return plain[near[0]] if near and abs(len(near[0]) - len(given)) <= 1 else None


def warn_of_misspelt(columns: Iterable[str], known: Iterable[str], stacklevel: int) -> None:
    """Warn of each column that looks like a known one which the table lacks."""
    names = set(columns)
    lacking = [name for name in known if name not in names]
    for column in sorted(names.difference(known)):
        if (near := nearest_name(column, lacking)) is not None:
            warnings.warn(
                f"the slides' table has a column '{column}', which is kept as a fact of the slides: if it means "
                f"'{near}', name it so",
                UserWarning,
                stacklevel,
            )
