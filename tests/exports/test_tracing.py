"""Outlines of label maps: along the edges of px, so that they can be drawn again to the px."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from msdask.errors import SpecError
from msdask.exports.tracing import polygons_of
from msdask.masks.outlines import Outlines, join_outlines

NAMES = ("tumor", "stroma")


def drawn(outlines: Outlines, shape: tuple[int, int]) -> np.ndarray:
    """The slow, obvious way: is the center of a px inside an odd number of rings of the polygon?"""
    labels = np.zeros(shape, np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    for p, k in enumerate(outlines.class_of):
        inside = np.zeros(shape, bool)
        for r in range(outlines.polygons[p], outlines.polygons[p + 1]):
            ring = outlines.xy[outlines.rings[r] : outlines.rings[r + 1]]
            for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if y1 != y2:
                    inside ^= ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
        labels[inside] = k + 1
    return labels


maps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2))


@given(maps)
@settings(max_examples=60, deadline=None)
def test_outlines_drawn_again_are_the_labels(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(drawn(polygons_of(labels, classes=NAMES), labels.shape), labels)


@given(maps)
@settings(max_examples=60, deadline=None)
def test_rings_are_simple_and_turned_and_each_area_is_one_polygon(labels: np.ndarray) -> None:
    found = polygons_of(labels, classes=NAMES)
    np.testing.assert_array_equal(found.areas > 0, ~found.is_hole)
    steps = found.xy[found.following] - found.xy
    assert ((steps == 0).sum(axis=1) == 1).all(), "edges run along rows and columns"
    before = np.empty_like(steps)
    before[found.following] = steps
    assert ((steps == 0) != (before == 0)).all(), "no corner lies on a straight edge"
    for start, end in zip(found.rings, found.rings[1:], strict=False):
        ring = found.xy[start:end]
        assert len(np.unique(ring, axis=0)) == len(ring), "no ring touches itself"
    for k in range(2):
        pieces, count = ndimage.label(labels == k + 1)
        assert (found.class_of == k).sum() == count
        areas = np.add.reduceat(found.areas, found.polygons[:-1])[found.class_of == k] if count else []
        assert sorted(areas) == sorted(np.bincount(pieces.ravel())[1:])


def test_places_and_sizes_are_those_of_the_slide() -> None:
    labels = np.array([[0, 1], [2, 1]])
    found = polygons_of(labels, classes=NAMES, origin=(100, 200), scale=(4, 2.5))
    np.testing.assert_array_equal(found.boxes, [[104, 200, 108, 205], [100, 202.5, 104, 205]])
    np.testing.assert_array_equal(found.class_of, [0, 1])
    np.testing.assert_array_equal(found.xy[:4], [[104, 200], [108, 200], [108, 205], [104, 205]])


@pytest.mark.parametrize("labels", [np.zeros((0, 3), int), np.zeros((4, 4), np.uint8)])
def test_a_map_without_classes_has_no_outlines(labels: np.ndarray) -> None:
    found = polygons_of(labels, classes=NAMES)
    assert (len(found), found.xy.shape, found.classes) == (0, (0, 2), NAMES)
    assert found.areas.size == found.boxes.size == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((2, 2), 3), r"labels of 3 to 3 with 2 classes \['tumor', 'stroma'\]: expected 0 .* to 2"),
        (np.full((2, 2), -1), "labels of -1 to -1"),
        (np.zeros((2, 2)), "type float64: expected"),
        (np.zeros((2, 2, 1), int), r"shape \(2, 2, 1\)"),
    ],
)
def test_what_is_no_label_map_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        polygons_of(labels, classes=NAMES)


def test_parts_are_joined_and_some_polygons_taken() -> None:
    labels = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 0]])
    whole = polygons_of(labels, classes=NAMES)
    assert whole.take(slice(0, 2)) == whole
    second, first = whole.take(np.array([1])), whole.take(np.array([0]))
    assert len(first.rings) - 1 == 2
    assert join_outlines([first, second]) == whole
    turned = join_outlines([second, first])
    assert turned.take(np.array([1, 0])) == whole
    other = Outlines(second.xy, second.rings, second.polygons, np.zeros(1, np.int32), ("stroma",))
    assert join_outlines([other, first]).classes == ("stroma", "tumor")
    np.testing.assert_array_equal(join_outlines([other, first]).class_of, [0, 1])
    assert len(join_outlines([])) == 0
