"""Outlines that were traced band by band, joined along the borders of the bands: as if there had been one band.

Everything here is in px of the map, whole numbers. An edge has the inside of its area on its right hand, on the screen:
one that runs to the right has it below, one that runs to the left above.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from msdask.exports.tracing import cycles
from msdask.masks.outlines import Outlines, join_outlines, runs

__all__ = ["Joiner", "joined"]

_RIGHT, _DOWN, _LEFT, _UP = range(4)


class Joiner:
    """Takes the polygons of band after band, and gives those that nothing can be added to any more.

    Parameters
    ----------
    width : of the map, px
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._waiting: list[Outlines] = []
        self._above = np.full(width, -1, np.int64)

    def add(self, band: Outlines, top: int, bottom: int, *, is_last: bool) -> Iterator[Outlines]:
        """Polygons that are complete with this band.

        Parameters
        ----------
        band : polygons of the rows [top, bottom), in px of the map
        is_last : whether no band follows
        """
        edge = np.asarray(band.boxes, np.int64).reshape(-1, 4)
        is_open = ((edge[:, 1] == top) & (top > 0)) | ((edge[:, 3] == bottom) & (not is_last))
        yield band.take(np.flatnonzero(~is_open))
        pieces = band.take(np.flatnonzero(is_open))
        area = self._areas(pieces, top)
        parts: dict[int, list[Outlines]] = {}
        single = (pieces.take(np.array([i])) for i in range(len(pieces)))
        for name, part in zip(area.tolist(), [*self._waiting, *single], strict=True):
            parts.setdefault(name, []).append(part)
        below = _owners(pieces, bottom, _LEFT, self._width)
        here = np.flatnonzero(below >= 0) if not is_last else np.empty(0, np.int64)
        reaching, number = np.unique(area[len(self._waiting) + below[here]], return_inverse=True)
        self._above = np.full(self._width, -1, np.int64)
        self._above[here] = number
        self._waiting = [join_outlines(parts.pop(name)) for name in reaching.tolist()]
        for found in parts.values():
            yield joined(join_outlines(found))

    def _areas(self, pieces: Outlines, top: int) -> NDArray[np.int64]:
        """The area that each waiting one, and each piece after them, belongs to: a number each."""
        above, below = self._above, _owners(pieces, top, _RIGHT, self._width)
        both = np.flatnonzero((above >= 0) & (below >= 0))
        waiting = np.array([part.class_of[0] for part in self._waiting], np.int64)
        both = both[waiting[above[both]] == pieces.class_of[below[both]]] if len(both) else both
        count = len(waiting) + len(pieces)
        links = np.ones(len(both), np.int8), (above[both], len(waiting) + below[both])
        return np.asarray(connected_components(coo_array(links, (count, count)), directed=False)[1], np.int64)


def _owners(pieces: Outlines, y: int, direction: int, width: int) -> NDArray[np.int64]:
    """(width,) number of the polygon whose edge of this direction runs along each px at `y`; -1 for none."""
    owners = np.full(width, -1, np.int64)
    xy = np.asarray(np.rint(pieces.xy), np.int64)
    there = xy[pieces.following]
    ahead = there[:, 0] - xy[:, 0]
    is_wanted = (xy[:, 1] == y) & (there[:, 1] == y) & ((ahead > 0) if direction == _RIGHT else (ahead < 0))
    first, last = (pick(xy[is_wanted, 0], there[is_wanted, 0]) for pick in (np.minimum, np.maximum))
    number = np.repeat(np.arange(len(pieces)), np.diff(pieces.corners))[is_wanted]
    owners[runs(first, last)] = np.repeat(number, last - first)
    return owners


def joined(parts: Outlines) -> Outlines:
    """One polygon of the polygons of one area that touch along horizontal edges.

    Edges that run there and back cancel. What is left is linked anew: where four edges meet, each turns to the left,
    around the px outside, so that no ring touches itself.
    """
    begin = np.asarray(np.rint(parts.xy), np.int64)
    end = begin[parts.following]
    flat = begin[:, 1] == end[:, 1]
    begin, end = (
        np.concatenate([upright, level])
        for upright, level in zip((begin[~flat], end[~flat]), _cancelled(begin[flat], end[flat]), strict=True)
    )
    step = np.sign(end - begin)
    heading = np.select([step[:, 0] > 0, step[:, 1] > 0, step[:, 0] < 0], [_RIGHT, _DOWN, _LEFT], _UP)
    width = int(max(begin[:, 0].max(), end[:, 0].max())) + 1
    leaves, arrives = (at[:, 1] * width + at[:, 0] for at in (begin, end))
    order = np.lexsort((heading, leaves))
    keys = leaves[order] * 4 + heading[order]
    first = np.searchsorted(keys, arrives * 4)
    is_double = np.searchsorted(keys, arrives * 4 + 4) - first == 2
    turned = np.searchsorted(keys, arrives * 4 + (heading - 1) % 4)
    following = order[np.where(is_double, turned, first)]
    ring, place = cycles(following)
    order = np.lexsort((place, ring))
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    order = order[(heading[before] != heading)[order]]  # an edge that goes straight on has no corner
    xy, ring = begin[order].astype(np.float64), ring[order]
    starts = np.concatenate([np.flatnonzero(np.diff(ring, prepend=-1)), [len(ring)]])
    area = Outlines(xy, starts, np.array([0, len(starts) - 1]), parts.class_of[:1], parts.classes)
    return _outer_first(area)


def _cancelled(begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is left of horizontal edges where those that run to the right and to the left along one place cancel."""
    y = np.concatenate([begin[:, 1], end[:, 1]])
    x = np.concatenate([begin[:, 0], end[:, 0]])
    # From left to right along a row: how much runs to the right, less what runs to the left, up to the next corner.
    change = np.repeat([1, -1], len(begin))  # where one to the right begins, where one to the left begins, too
    order = np.lexsort((x, y))
    y, x = y[order], x[order]
    flow = np.cumsum(change[order])
    is_end = np.append((np.diff(x) != 0) | (np.diff(y) != 0), True)  # several at one corner count together
    y, x, flow = y[is_end], x[is_end], flow[is_end]
    here = np.flatnonzero(flow[:-1])
    left, right = np.stack([x[here], y[here]], 1), np.stack([x[here + 1], y[here]], 1)
    runs_right = (flow[here] > 0)[:, None]
    return np.where(runs_right, left, right), np.where(runs_right, right, left)


def _outer_first(area: Outlines) -> Outlines:
    """The polygon with the ring around it before its holes."""
    order = np.argsort(area.areas < 0, kind="stable")
    corners = runs(area.rings[order], area.rings[order + 1])
    rings = np.concatenate([[0], np.cumsum(np.diff(area.rings)[order])])
    return Outlines(area.xy[corners], rings, area.polygons, area.class_of, area.classes)
