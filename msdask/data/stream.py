"""PatchStream: the iterable form, for stores that are too large or too far away for single patches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from msdask.data.dataset import Batch, PatchDataset, Reading, Transform
from msdask.data.order import EpochOrder
from msdask.errors import SpecError

__all__ = ["PatchStream"]


class PatchStream(IterableDataset[Batch]):
    """Batches that are cut from a buffer of a few whole blocks (= shards), read one after the other in storage order.

    Blocks come in random order, and the patches of `mix` blocks are mixed in the buffer: few large reads instead of
    many small ones, at the price of a shuffle that is local. The next buffer is read while this one is used, so memory
    is two buffers: 2 * mix * block. In PyTorch's DataLoader give ``batch_size=None``; worker k of n gives the batches
    k, k + n ..., so that the order is the same for any number of them.

    Parameters
    ----------
    dataset : what is read
    batch_size : patches of a batch
    mix : blocks that are mixed
    seed : decides the order of every epoch
    drop_last : leave out the last batch if it is not full
    augment : from batch to batch, such as `Augment`
    rank, world_size : of this process, for distributed training

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        *,
        batch_size: int,
        mix: int = 4,
        seed: int = 0,
        drop_last: bool = False,
        augment: Transform | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.augment, self.epoch = dataset, augment, 0
        self.order = EpochOrder(
            len(dataset),
            batch_size,
            shuffle="blocks",
            block_of=dataset.block_of,
            mix=mix,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch < 0:
            raise SpecError(f"epoch={epoch}: expected a whole number, not negative")
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, mine = (1, 0) if worker is None else (worker.num_workers, worker.id)
        indices, windows = self.order.windows(self.epoch)
        bounds = self.order.bounds(len(indices))
        seeds = self.order.seeds(self.epoch, np.arange(len(indices)))
        batch_of = np.searchsorted(bounds, np.arange(bounds[-1]), side="right") - 1
        wanted = np.flatnonzero(batch_of % step == mine)
        cuts = np.flatnonzero(np.diff(windows[wanted])) + 1
        parts: list[Batch] = []
        for buffer, places in self._buffers(indices, seeds, np.split(wanted, cuts)):
            batches = batch_of[places]
            for number in np.unique(batches).tolist():
                parts.append(_take(buffer, np.flatnonzero(batches == number)))
                if sum(len(p["index"]) for p in parts) == bounds[number + 1] - bounds[number]:
                    batch, parts = _join(parts), []
                    yield self._change(batch)

    def _buffers(
        self, indices: NDArray[np.int64], seeds: NDArray[np.int64], windows: list[NDArray[np.intp]]
    ) -> Iterator[tuple[Batch, NDArray[np.intp]]]:
        """Each window's patches, and their places in the epoch; the next is read ahead."""
        under_way: deque[tuple[Reading, NDArray[np.intp]]] = deque()
        for places in windows:
            under_way.append((self.dataset.begin(indices[places], seeds=seeds[places]), places))
            if len(under_way) == 2:
                reading, at = under_way.popleft()
                yield reading.result(), at
        for reading, at in under_way:
            yield reading.result(), at

    def _change(self, batch: Batch) -> Batch:
        for change in (self.dataset.transform, self.augment):
            batch = batch if change is None else change(batch)
        return batch


def _take(buffer: Batch, places: NDArray[np.intp]) -> Batch:
    """Some patches of a buffer; images stay channels-last in memory."""
    return {
        name: (values.movedim(-3, -1)[places].movedim(-1, -3) if name == "image" else values[places])
        for name, values in buffer.items()
    }


def _join(parts: list[Batch]) -> Batch:
    import torch

    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> torch.Tensor:
        if name == "image":
            return torch.cat([p[name].movedim(-3, -1) for p in parts]).movedim(-1, -3)
        return torch.cat([p[name] for p in parts])

    return {name: joined(name) for name in parts[0]}
