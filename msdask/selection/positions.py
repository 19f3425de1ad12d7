"""Where grid positions lie: regions of interest, lattices in level-0 px, and the order of their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from msdask.errors import SpecError
from msdask.spec import Roi

__all__ = ["FIT_TOLERANCE", "Lattice", "Region", "morton_order", "region_of_interest", "round_coordinates"]

FIT_TOLERANCE = 1e-6
"""Level-0 px by which a footprint may leave its region; without it one exact fit in seven is lost to float rounding."""

BAND_WIDTH = 20
"""Mask px of the band through the middle that `roi="auto"` looks at."""

BAND_BACKGROUND = 0.99
"""Fraction of that band that is background where a slide carries copies of one section."""


class Region(NamedTuple):
    """A rectangle in level-0 px; its far edge is x + width, y + height."""

    x: float
    y: float
    width: float
    height: float


def region_of_interest(
    roi: Roi, slide_shape: tuple[int, int], tissue: NDArray[np.bool_] | None = None, *, where: str = "selection"
) -> Region:
    """The rectangle that a selection is made in.

    Parameters
    ----------
    roi : "whole" slide, "auto", or a rectangle (x, y, width, height) in level-0 px
        A rectangle is cut to the slide. "auto" is for slides that carry copies of one section side by side or one
        above the other: where a band of 20 mask px through the middle, from top to bottom or from left to right, is
        background to 99 %, it is the half of the slide with more tissue (of equal halves the left or upper one).
        Where both bands are empty the cut is the one whose halves are more alike, since copies hold about the same;
        side by side if both are. Without an empty band, or without any tissue, it is the whole slide.
    slide_shape : (height, width) of level 0, px
    tissue : (y, x) bool, any resolution; needed for "auto" alone
    where : the slide's name, for messages

    Raises
    ------
    SpecError
        "auto" without a mask, or a rectangle outside the slide.
    """
    height, width = slide_shape
    if roi == "whole":
        return Region(0.0, 0.0, float(width), float(height))
    if roi == "auto":
        if tissue is None:
            raise SpecError(
                f"{where}: roi='auto' looks for copies of the tissue: it needs a tissue or label mask; pass one, or "
                "roi='whole'"
            )
        return _fuller_half(tissue, slide_shape)
    x, y, roi_width, roi_height = (float(value) for value in roi)
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + roi_width, float(width)), min(y + roi_height, float(height))
    if right <= left or bottom <= top:
        raise SpecError(
            f"{where}: roi={tuple(roi)!r} (x, y, width, height) lies outside the slide of {width} x {height} px; "
            "expected a rectangle in level-0 px that meets it"
        )
    return Region(left, top, right - left, bottom - top)


def _fuller_half(tissue: NDArray[np.bool_], slide_shape: tuple[int, int]) -> Region:
    height, width = slide_shape
    whole = Region(0.0, 0.0, float(width), float(height))
    if not tissue.any():
        return whole
    cuts: list[tuple[float, Region]] = []
    for axis, size in ((1, width), (0, height)):
        profile = tissue.sum(axis=1 - axis, dtype=np.int64)
        middle = profile.size // 2
        band = profile[max(0, middle - BAND_WIDTH // 2) : middle + BAND_WIDTH // 2]
        band_area = band.size * tissue.shape[1 - axis]
        # In whole px, so that a band of exactly 99 % background counts.
        if int(band.sum()) > round((1 - BAND_BACKGROUND) * band_area, 6):
            continue
        first, second = int(profile[:middle].sum()), int(profile[middle:].sum())
        likeness = min(first, second) / max(first, second, 1)
        half = size // 2
        begin, length = (0, half) if first >= second else (half, size - half)
        if length == 0:
            continue
        region = (begin, 0, length, height) if axis == 1 else (0, begin, width, length)
        cuts.append((likeness, Region(*(float(value) for value in region))))
    return max(cuts, key=lambda cut: cut[0])[1] if cuts else whole


@dataclass(frozen=True)
class Lattice:
    """Grid positions of one region, separable in x and y.

    Attributes
    ----------
    x : (columns,) float64, level-0 px, ascending
    y : (rows,) float64, level-0 px, ascending
    step : level-0 px between neighbours
    start : (x, y) of the first position, or where it would have been if nothing fits
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    step: float
    start: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.y.size, self.x.size

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.y.size * self.x.size

    @classmethod
    def within(
        cls,
        region: Region,
        *,
        step: float,
        side: float,
        start: tuple[float, float] | None = None,
        inside: bool = True,
    ) -> Lattice:
        """Every position start + i * step (i = 0, 1, ...) whose footprint belongs to the region.

        Parameters
        ----------
        region : level-0 px
        step : level-0 px between neighbours
        side : level-0 px of a footprint
        start : (x, y) of the position (0, 0), level-0 px; the region's origin if None
            It may lie before the region: what comes before it is left out and the rest keeps its place, so that grids
            of different regions can share one lattice.
        inside : footprints lie inside the region, to 1e-6 px; False keeps all that start in it

        Raises
        ------
        SpecError
            `start` is not a pair of finite numbers.
        """
        if start is None:
            start = (region.x, region.y)
        if len(start) != 2 or not all(math.isfinite(value) for value in start):
            raise SpecError(f"start={start!r}: expected (x, y) in level-0 px")
        reach = side if inside else 0.0
        x = _positions(start[0], step, region.x, region.x + region.width, reach)
        y = _positions(start[1], step, region.y, region.y + region.height, reach)
        first_x = float(x[0]) if x.size else float(start[0])
        first_y = float(y[0]) if y.size else float(start[1])
        return cls(x, y, step, (first_x, first_y))


def _positions(start: float, step: float, low: float, high: float, reach: float) -> NDArray[np.float64]:
    """Every start + i * step, i >= 0, from `low` on that ends at `high` (reach > 0) or begins before it (reach 0)."""
    limit = high - reach + FIT_TOLERANCE if reach else high - FIT_TOLERANCE
    # One more at either end: the comparison below decides, not the rounding of these divisions.
    first = max(0, math.floor((low - start) / step) - 1)
    last = math.ceil((limit - start) / step) + 1
    position = start + np.arange(first, max(first, last + 1), dtype=np.float64) * step
    return position[(position >= low - FIT_TOLERANCE) & (position <= limit)]


def round_coordinates(value: ArrayLike) -> NDArray[np.int32]:
    """Level-0 px as stored: nearest integer, halves away from zero.

    Raises
    ------
    SpecError
        A coordinate does not fit into 32 bits: the magnification is absurdly low.
    """
    value = np.asarray(value, dtype=np.float64)
    rounded = np.copysign(np.floor(np.abs(value) + 0.5), value)
    if rounded.size and np.abs(rounded).max() > np.iinfo(np.int32).max:
        raise SpecError(
            f"coordinates of up to {np.abs(rounded).max():.3g} level-0 px: expected below 2**31; is the magnification "
            "right?"
        )
    coordinates: NDArray[np.int32] = rounded.astype(np.int32)
    return coordinates


def morton_order(column: ArrayLike, row: ArrayLike) -> NDArray[np.int64]:
    """Order along the Morton (Z) curve: neighbours in it are neighbours on the slide.

    Parameters
    ----------
    column, row : (n,) integers, 0 to 2**32 - 1
        Column is the low bit of each pair.

    Returns
    -------
    order : (n,) int64
        Indices that put the positions in order; equal positions keep theirs.

    Examples
    --------
    >>> morton_order([0, 1, 0, 1], [1, 1, 0, 0]).tolist()
    [2, 3, 0, 1]
    """
    code = _spread_bits(column) | (_spread_bits(row) << np.uint64(1))
    return np.argsort(code, kind="stable").astype(np.int64, copy=False)


def _spread_bits(value: ArrayLike) -> NDArray[np.uint64]:
    """The low 32 bits of each value, with a zero between any two."""
    bits = np.asarray(value).astype(np.uint64) & np.uint64(0xFFFFFFFF)
    for shift, keep in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(keep)
    return bits
