"""Which patches cover an area, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from msdask.selection.covering import covering_patches

POINTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12)


def naive(areas, side, patches, footprint):
    found = []
    for ax, ay in areas:
        of = {}
        for row, (px, py) in enumerate(patches):
            width = min(ax + side, px + footprint) - max(ax, px)
            height = min(ay + side, py + footprint) - max(ay, py)
            if width > 0 and height > 0:
                of[row] = width * height / side**2
        found.append(of)
    return found


@settings(max_examples=60, deadline=None)
@given(areas=POINTS, patches=POINTS, side=st.integers(5, 40), footprint=st.integers(3, 15))
def test_it_finds_what_a_loop_over_all_pairs_finds(areas, patches, side, footprint):
    rows, shares = covering_patches(np.array(areas), side, np.array(patches), footprint)
    for of, mine, share in zip(naive(areas, side, patches, footprint), rows, shares, strict=True):
        assert mine[mine >= 0].tolist() == sorted(of)
        np.testing.assert_allclose(share[mine >= 0], [of[row] for row in sorted(of)], rtol=1e-5)
        assert (share[mine < 0] == 0).all()


def test_nothing_covers_nothing():
    rows, shares = covering_patches(np.zeros((3, 2)), 10, np.empty((0, 2)), 5)
    assert rows.shape == shares.shape == (3, 0)
