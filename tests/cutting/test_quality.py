"""The quality columns are what a slow reading of their definitions gives, and tell what they are for."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msdask.cutting.measures import FIRST_MEASURES, MEASURES, column, measure, measured_names
from msdask.cutting.quality import EVERY, QUALITIES, qualities
from msdask.errors import StoreError
from msdask.sample.texture import TissueTexture


def slow(image: NDArray[np.uint8]) -> list[float]:
    """The definitions, px by px."""
    near, far, blank, pen, dark, count = [], [], 0, 0, 0, 0
    for row in image[min(EVERY // 2, len(image) - 1) :: EVERY].astype(int).tolist():
        green = [px[1] for px in row]
        near += [abs(b - a) for a, b in pairwise(green)]
        far += [abs(b - a) for a, b in zip(green, green[4:], strict=False)]
        blank += sum(min(px) >= 215 for px in row)
        pen += sum(px[1] - px[0] > 30 for px in row)
        dark += sum(max(px) < 50 for px in row)
        count += len(row)
    focus = np.mean(near) / np.mean(far) if far and sum(far) else 0.0
    return [float(focus), blank / count, pen / count, dark / count]


@given(st.integers(1, 4), st.integers(1, 20), st.integers(2, 13), st.integers(0, 2**32 - 1), st.sampled_from([1, 60]))
def test_the_fast_columns_are_those_of_the_definitions(n: int, height: int, width: int, seed: int, grain: int) -> None:
    random = np.random.default_rng(seed)
    images = (random.integers(0, 256, (n, height, width, 3)) // grain * grain).astype(np.uint8)
    np.testing.assert_allclose(qualities(images), [slow(image) for image in images], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((243, 243, 240), "blank"),
        ((24, 92, 120), "pen"),  # blue ink
        ((60, 140, 80), "pen"),  # green ink
        ((20, 20, 25), "dark"),
        ((200, 90, 160), None),  # eosin
        ((110, 70, 150), None),  # haematoxylin
        ((230, 205, 220), None),  # pale stroma
    ],
)
def test_a_color_counts_as_one_thing_at_most(color: tuple[int, int, int], expected: str | None) -> None:
    found = dict(zip(QUALITIES, qualities(np.full((1, 16, 16, 3), color, np.uint8))[0].tolist(), strict=True))
    assert found.pop("focus") == 0, "an image of one colour has nothing to focus on"
    assert found == {name: float(name == expected) for name in found}


def test_focus_falls_with_every_blur_and_not_with_faint_staining() -> None:
    sharp = TissueTexture((512, 512), classes=2, mpp=0.5, seed=7).tile(0, 0, 0, 256)
    blurred = [cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (0.7, 1.0, 1.5, 2.5)]
    faint = (128 + (sharp.astype(int) - 128) // 2).astype(np.uint8)
    focus = qualities(np.stack([sharp, *blurred, faint]))[:, 0]
    assert (np.diff(focus[:5]) < 0).all()
    assert 0.24 < focus[4] < 0.3
    assert focus[5] == pytest.approx(focus[0], abs=0.02)


def test_a_block_is_measured_in_the_order_of_the_columns_as_many_as_are_asked_for() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    measured = measure(image)
    assert measured_names(measured) == MEASURES == (*FIRST_MEASURES, *QUALITIES)
    found = qualities(image.reshape(-1, 16, 16, 3)).reshape(3, 2, -1)
    for k, name in enumerate(QUALITIES):
        np.testing.assert_array_equal(column(measured, name), found[..., k])
    first = measure(image, measures=len(FIRST_MEASURES))
    np.testing.assert_array_equal(first, measured[..., :3])
    with pytest.raises(StoreError, match=r"'focus' was not measured .* brightness, contrast, filled: extract again"):
        column(first, "focus")
