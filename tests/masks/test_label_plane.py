"""A slide's classes as a plane: each patch px has the class at its center, whatever the mask's resolution."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdask.errors import MaskError
from msdask.masks.label_plane import ArrayPlane


def one_by_one(
    plane: ArrayPlane, x0: np.ndarray, y0: np.ndarray, footprints: tuple[float, ...], size: int
) -> np.ndarray:
    """The same px by px: where is its center, and what does the mask say there?"""
    maps = np.zeros((*x0.shape, size, size), np.uint8)
    (height, width), (rows, columns) = plane.shape, plane.labels.shape
    for i, m, j, k in np.ndindex(*maps.shape):
        y = float(y0[i, m]) + (j + 0.5) * footprints[m] / size
        x = float(x0[i, m]) + (k + 0.5) * footprints[m] / size
        if 0 <= y < height and 0 <= x < width:
            row, column = int(np.floor(y * (rows / height))), int(np.floor(x * (columns / width)))
            maps[i, m, j, k] = plane.labels[min(row, rows - 1), min(column, columns - 1)]
    return maps


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(0.3, 80),
    st.integers(0, 2**31),
)
def test_every_px_has_the_class_at_its_center(
    height: int, width: int, rows: int, columns: int, size: int, footprint: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 256, (rows, columns))
    plane = ArrayPlane.of(labels, (height, width), what="mask")
    x0, y0 = (random.integers(-90, side + 40, (3, 2)).astype(np.int32) for side in (width, height))
    footprints = (footprint, 3.7 * footprint)
    maps = plane.cut(x0, y0, footprints, size)
    assert maps.dtype == np.uint8
    np.testing.assert_array_equal(maps, one_by_one(plane, x0, y0, footprints, size))


def test_an_impulse_lands_on_its_px_at_every_magnification() -> None:
    labels = np.zeros((1024, 1024), np.uint8)
    labels[515, 520] = 9
    plane = ArrayPlane.of(labels, (1024, 1024), what="mask")
    # Concentric around (512, 512): 64 px at 1, 2 and 4 level-0 px; only centers count, so an impulse of one px shows in
    # the map whose px it is, and in the coarser ones where it lies under a center.
    sides = (64.0, 128.0, 256.0)
    origins = np.array([[512 - side / 2 for side in sides]], np.int32)
    maps = plane.cut(origins, origins, sides, 64)
    assert np.argwhere(maps).tolist() == [[0, 0, 35, 40]]
    labels[512:516, 520:524] = 9
    maps = ArrayPlane.of(labels, (1024, 1024), what="mask").cut(origins, origins, sides, 64)
    found = [np.argwhere(one).tolist() for one in maps[0]]
    assert found[0] == [[y, x] for y in range(32, 36) for x in range(40, 44)]
    assert found[1] == [[y, x] for y in (32, 33) for x in (36, 37)]
    assert found[2] == [[32, 34]]


def test_a_plane_travels() -> None:
    plane = ArrayPlane.of(np.array([[0, 255]], np.uint16), (10, 20), ["tumor"], what="mask")
    other = pickle.loads(pickle.dumps(plane))
    assert (other.shape, other.classes, other.labels.dtype) == ((10, 20), ("tumor",), np.uint8)
    np.testing.assert_array_equal(other.labels, [[0, 255]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[0, 256]]), r"mask 'a.png': class 255 \(label 256\); .*255 classes at most"),
        (np.array([[-1, 2]]), "mask 'a.png': label -1; label maps hold labels from 0 to 255"),
        (np.zeros((2, 2), np.float32), "mask 'a.png': shape .* of float32; expected .* whole numbers"),
        (np.zeros((2, 2, 3), np.uint8), r"mask 'a.png': shape \(2, 2, 3\)"),
    ],
)
def test_what_is_no_label_mask_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        ArrayPlane.of(labels, (10, 10), what="mask 'a.png'")
