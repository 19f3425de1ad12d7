"""Area fractions over masks: spec section 2, against a loop over mask pixels."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from msdask.errors import MaskError
from msdask.scale import check_proportions
from msdask.selection.coverage import SummedArea, mask_values


def naive_sum(mask: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> float:
    """Overlap of a box with every pixel of tissue, one by one."""
    total = 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                width = max(0.0, min(x1, column + 1) - max(x0, column))
                height = max(0.0, min(y1, row + 1) - max(y0, row))
                total += width * height
    return total


MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))
COORDINATE = st.one_of(st.floats(-3, 15), st.integers(-3, 15).map(float))


def test_case_2_half_covered_columns() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[:, :2] = True
    table = SummedArea(mask)
    assert table.sums([0.5], [0.0], [2.5], [4.0])[0] / (2.0 * 4.0) == 0.75


@given(
    MASKS, st.lists(st.tuples(COORDINATE, COORDINATE, st.floats(0.01, 20), st.floats(0.01, 20)), min_size=1, max_size=8)
)
def test_sums_equal_a_loop_over_pixels(mask: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> None:
    x0, y0, width, height = np.array(boxes).T
    expected = [naive_sum(mask, x, y, x + w, y + h) for x, y, w, h in boxes]
    np.testing.assert_allclose(SummedArea(mask).sums(x0, y0, x0 + width, y0 + height), expected, atol=1e-9)


@given(
    MASKS, st.integers(12, 3000), st.integers(12, 3000), st.floats(-500, 3000), st.floats(-500, 3000), st.floats(1, 900)
)
def test_fractions_equal_a_loop_in_level_0_px(
    mask: np.ndarray, height: int, width: int, x: float, y: float, side: float
) -> None:
    sy, sx = mask.shape[0] / height, mask.shape[1] / width
    expected = naive_sum(mask, x * sx, y * sy, (x + side) * sx, (y + side) * sy) / (side * sx * side * sy)
    assert SummedArea(mask).fractions([x], [y], side, (height, width))[0] == pytest.approx(expected, abs=1e-9)


def test_summed_area_equals_bilinear_interpolation_of_the_table() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((9, 7)) < 0.5
    table = np.pad(mask.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def interpolated(y: float, x: float) -> float:
        row, column = min(int(y), 8), min(int(x), 6)
        f, g = y - row, x - column
        corner = table[row : row + 2, column : column + 2]
        return float(np.array([1 - f, f]) @ corner @ np.array([1 - g, g]))

    x0, y0 = rng.uniform(0, 6, 50), rng.uniform(0, 8, 50)
    x1, y1 = rng.uniform(x0, 7), rng.uniform(y0, 9)
    expected = [
        interpolated(d, c) - interpolated(b, c) - interpolated(d, a) + interpolated(b, a)
        for a, b, c, d in zip(x0, y0, x1, y1, strict=True)
    ]
    np.testing.assert_allclose(SummedArea(mask).sums(x0, y0, x1, y1), expected, atol=1e-12)


def test_outside_the_mask_is_background() -> None:
    mask = np.ones((10, 10), dtype=bool)
    assert SummedArea(mask).fractions(
        [-50.0, 950.0, -200.0, 0.0], [0.0, 950.0, 0.0, 0.0], 100.0, (1000, 1000)
    ).tolist() == [
        0.5,
        0.25,
        0.0,
        1.0,
    ]


def test_small_footprints_at_the_far_end_of_a_large_mask_keep_their_digits() -> None:
    mask = np.ones((2000, 3000), dtype=bool)
    x = 99_000 + np.arange(500) * 0.7331
    fraction = SummedArea(mask).fractions(x, x * 0.66, 17.1, (66_667, 100_000))
    np.testing.assert_allclose(fraction, 1.0, atol=1e-11)


def test_many_footprints_equal_one_at_a_time() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((30, 40)) < 0.5
    x, y = rng.uniform(0, 3900, 70_000), rng.uniform(0, 2900, 70_000)
    together = SummedArea(mask).fractions(x, y, 100.0, (3000, 4000))
    for i in (0, 65_535, 65_536, 69_999):
        assert together[i] == SummedArea(mask).fractions(x[[i]], y[[i]], 100.0, (3000, 4000))[0]


def test_no_footprints_give_no_fractions() -> None:
    assert SummedArea(np.ones((2, 2), dtype=bool)).fractions([], [], 10.0, (20, 20)).shape == (0,)


@given(
    st.integers(200, 200_000),
    st.integers(200, 200_000),
    st.floats(0.003, 1.0),
    st.sampled_from([np.floor, np.ceil, np.round]),
)
@settings(max_examples=200)
def test_reduced_views_of_the_slide_pass_the_aspect_check(height: int, width: int, scale: float, rounding) -> None:
    shape = (max(1, int(rounding(height * scale))), max(1, int(rounding(width * scale))))
    check_proportions(shape, (height, width), what="mask")


@pytest.mark.parametrize(
    ("mask_shape", "slide_shape"),
    [((500, 250), (1000, 1000)), ((1000, 1020), (50_000, 50_000)), ((250, 500), (1000, 500)), ((4, 8), (9000, 9000))],
)
def test_another_aspect_ratio_is_refused_naming_both_sizes(
    mask_shape: tuple[int, int], slide_shape: tuple[int, int]
) -> None:
    with pytest.raises(MaskError) as caught:
        check_proportions(mask_shape, slide_shape, what="slide 'a.svs', tissue mask")
    message = str(caught.value)
    assert "slide 'a.svs'" in message
    assert f"{mask_shape[1]} x {mask_shape[0]}" in message
    assert f"{slide_shape[1]} x {slide_shape[0]}" in message


def test_mask_values_accepts_arrays_of_either_order() -> None:
    values = np.arange(200, dtype=np.uint8).reshape(10, 20)
    swapped = xr.DataArray(values.T, dims=("x", "y"))
    np.testing.assert_array_equal(mask_values(swapped, (100, 200), what="mask"), values)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (np.ones((10, 10, 3), dtype=bool), r"\(10, 10, 3\)"),
        (np.ones((0, 10), dtype=bool), r"\(0, 10\)"),
        (np.full((10, 10), 0.5), "float64"),
        (xr.DataArray(np.ones((10, 10), dtype=bool), dims=("row", "column")), "row"),
    ],
)
def test_what_is_no_mask_is_refused(mask, found: str) -> None:
    with pytest.raises(MaskError, match=found):
        mask_values(mask, (100, 100), what="mask")
