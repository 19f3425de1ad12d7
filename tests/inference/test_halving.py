"""Shards of coarser levels that are made of those in hand: the same as those of whole levels, few waiting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdask.inference.halving import InHand, Shard, halved_labels, halved_means
from msdask.inference.ome_zarr import level_shapes
from msdask.selection.positions import morton_order


def _cut(plane: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    return plane[..., row * side : (row + 1) * side, column * side : (column + 1) * side]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(65, 400),
    st.integers(1, 400),
    st.sampled_from([8, 32, 33]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, "uint8", "float16"]),
)
def test_shards_in_hand_make_the_levels_of_the_whole(
    seed: int, height: int, width: int, side: int, there: float, kind: str | None
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (height, width), dtype=np.uint8)
    grid = -(-height // side), -(-width // side)
    has_tissue = rng.random(grid) < 0.7
    labels[~np.kron(has_tissue, np.ones((side, side), bool))[:height, :width]] = 0
    values = (rng.random((2, height, width)) * 255).astype(kind or "uint8")
    values[:, labels == 0] = np.nan if kind == "float16" else 0
    shapes = level_shapes((height, width))
    levels = [(labels, values)]
    for _ in shapes[1:]:
        finer, known = levels[-1]
        levels.append((halved_labels(finer), halved_means(known, finer)))

    at = np.stack(np.nonzero(has_tissue), 1).astype(np.int64)
    at = at[morton_order(at[:, 1], at[:, 0])]
    coming = rng.random(len(at)) >= there
    in_hand = InHand(shapes, side, at, coming, None if kind is None else (2, kind))
    made: dict[tuple[int, int, int], Shard] = {}
    for row, column in at[coming].tolist():
        one: Shard | None = Shard(
            0,
            row,
            column,
            _cut(labels, row, column, side),
            None if kind is None else _cut(values, row, column, side),
        )
        while (one := in_hand.above(one)) is not None:
            made[one.level, one.row, one.column] = one
        assert len(in_hand._waiting) <= len(shapes) - 1, "one of each level"
    assert not in_hand._waiting, "nothing is begun that cannot be ended"
    assert in_hand.made == set(made)

    expected, parents, can = set(), at, coming
    for level in range(1, len(shapes)):
        of_parent = [tuple(p) for p in (parents // 2).tolist()]
        whole = {p: all(c for q, c in zip(of_parent, can, strict=True) if q == p) for p in set(of_parent)}
        parents, can = np.array(list(whole)).reshape(-1, 2), list(whole.values())
        expected |= {(level, *p) for p, c in whole.items() if c}
    assert set(made) == (expected if side % 2 == 0 else set())
    for (level, row, column), one in made.items():
        plane, means = levels[level]
        np.testing.assert_array_equal(one.labels, _cut(plane, row, column, side))
        if kind is not None:
            np.testing.assert_array_equal(one.probability, _cut(means, row, column, side))


@pytest.mark.parametrize("kind", [None, "uint8", "float16"])
def test_an_empty_shard_has_looked_at_nothing(kind: str | None) -> None:
    none = np.zeros((0, 2), np.int64)
    in_hand = InHand([(100, 70)], 64, none, np.zeros(0, bool), None if kind is None else (3, kind))
    one = in_hand.empty(0, 1, 1)
    assert one.labels.shape == (36, 6)
    assert not one.labels.any()
    if kind is None:
        assert one.probability is None
    else:
        assert one.probability is not None
        assert one.probability.shape == (3, 36, 6)
        assert (np.isnan(one.probability) if kind == "float16" else one.probability == 0).all()
