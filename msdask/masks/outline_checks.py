"""What outlines that were drawn by hand must pass before they are used: each message says which one, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.outlines import Outlines, runs

__all__ = ["check_inside", "check_outlines"]

_MOST_BEYOND: Final = 0.02
"""Share of the slide's longer side by which an outline may reach beyond its edge, as a hand that draws does."""
_PAIRS_AT_ONCE: Final = 1 << 20


def check_outlines(outlines: Outlines, path: str, *, first: int = 0) -> None:
    """Refuse outlines that have no inside, or not one that everybody would fill alike.

    Parameters
    ----------
    outlines : as a file has them
    path : of the file
    first : number of the first of them in the file

    Raises
    ------
    MaskError
        A corner is no finite number, a ring has fewer than three corners, or crosses itself; says which, and where.
    """
    is_finite = np.isfinite(outlines.xy)
    if not is_finite.all():
        ring = _ring_of(outlines, np.flatnonzero(~is_finite.all(axis=1)))
        raise MaskError(
            f"mask {path!r}: corners that are no finite numbers in {_named(outlines, ring, first)}; expected level-0 px"
        )
    counts = np.diff(outlines.rings)
    if (counts < 3).any():
        few = np.flatnonzero(counts < 3)
        raise MaskError(
            f"mask {path!r}: {int(counts[few[0]])} points in {_named(outlines, few, first)}; expected three or more, "
            "what has an area: remove it, or draw it again"
        )
    doubtful = np.flatnonzero(~_is_star(outlines))
    one_each = np.arange(len(outlines.rings)), np.zeros(len(outlines.rings) - 1, np.int32)
    rings = Outlines(outlines.xy, outlines.rings, *one_each, ()).take(doubtful)
    crossing = _crossing(rings)
    if crossing is not None:
        edge, x, y = crossing
        ring = doubtful[_ring_of(rings, np.array([edge]))]
        raise MaskError(
            f"mask {path!r}: {_named(outlines, ring, first)} crosses itself at x {x:.0f}, y {y:.0f}; expected simple "
            "outlines, since what is inside of it is not known: draw it again there, or split it"
        )


def check_inside(
    boxes: NDArray[np.float64], corners: NDArray[np.int64], path: str, slide_shape: tuple[int, int]
) -> None:
    """Refuse outlines of another slide, or in the px of another level: what lies outside the slide says so.

    Reaching a little beyond the edge is no fault.

    Parameters
    ----------
    boxes : (p, 4) left, top, right, bottom of each outline, level-0 px
    corners : (p,) how many corners each has
    path : of the file
    slide_shape : (height, width) of level 0, px

    Raises
    ------
    MaskError
        An outline lies outside the slide, or reaches more than 2 % of its longer side beyond it; says how many do, the
        range of all coordinates, and the slide's size.
    """
    if not len(boxes):
        return
    height, width = slide_shape
    size = np.array([width, height], np.float64)
    margin = _MOST_BEYOND * size.max()
    outside = ((boxes[:, :2] >= size) | (boxes[:, 2:] <= 0)).any(axis=1)
    outside |= ((boxes[:, :2] < -margin) | (boxes[:, 2:] > size + margin)).any(axis=1)
    if not outside.any():
        return
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    raise MaskError(
        f"mask {path!r}: {int(outside.sum())} of {len(boxes)} outlines ({int(corners[outside].sum())} corners) lie "
        f"outside the slide, or reach far beyond it: x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}; the "
        f"slide has {width} x {height} px. Expected level-0 px of this slide: were they drawn on another slide, at "
        "another level, or in um? Scale them to level 0"
    )


def _ring_of(outlines: Outlines, corners: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(np.searchsorted(outlines.rings, corners, side="right") - 1)


def _named(outlines: Outlines, rings: NDArray[np.int64], first: int) -> str:
    """The outlines that some rings belong to: "outline 3 ('tumor', at x 10, y 20) and 2 more"."""
    polygons = np.unique(np.searchsorted(outlines.polygons, rings, side="right") - 1)
    number = int(polygons[0])
    start = int(outlines.corners[number])
    where = ""
    if start < len(outlines.xy) and np.isfinite(outlines.xy[start]).all():
        x, y = outlines.xy[start].tolist()
        where = f", at x {x:.0f}, y {y:.0f}"
    name = outlines.classes[outlines.class_of[number]]
    more = f" and {len(polygons) - 1} more" if len(polygons) > 1 else ""
    hole = "a hole of " if int(rings[0]) != int(outlines.polygons[number]) else ""
    return f"{hole}outline {first + number + 1} ({name!r}{where}){more}"


def _is_star(outlines: Outlines) -> NDArray[np.bool_]:
    """Which rings go once around the mean of their corners, never back: they cannot cross themselves. (r,)

    Outlines of nuclei are such, nearly all: it saves most of the time that looking at pairs of edges takes.
    """
    starts, lengths = outlines.rings[:-1], np.diff(outlines.rings)
    middle = np.add.reduceat(outlines.xy, starts) / lengths[:, None]
    here = outlines.xy - np.repeat(middle, lengths, axis=0)
    there = here[outlines.following]
    turn = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
    rises = np.add.reduceat(((here[:, 1] < 0) & (there[:, 1] >= 0)).astype(np.int64), starts)
    one_way = (np.minimum.reduceat(turn, starts) > 0) | (np.maximum.reduceat(turn, starts) < 0)
    return np.asarray(one_way & (rises == 1))


def _crossing(outlines: Outlines) -> tuple[int, float, float] | None:
    """The first edge that crosses another one of its ring, by its first corner, and where; None if there is none."""
    a, b = outlines.xy, outlines.xy[outlines.following]
    if not len(a):
        return None
    ring = np.repeat(np.arange(len(outlines.rings) - 1), np.diff(outlines.rings))
    left, right = np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 0], b[:, 0])
    order = np.lexsort((left, ring))
    # Edges of a ring from the left: one can meet those only that begin before it ends.
    last = _last_overlapping(left[order], right[order], outlines.rings)
    own = np.arange(len(order))
    low, high = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    for one, other in _pairs(own, last):
        e, f = order[one], order[other]
        near = (low[e] < high[f]) & (low[f] < high[e])
        e, f = e[near], f[near]
        crosses = (_side(a[e], b[e], a[f]) * _side(a[e], b[e], b[f]) < 0) & (
            _side(a[f], b[f], a[e]) * _side(a[f], b[f], b[e]) < 0
        )
        if crosses.any():
            i, j = int(e[crosses][0]), int(f[crosses][0])
            start, end = _side(a[j], b[j], a[i]), _side(a[j], b[j], b[i])
            x, y = a[i] + (b[i] - a[i]) * (start / (start - end))
            return i, float(x), float(y)
    return None


def _last_overlapping(
    left: NDArray[np.float64], right: NDArray[np.float64], rings: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each interval of a ring, sorted by `left`, the end of those of its ring that begin before it ends."""
    # One search over all rings at once: each ring is moved behind the one before it.
    base = left[rings[:-1]]
    length = np.maximum.reduceat(right, rings[:-1]) - base + 1.0
    shift = np.repeat(np.concatenate([[0.0], np.cumsum(length)[:-1]]) - base, np.diff(rings))
    last = np.searchsorted(left + shift, right + shift, side="right")
    return np.minimum(last, np.repeat(rings[1:], np.diff(rings)))


def _pairs(own: NDArray[np.int64], last: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each number with all that follow it up to its last, many pairs at a time."""
    counts = np.maximum(last - own - 1, 0)
    ends = np.cumsum(counts)
    first = 0
    while first < len(own):
        done = int(ends[first - 1]) if first else 0
        until = max(first + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        some = slice(first, until)
        yield np.repeat(own[some], counts[some]), runs(own[some] + 1, own[some] + 1 + counts[some])
        first = until


def _side(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Above 0 where c lies on one side of the line from a to b, below on the other."""
    ab, ac = b - a, c - a
    return ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]
