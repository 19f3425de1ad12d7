"""One rule for the proportions of masks: as an array and as a file, and as a slow search for a reduction that fits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from msdask.errors import MaskError
from msdask.masks.files import read_tissue_mask
from msdask.scale import check_proportions
from msdask.selection.coverage import mask_values


class SlideOfShape:
    path = name = "a.svs"

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape


def is_accepted(mask_shape: tuple[int, int], slide_shape: tuple[int, int]) -> bool:
    try:
        check_proportions(mask_shape, slide_shape, what="mask")
    except MaskError:
        return False
    return True


def is_accepted_by_search(mask_shape: tuple[int, int], slide_shape: tuple[int, int]) -> bool:
    """Aspects within 1 %, or a reduction of which each side of the mask is at most one px off."""
    aspect = Fraction(mask_shape[1] * slide_shape[0], mask_shape[0] * slide_shape[1])
    if abs(aspect - 1) <= Fraction(1, 100):
        return True
    # If any reduction fits, one does at which a side is a whole px larger or smaller than the mask's.
    tried = [
        Fraction(m + off, s) for m, s in zip(mask_shape, slide_shape, strict=True) for off in (-1, 1) if m + off > 0
    ]
    return any(all(abs(s * scale - m) <= 1 for m, s in zip(mask_shape, slide_shape, strict=True)) for scale in tried)


sides = st.tuples(st.integers(1, 60_000), st.integers(1, 60_000))


@given(
    slide_shape=sides,
    reduction=st.floats(1, 400),
    off=st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
)
@settings(max_examples=500, deadline=None)
def test_the_rule_is_what_a_search_for_a_reduction_finds(
    slide_shape: tuple[int, int], reduction: float, off: tuple[float, float]
) -> None:
    mask_shape = tuple(max(1, round(s / reduction + o)) for s, o in zip(slide_shape, off, strict=True))
    assert is_accepted(mask_shape, slide_shape) == is_accepted_by_search(mask_shape, slide_shape)


@given(slide_shape=sides, reduction=st.fractions(1, 400), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_mask_within_one_px_of_the_true_size_is_accepted(
    slide_shape: tuple[int, int], reduction: Fraction, data: st.DataObject
) -> None:
    true = [side / reduction for side in slide_shape]
    shape = tuple(data.draw(st.integers(max(1, -int(-(t - 1) // 1)), max(1, int(t + 1)))) for t in true)
    if all(abs(n - t) <= 1 for n, t in zip(shape, true, strict=True)):
        check_proportions(shape, slide_shape, what="mask")


@given(mask_shape=st.tuples(st.integers(1, 120), st.integers(1, 120)), slide_shape=sides)
@example(mask_shape=(43, 169), slide_shape=(5598, 21454))
@settings(max_examples=150, deadline=None)
def test_an_array_and_a_file_are_judged_alike(
    mask_shape: tuple[int, int], slide_shape: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = np.ones(mask_shape, np.uint8)
    path = tmp_path_factory.getbasetemp() / "proportions.png"
    Image.fromarray(values).save(path)
    by_file = by_array = True
    try:
        read_tissue_mask(path, slide=SlideOfShape(slide_shape))
    except MaskError:
        by_file = False
    try:
        mask_values(values, slide_shape, what="mask")
    except MaskError:
        by_array = False
    assert by_file == by_array == is_accepted_by_search(mask_shape, slide_shape)


def test_a_mask_of_43_by_169_px_fits_a_slide_of_5598_by_21454_px_both_ways(tmp_path: Path) -> None:
    values = np.ones((43, 169), np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert read_tissue_mask(tmp_path / "m.png", slide=SlideOfShape((5598, 21454))).shape == (43, 169)
    assert mask_values(values, (5598, 21454), what="mask").shape == (43, 169)


def test_exactly_one_percent_is_accepted_and_more_is_not() -> None:
    assert is_accepted((10_000, 10_100), (20_000, 20_000))
    assert not is_accepted((10_000, 10_102), (20_000, 20_000))
