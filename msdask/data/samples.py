"""Batches that PyTorch's own loader understands: its default collation takes them as they are, nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

__all__ = ["WholeBatch"]


class _Sample(dict[str, torch.Tensor]):
    """One patch of a batch that was read as a whole."""


class WholeBatch(dict[str, torch.Tensor]):
    """A batch, as `PatchDataset.__getitems__` gives it: a dict of tensors, and ``batch[i]`` is the i-th sample.

    PyTorch's DataLoader (and its Subset) asks a dataset for all samples of a batch at once, and gives what it gets to
    its collation, which looks at the first sample. That is of a kind whose collation is entered below.
    """

    def __missing__(self, number: Any) -> _Sample:
        if not isinstance(number, int):
            raise KeyError(number)
        return _Sample({name: values[number] for name, values in self.items()})


def _collated(batch: Any, *, collate_fn_map: Any = None) -> dict[str, Any]:
    """What is a batch already, as it is; single samples are put together as dicts are."""
    if isinstance(batch, WholeBatch):
        return dict(batch)
    samples: Sequence[_Sample] = batch
    return {name: default_collate([sample[name] for sample in samples]) for name in samples[0]}


default_collate_fn_map[_Sample] = _collated
