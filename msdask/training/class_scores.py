"""Scores of a classifier from its confusion matrix: counts in, numbers out; many matrices at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCORES", "accuracy", "balanced_accuracy", "confusion", "f1", "kappa", "macro_f1"]

Counts = NDArray[Any]


def confusion(labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """Confusion matrix (classes, classes): rows are the true classes, columns the predicted ones.

    Parameters
    ----------
    labels, predicted : (n,) int, from 0 to below `classes`
    """
    cells = np.bincount(np.asarray(labels, np.int64) * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def kappa(counts: Counts) -> NDArray[np.float64]:
    """Cohen's kappa with quadratic weights, of matrices (..., C, C); NaN where truth and prediction are one class.

    Examples
    --------
    >>> round(float(kappa(np.array([[5, 1], [1, 3]]))), 4)
    0.5833
    """
    counts = np.asarray(counts, np.float64)
    number = np.arange(counts.shape[-1])
    weights = (number[:, None] - number) ** 2.0
    total = counts.sum((-2, -1))
    observed = (weights * counts).sum((-2, -1)) * total
    expected = np.einsum("...i,ij,...j->...", counts.sum(-1), weights, counts.sum(-2))
    return _ratio(expected - observed, expected)


def accuracy(counts: Counts) -> NDArray[np.float64]:
    """Share of what is right, of matrices (..., C, C)."""
    counts = np.asarray(counts, np.float64)
    return _ratio(_hits(counts).sum(-1), counts.sum((-2, -1)))


def balanced_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Mean, over the classes that occur in the truth, of the share of each that is recognized; of (..., C, C)."""
    counts = np.asarray(counts, np.float64)
    return _mean_known(_ratio(_hits(counts), counts.sum(-1)))


def f1(counts: Counts) -> NDArray[np.float64]:
    """F1 of each class (..., C), of matrices (..., C, C); NaN for a class that neither occurs nor is predicted."""
    counts = np.asarray(counts, np.float64)
    return _ratio(2 * _hits(counts), counts.sum(-1) + counts.sum(-2))


def macro_f1(counts: Counts) -> NDArray[np.float64]:
    """Mean of the F1 of all classes that occur or are predicted, of matrices (..., C, C)."""
    return _mean_known(f1(counts))


SCORES: dict[str, Callable[[Counts], NDArray[np.float64]]] = {
    "kappa": kappa,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}
"""Scores by the names that metrics.json has for them."""


def _hits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, NaN where nothing is below."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)


def _mean_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is a number."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))
