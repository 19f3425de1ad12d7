"""Which patches cover an area, and how much of it each does: squares in, rows and shares out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["covering_patches"]

_LEAST = 1e-6
"""Share of an area below which a patch only touches it."""


def covering_patches(
    areas: NDArray[Any], side: float, patches: NDArray[Any], footprint: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Patches that lie in each area, wholly or in part.

    Parameters
    ----------
    areas : (n, 2) origins x, y of square areas, level-0 px
    side : of the areas, level-0 px
    patches : (m, 2) origins x, y of patches, level-0 px
    footprint : side of the patches, level-0 px

    Returns
    -------
    rows : (n, k) int64, patches of each area in ascending order, -1 where an area has fewer than k
    shares : (n, k) float32, how much of the area each covers; 0 where there is none

    Examples
    --------
    >>> patches = np.array([[0, 0], [10, 0], [15, 10], [40, 0]])
    >>> rows, shares = covering_patches(np.array([[0, 0]]), 20, patches, 10)
    >>> rows.tolist(), shares.tolist()
    ([[0, 1, 2]], [[0.25, 0.25, 0.125]])
    """
    areas, patches = np.asarray(areas, np.float64), np.asarray(patches, np.float64)
    if not len(areas) or not len(patches):
        return np.empty((len(areas), 0), np.int64), np.empty((len(areas), 0), np.float32)
    reach = (side + footprint) / 2
    near = KDTree(areas + side / 2).sparse_distance_matrix(
        KDTree(patches + footprint / 2), reach, p=np.inf, output_type="ndarray"
    )
    area, patch = near["i"].astype(np.int64), near["j"].astype(np.int64)
    first = np.maximum(areas[area], patches[patch])
    last = np.minimum(areas[area] + side, patches[patch] + footprint)
    share = np.clip(last - first, 0, None).prod(1) / side**2
    inside = share > _LEAST
    area, patch, share = area[inside], patch[inside], share[inside]
    order = np.lexsort((patch, area))
    area, patch, share = area[order], patch[order], share[order]
    counts = np.bincount(area, minlength=len(areas))
    column = np.arange(len(area)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(areas), counts.max(initial=0)), -1, np.int64)
    shares = np.zeros(rows.shape, np.float32)
    rows[area, column], shares[area, column] = patch, share
    return rows, shares
