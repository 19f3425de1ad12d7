"""Brightness, contrast and the verdict `keep`: spec section 6, against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import rgb2gray
from skimage.data import immunohistochemistry
from skimage.exposure import is_low_contrast

from msdask.cutting.measures import (
    EXACT_BELOW,
    LOW_CONTRAST,
    MEASURES,
    contrast,
    count_labels,
    keep,
    measure,
    tissue_mean,
    white_threshold,
)


def exact_contrast(pixels: NDArray[np.uint8]) -> float:
    low, high = np.percentile(rgb2gray(pixels), [1, 99])
    return float(high - low) / 2


def halves(low: int, high: int, size: int = 224) -> NDArray[np.uint8]:
    image = np.full((size, size, 3), low, np.uint8)
    image[:, size // 2 :] = high
    return image


def has_contrast(pixels: NDArray[np.uint8]) -> bool:
    """The verdict `keep` as far as contrast decides it."""
    measured = measure(pixels[None, None])
    measured[..., MEASURES.index("brightness")] = 0
    return bool(keep(measured, 255.0)[0])


@pytest.mark.parametrize(("high", "value", "is_kept"), [(222, 0.043, False), (230, 0.059, True)])
def test_worked_cases_of_contrast(high: int, value: float, is_kept: bool) -> None:
    pixels = halves(200, high, 64)
    assert contrast(pixels) == pytest.approx(value, abs=5e-4)
    assert has_contrast(pixels) is is_kept
    assert is_low_contrast(pixels) is not is_kept


def test_contrast_of_large_pale_patches_is_exact_where_a_verdict_is_near() -> None:
    # Rows differ, so that a fourth or half of them do not say what all do.
    rng = np.random.default_rng(3)
    near = 0
    for _ in range(150):
        spread = rng.integers(4, 80)
        pixels = (200 - rng.integers(0, spread, (160, 1, 1)) * rng.random((160, 160, 1))).astype(np.uint8)
        pixels = np.repeat(pixels, 3, 2)
        pixels[rng.integers(0, 160, rng.integers(0, 8))] = 40
        exact = exact_contrast(pixels)
        near += exact < EXACT_BELOW
        if exact < EXACT_BELOW:
            assert contrast(pixels) == pytest.approx(exact, abs=1e-9)
        assert has_contrast(pixels) is (exact >= LOW_CONTRAST)
    assert 20 < near < 140


images = st.builds(
    lambda seed, size, low, span, share: np.where(
        np.random.default_rng(seed).random((size, size, 1)) < share,
        low + span,
        np.random.default_rng(seed + 1).integers(low, low + max(1, span // 2), (size, size, 3)),
    ).astype(np.uint8),
    st.integers(0, 2**31),
    st.integers(2, 40),
    st.integers(0, 120),
    st.integers(0, 120),
    st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.5, 0.99]),
)


@settings(max_examples=300, deadline=None)
@given(images)
def test_contrast_is_exactly_that_of_scikit_image_where_a_verdict_is_near(pixels: NDArray[np.uint8]) -> None:
    value, exact = contrast(pixels), exact_contrast(pixels)
    if value < EXACT_BELOW:
        assert value == pytest.approx(exact, abs=1e-9)
    else:
        assert exact >= LOW_CONTRAST


def test_contrast_is_that_of_scikit_image_on_tissue() -> None:
    image = immunohistochemistry()
    for y, x in np.ndindex(4, 4):
        pixels = np.ascontiguousarray(image[y * 96 : y * 96 + 224, x * 96 : x * 96 + 224])
        assert contrast(pixels) == pytest.approx(exact_contrast(pixels), abs=8e-3)


@settings(max_examples=300, deadline=None)
@given(images)
def test_the_verdict_is_that_of_scikit_image(pixels: NDArray[np.uint8]) -> None:
    assert has_contrast(pixels) is not bool(is_low_contrast(pixels))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.integers(20, 31), st.integers(0, 3), st.integers(2, 60))
def test_the_verdict_is_that_of_scikit_image_near_the_bound(low: int, span: int, tint: int, size: int) -> None:
    pixels = halves(low, low + span, size)
    pixels[..., 1] += np.uint8(tint)
    assert has_contrast(pixels) is not bool(is_low_contrast(pixels))


def test_a_rank_between_two_grays_is_interpolated_as_scikit_image_does() -> None:
    # The 1st percentile of 50,176 px lies between sorted px 501 and 502: here one is black, the next is not.
    pixels = np.full((224, 224, 3), 80, np.uint8)
    pixels.reshape(-1, 3)[:502] = 0
    assert exact_contrast(pixels) < LOW_CONTRAST
    assert contrast(pixels) == pytest.approx(exact_contrast(pixels), abs=1e-9)
    assert not has_contrast(pixels)


def test_measures_come_in_their_order_and_from_their_own_patch() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    image[1, 1] //= 4
    filled = rng.random((3, 2)).astype(np.float32)
    measured = measure(image, filled)
    assert measured.dtype == np.float32
    assert measured.shape == (3, 2, len(MEASURES))
    np.testing.assert_allclose(measured[..., MEASURES.index("brightness")], image.mean((2, 3, 4)), rtol=1e-6)
    np.testing.assert_array_equal(measured[..., MEASURES.index("filled")], filled)
    for i, m in np.ndindex(3, 2):
        assert measured[i, m, MEASURES.index("contrast")] == pytest.approx(exact_contrast(image[i, m]), abs=1e-2)
    assert np.isfinite(measure(image)).all()


@pytest.mark.parametrize(("count", "height", "width"), [(5, 7, 9), (3, 31, 20), (300, 6, 6), (11, 300, 500)])
def test_measures_of_many_images_are_those_of_each(count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    low = rng.integers(0, 100, (count, 1, 1, 1, 1))
    image = (low + rng.integers(0, 150, (count, 1, height, width, 3))).astype(np.uint8)
    measured = measure(image)
    each = np.concatenate([measure(image[i : i + 1]) for i in range(count)])
    np.testing.assert_array_equal(measured, each)
    exact = [exact_contrast(pixels) for pixels in image[:20, 0]]
    np.testing.assert_allclose(measured[:20, 0, MEASURES.index("contrast")], exact, atol=0.2 if height < 10 else 0.02)


def test_sums_of_large_patches_do_not_overflow() -> None:
    image = np.full((1, 1, 1800, 1800, 3), 250, np.uint8)
    assert image.sum() > 2**31
    assert measure(image)[0, 0, MEASURES.index("brightness")] == 250


def test_an_empty_block_has_no_measures() -> None:
    assert measure(np.empty((0, 2, 8, 8, 3), np.uint8)).shape == (0, 2, len(MEASURES))
    assert keep(np.empty((0, 2, len(MEASURES)), np.float32), 150.0).shape == (0,)


@pytest.mark.parametrize(
    ("t", "threshold"), [(0, 195), (155, 195), (155.01, 200), (180, 200), (180.01, 205), (255, 205)]
)
def test_the_white_threshold_follows_the_tissue(t: float, threshold: float) -> None:
    assert white_threshold(t) == threshold


@pytest.mark.parametrize(("brightness", "is_kept"), [(195, True), (195.5, False), (255, False), (0, True)])
def test_a_patch_is_white_above_the_threshold(brightness: float, is_kept: bool) -> None:
    measured = np.array([[[brightness, 0.2, 0]]], np.float32)
    assert bool(keep(measured, 150.0)[0]) is is_kept


def test_the_verdict_of_a_tuple_is_its_centroids() -> None:
    measured = np.array([[[100, 0.2, 0], [250, 0.0, 0]], [[250, 0.2, 0], [100, 0.2, 0]]], np.float32)
    np.testing.assert_array_equal(keep(measured, 150.0), [True, False])


def test_the_tissue_mean_looks_inside_the_mask_only() -> None:
    image = np.full((4, 4, 3), 240, np.uint8)
    image[:2] = 100
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert tissue_mean(image, mask) == 100.0
    assert tissue_mean(image, np.zeros((4, 4), bool)) == 255.0


@pytest.mark.parametrize("at_once", [100, 2000, 4 * 2**20])
@pytest.mark.parametrize(("count", "labels"), [(0, 3), (1, 1), (7, 4), (300, 256)])
def test_labels_are_counted_whatever_is_looked_at_in_one_go(
    count: int, labels: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdask.cutting.measures._AT_ONCE_BYTES", at_once)
    maps = np.random.default_rng(0).integers(0, labels, (count, 2, 13, 13), dtype=np.uint8)
    found = count_labels(maps, labels)
    assert found.dtype == np.uint32
    naive = [[sum(1 for px in one[0].ravel().tolist() if px == k) for k in range(labels)] for one in maps[:9]]
    np.testing.assert_array_equal(found[:9], np.reshape(naive, (-1, labels)))
    np.testing.assert_array_equal(found.sum(1), np.full(count, 169))
