"""How patches are counted, everywhere: a patch of a grid is a patch, those around one center are one tuple."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "word_for"]


def word_for(magnifications: int) -> str:
    """What the rows of a set of so many magnifications are called: "patches" or "tuples"."""
    return "patches" if magnifications == 1 else "tuples"


def counted(rows: Iterable[tuple[int, int]]) -> str:
    """How many there are, in words.

    Parameters
    ----------
    rows : (rows, magnifications of each), in any number of parts

    Examples
    --------
    >>> counted([(1200, 1)])
    '1,200 patches'
    >>> counted([(30, 3), (1200, 1), (10, 2)])
    '1,200 patches and 40 tuples'
    >>> counted([])
    '0 patches'
    """
    sums = {"patches": 0, "tuples": 0}
    for count, magnifications in rows:
        sums[word_for(magnifications)] += count
    return " and ".join(f"{n:,} {word}" for word, n in sums.items() if n or (word == "patches" and not sums["tuples"]))
