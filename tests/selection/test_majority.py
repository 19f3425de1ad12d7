"""Labels by majority: for few classes and for thousands, the same to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msdask.selection import majority
from msdask.selection.majority import majority_labels


def naive(labels: NDArray[Any], x: float, y: float, side: float, scale: float) -> tuple[int, float]:
    """Class with the largest area under a footprint, px by px, and its fraction."""
    area: dict[int, float] = {}
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            high = max(0.0, min((y + side) * scale, row + 1) - max(y * scale, row))
            wide = max(0.0, min((x + side) * scale, column + 1) - max(x * scale, column))
            if labels[row, column] and high * wide:
                value = int(labels[row, column])
                area[value] = area.get(value, 0.0) + high * wide
    if not area:
        return -1, 0.0
    most = max(area.values())
    value = min(v for v, a in area.items() if a >= most - 1e-9)
    return value - 1, area[value] / (side * scale) ** 2


@given(
    seed=st.integers(0, 1000),
    classes=st.sampled_from([1, 3, 50, 30_000]),
    sides=st.lists(st.floats(1.0, 400.0), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_both_ways_give_the_same_bits(seed: int, classes: int, sides: list[float]) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes + 1, (13, 17)).astype(np.uint16)
    slide_shape = (13 * 16, 17 * 16)
    x, y = (random.uniform(-40, n, (40, len(sides))) for n in (slide_shape[1], slide_shape[0]))
    present = np.unique(labels[labels > 0]).astype(np.intp)
    one = majority._by_tables(labels, present, x, y, sides, slide_shape)
    other = majority._by_footprints(labels, present, x, y, sides, slide_shape)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("way", ["_by_tables", "_by_footprints"])
def test_both_ways_equal_counting_px_by_px(way: str) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 40, (9, 11)).astype(np.uint8)
    x, y = random.uniform(-10, 80, (2, 30, 1))
    found = getattr(majority, way)(labels, np.arange(1, 40), x, y, [21.7], (72, 88))
    expected = [naive(labels, a, b, 21.7, 1 / 8) for a, b in zip(x[:, 0], y[:, 0], strict=True)]
    assert found[0][:, 0].tolist() == [label for label, _ in expected]
    np.testing.assert_allclose(found[1][:, 0], [fraction for _, fraction in expected], atol=1e-12)


def test_of_equal_shares_the_lowest_class_wins_in_both_ways() -> None:
    labels = np.array([[7, 3], [3, 7]], np.uint16)
    corner = np.zeros((1, 1))
    for find in (majority._by_tables, majority._by_footprints):
        label, fraction = find(labels, np.array([3, 7]), corner, corner, [2.0], (2, 2))
        assert (label.item(), fraction.item()) == (2, 0.5)


def test_thousands_of_classes_are_not_gone_through_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majority, "SummedArea", None)
    labels = np.arange(1, 30_001, dtype=np.uint16).reshape(150, 200)
    y, x = (values.reshape(-1, 1).astype(float) * 64 for values in np.indices((37, 50)))
    label, fraction = majority_labels(labels, x, y, [64.0], (150 * 16, 200 * 16), min_label=0.0)
    assert label[:, 0].tolist() == [
        labels[int(b) // 16, int(a) // 16] - 1 for a, b in zip(x[:, 0], y[:, 0], strict=True)
    ]
    np.testing.assert_allclose(fraction, 1 / 16)
