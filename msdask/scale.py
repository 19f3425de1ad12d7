"""How large a pixel is: mpp and magnification, snapping to nominal scales, and which stored level to read.

Everything here is pure arithmetic on numbers; spec section 1 and design section 3 are its sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msdask.errors import MaskError, SpecError

__all__ = [
    "NOMINAL_MPP",
    "ReadPlan",
    "Source",
    "check_proportions",
    "footprint",
    "magnification_to_mpp",
    "mpp_to_magnification",
    "plan_read",
    "snap_mpp",
]

NOMINAL_MPP = (0.125, 0.25, 0.5, 1.0)
"""Pixel sizes (um/px) that scanners aim at: 80x, 40x, 20x, 10x."""

SCALE_CLASSES = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0)
"""Magnifications of the original's scale detector."""

_SLACK = 1e-9
"""Added to tolerances, so that a value on the bound (0.2375 = 0.25 - 5 %) is inside whatever its last bit says."""

FAITHFUL_RATIO = 3.0
"""Least ratio that may be left after the decoder's own reduction, unless it is whole.

Two averages in a row are wider than one: 30 to 38 dB against the exact area mean where 1.1 to 1.75 is left, 39 at 2.2,
over 42 from 2.7 on and where it is whole (least of 8 patches, real and generated H&E).
"""

Source = Literal["coarsest", "finest"]
Decode = Literal["scaled", "exact"]


def magnification_to_mpp(magnification: float) -> float:
    """um/px of a magnification: 10 / magnification (40x = 0.25).

    >>> magnification_to_mpp(40)
    0.25
    """
    if not (math.isfinite(magnification) and magnification > 0):
        raise SpecError(f"magnification {magnification!r}: expected a finite number above 0, such as 20")
    return 10.0 / magnification


def mpp_to_magnification(mpp: float) -> float:
    """Magnification of a pixel size in um/px: 10 / mpp (0.5 = 20x)."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise SpecError(f"mpp {mpp!r}: expected a finite number of um/px above 0, such as 0.5")
    return 10.0 / mpp


def snap_mpp(mpp: float, *, tolerance: float = 0.05) -> float:
    """The nominal pixel size that `mpp` stands for, or `mpp` itself.

    One decision per slide, from level 0 alone.

    Parameters
    ----------
    mpp : um/px of level 0
    tolerance : relative distance to a nominal value that still counts as it; 0 switches snapping off

    Returns
    -------
    mpp_used : um/px that everything on the slide is planned with

    >>> snap_mpp(0.499), snap_mpp(0.2425), snap_mpp(0.2263)
    (0.5, 0.25, 0.2263)
    """
    if tolerance <= 0:
        return mpp
    nearest = min(NOMINAL_MPP, key=lambda nominal: abs(mpp / nominal - 1))
    return nearest if abs(mpp / nearest - 1) <= tolerance + _SLACK else mpp


def footprint(patch_size: int, *, target_mpp: float, slide_mpp: float) -> float:
    """Side of the square that a patch covers, in level-0 px.

    >>> footprint(224, target_mpp=0.5, slide_mpp=0.25)
    448.0
    """
    return patch_size * target_mpp / slide_mpp


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How one magnification of a slide is read. With (x0, y0) it decides every pixel of a patch.

    Attributes
    ----------
    level : stored level that is read
    dct_scale : reduction that the JPEG decoder gives (1, 2, 4, 8)
    step : level-0 px per px that is read, downsample * dct_scale
    ratio : px read per patch px; 1.0 means that what is read is the patch, below 1 that it is enlarged
    """

    level: int
    dct_scale: int
    step: float
    ratio: float

    @property
    def is_upsampled(self) -> bool:
        """Whether the patch has more pixels than the slide has there."""
        return self.ratio < 1.0

    def attrs(self) -> dict[str, float | int | bool]:
        """What a patch set stores of the plan."""
        return {
            "level": self.level,
            "dct_scale": self.dct_scale,
            "step": self.step,
            "ratio": self.ratio,
            "upsampled": self.is_upsampled,
        }


def plan_read(
    ratio: float,
    *,
    downsamples: Sequence[float],
    dct_scales: Sequence[Sequence[int]],
    patch_size: int,
    source: Source = "coarsest",
    decode: Decode = "scaled",
    allow_upsampling: bool = False,
) -> ReadPlan:
    """Choose the level and the decoder's reduction for one magnification.

    The coarsest level that is fine enough, then the largest reduction of its JPEG tiles that leaves a whole ratio, or
    one of at least `FAITHFUL_RATIO`. Fine enough leaves half a patch px of error over the whole patch, so that a level
    of 16.001 serves for 16.

    Parameters
    ----------
    ratio : level-0 px per patch px, target_mpp / mpp_used
    downsamples : level-0 px per px of each level, ascending
    dct_scales : for each level the reductions that its decoder can give
    patch_size : px
    source : "coarsest" as above, or "finest" to read level 0 always
    decode : "scaled" as above, or "exact" to decode JPEG tiles in full always
    allow_upsampling : enlarge where level 0 is too coarse, instead of refusing

    Raises
    ------
    SpecError
        Level 0 is coarser than what is asked for, and `allow_upsampling` is False.
    """
    slack = 0.5 / patch_size

    def fine_enough(step: float) -> bool:
        return step / ratio <= 1.0 + slack + _SLACK

    def is_faithful(left: float) -> bool:
        whole = max(1.0, float(round(left)))
        return abs(left / whole - 1.0) <= slack + _SLACK or left >= FAITHFUL_RATIO

    if not fine_enough(downsamples[0]):
        if not allow_upsampling:
            raise SpecError(
                f"asked for {1 / ratio:.4g} patch px per level-0 px: the slide's finest level is coarser than that; "
                "ask for a lower magnification, or have its pixels enlarged (allow_upsampling=True)"
            )
        return ReadPlan(0, 1, downsamples[0], ratio / downsamples[0])
    level = 0
    if source == "coarsest":
        level = max(i for i, downsample in enumerate(downsamples) if fine_enough(downsample))
    scales = dct_scales[level] if decode == "scaled" else (1,)
    scale = max(s for s in scales if s == 1 or is_faithful(ratio / (downsamples[level] * s)))
    step = downsamples[level] * scale
    left = ratio / step
    return ReadPlan(level, scale, step, 1.0 if abs(left - 1.0) <= slack + _SLACK else left)


def check_proportions(mask_shape: tuple[int, ...], slide_shape: tuple[int, int], *, what: str) -> None:
    """Refuse a mask that cannot be a reduced view of the whole slide.

    Parameters
    ----------
    mask_shape, slide_shape : (height, width), px
    what : the mask's and the slide's name, for the message

    Raises
    ------
    MaskError
        The aspect ratios differ by more than 1 %, and there is no reduction at which both sides of the mask are within
        one px of the slide's. (A slide of 1000 x 500 px at 1/32 is 31 x 16 px, which is 3 % off.)
    """
    height, width = mask_shape
    slide_height, slide_width = slide_shape
    # In whole numbers, so that no rounding decides. 1 / reduction is (height - 1) / slide_height to (height + 1) /
    # slide_height by the one side, the same by the other: the two ranges must meet.
    difference = abs(width * slide_height - height * slide_width)
    meet = (width - 1) * slide_height <= (height + 1) * slide_width
    meet &= (height - 1) * slide_width <= (width + 1) * slide_height
    if 100 * difference > height * slide_width and not meet:
        raise MaskError(
            f"{what}: the mask has {width} x {height} px (width x height), the slide {slide_width} x {slide_height} "
            f"px: their proportions differ by {difference / (height * slide_width):.1%}, expected at most 1 %; is it "
            "another slide's mask, or one of a part of the slide?"
        )
