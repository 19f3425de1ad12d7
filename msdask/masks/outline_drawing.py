"""Outlines drawn as px: a px belongs to a polygon where its center lies inside; of several polygons the last counts.

All polygons of all canvases are drawn at once, as arrays: where each edge crosses the line through the centers of a
row of px, then the runs of px between crossings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msdask.masks.outlines import Outlines, runs

__all__ = ["Canvases", "draw_outlines"]

_CORNERS_AT_ONCE: Final = 1 << 19
_CROSSINGS_AT_ONCE: Final = 1 << 21
_PIXELS_AT_ONCE: Final = 1 << 22
_OUTER, _INTO_HOLE, _OUT_OF_HOLE = 0, 1, 2


class Canvases(NamedTuple):
    """What is drawn on: images of one size, each anywhere on the slide.

    corners : (n, 2) float64, x and y of their top left corners, level-0 px
    steps : (n, 2) float64, level-0 px per px along x and y
    shape : (height, width) of each, px
    """

    corners: NDArray[np.float64]
    steps: NDArray[np.float64]
    shape: tuple[int, int]


def draw_outlines(
    outlines: Outlines,
    values: NDArray[np.unsignedinteger[Any]],
    canvases: Canvases,
    *,
    polygon: NDArray[np.int64],
    canvas: NDArray[np.int64],
) -> NDArray[np.unsignedinteger[Any]]:
    """Draw polygons on canvases.

    Parameters
    ----------
    outlines : polygons that are turned, as `Outlines.oriented` gives them. A ring that crosses itself is filled by the
        even-odd rule; a hole belongs to its own polygon only, and what reaches beyond that does nothing
    values : (p,) value of each polygon's px; 0 wipes out what is under it
    canvases : what to draw on
    polygon, canvas : (k,) which polygon is drawn on which canvas, in this order on each of them

    Returns
    -------
    drawn : (n, height, width) of the type of `values`; 0 where nothing is drawn
    """
    height, width = canvases.shape
    drawn = np.zeros((len(canvases.corners), height, width), values.dtype)
    flat = drawn.reshape(-1)
    corners = outlines.corners
    for part in _parts(corners[polygon + 1] - corners[polygon], _CORNERS_AT_ONCE):
        pairs, on = polygon[part], canvas[part]
        for starts, lengths, pair in _spans(outlines.take(pairs), canvases, on):
            first = on[pair] * (height * width) + starts
            for few in _parts(lengths, _PIXELS_AT_ONCE):
                # Of px that are given several times the last value stays.
                flat[runs(first[few], first[few] + lengths[few])] = np.repeat(values[pairs[pair[few]]], lengths[few])
    return drawn


_Spans = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _spans(outlines: Outlines, canvases: Canvases, canvas: NDArray[np.int64]) -> Iterator[_Spans]:
    """Runs of px inside, band of rows by band of rows: first px of its canvas, length, and polygon of each."""
    height, width = canvases.shape
    pair = np.repeat(np.arange(len(outlines)), np.diff(outlines.corners))
    at, step = canvases.corners[canvas[pair]], canvases.steps[canvas[pair]]
    # The first px along each axis whose center is not before the corner. Rows of edges are cut from these numbers of
    # their two corners, so that each row is crossed an even number of times, whatever is rounded.
    row = np.clip(np.ceil((outlines.xy[:, 1] - at[:, 1]) / step[:, 1] - 0.5), 0, height).astype(np.int64)
    following = outlines.following
    low, high = np.minimum(row, row[following]), np.maximum(row, row[following])
    edges = np.flatnonzero(high > low)
    if not edges.size:
        return
    x, y = outlines.xy[edges].T
    next_x, next_y = outlines.xy[following[edges]].T
    slope = (next_x - x) / (next_y - y)
    code = np.zeros(len(edges), np.int64)
    if outlines.is_hole.any():
        in_hole = np.repeat(outlines.is_hole, np.diff(outlines.rings))[edges]
        code = np.where(in_hole, np.where(next_y > y, _INTO_HOLE, _OUT_OF_HOLE), _OUTER)
    low, high, pair, at, step = low[edges], high[edges], pair[edges], at[edges], step[edges]
    bands = -(-int((high - low).sum()) // _CROSSINGS_AT_ONCE)
    limits = np.linspace(0, height, min(bands, height) + 1).astype(np.int64)
    for top, bottom in pairwise(limits.tolist()):
        first, end = np.clip(low, top, bottom), np.clip(high, top, bottom)
        edge, rows = np.repeat(np.arange(len(edges)), end - first), runs(first, end)
        center = at[edge, 1] + (rows + 0.5) * step[edge, 1]
        crossing = x[edge] + (center - y[edge]) * slope[edge]
        column = np.clip(np.ceil((crossing - at[edge, 0]) / step[edge, 0] - 0.5), 0, width).astype(np.int64)
        yield _runs_inside((pair[edge] * height + rows) * (width + 1) + column, code[edge], canvases.shape)


def _runs_inside(place: NDArray[np.int64], code: NDArray[np.int64], shape: tuple[int, int]) -> _Spans:
    """From crossings to runs: `place` is (polygon * height + row) * (width + 1) + column."""
    height, width = shape
    if code.any():
        ordered = np.sort(place * 4 + code)
        place, code = np.divmod(ordered, 4)
        in_outer = np.cumsum(code == _OUTER) & 1
        holes = np.cumsum(code == _INTO_HOLE) - np.cumsum(code == _OUT_OF_HOLE)
        inside = np.flatnonzero((in_outer == 1)[:-1] & (holes == 0)[:-1])
        start, end = place[inside], place[inside + 1]
    else:
        place = np.sort(place)
        start, end = place[0::2], place[1::2]
    filled = end > start
    start, lengths = start[filled], (end - start)[filled]
    line, column = np.divmod(start, width + 1)
    pair, row = np.divmod(line, height)
    return row * width + column, lengths, pair


def _parts(sizes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Slices of things in order, each of things whose sizes add up to `most`, or of one that is larger."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield slice(first, last)
        first = last
