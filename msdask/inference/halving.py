"""Coarser levels of a segmentation: labels and probabilities at half the size, shards made of those below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["InHand", "Shard", "halved_labels", "halved_means"]


@dataclass(frozen=True)
class Shard:
    """A square of one level, on its way to its file.

    Attributes
    ----------
    level : 0 the finest
    row, column : of the shard
    labels : (y, x)
    probability : (class, y, x), or None
    """

    level: int
    row: int
    column: int
    labels: NDArray[np.uint8]
    probability: NDArray[Any] | None

    @classmethod
    def empty(cls, at: tuple[int, int, int], shape: tuple[int, int], kept: tuple[int, str] | None) -> Self:
        """One in which nothing was looked at.

        Parameters
        ----------
        at : level, row and column
        shape : (height, width), px
        kept : number and type of the probabilities; None: there are none
        """
        probability = None
        if kept is not None:
            probability = np.full((kept[0], *shape), 0 if kept[1] == "uint8" else np.nan, kept[1])
        return cls(*at, np.zeros(shape, np.uint8), probability)

    def put(self, top: int, left: int, labels: NDArray[np.uint8], probability: NDArray[Any] | None) -> None:
        """Put a part in its place, px of the shard."""
        here = slice(top, top + labels.shape[0]), slice(left, left + labels.shape[1])
        self.labels[here] = labels
        if self.probability is not None and probability is not None:
            self.probability[(slice(None), *here)] = probability


class InHand:
    """Makes shards of coarser levels from those below them, while these are in hand.

    A shard is made when the last of the four below it has come. Where one of them was written before, by a run that
    was stopped, none is made here: the files have what it is made of. Of shards in Morton order one of each level waits
    for what it lacks.

    Parameters
    ----------
    shapes : (rows, columns) of each level, px
    side : px a side of a shard
    shards : (n, 2) row and column of all that the finest level has
    coming : (n,) bool, which of them will come
    kept : number and type of the probabilities; None: there are none

    Attributes
    ----------
    made : (level, row, column) of what was made here
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        side: int,
        shards: NDArray[np.int64],
        coming: NDArray[np.bool_],
        kept: tuple[int, str] | None,
    ) -> None:
        self._shapes, self._side, self._kept = shapes, side, kept
        self.made: set[tuple[int, int, int]] = set()
        self._waiting: dict[tuple[int, int, int], Shard] = {}
        self._missing: dict[tuple[int, int, int], int] = {}
        for level in range(1, len(shapes)):
            parents, of_parent, counts = np.unique(shards // 2, axis=0, return_inverse=True, return_counts=True)
            come = np.bincount(of_parent.reshape(-1), weights=coming, minlength=len(parents))
            # Half a shard has whole px only where a shard has an even number of them.
            shards, coming = parents, (come == counts) & (side % 2 == 0)
            for (row, column), count in zip(parents[coming].tolist(), counts[coming].tolist(), strict=True):
                self._missing[level, row, column] = count

    def empty(self, level: int, row: int, column: int) -> Shard:
        """A shard in which nothing was looked at yet."""
        height, width = (
            min(self._side, n - i * self._side) for i, n in zip((row, column), self._shapes[level], strict=True)
        )
        return Shard.empty((level, row, column), (height, width), self._kept)

    def above(self, shard: Shard) -> Shard | None:
        """The shard of the next coarser level, if this was the last that it lacked."""
        at = shard.level + 1, shard.row // 2, shard.column // 2
        if at not in self._missing:
            return None
        parent = self._waiting.get(at)
        if parent is None:
            parent = self._waiting[at] = self.empty(*at)
        top, left = (i % 2 * self._side // 2 for i in (shard.row, shard.column))
        means = None if shard.probability is None else halved_means(shard.probability, shard.labels)
        parent.put(top, left, halved_labels(shard.labels), means)
        self._missing[at] -= 1
        if self._missing[at]:
            return None
        del self._waiting[at], self._missing[at]
        self.made.add(at)
        return parent


def _quarters(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The four px of `values` (y, x) under each px of the next level: each (y / 2, x / 2); 0 beyond the edge."""
    if values.shape[0] % 2 or values.shape[1] % 2:
        values = np.pad(values, [(0, n % 2) for n in values.shape])
    return [values[i::2, j::2] for i in (0, 1) for j in (0, 1)]


def halved_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels at half the size: the most frequent of each 2 x 2 px but 0, of several the least; 0 where all are.

    >>> halved_labels(np.array([[2, 1, 0, 0, 3], [1, 2, 0, 3, 0]], np.uint8)).tolist()
    [[1, 3, 3]]
    """
    a, b, c, d = _quarters(labels)
    # A network that sorts: what is the same then stands beside each other, 0 first.
    a, b, c, d = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    a, c, b, d = np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)
    b, c = np.minimum(b, c), np.maximum(b, c)
    least = np.where(a > 0, a, np.where(b > 0, b, np.where(c > 0, c, d)))
    # Two in the middle are most, or as many as others that are no less; the last two are most where the first differ.
    last = np.where((c == d) & ((a != b) | (a == 0)), c, least)
    return np.where((b == c) & (b > 0), b, last)


def halved_means(values: NDArray[Any], labels: NDArray[np.uint8]) -> NDArray[Any]:
    """Probabilities at half the size: the mean over those of each 2 x 2 px that were looked at.

    Parameters
    ----------
    values : (class, y, x) uint8 or float16
    labels : (y, x), 0 where nothing was looked at

    Returns
    -------
    means : (class, y, x) of the same type; 0 of uint8 and NaN of float16 where there is nothing
    """
    known = _quarters(labels > 0)
    count = np.sum(known, axis=0)
    total = np.zeros((len(values), *count.shape), np.float32)
    for k, one in enumerate(values):
        for quarter, is_known in zip(_quarters(one), known, strict=True):
            np.add(total[k], quarter, out=total[k], where=is_known)
    mean = total / np.maximum(count, 1)
    if values.dtype == np.uint8:
        return np.floor(mean + np.float32(0.5)).astype(np.uint8)
    return np.where(count > 0, mean, np.nan).astype(values.dtype)
