"""Area means: equal to the plain mean of the px under each output px, however the output is cut into blocks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msdask.slides.resample import area_mean, read_span


def naive_mean(source: NDArray[np.uint8], y: int, x: int, ratio: Fraction) -> NDArray[np.float64] | None:
    """Mean under output px (y, x), every source px weighing by its share that lies under; None if nothing does."""
    total, weight = np.zeros(3), Fraction(0)
    for row in range(math.floor(y * ratio), min(math.ceil((y + 1) * ratio), source.shape[0])):
        height = min(row + 1, (y + 1) * ratio) - max(row, y * ratio)
        for column in range(math.floor(x * ratio), min(math.ceil((x + 1) * ratio), source.shape[1])):
            share = height * (min(column + 1, (x + 1) * ratio) - max(column, x * ratio))
            total += float(share) * source[row, column]
            weight += share
    return total / float(weight) if weight else None


def whole_and_blocks(
    source: NDArray[np.uint8], shape: tuple[int, int], ratio: float, block: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The output made at once, and put together from blocks."""

    def part(y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.uint8]:
        rows = read_span(*y, ratio=ratio, size=source.shape[0])
        columns = read_span(*x, ratio=ratio, size=source.shape[1])
        under = source[slice(*rows), slice(*columns)]
        size = (y[1] - y[0], x[1] - x[0])
        return area_mean(under, origin=(rows[0], columns[0]), first=(y[0], x[0]), shape=size, ratio=ratio)

    out = np.zeros((*shape, 3), np.uint8)
    for y in range(0, shape[0], block[0]):
        for x in range(0, shape[1], block[1]):
            y1, x1 = min(y + block[0], shape[0]), min(x + block[1], shape[1])
            out[y:y1, x:x1] = part((y, y1), (x, x1))
    return part((0, shape[0]), (0, shape[1])), out


RATIOS = [
    Fraction(1),
    Fraction(2),
    Fraction(3),
    Fraction(4),
    Fraction(7),
    Fraction(3, 2),
    Fraction(8, 3),
    Fraction(22095, 10000),
]


@settings(max_examples=150, deadline=None)
@given(
    ratio=st.sampled_from(RATIOS),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_every_px_is_the_mean_of_what_lies_under_it_whatever_the_blocks(
    ratio: Fraction, height: int, width: int, block: tuple[int, int], seed: int
) -> None:
    source = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shape = max(1, round(height / ratio)), max(1, round(width / ratio))
    whole, blocks = whole_and_blocks(source, shape, float(ratio), block)
    np.testing.assert_array_equal(whole, blocks)
    for y in range(shape[0]):
        for x in range(shape[1]):
            expected = naive_mean(source, y, x, ratio)
            if expected is not None:
                # Only an exact half may be rounded either way.
                assert np.abs(whole[y, x] - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 16])
def test_large_blocks_of_whole_ratios_are_independent_of_the_cut(ratio: int) -> None:
    rng = np.random.default_rng(ratio)
    source = rng.integers(0, 256, (ratio * 97 + ratio // 2, ratio * 61 + 1, 3), dtype=np.uint8)
    shape = max(1, round(source.shape[0] / ratio)), max(1, round(source.shape[1] / ratio))
    whole, blocks = whole_and_blocks(source, shape, float(ratio), (32, 48))
    np.testing.assert_array_equal(whole, blocks)
    inner = source[: 97 * ratio, : 61 * ratio].reshape(97, ratio, 61, ratio, 3).mean((1, 3))
    assert np.abs(whole[:97, :61] - inner).max() <= 0.5 + 1e-6


def test_beyond_the_source_its_last_px_goes_on() -> None:
    source = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    out = area_mean(source, origin=(0, 0), first=(0, 0), shape=(3, 3), ratio=1.0)
    np.testing.assert_array_equal(out[2], np.stack([source[1, 0], source[1, 1], source[1, 1]]))


@pytest.mark.parametrize(
    ("span", "expected"),
    [((0, 4, 2.0, 8), (0, 8)), ((1, 2, 1.5, 8), (1, 3)), ((3, 4, 2.0, 7), (6, 7)), ((9, 10, 2.0, 7), (6, 7))],
)
def test_read_span_covers_the_px_under_a_block_and_stays_inside(
    span: tuple[int, int, float, int], expected: tuple[int, int]
) -> None:
    first, last, ratio, size = span
    assert read_span(first, last, ratio=ratio, size=size) == expected
