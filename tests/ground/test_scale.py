"""Scale arithmetic: spec section 1, and the choice of level and decoder reduction of design section 3."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdask.errors import SpecError
from msdask.scale import (
    ReadPlan,
    footprint,
    magnification_to_mpp,
    mpp_to_magnification,
    plan_read,
    snap_mpp,
)

JPEG = (1, 2, 4, 8)


@pytest.mark.parametrize(("magnification", "mpp"), [(40, 0.25), (20, 0.5), (10, 1.0), (1.25, 8.0)])
def test_magnification_and_mpp_are_each_others_inverse(magnification: float, mpp: float) -> None:
    assert magnification_to_mpp(magnification) == mpp
    assert mpp_to_magnification(mpp) == magnification


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_impossible_scales_are_refused(value: float) -> None:
    with pytest.raises(SpecError, match="magnification"):
        magnification_to_mpp(value)
    with pytest.raises(SpecError, match="mpp"):
        mpp_to_magnification(value)


@pytest.mark.parametrize(
    ("magnification", "side"), [(40, 224), (20, 448), (15, 597.33), (10, 896), (5, 1792), (1.25, 7168)]
)
def test_case_1_footprints_at_mpp_025(magnification: float, side: float) -> None:
    assert footprint(224, target_mpp=10 / magnification, slide_mpp=0.25) == pytest.approx(side, abs=0.005)


@pytest.mark.parametrize(
    ("mpp", "used"), [(0.499, 0.5), (0.2425, 0.25), (0.2375, 0.25), (0.2625, 0.25), (0.2374, 0.2374), (0.2263, 0.2263)]
)
def test_case_1_snapping(mpp: float, used: float) -> None:
    assert snap_mpp(mpp) == used


def test_case_1_ratios_after_snapping() -> None:
    assert footprint(224, target_mpp=0.5, slide_mpp=snap_mpp(0.499)) == 224
    assert footprint(1, target_mpp=1.0, slide_mpp=snap_mpp(0.499)) == 2
    assert footprint(1, target_mpp=10 / 15, slide_mpp=snap_mpp(0.2425)) == pytest.approx(2.6667, abs=1e-4)
    assert footprint(1, target_mpp=0.5, slide_mpp=snap_mpp(0.2263)) == pytest.approx(2.2095, abs=1e-4)


def test_tolerance_0_switches_snapping_off() -> None:
    assert snap_mpp(0.499, tolerance=0) == 0.499


@given(st.floats(0.01, 10), st.floats(0.001, 0.29))
def test_snapping_equals_trying_every_nominal(mpp: float, tolerance: float) -> None:
    expected = mpp
    for nominal in (0.125, 0.25, 0.5, 1.0):
        if abs(mpp / nominal - 1) <= tolerance + 1e-9:
            expected = nominal
    assert snap_mpp(mpp, tolerance=tolerance) == expected


@pytest.mark.parametrize(
    ("ratio", "level", "dct_scale", "left"),
    [
        (1.0, 0, 1, 1.0),  # 40x: level 0 as it is
        (2.0, 0, 2, 1.0),  # 20x: the JPEG decoder halves level 0
        (8 / 3, 0, 1, 8 / 3),  # 15x: by area alone, two averages in a row would blur it
        (3.2, 0, 1, 3.2),
        (6.4, 1, 1, 1.6),
        (13.0, 1, 1, 3.25),
        (14.0, 1, 1, 3.5),
        (48.0, 2, 1, 3.0),
        (110.0, 2, 2, 3.4375),  # halved by the decoder, the rest by area
        (4.0, 1, 1, 1.0),  # 10x: the stored level
        (8.0, 1, 2, 1.0),  # 5x
        (16.0, 2, 1, 1.0),  # a level of 16.001 serves for 16
        (256.0, 2, 8, 2.0),  # the decoder gives at most 8
    ],
)
def test_plan_reads_the_coarsest_level_that_is_fine_enough(
    ratio: float, level: int, dct_scale: int, left: float
) -> None:
    plan = plan_read(ratio, downsamples=(1.0, 4.0, 16.001), dct_scales=(JPEG,) * 3, patch_size=224)
    assert (plan.level, plan.dct_scale) == (level, dct_scale)
    assert plan.ratio == pytest.approx(left, rel=1e-3)
    assert (plan.ratio == 1.0) == (left == 1.0)


def test_plan_obeys_source_and_decode() -> None:
    levels = {"downsamples": (1.0, 4.0), "dct_scales": (JPEG, JPEG), "patch_size": 224}
    assert plan_read(8.0, **levels, source="finest") == ReadPlan(0, 8, 8.0, 1.0)
    assert plan_read(8.0, **levels, decode="exact") == ReadPlan(1, 1, 4.0, 2.0)
    assert plan_read(8.0, **levels, source="finest", decode="exact") == ReadPlan(0, 1, 1.0, 8.0)


def test_plan_does_not_scale_tiles_that_are_not_jpeg() -> None:
    assert plan_read(2.0, downsamples=(1.0,), dct_scales=((1,),), patch_size=224) == ReadPlan(0, 1, 1.0, 2.0)


def test_plan_enlarges_only_when_asked() -> None:
    with pytest.raises(SpecError, match="allow_upsampling=True"):
        plan_read(0.5, downsamples=(1.0,), dct_scales=(JPEG,), patch_size=224)
    plan = plan_read(0.5, downsamples=(1.0,), dct_scales=(JPEG,), patch_size=224, allow_upsampling=True)
    assert plan == ReadPlan(0, 1, 1.0, 0.5)
    assert plan.is_upsampled
    assert plan.attrs()["upsampled"] is True


def test_half_a_px_over_the_patch_is_not_upsampling() -> None:
    ratio = 1 / (1 + 0.4 / 224)
    assert plan_read(ratio, downsamples=(1.0,), dct_scales=(JPEG,), patch_size=224) == ReadPlan(0, 1, 1.0, 1.0)
    with pytest.raises(SpecError):
        plan_read(1 / (1 + 0.6 / 224), downsamples=(1.0,), dct_scales=(JPEG,), patch_size=224)


@st.composite
def pyramids(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[tuple[int, ...], ...]]:
    steps = draw(st.lists(st.sampled_from([2.0, 4.0, 2.001, 3.9987]), max_size=4))
    downsamples = [1.0]
    for step in steps:
        downsamples.append(downsamples[-1] * step)
    scales = tuple(draw(st.sampled_from([(1,), (1, 2), JPEG])) for _ in downsamples)
    return tuple(downsamples), scales


@given(
    pyramids(),
    st.one_of(st.floats(1, 200), st.sampled_from([1, 2, 8 / 3, 4, 8, 16, 32, 2.2095])),
    st.integers(1, 512),
    st.sampled_from(["coarsest", "finest"]),
    st.sampled_from(["scaled", "exact"]),
)
def test_plan_equals_a_search_over_all_levels_and_reductions(pyramid, ratio, patch_size, source, decode) -> None:
    downsamples, dct_scales = pyramid

    def px_too_few(step: float) -> float:
        """Patch px that reading at `step` falls short over the patch."""
        return patch_size * (step / ratio - 1)

    levels = [0]
    if source == "coarsest":
        levels = [i for i, downsample in enumerate(downsamples) if px_too_few(downsample) <= 0.5 + 1e-6]
    level = levels[-1]
    scale = 1
    for candidate in dct_scales[level]:
        left = ratio / (downsamples[level] * candidate)
        nearest = max(1, round(left))
        is_whole = abs(left / nearest - 1) * patch_size <= 0.5 + 1e-6
        if decode == "scaled" and (is_whole or left >= 3.0):
            scale = candidate

    plan = plan_read(
        ratio, downsamples=downsamples, dct_scales=dct_scales, patch_size=patch_size, source=source, decode=decode
    )
    assert (plan.level, plan.dct_scale) == (level, scale)
    assert plan.step == downsamples[level] * scale
    left = ratio / plan.step
    assert plan.ratio == (1.0 if abs(left - 1) * patch_size <= 0.5 + 1e-6 else left)
    assert not plan.is_upsampled
