"""What a slide's pixel size is, where it came from and how far it can be trusted: one decision per slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from msdask.errors import MissingScaleError, SpecError
from msdask.readers.base import SlideMetadata
from msdask.scale import magnification_to_mpp, snap_mpp

__all__ = ["Quality", "SlideScale", "resolve_scale"]

Quality = Literal["user", "stated", "objective", "repaired", "anisotropic", "off-nominal", "contradictory", "missing"]

MAX_MPP = 100.0
MILLIMETRES_BELOW = 0.01
"""No microscope resolves 0.01 um/px: a smaller value is in millimetres."""
MAX_ANISOTROPY = 0.05
FAR_FROM_NOMINAL = 0.2
FINEST_USUAL, COARSEST_USUAL, COARSEST_TAG = 0.04, 10.0, 6.0
"""um/px; microscopes give 0.06 (100x, small pixels) to 5 (2x) and 8 (1.25x). Plain resolution tags may as well be those
of a flatbed scanner or a printer."""
CONTRADICTION = 0.3

_WAYS_OUT = "pass mpp=... (um/px) or magnification=..., or estimate it with the scale detector"


@dataclass(frozen=True, slots=True)
class SlideScale:
    """Pixel size of level 0.

    Attributes
    ----------
    mpp : um/px, or None where the file does not say or says nonsense
    mpp_used : um/px that everything is planned with: `mpp`, or the nominal value that it stands for
    stated_by : "user", "user magnification", "objective power", or where in the file
    quality : how far to trust it
    warnings : sentences for a person
    problem : why `mpp` is None
    """

    mpp: float | None
    mpp_used: float | None
    stated_by: str | None
    quality: Quality
    warnings: tuple[str, ...] = ()
    problem: str = ""

    def require(self, name: str) -> float:
        """`mpp_used`, or MissingScaleError with the ways out."""
        if self.mpp_used is None:
            raise MissingScaleError(f"slide '{name}': {self.problem}; {_WAYS_OUT}")
        return self.mpp_used


def resolve_scale(
    metadata: SlideMetadata,
    *,
    name: str,
    mpp: float | None = None,
    magnification: float | None = None,
    tolerance: float = 0.05,
    strict: bool = False,
) -> SlideScale:
    """Judge what a file says of its scale, unless the user says it.

    Parameters
    ----------
    metadata : what the file says
    name : of the slide, for messages
    mpp, magnification : the user's word, at most one of them; overrides the file
    tolerance : relative distance at which `mpp` snaps to a nominal value
    strict : raise MissingScaleError where there would be a warning

    Raises
    ------
    SpecError
        The user's value makes no sense, or both are given.
    MissingScaleError
        With `strict`, for anything doubtful.
    """
    if mpp is not None or magnification is not None:
        return _from_user(mpp, magnification, tolerance, name)
    scale = _from_file(metadata, tolerance)
    if strict and (scale.mpp is None or scale.warnings):
        raise MissingScaleError(f"slide '{name}': {'; '.join(scale.warnings) or scale.problem}; {_WAYS_OUT}")
    return scale


def _from_user(mpp: float | None, magnification: float | None, tolerance: float, name: str) -> SlideScale:
    if mpp is not None and magnification is not None:
        raise SpecError(f"slide '{name}': mpp={mpp!r} and magnification={magnification!r}: give one of them")
    if magnification is not None:
        mpp, stated_by = magnification_to_mpp(magnification), "user magnification"
    else:
        stated_by = "user"
    if isinstance(mpp, str):
        raise SpecError(f"slide '{name}': mpp={mpp!r}: expected a number of um/px, such as ms.estimate_scale(path).mpp")
    if mpp is None or not math.isfinite(mpp) or not MILLIMETRES_BELOW <= mpp <= MAX_MPP:
        raise SpecError(
            f"slide '{name}': {mpp!r} um/px: expected {MILLIMETRES_BELOW} to {MAX_MPP:g}, such as 0.25 for 40x"
        )
    return SlideScale(mpp, snap_mpp(mpp, tolerance=tolerance), stated_by, "user")


def _from_file(metadata: SlideMetadata, tolerance: float) -> SlideScale:
    power = metadata.objective_power
    power = power if power is not None and 10 / MAX_MPP <= power <= 10 / MILLIMETRES_BELOW else None
    if metadata.mpp is None:
        if power is None:
            return SlideScale(None, None, None, "missing", problem=_nothing_read(metadata))
        mpp = magnification_to_mpp(power)
        unread = f" that can be read ({', '.join(metadata.unread)})" if metadata.unread else ""
        note = f"no mpp in the file{unread}: {mpp:g} um/px is taken from its objective power of {power:g}"
        return SlideScale(mpp, snap_mpp(mpp, tolerance=tolerance), "objective power", "objective", (note,))
    x, y = metadata.mpp
    stated = f"mpp of {x:g} x {y:g} um/px ({metadata.mpp_source})"
    # what the vendor's own fields say comes first: if other fields had to serve in their place, that is told
    warnings = (
        [f"the file's {', '.join(metadata.unread)} cannot be read: its {stated} counts"] if metadata.unread else []
    )
    quality: Quality = "stated"
    if not (math.isfinite(x) and math.isfinite(y)) or min(x, y) <= 0:
        return SlideScale(None, None, metadata.mpp_source, "missing", problem=f"absurd {stated}")
    if max(x, y) < MILLIMETRES_BELOW:
        x, y = x * 1000, y * 1000
        quality = "repaired"
        warnings.append(f"{stated} must be millimetres: taken as {x:g} x {y:g} um/px")
    if max(x, y) > MAX_MPP or min(x, y) < MILLIMETRES_BELOW:
        return SlideScale(None, None, metadata.mpp_source, "missing", problem=f"absurd {stated}")
    mpp = (x + y) / 2
    apart = abs(x - y) / mpp
    if apart > MAX_ANISOTROPY:
        problem = f"{stated}: x and y differ by {apart:.1%}, at most {MAX_ANISOTROPY:.0%} can be averaged"
        return SlideScale(None, None, metadata.mpp_source, "missing", problem=problem)
    if apart > 1e-3:
        quality = "anisotropic" if quality == "stated" else quality
        warnings.append(f"{stated}: x and y differ by {apart:.1%}, the mean of {mpp:g} is used")
    # Nominal values lie a factor of 2 apart, so the distance is judged on the octave of the value itself.
    coarsest = COARSEST_TAG if metadata.mpp_source == "tiff resolution" else COARSEST_USUAL
    octave = 0.25 * 2 ** round(math.log2(mpp / 0.25))
    if abs(mpp / octave - 1) > FAR_FROM_NOMINAL:
        quality = "off-nominal"
        warnings.append(f"{mpp:g} um/px ({metadata.mpp_source}) is far from every nominal scale (nearest {octave:g})")
    elif not FINEST_USUAL <= mpp <= coarsest:
        quality = "off-nominal"
        warnings.append(
            f"{mpp:g} um/px ({metadata.mpp_source}) is far from any microscope, which gives {FINEST_USUAL:g} to "
            f"{coarsest:g}: is it a printing resolution, or a picture of a whole glass?"
        )
    if power is not None and abs(mpp * power / 10 - 1) > CONTRADICTION:
        quality = "contradictory"
        warnings.append(
            f"{mpp:g} um/px ({metadata.mpp_source}) contradicts the objective power of {power:g} ({10 / power:g} um/px)"
        )
    return SlideScale(mpp, snap_mpp(mpp, tolerance=tolerance), metadata.mpp_source, quality, tuple(warnings))


def _nothing_read(metadata: SlideMetadata) -> str:
    """Why there is no scale: what the file says, word for word."""
    if not metadata.unread:
        return "no resolution in the file"
    return f"no resolution in the file that can be used: it says {', '.join(metadata.unread)}"
