"""What a caller gives as data, as a dataset: sets, a dataset, or PyTorch's Subset of one."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Subset

from msdask.data.dataset import Batch, PatchDataset, Sets
from msdask.errors import SpecError
from msdask.store.keep_rule import Keep

__all__ = ["Given", "as_dataset"]

Given = PatchDataset | Subset[Batch] | Sets | Sequence[Sets]


def as_dataset(given: Given, *, split: str | Sequence[str] | None = None, keep: Keep | None = None) -> PatchDataset:
    """The dataset that is meant.

    Parameters
    ----------
    given : a dataset, a Subset of one (`torch.utils.data.random_split` makes them, too), or patch sets
    split, keep : as for `PatchDataset`, where patch sets are given

    Raises
    ------
    SpecError
        `split` or `keep` with a dataset, or a Subset of something else.
    """
    if not isinstance(given, (PatchDataset, Subset)):
        return PatchDataset(given, splits=split, keep=True if keep is None else keep)
    if split is not None or keep is not None:
        raise SpecError("split= and keep= go with patch sets: give splits= and keep= to the PatchDataset")
    if isinstance(given, PatchDataset):
        return given
    # Down to the dataset first: what is taken of it has its order, and numbers of a Subset are of another one.
    indices, below = list(given.indices), given.dataset
    while isinstance(below, Subset):
        indices, below = [below.indices[i] for i in indices], below.dataset
    if not isinstance(below, PatchDataset):
        raise SpecError(f"a Subset of {type(below).__name__}: expected one of a PatchDataset")
    return below.take(indices)
