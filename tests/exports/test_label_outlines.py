"""Outlines that are traced band by band: the same polygons as those that are traced at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from msdask.exports import label_outlines
from msdask.exports.label_outlines import traced_bands
from msdask.exports.tracing import polygons_of
from msdask.masks.outlines import Outlines

NAMES = ("a", "b", "c")


def _rings(parts: list[Outlines]) -> set[tuple]:
    """Every polygon: its class, its outer ring and its holes, each from its least corner on."""
    found = []
    for part in parts:
        for p in range(len(part)):
            rings = []
            for r in range(part.polygons[p], part.polygons[p + 1]):
                corners = [tuple(xy) for xy in part.xy[part.rings[r] : part.rings[r + 1]].tolist()]
                first = corners.index(min(corners))
                rings.append(tuple(corners[first:] + corners[:first]))
            found.append((part.classes[part.class_of[p]], rings[0], tuple(sorted(rings[1:]))))
    assert len(found) == len(set(found))
    return set(found)


def _check(labels: np.ndarray, rows: int) -> None:
    before = label_outlines.BAND_PX
    label_outlines.BAND_PX = rows * labels.shape[1]
    try:
        bands = list(traced_bands(labels, classes=NAMES, scale=(2.0, 4.0), origin=(10.0, 0.5)))
    finally:
        label_outlines.BAND_PX = before
    assert _rings(bands) == _rings([polygons_of(labels, classes=NAMES, scale=(2.0, 4.0), origin=(10.0, 0.5))])


@settings(max_examples=150, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.integers(0, 2)), st.data())
def test_bands_are_joined_to_what_is_traced_at_once(labels, data):
    _check(labels, data.draw(st.integers(1, 5)))


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_large_areas_with_holes_are_joined(rows):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (12, 15)).astype(np.uint8)
    labels = coarse.repeat(8, 0).repeat(8, 1)
    labels[rng.random(labels.shape) < 0.05] = 0
    _check(labels, rows)
