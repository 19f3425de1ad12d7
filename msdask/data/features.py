"""FeatureLoader: batches of features that were computed before, in the order and with the columns of a dataset's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msdask.data.dataset import Batch
from msdask.data.order import EpochOrder
from msdask.data.tuples import TupleDataset
from msdask.errors import SpecError

__all__ = ["FeatureLoader"]


class FeatureLoader:
    """Batches of tuples whose images are replaced by features: ``features`` float32 (B, M, F).

    Parameters
    ----------
    dataset : of the tuples; its images are not read
    features : one array (rows, F) a magnification
    rows : of each, (tuples,) int64: which row is a tuple's
    batch_size : tuples of a batch
    balanced : draw with replacement so that every class of the whole is as likely as the others
    shuffle : otherwise each once, in random order or in that of the dataset
    seed : decides the order of every epoch

    Attributes
    ----------
    epoch : the one that the next iteration gives; a whole iteration adds 1
    """

    def __init__(
        self,
        dataset: TupleDataset,
        features: Sequence[NDArray[np.float32]],
        rows: Sequence[NDArray[np.int64]],
        *,
        batch_size: int,
        balanced: bool = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        if any(len(of) != len(dataset) for of in rows) or len(features) != len(rows):
            raise SpecError(f"features of {[len(of) for of in rows]} tuples: expected those of {dataset!r}")
        self.dataset, self.epoch = dataset, 0
        self._features, self._rows = list(features), list(rows)
        groups = np.unique(dataset.class_of, return_inverse=True)[1] if balanced else None
        self.order = EpochOrder(len(dataset), batch_size, shuffle=shuffle, group_of=groups, seed=seed)
        self._first, self._given = 0, 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; it begins at its first batch unless that epoch is being resumed."""
        if epoch != self.epoch:
            self.epoch, self._first, self._given = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands."""
        return {"epoch": self.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch = int(state["epoch"])
        self._first = self._given = int(state["batch"])

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.epoch, self._first
        self._first, self._given = 0, first
        indices = self.order.indices(epoch)
        bounds = self.order.bounds(len(indices))
        for start, stop in zip(bounds[first:-1].tolist(), bounds[first + 1 :].tolist(), strict=True):
            self._given += 1
            yield self._batch(indices[start:stop])
        self.epoch, self._given = epoch + 1, 0

    def _batch(self, index: NDArray[np.int64]) -> Batch:
        taken = [of[rows[index]] for of, rows in zip(self._features, self._rows, strict=True)]
        return {**self.dataset.columns(index), "features": torch.from_numpy(np.stack(taken, axis=1))}

    def __repr__(self) -> str:
        return f"<FeatureLoader: {len(self)} batches of {self.order.batch_size}, {self.dataset!r}>"
