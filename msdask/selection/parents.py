"""Which coarse patch contains a fine one: the upper-region links of training with n + 1 losses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["complete_tuples", "link_upper_regions"]

CONTAINMENT_TOLERANCE = 1.0
"""Level-0 px by which a child may leave its parent: both origins are rounded, by up to half a px each."""

_SLACK = 1e-6
"""Keeps a child that is exactly that far out inside, whatever the last bit of the footprints says."""


def link_upper_regions(fine: xr.Dataset, coarse: xr.Dataset) -> NDArray[np.int32]:
    """Parent of each fine patch in a coarse selection of the same slide (the paper's upper region; spec section 7).

    A parent is a stored patch whose footprint contains the fine one entirely, within 1 level-0 px; of several the first
    in row-major order (by y, then x), which only overlapping grids have.

    Parameters
    ----------
    fine, coarse : tables of `select`
        The patches of their highest magnifications are linked.

    Returns
    -------
    parent : (n_fine,) int32
        Row of the coarse table (which is in Morton order), -1 where there is no parent.

    Raises
    ------
    SpecError
        The tables belong to different slides, or `coarse` is not coarser.

    Notes
    -----
    Both axes are looked up in a count of the coarse table's distinct columns (rows) before each level-0 px, which
    gives each child's range of columns and rows; in each row of the range, the first stored patch from the range's
    first column on is one search in the sorted positions. The range has one or two rows unless the coarse grid
    overlaps.
    """
    _check_tables(fine, coarse)
    count = fine.sizes["patch"]
    parent = np.full(count, -1, dtype=np.int32)
    if count == 0 or coarse.sizes["patch"] == 0:
        return parent
    overhang = float(coarse.attrs["footprint"][0]) - float(fine.attrs["footprint"][0])
    column, first_column, last_column = _ranges(_origin(fine, "x0"), _origin(coarse, "x0"), overhang)
    row, first_row, last_row = _ranges(_origin(fine, "y0"), _origin(coarse, "y0"), overhang)

    columns = int(column.max()) + 1
    key = row * columns + column
    row_major = np.argsort(key, kind="stable")
    key = key[row_major]
    open_ = np.flatnonzero((first_column <= last_column) & (first_row <= last_row))
    candidate_row = first_row[open_]
    while open_.size:
        found = np.searchsorted(key, candidate_row * columns + first_column[open_])
        last = candidate_row * columns + last_column[open_]
        is_parent = (found < key.size) & (key[np.minimum(found, key.size - 1)] <= last)
        parent[open_[is_parent]] = row_major[found[is_parent]]
        left = ~is_parent & (candidate_row < last_row[open_])
        open_, candidate_row = open_[left], candidate_row[left] + 1
    return parent


def complete_tuples(fine: xr.Dataset, parents: Mapping[float, NDArray[np.int32]]) -> NDArray[np.bool_]:
    """Fine patches that have a parent at every magnification; the others are dropped from training with n + 1 losses.

    Parameters
    ----------
    fine : table of `select`, n_fine patches
    parents : magnification -> (n_fine,) rows, as `link_upper_regions` gives them

    Returns
    -------
    complete : (n_fine,) bool

    Raises
    ------
    SpecError
        Parents of another number of patches.
    """
    complete = np.ones(fine.sizes["patch"], dtype=np.bool_)
    for magnification, parent in parents.items():
        if parent.shape != complete.shape:
            raise SpecError(
                f"parents at {magnification:g}x of {parent.shape} patches, expected one for each of the "
                f"{complete.size} fine patches; link this table again"
            )
        complete &= parent >= 0
    return complete


def _check_tables(fine: xr.Dataset, coarse: xr.Dataset) -> None:
    for fact in ("slide_id", "shape", "mpp_used"):
        ours, theirs = fine.attrs[fact], coarse.attrs[fact]
        if ours != theirs and list(np.atleast_1d(ours)) != list(np.atleast_1d(theirs)):
            raise SpecError(
                f"cannot link selections of different slides: {fact} is {ours!r} in the fine and {theirs!r} in the "
                "coarse table; link selections made on one slide"
            )
    fine_magnification, coarse_magnification = (float(table["magnification"][0]) for table in (fine, coarse))
    if coarse_magnification >= fine_magnification:
        raise SpecError(
            f"slide {fine.attrs['slide_id']!r}: parents are asked at {coarse_magnification:g}x for patches at "
            f"{fine_magnification:g}x; expected a lower magnification for the parents: link_upper_regions(fine, coarse)"
        )
    if coarse.attrs["footprint"][0] < fine.attrs["footprint"][0]:
        raise SpecError(
            f"slide {fine.attrs['slide_id']!r}: a parent's footprint of {coarse.attrs['footprint'][0]:g} level-0 px is "
            f"smaller than a child's, {fine.attrs['footprint'][0]:g}; use a patch size for the parents that can "
            "contain the children"
        )


def _origin(table: xr.Dataset, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name][:, 0]).astype(np.int64)


def _ranges(
    child: NDArray[np.int64], parent: NDArray[np.int64], overhang: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Along one axis: number of each parent's line, and first and last line that can hold each child.

    A line is a distinct origin. A child at c fits into a parent at p if c - overhang <= p <= c, within the tolerance.
    """
    offset = int(parent.min())
    is_line = np.zeros(int(parent.max()) - offset + 1, dtype=np.bool_)
    is_line[parent - offset] = True
    before = np.concatenate([[0], np.cumsum(is_line)])

    def lines_before(px: NDArray[np.float64]) -> NDArray[np.int64]:
        return before[np.clip(px - offset, 0, is_line.size).astype(np.int64)]

    tolerance = CONTAINMENT_TOLERANCE + _SLACK
    first = lines_before(np.ceil(child - overhang - tolerance))
    last = lines_before(np.floor(child + tolerance) + 1) - 1
    return before[parent - offset], first, last
