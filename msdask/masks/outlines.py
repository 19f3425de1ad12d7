"""Polygons in a slide's level-0 px, with holes and classes: all of a file in a few flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outlines", "join_outlines", "runs"]

_RINGS_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True, eq=False, slots=True)
class Outlines:
    """Polygons of any number, as arrays: a million of them take no more Python objects than one.

    Attributes
    ----------
    xy : (n, 2) float64, corners of all rings one after the other, level-0 px; a ring's last corner is not its first
    rings : (r + 1,) int64, corner at which each ring begins, and n
    polygons : (p + 1,) int64, ring at which each polygon begins, and r; its first ring goes around it, the others are
        its holes
    class_of : (p,) int32, index into `classes`
    classes : names
    """

    xy: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    class_of: NDArray[np.int32]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of polygons."""
        return len(self.class_of)

    def __eq__(self, other: object) -> bool:
        """Whether corners, rings, polygons and classes are the same, in the same order."""
        if not isinstance(other, Outlines):
            return NotImplemented
        return self.classes == other.classes and all(
            np.array_equal(a, b)
            for a, b in (
                (self.xy, other.xy),
                (self.rings, other.rings),
                (self.polygons, other.polygons),
                (self.class_of, other.class_of),
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def corners(self) -> NDArray[np.int64]:
        """Corner at which each polygon begins, and n: (p + 1,)."""
        return self.rings[self.polygons]

    @property
    def is_hole(self) -> NDArray[np.bool_]:
        """Which rings are holes: (r,)."""
        holes = np.ones(len(self.rings) - 1, np.bool_)
        holes[self.polygons[:-1]] = False
        return holes

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Each polygon's left, top, right and bottom: (p, 4) level-0 px."""
        starts = self.corners[:-1]
        if not len(starts):
            return np.zeros((0, 4))
        return np.concatenate([np.minimum.reduceat(self.xy, starts), np.maximum.reduceat(self.xy, starts)], axis=1)

    @property
    def areas(self) -> NDArray[np.float64]:
        """Signed area of each ring, px^2: (r,); above 0 where it runs from x to y, clockwise on the screen."""
        areas = np.zeros(len(self.rings) - 1)
        # Some rings at a time: the numbers in between would take several times the memory of the corners.
        for first in range(0, len(areas), _RINGS_AT_ONCE):
            rings = self.rings[first : first + _RINGS_AT_ONCE + 1]
            xy, starts = self.xy[rings[0] : rings[-1]], rings[:-1] - rings[0]
            # Relative to each ring's first corner: products of coordinates far from the origin lose digits.
            here = xy - np.repeat(xy[starts], np.diff(rings), axis=0)
            there = here[_following(rings - rings[0])]
            cross = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
            areas[first : first + _RINGS_AT_ONCE] = np.add.reduceat(cross, starts) / 2
        return areas

    @property
    def following(self) -> NDArray[np.int64]:
        """The next corner of each corner's ring: (n,)."""
        return _following(self.rings)

    def take(self, polygons: NDArray[np.integer] | slice) -> Outlines:
        """Some of the polygons, in the order given.

        Parameters
        ----------
        polygons : (k,) numbers of polygons, or a slice of them
        """
        if isinstance(polygons, slice):
            polygons = np.arange(len(self))[polygons]
        rings = runs(self.polygons[polygons], self.polygons[polygons + 1])
        corners = runs(self.rings[rings], self.rings[rings + 1])
        return Outlines(
            self.xy[corners],
            _offsets(self.rings[rings + 1] - self.rings[rings]),
            _offsets(self.polygons[polygons + 1] - self.polygons[polygons]),
            self.class_of[polygons],
            self.classes,
        )

    def oriented(self) -> Outlines:
        """The same polygons, outer rings with an area above 0 and holes with one below it."""
        turn = (self.areas < 0) != self.is_hole
        if not turn.any():
            return self
        order = np.arange(len(self.xy))
        turned = np.repeat(turn, np.diff(self.rings))
        # A ring is turned around its first corner, which stays the first.
        first, end = (np.repeat(edge, np.diff(self.rings)) for edge in (self.rings[:-1], self.rings[1:]))
        back = np.where(order == first, first, first + end - order)
        return Outlines(self.xy[np.where(turned, back, order)], self.rings, self.polygons, self.class_of, self.classes)


def join_outlines(parts: Sequence[Outlines]) -> Outlines:
    """The polygons of all parts, one after the other; classes in the order in which they occur."""
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    number = {name: k for k, name in enumerate(classes)}
    if not parts:
        empty = np.zeros(1, np.int64)
        return Outlines(np.zeros((0, 2)), empty, empty, np.zeros(0, np.int32), ())
    renumbered = [
        np.array([number[name] for name in part.classes], np.int32)[part.class_of] if part.classes else part.class_of
        for part in parts
    ]
    return Outlines(
        np.concatenate([part.xy for part in parts]),
        _offsets(np.concatenate([np.diff(part.rings) for part in parts])),
        _offsets(np.concatenate([np.diff(part.polygons) for part in parts])),
        np.concatenate(renumbered),
        classes,
    )


def _following(rings: NDArray[np.int64]) -> NDArray[np.int64]:
    following = np.arange(1, int(rings[-1]) + 1)
    following[rings[1:] - 1] = rings[:-1]
    return following


def runs(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All whole numbers from each start up to its end, one run after the other."""
    lengths = ends - starts
    return np.arange(int(lengths.sum())) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
