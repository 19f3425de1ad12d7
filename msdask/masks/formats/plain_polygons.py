"""Polygons of features whose text is plain, as nearly all text is: no Python object a corner or a ring."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["STAND_IN", "PlainFeatures", "RingsOfPolygons"]

STAND_IN: Final = 60_247_301
"""What features have of "coordinates" when they are parsed without them; no number that a file has there."""
_BEGINS: Final = (
    b'{"type":"Feature","id":"',
    b'{"type": "Feature", "id": "',
    b'{"type":"Feature"',
    b'{"type": "Feature"',
)
"""How a feature begins, up to its id if it has one."""
_CUT: Final = b"\0"
"""Where the coordinates were; no JSON has this byte."""
_OPEN: Final = b"[[["
_CLOSE: Final = b"]]]"
_OF_NUMBERS: Final = b"+-.0123456789Ee"
_POLYGONS: Final = re.compile(rb"\[\[p*+q(?:,\[p*+q)*+\](?:,\[\[p*+q(?:,\[p*+q)*+\])*+")
"""Polygons, where p is a corner with the comma behind it, and q the last corner with the bracket behind it."""
_MOST_KNOWN: Final = 1 << 12


class RingsOfPolygons(NamedTuple):
    """Polygons as a file has them: the last corner of a ring should be the first one again.

    names : (p,) class of each
    xy : (n, 2) float64, corners of all rings of all polygons, one after the other
    rings : (r,) int64, how many corners each ring has
    polygons : (p,) int64, how many rings each polygon has
    """

    names: list[str]
    xy: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]


class PlainFeatures:
    """Reads features from their text, twice as fast as making an object of each corner.

    Corners are cut out: their brackets are looked at as one string, their numbers parsed as one list. What is left of
    a feature is the same for many of them, but for the id, and is parsed once.

    Parameters
    ----------
    name_of : class of a feature whose geometry is a polygon with the coordinates `STAND_IN`; None for any other
    """

    def __init__(self, name_of: Callable[[Any], str | None]) -> None:
        self._name_of = name_of
        self._known: dict[bytes, str] = {}

    def __call__(self, text: bytes) -> RingsOfPolygons | None:
        """Their polygons.

        Parameters
        ----------
        text : JSON values with commas between them

        Returns
        -------
        found : None where the text is not plain, or no JSON: whoever parses all of it will know. Plain are features
            that begin with their type, of polygons of corners [x,y] of two numbers, written without spaces, or with
            one after each comma and colon
        """
        first, *pieces = text.split(_OPEN)
        cut = [piece.partition(_CLOSE) for piece in pieces]
        corners = _OPEN + (_CLOSE + b"," + _OPEN).join([corners for corners, _, _ in cut]) + _CLOSE
        corners = corners.replace(b", ", b",")
        names = self._names(_CUT.join([first, *[rest for _, _, rest in cut]]))
        if names is None:
            return None
        shape = _shape(corners)
        if shape is None or len(shape[1]) != len(names):
            return None
        try:
            numbers = orjson.loads(b"[%b]" % corners.translate(None, b"[]"))
        except orjson.JSONDecodeError:
            return None
        return RingsOfPolygons(names, np.fromiter(numbers, np.float64, len(numbers)).reshape(-1, 2), *shape)

    def _names(self, text: bytes) -> list[str] | None:
        """Classes of features without their coordinates."""
        begin = next((begin for begin in _BEGINS if text.lstrip().startswith(begin)), None)
        if begin is None:
            return None
        before, *shells = text.split(begin)
        if before.strip():
            return None
        if b'"id"' in begin:
            with_id = [shell.partition(b'"') for shell in shells]
            shells = [shell for _, _, shell in with_id]
            # No backslash: the quote behind an id ends it.
            if not b"".join([name for name, _, _ in with_id]).replace(b"-", b"").isalnum():
                return None
        shells[-1] += b","
        known = self._known
        names = [known.get(shell) or self._name(shell, begin) for shell in shells]
        found = [name for name in names if name is not None]
        return found if len(found) == len(names) else None

    def _name(self, shell: bytes, begin: bytes) -> str | None:
        """Class of a feature from what is behind its id or type, if that is the rest of a feature and a comma."""
        head, _, tail = shell.rstrip().partition(_CUT)
        if not tail.endswith(b","):
            return None
        quote = b'"' if b'"id"' in begin else b""
        try:
            (feature,) = orjson.loads(b"[%b%b%b%d%b]" % (begin, quote, head, STAND_IN, tail[:-1]))
        except ValueError:
            return None
        name = self._name_of(feature)
        if name is not None and len(self._known) < _MOST_KNOWN:
            self._known[shell] = name
        return name


def _shape(corners: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Corners of each ring and rings of each polygon; None where the text is something else than such."""
    text = np.frombuffer(corners, np.uint8)
    here, there = text[:-1], text[1:]
    # Numbers are left out below: none may stand outside of the brackets of a corner.
    is_behind = (here == ord("]")) & (there != ord(",")) & (there != ord("]"))
    is_before = (there == ord("[")) & (here != ord(",")) & (here != ord("["))
    if is_behind.any() or is_before.any():
        return None
    marks = corners.translate(None, _OF_NUMBERS).replace(b"[,],", b"p").replace(b"[,]]", b"q")
    if _POLYGONS.fullmatch(marks) is None:
        return None
    ring_ends = np.flatnonzero(np.frombuffer(marks.translate(None, b"[],"), np.uint8) == ord("q")) + 1
    of_rings = np.frombuffer(marks.translate(None, b"p,["), np.uint8)
    polygon_ends = np.flatnonzero(of_rings == ord("]"))
    polygon_ends -= np.arange(len(polygon_ends))
    return np.diff(ring_ends, prepend=0), np.diff(polygon_ends, prepend=0)
