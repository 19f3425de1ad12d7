"""Whether each process of a training has a loader of its own share: two that learn from the same patches waste one."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from msdask.data.order import EpochOrder
from msdask.errors import SpecError

__all__ = ["check_share", "share_of"]


def share_of(loader: Any) -> tuple[int, int] | None:
    """Which process of how many a loader was made for: (rank, world_size); None if the loader does not say.

    Known of msdask's own loaders, of a DataLoader over a PatchStream, and of one with a DistributedSampler.
    """
    for holder in (loader, getattr(loader, "dataset", None)):
        order = getattr(holder, "order", None)
        if isinstance(order, EpochOrder):
            return order.rank, order.world_size
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, DistributedSampler):
        return loader.sampler.rank, loader.sampler.num_replicas
    return None


def check_share(loader: Any, rank: int, world_size: int) -> None:
    """Refuse a loader that was made for another process.

    Parameters
    ----------
    loader : any; one that does not say for which process it was made is believed
    rank, world_size : of this process

    Raises
    ------
    SpecError
        It would give the patches of another process, or too many or too few.
    """
    share = share_of(loader)
    if share is not None and share != (rank, world_size):
        raise SpecError(
            f"{loader!r} was made with rank={share[0]}, world_size={share[1]}, but this is process {rank} of "
            f"{world_size} (devices times nodes of the recipe): processes would see the same patches, or leave some "
            f"out; make it with rank={rank}, world_size={world_size}"
        )
