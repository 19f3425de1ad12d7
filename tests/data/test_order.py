"""The order of an epoch: deterministic, complete, disjoint, balanced."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from msdask.data.order import EpochOrder, balanced_draws, block_order, draw_seeds
from msdask.errors import SpecError


def batches(order: EpochOrder, epoch: int = 0) -> list[np.ndarray]:
    indices = order.indices(epoch)
    return [indices[a:b] for a, b in pairwise(order.bounds(len(indices)).tolist())]


@given(
    patches=st.integers(1, 200),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 5),
    shuffle=st.sampled_from([True, False, "blocks"]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_ranks_share_an_epoch_disjointly_completely_and_in_equally_many_batches(
    patches: int, batch_size: int, world_size: int, shuffle: bool | str, drop_last: bool, epoch: int
) -> None:
    blocks = np.arange(patches) // 7
    orders = []
    for rank in range(world_size):
        try:
            orders.append(
                EpochOrder(
                    patches,
                    batch_size,
                    shuffle=shuffle,  # type: ignore[arg-type]
                    block_of=blocks,
                    drop_last=drop_last,
                    rank=rank,
                    world_size=world_size,
                )
            )
        except SpecError:
            too_few = patches < world_size * (batch_size if drop_last else 1)
            assert too_few or (batch_size == 1 and patches % world_size)
            return
    shares = [batches(order, epoch) for order in orders]
    sizes = [[len(batch) for batch in share] for share in shares]
    assert len({len(share) for share in shares}) == 1
    assert [len(order) for order in orders] == [len(share) for share in shares]
    drawn = np.concatenate([batch for share in shares for batch in share])
    assert len(set(drawn.tolist())) == len(drawn)
    if drop_last:
        assert {n for size in sizes for n in size} == {batch_size}
        assert patches - len(drawn) < world_size * (batch_size + 1)
    else:
        assert sorted(drawn.tolist()) == list(range(patches))
        assert all(1 <= n <= batch_size for size in sizes for n in size)


@given(patches=st.integers(2, 300), batch_size=st.integers(3, 17), world_size=st.integers(1, 5), balanced=st.booleans())
@settings(deadline=None, max_examples=200)
def test_no_batch_has_a_single_patch_where_there_are_enough(
    patches: int, batch_size: int, world_size: int, balanced: bool
) -> None:
    if patches < 2 * world_size:
        return
    groups = np.arange(patches) % 2 if balanced else None
    for rank in range(world_size):
        order = EpochOrder(patches, batch_size, group_of=groups, rank=rank, world_size=world_size)
        sizes = [len(batch) for batch in batches(order)]
        assert sum(sizes) == len(order.indices(0))
        assert set(sizes[:-2]) <= {batch_size}
        # Three cannot be cut into two and two.
        assert min(sizes) >= 2 or (batch_size == 3 and sum(sizes) % 3 == 0)


def test_a_last_batch_of_one_takes_one_of_the_batch_before() -> None:
    def sizes(patches: int, batch_size: int, **options: bool) -> list[int]:
        return [len(batch) for batch in batches(EpochOrder(patches, batch_size, **options))]

    assert sizes(17, 8) == [8, 7, 2]
    assert sizes(4, 3) == [2, 2]
    assert sizes(5, 2) == [2, 2, 1]  # two cannot give one: drop_last leaves it out
    assert sizes(1, 8) == [1]
    assert sizes(17, 8, drop_last=True) == [8, 8]


def test_the_order_follows_from_seed_and_epoch() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return EpochOrder(1000, 10, seed=seed).indices(epoch)[:10].tolist()

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_without_shuffle_the_order_is_the_datasets() -> None:
    assert EpochOrder(5, 2, shuffle=False).indices(3).tolist() == [0, 1, 2, 3, 4]


def test_balanced_draws_take_each_class_equally_and_each_patch_of_it() -> None:
    classes = np.repeat([0, 1, 2], [1000, 100, 10])
    drawn = balanced_draws(classes, 60_000, np.random.default_rng(3))
    assert chisquare(np.bincount(classes[drawn])).pvalue > 1e-3
    for k in range(3):
        members = drawn[classes[drawn] == k] - np.flatnonzero(classes == k)[0]
        counts = np.bincount(members, minlength=int((classes == k).sum()))
        assert len(counts) == (classes == k).sum()
        assert chisquare(counts).pvalue > 1e-3


def test_without_balance_the_same_test_fails() -> None:
    classes = np.repeat([0, 1, 2], [1000, 100, 10])
    drawn = np.random.default_rng(3).integers(0, len(classes), 60_000)
    assert chisquare(np.bincount(classes[drawn])).pvalue < 1e-9


def test_balanced_ranks_draw_on_their_own() -> None:
    classes = np.repeat([0, 1], [90, 11])
    orders = [EpochOrder(101, 10, group_of=classes, rank=rank, world_size=2) for rank in range(2)]
    draws = [order.indices(0) for order in orders]
    assert [len(d) for d in draws] == [51, 51]
    assert (draws[0] != draws[1]).any()
    np.testing.assert_array_equal(draws[0], orders[0].indices(0))


def naive_windows(block_of: np.ndarray, indices: np.ndarray, mix: int) -> list[set[int]]:
    """Blocks in the order in which they first appear, by windows of `mix`."""
    seen: list[int] = []
    for i in indices.tolist():
        if block_of[i] not in seen:
            seen.append(int(block_of[i]))
    return [set(seen[i : i + mix]) for i in range(0, len(seen), mix)]


def test_blocks_are_mixed_within_their_window_only() -> None:
    block_of = np.repeat(np.arange(20), 8)
    indices, windows = block_order(block_of, mix=4, seed=0, epoch=0)
    assert sorted(indices.tolist()) == list(range(160))
    assert (np.diff(windows) >= 0).all()
    for number, blocks in enumerate(naive_windows(block_of, indices, 4)):
        inside = indices[windows == number]
        assert set(block_of[inside].tolist()) == blocks
        assert len(inside) == 32
        assert (np.diff(inside) != 1).mean() > 0.8  # shuffled, not in storage order
    assert block_of[indices[windows == 0]].min() != 0 or block_of[indices[windows == 1]].min() != 4


def test_blocks_come_in_another_order_in_another_epoch() -> None:
    block_of = np.repeat(np.arange(20), 8)
    first = [block_order(block_of, mix=1, seed=0, epoch=e)[0][::8] // 8 for e in range(2)]
    assert (first[0] != first[1]).any()


def test_a_ranks_windows_hold_its_own_blocks() -> None:
    block_of = np.repeat(np.arange(20), 8)
    for rank in range(2):
        indices, windows = block_order(block_of, mix=5, seed=0, epoch=0, rank=rank, world_size=2)
        assert np.bincount(windows).tolist() == [40, 40]
        assert len(set(block_of[indices].tolist())) == 10


def test_seeds_of_draws_differ_and_repeat() -> None:
    positions = np.arange(10_000)
    seeds = draw_seeds(0, 0, positions)
    assert (seeds >= 0).all()
    assert len(set(seeds.tolist())) == 10_000
    np.testing.assert_array_equal(draw_seeds(0, 0, positions[5:9]), seeds[5:9])
    assert not set(seeds.tolist()) & set(draw_seeds(0, 1, positions).tolist())
    assert abs((seeds >> 62).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2: expected 0 to 1"),
        ({"seed": -1}, "seed=-1"),
        ({"shuffle": "blocks"}, "block_of"),
        ({"shuffle": "all"}, "shuffle='all'"),
        ({"mix": 0}, "mix=0"),
        ({"batch_size": 64, "drop_last": True}, "10 patches for 1 processes and batches of 64 with drop_last"),
        ({"world_size": 11}, "expected at least 11"),
        ({"batch_size": 1, "world_size": 3}, "drop_last=True"),
    ],
)
def test_orders_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        EpochOrder(10, **{"batch_size": 4, **options})  # type: ignore[arg-type]
