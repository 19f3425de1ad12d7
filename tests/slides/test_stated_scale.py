"""What a slide's pixel size is taken to be: every rule of `resolve_scale`, and who may overrule it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdask.errors import MissingScaleError, SlideError, SpecError
from msdask.readers.base import SlideMetadata
from msdask.slides.stated_scale import SlideScale, resolve_scale


def resolve(stated: tuple[float, float] | None, power: float | None = None, **options: Any) -> SlideScale:
    """Judge a file that states `stated` um/px and `power`; `options` are the user's."""
    metadata = SlideMetadata(mpp=stated, mpp_source="aperio" if stated else None, objective_power=power)
    return resolve_scale(metadata, name="a.svs", **options)


@pytest.mark.parametrize(
    ("stated", "used"),
    [(0.25, 0.25), (0.499, 0.5), (0.2425, 0.25), (0.2375, 0.25), (0.2263, 0.2263), (0.1213, 0.125), (1.04, 1.0)],
)
def test_a_stated_scale_is_kept_and_snaps_for_planning(stated: float, used: float) -> None:
    scale = resolve((stated, stated), power=10 / used)
    assert (scale.mpp, scale.mpp_used, scale.stated_by, scale.quality, scale.warnings) == (
        stated,
        used,
        "aperio",
        "stated",
        (),
    )


def test_tolerance_zero_switches_snapping_off() -> None:
    assert resolve((0.499, 0.499), tolerance=0).mpp_used == 0.499


@pytest.mark.parametrize(
    "stated",
    [(0.0, 0.0), (-0.25, -0.25), (0.25, 0.0), (math.nan, math.nan), (0.25, math.inf), (101.0, 101.0), (1e-9, 1e-9)],
)
def test_an_absurd_scale_is_no_scale_and_says_what_was_found(stated: tuple[float, float]) -> None:
    scale = resolve(stated)
    assert scale.mpp is None
    assert scale.mpp_used is None
    assert scale.quality == "missing"
    with pytest.raises(
        MissingScaleError,
        match=r"slide 'a\.svs': absurd mpp of .*\(aperio\).*pass mpp=.*magnification=.*scale detector",
    ):
        scale.require("a.svs")


def test_an_absurd_scale_is_not_replaced_by_the_objective_power() -> None:
    assert resolve((0.0, 0.0), power=40).mpp is None


@pytest.mark.parametrize("stated", [0.00025, 0.0005, 0.000499])
def test_millimetres_are_repaired_with_a_warning(stated: float) -> None:
    scale = resolve((stated, stated))
    assert scale.mpp == pytest.approx(stated * 1000)
    assert scale.quality == "repaired"
    assert any("must be millimetres" in sentence for sentence in scale.warnings)


def test_one_hundredth_is_not_millimetres() -> None:
    assert resolve((0.01, 0.01)).mpp == 0.01


def test_x_and_y_a_little_apart_give_the_mean_and_a_warning() -> None:
    scale = resolve((0.25, 0.255))
    assert scale.mpp == pytest.approx(0.2525)
    assert scale.mpp_used == 0.25
    assert scale.quality == "anisotropic"
    assert "0.25 x 0.255" in scale.warnings[0]


def test_rounding_of_one_axis_is_no_anisotropy() -> None:
    assert resolve((0.25, 0.25002)).quality == "stated"


@given(apart=st.floats(0.002, 0.3), mpp=st.sampled_from([0.25, 0.5]))
def test_five_percent_is_the_bound_of_anisotropy(apart: float, mpp: float) -> None:
    scale = resolve((mpp * (1 - apart / 2), mpp * (1 + apart / 2)))
    if apart < 0.05 - 1e-6:
        assert scale.mpp == pytest.approx(mpp)
    elif apart > 0.05 + 1e-6:
        assert scale.mpp is None
        with pytest.raises(MissingScaleError, match="x and y differ by"):
            scale.require("a.svs")


@pytest.mark.parametrize("stated", [0.33, 0.18, 0.7])
def test_far_from_every_nominal_is_a_warning_and_used_as_it_is(stated: float) -> None:
    scale = resolve((stated, stated))
    assert (scale.mpp_used, scale.quality) == (stated, "off-nominal")
    assert "far from every nominal scale" in scale.warnings[0]


@pytest.mark.parametrize("stated", [0.25, 0.2263, 0.274, 2.0, 8.0])
def test_near_a_nominal_or_a_power_of_two_of_it_is_no_warning(stated: float) -> None:
    assert resolve((stated, stated)).warnings == ()


def test_the_objective_power_may_contradict_the_mpp() -> None:
    scale = resolve((0.5, 0.5), power=40)
    assert (scale.mpp, scale.quality) == (0.5, "contradictory")
    assert "contradicts the objective power of 40" in scale.warnings[0]


def test_an_objective_power_that_agrees_is_silent() -> None:
    assert resolve((0.2263, 0.2263), power=40).warnings == ()


def test_objective_power_alone_gives_the_scale_marked_so() -> None:
    scale = resolve(None, power=20)
    assert (scale.mpp, scale.mpp_used, scale.stated_by, scale.quality) == (0.5, 0.5, "objective power", "objective")
    assert "objective power of 20" in scale.warnings[0]


@pytest.mark.parametrize("power", [0.0, -40.0, math.nan, math.inf, 1e6, 0.05])
def test_an_absurd_objective_power_counts_as_none(power: float) -> None:
    scale = resolve(None, power=power)
    assert scale.mpp is None
    assert resolve((0.25, 0.25), power=power).quality == "stated"


def test_nothing_in_the_file_is_a_missing_scale_with_three_ways_out() -> None:
    scale = resolve(None)
    assert scale.quality == "missing"
    with pytest.raises(
        MissingScaleError, match=r"'a\.svs': no resolution in the file; pass mpp=.*magnification=.*scale detector"
    ):
        scale.require("a.svs")
    assert issubclass(MissingScaleError, SlideError)


@pytest.mark.parametrize("found", [(0.0, 0.0), (0.25, 0.5), None])
def test_the_user_overrides_whatever_the_file_says(found: tuple[float, float] | None) -> None:
    scale = resolve(found, power=40, mpp=0.499, strict=True)
    assert (scale.mpp, scale.mpp_used, scale.stated_by, scale.quality, scale.warnings) == (
        0.499,
        0.5,
        "user",
        "user",
        (),
    )
    scale = resolve(found, magnification=20)
    assert (scale.mpp, scale.stated_by, scale.quality) == (0.5, "user magnification", "user")


@pytest.mark.parametrize(
    "options",
    [
        {"mpp": 0.0},
        {"mpp": -1.0},
        {"mpp": "estimate"},
        {"mpp": math.nan},
        {"mpp": math.inf},
        {"mpp": 0.00025},
        {"mpp": 250.0},
        {"magnification": 0},
        {"magnification": -20},
        {"magnification": math.nan},
        {"magnification": 1e6},
        {"mpp": 0.25, "magnification": 40},
    ],
)
def test_a_senseless_word_of_the_user_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        resolve((0.25, 0.25), **options)


@pytest.mark.parametrize(
    ("mpp", "power"),
    [
        (None, None),
        (None, 40.0),
        ((0.0, 0.0), None),
        ((0.00025, 0.00025), None),
        ((0.25, 0.255), None),
        ((0.33, 0.33), None),
        ((0.5, 0.5), 40.0),
    ],
)
def test_strict_raises_for_everything_doubtful(mpp: tuple[float, float] | None, power: float | None) -> None:
    with pytest.raises(MissingScaleError, match=r"slide 'a\.svs': .+; pass mpp="):
        resolve(mpp, power=power, strict=True)


def test_strict_accepts_what_is_plain() -> None:
    assert resolve((0.499, 0.499), power=20, strict=True).mpp_used == 0.5
