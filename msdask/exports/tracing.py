"""From a label map to outlines along the edges of its px, which drawn again give the same px."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import SpecError
from msdask.masks.outlines import Outlines, join_outlines

__all__ = ["cycles", "polygons_of"]


def polygons_of(
    labels: NDArray[np.integer[Any]],
    *,
    classes: Sequence[str],
    origin: tuple[float, float] = (0.0, 0.0),
    scale: float | tuple[float, float] = 1.0,
) -> Outlines:
    """Trace the areas of each class along the edges of their px.

    Each area of px that hang together by their sides becomes one polygon, with its holes. Rings are simple: none
    touches or crosses itself, and what touches at a corner only is two polygons, or two rings. Outer rings run from x
    to y (clockwise on the screen, area above 0), holes the other way. Drawn at the same scale they give the labels
    again, exactly.

    Parameters
    ----------
    labels : (y, x) integers, 0 = unlabeled, k + 1 = class k
    classes : names
    origin : (x, y) of the map's top left corner, level-0 px
    scale : level-0 px per px of the map, or (x, y)

    Returns
    -------
    outlines : class by class; within a class from the top down, by the first px of each area

    Raises
    ------
    SpecError
        The map is no plane of integers, or has more classes than there are names.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise SpecError(f"labels of shape {labels.shape} and type {labels.dtype}: expected (y, x) integers")
    names = tuple(classes)
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > len(names):
        raise SpecError(
            f"labels of {low} to {high} with {len(names)} classes {list(names)}: expected 0 (unlabeled) to "
            f"{len(names)}; name all classes"
        )
    parts = [_trace(labels == k + 1, k, names) for k in range(len(names)) if k < high]
    traced = join_outlines([Outlines(*_NOTHING, names), *parts])
    x_scale, y_scale = (scale, scale) if isinstance(scale, (int, float)) else scale
    xy = traced.xy * np.array([x_scale, y_scale]) + np.array(origin, float)
    return Outlines(xy, traced.rings, traced.polygons, traced.class_of, names)


_NOTHING = np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32)


class _Corners(NamedTuple):
    """Where the border of a mask turns, row by row: two of them where px touch at a corner only.

    x, y : (n,) corner of the px grid
    below : (n,) whether the px to the right of it and below is inside
    beside : (n,) index of the corner at the other end of the vertical edge that ends here
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    below: NDArray[np.bool_]
    beside: NDArray[np.int64]


def _trace(mask: NDArray[np.bool_], number: int, names: tuple[str, ...]) -> Outlines:
    """The outlines of one class in px of the map."""
    padded = np.pad(mask, 1).view(np.uint8)
    areas = np.asarray(cv2.connectedComponents(padded, connectivity=4, ltype=cv2.CV_32S)[1], dtype=np.int32)
    corners = _corners(padded, areas)
    if not len(corners.x):
        return Outlines(*_NOTHING, names)
    # Along a row corners come in pairs, the ends of a horizontal edge. An edge runs right where the inside is below.
    left = np.arange(0, len(corners.x), 2)
    below = corners.below[left]
    start, end = np.where(below, left, left + 1), np.where(below, left + 1, left)
    ring, place = cycles(corners.beside[end] // 2)
    inside = areas[corners.y[left] + below, corners.x[left] + 1]
    # A ring's first edge is its uppermost: that of an area is the first edge of its outer ring.
    first_of_area = np.full(int(areas.max()) + 1, len(left))
    np.minimum.at(first_of_area, inside, ring)
    order = np.lexsort((place, ring, first_of_area[inside]))
    both = np.stack([start, end], axis=1)[order].reshape(-1)
    rings = _where_changed(ring[order])
    polygons = np.searchsorted(rings, _where_changed(inside[order]))
    xy = np.stack([corners.x[both], corners.y[both]], axis=1).astype(np.float64)
    return Outlines(xy, rings * 2, polygons, np.full(len(polygons) - 1, number, np.int32), names)


def _corners(padded: NDArray[np.uint8], areas: NDArray[np.int32]) -> _Corners:
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    is_odd = upper_left ^ upper_right ^ lower_left ^ lower_right
    is_saddle = (upper_left ^ upper_right) & (upper_left ^ lower_left) & (upper_left ^ lower_right ^ 1)
    count = (is_odd + 2 * is_saddle).reshape(-1)
    found = np.flatnonzero(count)
    at = np.repeat(found, count[found])
    y, x = np.divmod(at, is_odd.shape[1])
    # At a saddle the first of the two corners is the end of the edge from the left; it goes on up or down, so that
    # it goes around one px where the two px inside are of different areas, and parts the two px outside where they
    # are of one area: no ring touches itself.
    falls = padded[y, x].astype(np.bool_)
    is_one_area = np.where(falls, areas[y, x] == areas[y + 1, x + 1], areas[y, x + 1] == areas[y + 1, x])
    is_double = is_saddle.reshape(-1)[at].astype(np.bool_)
    is_second = np.zeros(len(at), np.bool_)
    is_second[1:] = at[1:] == at[:-1]
    is_upper = (falls ^ is_one_area) ^ is_second
    by_column = np.lexsort((is_double & ~is_upper, y, x))
    beside = np.empty(len(at), np.int64)
    beside[by_column[0::2]], beside[by_column[1::2]] = by_column[1::2], by_column[0::2]
    return _Corners(x, y, padded[y + 1, x + 1].astype(np.bool_), beside)


def cycles(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a permutation: the least element of each element's cycle, and how far from it the element comes.

    Both by doubling: rounds of the whole array as many as the longest cycle has bits.
    """
    own = np.arange(len(following))
    least, jump = own, following
    while True:
        less = np.minimum(least, least[jump])
        if np.array_equal(less, least):
            break
        least, jump = less, jump[jump]
    is_last = following == least
    left = np.where(is_last, 0, 1)
    jump = np.where(is_last, own, following)
    while True:
        more = left[jump]
        if not more.any():
            break
        left, jump = left + more, jump[jump]
    return least, left[least] - left


def _where_changed(values: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Where each run of equal values begins, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(np.diff(values)) + 1, np.array([len(values)])])
