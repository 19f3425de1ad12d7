"""In which order an epoch shows its patches: pure functions of sizes, seed, epoch and rank.

Nothing here knows of torch or of workers, so the order is the same for any number of them, and an epoch that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["EpochOrder", "Shuffle", "balanced_draws", "block_order", "draw_seeds", "weighted_draws"]

Shuffle = bool | Literal["blocks"]


def balanced_draws(group_of: NDArray[np.integer[Any]], draws: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draws with replacement, each with weight 1 / (size of its group): every group is as likely as the others.

    Parameters
    ----------
    group_of : (patches,) int, class or slide of each patch
    draws : how many

    Returns
    -------
    indices : (draws,) int64
    """
    members = np.argsort(group_of, kind="stable")
    _, starts, counts = np.unique(group_of[members], return_index=True, return_counts=True)
    group = random.integers(0, len(counts), draws)
    return members[starts[group] + random.integers(0, counts[group])]


def weighted_draws(chance_of: NDArray[np.floating[Any]], draws: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draws with replacement, each patch with a chance of its own.

    Parameters
    ----------
    chance_of : (patches,) float, not negative, not all 0; in any unit
    draws : how many

    Returns
    -------
    indices : (draws,) int64
    """
    ends = np.cumsum(chance_of, dtype=np.float64)
    # Where a draw falls on an end it belongs to the next patch: what has no chance has no room before its end.
    return np.searchsorted(ends[: np.flatnonzero(chance_of)[-1]], random.random(draws) * ends[-1], side="right")


def block_order(
    block_of: NDArray[np.integer[Any]],
    *,
    mix: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Blocks in random order, and the patches of every `mix` neighbouring blocks shuffled among themselves.

    Parameters
    ----------
    block_of : (patches,) int, block of each patch; a block's patches are neighbours on their slide
    mix : blocks that are mixed
    seed, epoch : decide the order
    rank, world_size : this process takes its share of the sequence of blocks

    Returns
    -------
    indices : (n,) int64
    windows : (n,) int64, number of the window of blocks that each index was mixed in, ascending
    """
    _, block = np.unique(block_of, return_inverse=True)
    blocks = int(block.max(initial=-1)) + 1
    place = np.random.default_rng([seed, epoch]).permutation(blocks)
    mine = np.array_split(np.argsort(place[block], kind="stable"), world_size)[rank]
    # Blocks are numbered anew along the part that is this rank's: its windows begin with its first block.
    window = (place[block[mine]] - (place[block[mine[0]]] if len(mine) else 0)) // mix
    random = np.random.default_rng([seed, epoch, rank])
    mixed = np.argsort(window + random.random(len(mine)), kind="stable")
    return mine[mixed], window[mixed]


def draw_seeds(seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """A seed for everything that is random about each draw of an epoch: (n,) int64, not negative.

    The same whatever worker makes it, and another one each time that a patch is drawn.
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # splitmix64: neighbouring positions get unrelated numbers
        z = key + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The batches of every epoch, for one of `world_size` processes.

    Without balance each patch comes once an epoch, and the processes' shares are disjoint and complete (`drop_last`
    leaves out what does not fill a batch). Every process has the same number of batches, so that none waits for the
    others, and a last batch has two patches or more, since batch norm cannot learn from one: where one or none would be
    left for it, the last two batches are cut elsewhere. That takes batches of 3 and more, and more than one of them.

    Attributes
    ----------
    patches : of the dataset
    batch_size : patches of a batch
    shuffle : True for a random permutation, False for the dataset's order, "blocks" for shuffled blocks whose patches
        are mixed
    group_of : (patches,) int, class or slide of each patch: draw with replacement so that every group is as likely as
        the others; None takes each patch once
    chance_of : (patches,) float, chance of each patch: draw with replacement by these instead
    block_of : (patches,) int, for "blocks"
    mix : blocks that are mixed, for "blocks"
    seed : decides the order of every epoch
    drop_last : leave out the last batch if it is not full
    rank, world_size : of this process, for distributed training
    """

    patches: int
    batch_size: int
    shuffle: Shuffle = True
    group_of: NDArray[np.integer[Any]] | None = None
    chance_of: NDArray[np.floating[Any]] | None = None
    block_of: NDArray[np.integer[Any]] | None = None
    mix: int = 4
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise SpecError(f"{name}={getattr(self, name)!r}: expected {expected}")

        for name in ("batch_size", "mix", "seed", "rank", "world_size"):
            if not isinstance(getattr(self, name), (int, np.integer)):
                refuse(name, "a whole number")
        if self.batch_size < 1:
            refuse("batch_size", "at least 1")
        if self.mix < 1:
            refuse("mix", "at least 1 block")
        if self.seed < 0:
            refuse("seed", "a whole number, not negative")
        if self.world_size < 1:
            refuse("world_size", "at least 1 process")
        if not 0 <= self.rank < self.world_size:
            refuse("rank", f"0 to {self.world_size - 1}")
        if self.shuffle not in (True, False, "blocks"):
            refuse("shuffle", "True, False or 'blocks'")
        if self.shuffle == "blocks" and self.block_of is None:
            refuse("block_of", "the block of each patch, for shuffle='blocks'")
        least = self.world_size * (self.batch_size if self.drop_last else 1)
        if self.patches < least:
            raise SpecError(
                f"{self.patches} patches for {self.world_size} processes and batches of {self.batch_size}"
                f"{' with drop_last' if self.drop_last else ''}: expected at least {least}; check slides, splits and "
                "labels, or take smaller batches"
            )
        if self.batch_size == 1 and not self.drop_last and not self.is_drawn and self.patches % self.world_size:
            raise SpecError(
                f"{self.patches} patches cannot be dealt to {self.world_size} processes in equal numbers of batches of "
                "1: pass drop_last=True"
            )

    @property
    def is_drawn(self) -> bool:
        """Whether patches are drawn with replacement; otherwise each comes once."""
        return self.group_of is not None or self.chance_of is not None

    def __len__(self) -> int:
        """Batches of an epoch, the same for every process."""
        most = -(-self.patches // self.world_size)
        if self.drop_last:
            return (most if self.is_drawn else self.patches // self.world_size) // self.batch_size
        return -(-most // self.batch_size)

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Indices of this process, in order: (n,) int64."""
        if self.is_drawn:
            draws, random = -(-self.patches // self.world_size), np.random.default_rng([self.seed, epoch, self.rank])
            if self.chance_of is not None:
                return weighted_draws(self.chance_of, draws, random)
            if self.group_of is not None:
                return balanced_draws(self.group_of, draws, random)
        if self.shuffle == "blocks":
            return self.windows(epoch)[0]
        order = np.random.default_rng([self.seed, epoch]).permutation(self.patches) if self.shuffle else None
        return (np.arange(self.patches) if order is None else order)[self.rank :: self.world_size]

    def windows(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`block_order` of this process."""
        if self.block_of is None:
            raise SpecError("block_of=None: expected the block of each patch, for shuffle='blocks'")
        return block_order(
            self.block_of, mix=self.mix, seed=self.seed, epoch=epoch, rank=self.rank, world_size=self.world_size
        )

    def bounds(self, count: int) -> NDArray[np.int64]:
        """Where this process's `count` indices are cut into batches: (len + 1,) int64."""
        cuts = np.minimum(np.arange(len(self) + 1) * self.batch_size, count)
        last = int(cuts[-1] - cuts[-2])
        if len(self) > 1 and last < 2:  # the batch before, which is full, gives what is missing of two
            cuts[-2] -= 2 - last if self.batch_size - (2 - last) >= 2 else 1 - last
        return cuts

    def seeds(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`draw_seeds` of this process's positions in the epoch."""
        return draw_seeds(self.seed, epoch, positions * self.world_size + self.rank)
