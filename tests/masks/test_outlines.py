"""Outlines drawn at any scale: exact at the centers of px, whatever is drawn at once, and the same as a label mask."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from msdask.errors import MaskError
from msdask.exports.tracing import polygons_of
from msdask.masks import outline_drawing
from msdask.masks.box_index import BoxIndex
from msdask.masks.label_plane import ArrayPlane
from msdask.masks.outline_plane import OutlinePlane
from msdask.masks.outlines import Outlines

Ring = list[tuple[float, float]]


def outlines(polygons: list[list[Ring]], class_of: list[int] | None = None, names: tuple[str, ...] = ()) -> Outlines:
    rings = [ring for polygon in polygons for ring in polygon]
    return Outlines(
        np.array([corner for ring in rings for corner in ring], float).reshape(-1, 2),
        np.cumsum([0, *map(len, rings)]),
        np.cumsum([0, *map(len, polygons)]),
        np.array(class_of or [0] * len(polygons), np.int32),
        names or ("a", "b", "c"),
    )


def inside(ring: Ring, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd, edge by edge."""
    found = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if y1 != y2:
            found ^= ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) * ((x2 - x1) / (y2 - y1)))
    return found


def naive(plane: OutlinePlane, polygons: list[list[Ring]], x0: int, y0: int, side: float, size: int) -> np.ndarray:
    """Polygon by polygon, over all px."""
    y, x = np.mgrid[:size, :size]
    x, y = x0 + (x + 0.5) * (side / size), y0 + (y + 0.5) * (side / size)
    labels = np.zeros((size, size), np.uint8)
    for value, (outer, *holes) in zip(plane.values, polygons, strict=True):
        in_hole = np.zeros((size, size), bool)
        for hole in holes:
            in_hole |= inside(hole, x, y)
        labels[inside(outer, x, y) & ~in_hole] = value
    height, width = plane.shape
    return labels * ((x >= 0) & (y >= 0) & (x < width) & (y < height))


corners = st.tuples(st.floats(-40, 240, width=16), st.floats(-40, 240, width=16))
rings = st.lists(corners, min_size=3, max_size=9)
small = st.tuples(corners, st.floats(2, 60, width=16), st.integers(3, 8), st.booleans())


def star(kind: tuple[tuple[float, float], float, int, bool]) -> Ring:
    (x, y), radius, count, turned = kind
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)[:: -1 if turned else 1]
    return [(x + radius * np.cos(a), y + radius * np.sin(a) * 0.7) for a in angles]


polygons_with_holes = st.tuples(rings, st.lists(small.map(star), max_size=3)).map(lambda p: [p[0], *p[1]])


@given(
    st.lists(polygons_with_holes, min_size=1, max_size=5),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    st.lists(st.tuples(st.integers(-60, 220), st.integers(-60, 220)), min_size=1, max_size=3),
    st.sampled_from([(16.0, 16), (100.3, 33), (300.0, 40), (7.5, 20)]),
)
@settings(max_examples=50, deadline=None)
def test_px_are_drawn_where_their_centers_lie_inside(
    polygons: list[list[Ring]], classes: list[int], places: list[tuple[int, int]], patch: tuple[float, int]
) -> None:
    side, size = patch
    # Class 2 is "unlabeled": it wipes out what is under it.
    plane = OutlinePlane.of(outlines(polygons, classes[: len(polygons)]), (200, 180), labels=[1, 2, 0])
    at = np.array(places, np.int32)
    maps = plane.cut(at[:, :1], at[:, 1:], [side], size)
    for (x0, y0), drawn in zip(places, maps[:, 0], strict=True):
        np.testing.assert_array_equal(drawn, naive(plane, polygons, x0, y0, side, size))


@given(st.lists(st.tuples(st.integers(0, 79), st.integers(0, 59)), min_size=3, max_size=8), st.sampled_from([1, 2.5]))
@settings(max_examples=60, deadline=None)
def test_a_polygon_is_what_scikit_image_draws(ring: Ring, scale: float) -> None:
    """Its px are points: its point (0, 0) is our center of a px. Points on an edge are anybody's."""
    shifted = [((x + 0.123) * scale, (y + 0.077) * scale) for x, y in ring]
    plane = OutlinePlane.of(outlines([[shifted]]), (1000, 1000))
    drawn = plane.cut(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), [80 * scale], 80)[0, 0]
    theirs = polygon2mask((80, 80), [(y / scale - 0.5, x / scale - 0.5) for x, y in shifted])
    np.testing.assert_array_equal(drawn == 1, theirs)


def test_a_label_mask_and_its_outlines_give_the_same_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (12, 15)), np.ones((5, 4), int)).astype(np.uint8)
    shape = (600, 600)
    mask = ArrayPlane.of(labels, shape, ("a", "b"), what="mask")
    drawn = OutlinePlane.of(polygons_of(labels, classes=("a", "b"), scale=(10, 10)), shape)
    drawn = pickle.loads(pickle.dumps(drawn))
    assert (drawn.shape, drawn.classes) == (mask.shape, mask.classes)
    x0, y0 = rng.integers(-100, 600, (2, 20, 2)).astype(np.int32)
    expected = mask.cut(x0, y0, (64.0, 256.0), 32)
    np.testing.assert_array_equal(drawn.cut(x0, y0, (64.0, 256.0), 32), expected)
    # However little is done at a time.
    for name in ("_CORNERS_AT_ONCE", "_CROSSINGS_AT_ONCE", "_PIXELS_AT_ONCE"):
        monkeypatch.setattr(outline_drawing, name, 40)
    np.testing.assert_array_equal(drawn.cut(x0, y0, (64.0, 256.0), 32), expected)


def test_later_outlines_cover_earlier_ones_and_holes_only_their_own() -> None:
    square = [(0.0, 0.0), (8.0, 0.0), (8.0, 8.0), (0.0, 8.0)]
    hole = [(2.0, 2.0), (12.0, 2.0), (12.0, 6.0), (2.0, 6.0)]  # reaches beyond its outline
    plane = OutlinePlane.of(outlines([[square], [square, hole]], [0, 1]), (16, 16))
    drawn = plane.cut(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), [16], 16)[0, 0]
    expected = np.zeros((16, 16))
    expected[:8, :8] = 2
    expected[2:6, 2:8] = 1
    np.testing.assert_array_equal(drawn, expected)


def test_a_plane_without_outlines_is_unlabeled() -> None:
    empty = Outlines(np.zeros((0, 2)), np.zeros(1, int), np.zeros(1, int), np.zeros(0, np.int32), ("a",))
    plane = OutlinePlane.of(empty, (100, 100))
    assert not plane.cut(np.zeros((3, 2), np.int32), np.zeros((3, 2), np.int32), [10, 20], 4).any()


def test_more_classes_than_a_label_map_holds_are_refused() -> None:
    names = tuple(str(k) for k in range(300))
    with pytest.raises(MaskError, match=r"label mask 'a\.xml': 300 classes; label maps hold 255"):
        OutlinePlane.of(outlines([[[(0, 0), (1, 0), (1, 1)]]], [299], names), (10, 10), what="label mask 'a.xml'")


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_the_index_finds_what_touches(seed: int, count: int, squares: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-500, 5000, (count, 2)).round()
    size = (2.0 ** rng.uniform(0, 13, (count, 1)) * rng.uniform(0.1, 1, (count, 2))).round()
    boxes = np.concatenate([corner, corner + size], axis=1)
    at = rng.uniform(-1000, 6000, (squares, 2)).round()
    asked = np.concatenate([at, at + rng.choice([16, 300, 4000], (squares, 1))], axis=1)
    touches = (boxes[None, :, :2] <= asked[:, None, 2:]).all(-1) & (boxes[None, :, 2:] >= asked[:, None, :2]).all(-1)
    found = np.stack(BoxIndex.of(boxes).touching(asked), axis=1)
    np.testing.assert_array_equal(found, np.argwhere(touches))
