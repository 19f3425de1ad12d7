"""What a loader evens out: patches of classes or of slides, or the labelled px of classes in the label maps."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from msdask.data.dataset import PatchDataset
from msdask.errors import SpecError

__all__ = ["Balance", "chances_of", "groups_of", "pixel_chances"]

Balance = bool | Literal["class", "slide", "pixels"]
_UNEVEN = 1.05
"""Ratio of the largest to the smallest expected share of a class from which a loader says so."""


def groups_of(dataset: PatchDataset, balanced: Balance) -> NDArray[np.integer[Any]] | None:
    """Group of each patch whose sizes are evened out; None where groups are not what is balanced."""
    if balanced is False or balanced == "pixels":
        return None
    if balanced == "slide":
        return dataset.slide_of
    if balanced not in (True, "class"):
        raise SpecError(f"balanced={balanced!r}: expected True, False, 'class', 'slide' or 'pixels'")
    classes = dataset.class_of
    if unlabeled := int((classes < 0).sum()):
        raise SpecError(
            f"{unlabeled} of {len(classes)} patches have no label, so classes cannot be balanced: take "
            "PatchDataset(..., labels='labeled'), or balanced='slide'"
        )
    return np.unique(classes, return_inverse=True)[1]


def chances_of(dataset: PatchDataset, balanced: Balance) -> NDArray[np.float64] | None:
    """Chance of each patch to be drawn; None where px are not what is balanced.

    Warns
    -----
    UserWarning
        No chances make the classes equal: some come only with much more of others.
    """
    if balanced != "pixels":
        return None
    counts = dataset.label_pixels()
    chances = pixel_chances(counts)
    expected = chances @ counts[:, 1:].astype(np.float64)
    shares = expected[expected > 0] / expected.sum()
    if shares.max() > _UNEVEN * shares.min():
        found = ", ".join(f"class {k}: {expected[k] / expected.sum():.1%}" for k in np.flatnonzero(expected))
        warnings.warn(
            "balanced='pixels': these patches cannot make the classes equal, as some classes come only with more px of "
            f"others; expected shares of the labelled px: {found}",
            UserWarning,
            stacklevel=3,
        )
    return chances


def pixel_chances(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Chance of each patch to be drawn, such that the expected number of labelled px of each class is the same.

    With ``n[i, k]`` the px of class k in the label map of patch i, and ``N[k]`` their sum over all patches, patch i has
    the chance ``p[i] = sum_k w[k] * n[i, k] / N[k]``: a class is drawn with weight ``w[k]``, and then a patch by how
    much of it that has. A draw for class k brings ``A[k, c] = sum_i n[i, k] / N[k] * n[i, c]`` px of class c with it,
    so that ``sum_k w[k] * A[k, c]`` are expected of class c. The weights are those that are not below 0 and bring these
    sums nearest to one number for all c, by least squares: equal, wherever such weights can make them so (as they do
    where every patch is of one class). A class that comes along with others often enough gets little weight of its own.
    Unlabeled px count nothing, a patch without labelled px is never drawn, and classes that no patch has are left out.

    Parameters
    ----------
    counts : (patches, labels) px of each label, 0 = unlabeled first

    Returns
    -------
    chances : (patches,) float64; they add up to 1

    Raises
    ------
    SpecError
        No patch has a labelled px.

    Examples
    --------
    >>> pixel_chances(np.array([[0, 100, 0], [50, 50, 0], [75, 0, 25]])).round(3).tolist()
    [0.154, 0.077, 0.769]
    """
    labelled = counts[:, 1:].astype(np.float64)
    totals = labelled.sum(0)
    if not totals.any():
        raise SpecError(f"balanced='pixels': none of {len(counts)} patches has a labelled px: check the label maps")
    labelled, totals = labelled[:, totals > 0], totals[totals > 0]
    given_class = labelled / totals
    brought = given_class.T @ labelled
    weights, _ = nnls(brought.T / brought.mean(), np.ones(len(totals)))
    chances: NDArray[np.float64] = given_class @ weights
    return chances / chances.sum()
