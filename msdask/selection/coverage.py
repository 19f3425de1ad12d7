"""How much of a footprint a mask covers: exact area averages over masks, from summed-area tables; or the slide does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from msdask.errors import MaskError
from msdask.scale import check_proportions

__all__ = ["FRACTION_SLACK", "SummedArea", "axis_runs", "mask_values", "outside_shares"]

FRACTION_SLACK = 1e-9
"""Added to fractions before they are compared, so that one exactly on a threshold passes whatever its last bit says."""

_BLOCK = 1 << 16
"""Footprints evaluated at once: 9 MiB of table entries, which stay in the processor's cache."""


class SummedArea:
    """Summed-area table of a mask: sums over boxes with fractional corners.

    Parameters
    ----------
    mask : (height, width) bool
        Covers the whole slide, at any resolution; outside it is background.

    Notes
    -----
    The table is int32 (float64 for masks of 2^31 px and more) with one row and column of zeros first (spec section 2).
    Bilinear interpolation at a fractional corner and the difference of four corners is one weighted sum over 4 x 4
    table entries. It is taken in an order in which all differences are counts of mask px, exact integers, before any
    weight is applied: the direct order loses eight digits where a footprint of a few mask px lies at the far end of a
    large mask.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        height, width = mask.shape
        self.shape = (height, width)
        counted = np.ascontiguousarray(mask, dtype=np.bool_).view(np.uint8)
        # Whole numbers need half of the memory: 0.6 of the time for a mask of 1 Mpx, 0.2 for one of 6.5 (by hand).
        depth = cv2.CV_32S if mask.size <= np.iinfo(np.int32).max else cv2.CV_64F
        self._table: NDArray[Any] = np.asarray(cv2.integral(counted, sdepth=depth))

    def sums(self, x0: ArrayLike, y0: ArrayLike, x1: ArrayLike, y1: ArrayLike) -> NDArray[np.float64]:
        """Covered area of boxes, in mask px squared.

        Parameters
        ----------
        x0, y0, x1, y1 : (n,) float64, mask px
            Opposite corners, fractional; what lies outside the mask counts as background.

        Returns
        -------
        area : (n,) float64
        """
        rows, row_weights = axis_runs(y0, y1, self.shape[0])
        columns, column_weights = axis_runs(x0, x1, self.shape[1])
        entries = self._table[rows[:, :, None], columns[:, None, :]]
        strips = entries[:, 1::2] - entries[:, ::2]
        counts = strips[:, :, 1::2] - strips[:, :, ::2]
        area: NDArray[np.float64] = np.einsum("ni,nij,nj->n", row_weights, counts, column_weights)
        return area

    def fractions(self, x: ArrayLike, y: ArrayLike, side: float, slide_shape: tuple[int, int]) -> NDArray[np.float64]:
        """Fraction of square footprints that the mask covers.

        Parameters
        ----------
        x, y : (n,) float64, level-0 px
            Origins of the footprints.
        side : level-0 px
        slide_shape : (height, width) of level 0, px

        Returns
        -------
        fraction : (n,) float64, 0 to 1

        Examples
        --------
        >>> mask = np.zeros((4, 4), dtype=bool)
        >>> mask[:, :2] = True
        >>> SummedArea(mask).fractions([0.5], [1.0], 2.0, (4, 4)).tolist()
        [0.75]
        """
        x = np.asarray(x, dtype=np.float64)
        y = np.asarray(y, dtype=np.float64)
        scale_y, scale_x = self.shape[0] / slide_shape[0], self.shape[1] / slide_shape[1]
        area = (side * scale_x) * (side * scale_y)
        fraction = np.empty(x.shape, dtype=np.float64)
        for first in range(0, x.size, _BLOCK):
            block = slice(first, first + _BLOCK)
            left, top = x[block], y[block]
            fraction[block] = self.sums(left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
        fraction /= area
        return np.clip(fraction, 0.0, 1.0, out=fraction)


def axis_runs(low: ArrayLike, high: ArrayLike, size: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Three runs of mask px whose weighted sum is the interval, along one axis.

    With low = a + f and high = b + g (a, b whole): all of [a, b), plus g of px b, minus f of px a.

    Returns
    -------
    bounds : (n, 6) begin and end of each run, table indices
    weights : (n, 3)
    """
    low = np.clip(np.asarray(low, dtype=np.float64), 0.0, size)
    high = np.clip(np.asarray(high, dtype=np.float64), 0.0, size)
    # The px beyond the last is empty and only met with weight 0.
    a = np.minimum(low.astype(np.intp), size - 1)
    b = np.minimum(high.astype(np.intp), size - 1)
    bounds = np.stack([a, b, b, b + 1, a, a + 1], axis=-1)
    weights = np.stack([np.ones_like(low), high - b, a - low], axis=-1)
    return bounds, weights


def mask_values(mask: xr.DataArray | ArrayLike, slide_shape: tuple[int, int], *, what: str) -> NDArray[np.generic]:
    """The values of a tissue or label mask as an array, checked against the slide's shape.

    Parameters
    ----------
    mask : (y, x) bool or integer; a DataArray may have its axes in any order
    slide_shape : (height, width) of level 0, px
    what : the mask's and the slide's name, for the message

    Raises
    ------
    MaskError
        Not two-dimensional, without pixels, of a type that is neither bool nor integer, or of another aspect ratio.
    """
    if isinstance(mask, xr.DataArray):
        if set(mask.dims) != {"y", "x"}:
            raise MaskError(f"{what}: the mask has dims {tuple(mask.dims)}, expected ('y', 'x')")
        mask = mask.transpose("y", "x")
    values: NDArray[np.generic] = np.asarray(mask)
    if values.ndim != 2 or values.size == 0:
        raise MaskError(f"{what}: the mask has shape {values.shape}, expected (height, width) with at least one px")
    if values.dtype.kind not in "bui":
        raise MaskError(
            f"{what}: the mask has dtype {values.dtype}, expected bool or integers; threshold or round it first"
        )
    check_proportions(values.shape, slide_shape, what=what)
    return values


def outside_shares(
    x0: NDArray[np.integer[Any]], y0: NDArray[np.integer[Any]], footprints: Sequence[float], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Share of each patch that lies outside of its slide, where there is white instead (the pad).

    Parameters
    ----------
    x0, y0 : (tuples, magnifications) int, level-0 px of the patches' origins
    footprints : level-0 px of a patch's side, one a magnification
    shape : (height, width) of the slide's level 0, px

    Returns
    -------
    shares : (tuples, magnifications) float32, 0 to 1

    Examples
    --------
    >>> outside_shares(np.array([[-50]]), np.array([[0]]), [100.0], (200, 200))
    array([[0.5]], dtype=float32)
    """
    sides = np.asarray(footprints)
    inside = [
        np.clip(np.minimum(first + sides, extent) - np.maximum(first, 0), 0, None) / sides
        for first, extent in ((x0.astype(np.float64), shape[1]), (y0.astype(np.float64), shape[0]))
    ]
    return np.asarray(1 - inside[0] * inside[1], np.float32)
