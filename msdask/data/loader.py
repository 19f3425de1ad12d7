"""The loader: batches of an epoch in order, read ahead on threads or by worker processes, resumable in mid-epoch."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from dask.system import CPU_COUNT
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from msdask.data.augment import Augment
from msdask.data.balance import Balance, chances_of, groups_of
from msdask.data.dataset import Batch, PatchDataset, Reading, Transform
from msdask.data.feed import Feed, Sent
from msdask.data.given import Given, as_dataset
from msdask.data.order import EpochOrder, Shuffle
from msdask.errors import SpecError
from msdask.store.keep_rule import Keep
from msdask.store.reading_threads import FORK_REASON

__all__ = ["PatchLoader", "loader"]

_MOST_THREADS = 8
"""More of them wait for Python's lock: what a patch costs under it is a tenth of what it costs in all."""
_STATE_KEYS = ("patches", "batch_size", "world_size", "seed", "shuffle", "balanced", "drop_last")


def loader(
    sets: Given,
    *,
    batch_size: int,
    split: str | Sequence[str] | None = None,
    keep: Keep | None = None,
    balanced: Balance = False,
    shuffle: Shuffle = True,
    seed: int = 0,
    num_workers: int = 0,
    prefetch: int | None = None,
    augment: Transform | None = None,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    device: torch.device | str | None = None,
    start_method: str = "forkserver",
    mix: int = 4,
) -> PatchLoader:
    """Batches of patches for training, validation or prediction.

    Without workers, reading and augmentation run ahead on threads of this process, which is the fastest way for raw
    stores. Workers pay only where augmentation is heavy and there is no GPU to do it: `msdask.training.fit` lets the
    GPU that it trains on do it, as `device` does.

    Parameters
    ----------
    sets : a PatchDataset, a Subset of one, or patch sets that one is made of with its defaults
    batch_size : patches of a batch
    split : name or names of the splits to take, where sets are given
    keep : as for `PatchDataset`, where sets are given; None: its default
    balanced : draw with replacement, with weights 1 / count, so that every class (True or "class"; what a class is says
        the dataset's `target`) or every "slide" is as likely as the others; or "pixels", such that the expected number
        of labelled px of each class is the same, see `msdask.data.balance.pixel_chances`
    shuffle : True; False for the dataset's order; "blocks" for shuffled blocks of neighbours that are mixed, which is
        what True means for virtual sets
    seed : decides order and augmentation of every epoch
    num_workers : processes; 0 reads on threads
    prefetch : batches under way at any time, for each worker where there are some; None: 2 for a worker, and as many
        as there are cores, from 2 to 8, on threads, which augment that many batches beside each other
    augment : from batch to batch, such as `Augment`
    drop_last : leave out the last batch if it is not full
    rank, world_size : of this process, for distributed training: shares are disjoint and complete
    pin_memory : put batches into page-locked memory, where there is a GPU
    device : that batches are given on, such as "cuda"; see `PatchLoader.to`. None: in memory, as the CPU makes them
    start_method : of workers, "forkserver" or "spawn"
    mix : blocks that are mixed where blocks are shuffled

    Returns
    -------
    loader : iterate for one epoch; the next iteration is the next epoch

    Raises
    ------
    SpecError
        An argument makes no sense, `start_method` is "fork", or classes are to be balanced and some patches have none.

    Examples
    --------
    >>> train = ms.data.loader(store["grid-10x-224"], batch_size=64, split="train", balanced=True)  # doctest: +SKIP
    """
    dataset = as_dataset(sets, split=split, keep=keep)
    if start_method not in ("forkserver", "spawn"):
        why = f": {FORK_REASON}" if start_method == "fork" else ""
        raise SpecError(f"start_method={start_method!r}: expected 'forkserver' or 'spawn'{why}")
    if prefetch is None:
        prefetch = 2 if num_workers else min(max(CPU_COUNT, 2), _MOST_THREADS)
    if num_workers < 0 or prefetch < 1:
        raise SpecError(f"num_workers={num_workers}, prefetch={prefetch}: expected at least 0 and at least 1")
    if shuffle is True and dataset.is_virtual and not balanced:
        shuffle = "blocks"
    order = EpochOrder(
        len(dataset),
        batch_size,
        shuffle=shuffle,
        group_of=groups_of(dataset, balanced),
        chance_of=chances_of(dataset, balanced),
        block_of=dataset.block_of if shuffle == "blocks" else None,
        mix=mix,
        seed=seed,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    return PatchLoader(
        dataset,
        order,
        num_workers=num_workers,
        prefetch=prefetch,
        augment=augment,
        pin_memory=pin_memory,
        device=device,
        start_method=start_method,
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """One batch to read."""

    indices: NDArray[np.int64]
    seeds: NDArray[np.int64]


class PatchLoader:
    """Batches of one epoch after the other; made by `loader`.

    Attributes
    ----------
    dataset : what is read
    order : which patches, when
    epoch : the one that the next iteration gives; a whole iteration adds 1
    device : that batches are given on; None: in memory, as the CPU makes them
    """

    def __init__(
        self,
        dataset: PatchDataset,
        order: EpochOrder,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        augment: Transform | None = None,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        start_method: str = "forkserver",
    ) -> None:
        self.dataset, self.order, self.epoch = dataset, order, 0
        self.batch_size, self.num_workers, self.prefetch = order.batch_size, num_workers, prefetch
        self.device: torch.device | None = None
        self._feed: Feed | None = None
        self._work = _Work(dataset, augment)
        self._start_method = start_method
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._begin, self._given = 0, 0
        self._chosen = 0
        self._turn: object | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._workers: DataLoader[Batch] | None = None
        self._tasks = _Tasks(order)
        self.to(device)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    @property
    def batch_sampler(self) -> PatchLoader:
        """The loader itself: trainers look for `set_epoch` here."""
        return self

    def to(self, device: torch.device | str | None) -> Self:
        """Give batches on a device from the next iteration on; gives the loader itself.

        Batches are sent ahead from page-locked memory, on a stream of their own. What an `Augment` draws is drawn here
        as ever and done there, to whole batches; another `augment` is done here. "cpu" does it so in memory; None gives
        what the CPU makes patch by patch.
        """
        chosen = None if device is None else torch.device(device)
        if chosen != self.device:
            self.close()
            self.device, self._feed = chosen, None if chosen is None else Feed(chosen)
            self._work = self._work.left(chosen is not None)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; it begins at its first batch unless that epoch is being resumed."""
        if epoch != self.epoch:
            self.epoch, self._begin, self._given = epoch, 0, 0
            self._chosen += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: save it with the model. Batches that were only read ahead do not count.

        A loader that is iterated inside its own loop stands where the last batch was given, inside or outside.
        """
        return {"epoch": self.epoch, "batch": self._given, **self._facts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives the rest of that epoch.

        Raises
        ------
        SpecError
            The state is of a loader over other data or with another order.
        """
        facts = self._facts()
        if changed := [f"{k}: {state.get(k)!r}, here {facts[k]!r}" for k in _STATE_KEYS if state.get(k) != facts[k]]:
            raise SpecError(f"this state is of another loader ({'; '.join(changed)}): make it with the same arguments")
        self.epoch = int(state["epoch"])
        self._begin = self._given = int(state["batch"])
        self._chosen += 1

    def _facts(self) -> dict[str, Any]:
        order = self.order
        return {
            "patches": order.patches,
            "batch_size": order.batch_size,
            "world_size": order.world_size,
            "seed": order.seed,
            "shuffle": order.shuffle,
            "balanced": order.is_drawn,
            "drop_last": order.drop_last,
        }

    def __iter__(self) -> Iterator[Batch]:
        epoch, given, chosen = self.epoch, self._begin, self._chosen
        self._begin, self._given = 0, given
        batches = self._by_workers(epoch, given) if self.num_workers else self._by_threads(epoch, given)
        for batch in batches:
            given += 1
            if self._chosen == chosen:  # nobody has chosen another place since
                self.epoch, self._given = epoch, given
            yield batch
        if self._chosen == chosen:
            self.epoch, self._given = epoch + 1, 0

    def close(self) -> None:
        """End the workers now; the next iteration starts new ones. Without it they end with the loader."""
        if self._workers is not None and (running := self._workers._iterator) is not None:
            try:
                cast(Any, running)._shutdown_workers()
            except RuntimeError as error:
                # Told to end, a worker may abort in the thread pool of a native library: its batches are here already.
                if "DataLoader worker" not in str(error):
                    raise
        self._workers = self._turn = None

    def _by_threads(self, epoch: int, first: int) -> Iterator[Batch]:
        work, feed = self._work, self._feed
        under_way: deque[Reading | Future[Sent]] = deque()

        def ready() -> Batch:
            done = under_way.popleft().result()
            return done if not isinstance(done, Sent) else done.batch if feed is None else feed.ready(done)

        try:
            for task in _tasks(self.order, epoch, first):
                under_way.append(self._submit(task, work, feed))
                if len(under_way) > self.prefetch:
                    yield ready()
            while under_way:
                yield ready()
        finally:
            for left in under_way:
                left.cancel()

    def _submit(self, task: _Task, work: _Work, feed: Feed | None) -> Reading | Future[Sent]:
        reading = work.begin(task)
        if not work.changes and not self._pin_memory and feed is None:
            return reading
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(CPU_COUNT, self.prefetch), thread_name_prefix="msdask-batch")
        return self._pool.submit(self._finish, reading, work, feed)

    def _finish(self, reading: Reading, work: _Work, feed: Feed | None) -> Sent:
        batch = work.finish(reading.result())
        if feed is not None:
            return feed.send(batch)
        return Sent({k: v.pin_memory() for k, v in batch.items()} if self._pin_memory else batch)

    def _by_workers(self, epoch: int, first: int) -> Iterator[Batch]:
        given, feed = first, self._feed
        while given < len(self):
            self._turn = turn = object()
            batches = self._worked(epoch, given)
            for batch in batches if feed is None else feed.ahead(batches):
                given += 1
                yield batch
                if self._turn is not turn:  # another iteration has taken the workers meanwhile: they begin anew here
                    break

    def _worked(self, epoch: int, first: int) -> DataLoader[Batch]:
        """The workers, told to give an epoch from its batch `first` on; whoever iterates them last has them."""
        self._tasks.epoch, self._tasks.first = epoch, first
        if self._workers is None:
            self._workers = DataLoader(
                self._work,
                batch_size=None,
                sampler=self._tasks,
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch,
                collate_fn=PatchDataset.collate,
                multiprocessing_context=multiprocessing.get_context(self._start_method),
                persistent_workers=True,
                pin_memory=self._pin_memory or (self._feed is not None and self._feed.is_cuda),
            )
        return self._workers

    def __repr__(self) -> str:
        how = f"{self.num_workers} workers" if self.num_workers else "threads"
        return f"<PatchLoader: {len(self)} batches of {self.batch_size} by {how}, {self.dataset!r}>"


def _tasks(order: EpochOrder, epoch: int, first: int) -> Iterator[_Task]:
    """The batches of an epoch from `first` on, unread."""
    indices = order.indices(epoch)
    bounds = order.bounds(len(indices))
    positions = np.arange(len(indices))
    for start, stop in zip(bounds[first:-1].tolist(), bounds[first + 1 :].tolist(), strict=True):
        yield _Task(indices[start:stop], order.seeds(epoch, positions[start:stop]))


class _Tasks:
    """The tasks of one epoch, for workers that live through several.

    It must not know the loader: in a cycle of references workers would end only when the garbage collector comes by, on
    whatever thread that is, and their end is waited for there.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order, self.epoch, self.first = order, 0, 0

    def __iter__(self) -> Iterator[_Task]:
        return _tasks(self.order, self.epoch, self.first)

    def __len__(self) -> int:
        return len(self.order) - self.first


class _Work(Dataset[Batch]):
    """What is done with one batch, here or in a worker."""

    def __init__(self, dataset: PatchDataset, augment: Transform | None, *, leaves: bool = False) -> None:
        self._dataset, self._augment, self._leaves = dataset, augment, leaves

    def left(self, leaves: bool) -> _Work:
        """The same work, of which a device does its part or none."""
        return _Work(self._dataset, self._augment, leaves=leaves)

    @property
    def changes(self) -> bool:
        """Whether a batch is changed after it is read."""
        return self._augment is not None or self._dataset.transform is not None

    def begin(self, task: _Task) -> Reading:
        return self._dataset.begin(task.indices, seeds=task.seeds)

    def finish(self, batch: Batch) -> Batch:
        own = self._augment
        last = own.begin if self._leaves and isinstance(own, Augment) else own
        for change in (self._dataset.transform, last):
            batch = batch if change is None else change(batch)
        return batch

    def __getitem__(self, task: Any) -> Batch:
        return self.finish(self.begin(task).result())
