"""Splits by slide, never by patch: from three lists, or by ratio, stratified and repeated."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msdask.errors import SpecError
from msdask.storage.tables import write_table
from msdask.store.splits import EXTERNAL, PARTS, Lists, check_disjoint, read_partitions

__all__ = ["Split", "splits"]


@dataclass(frozen=True)
class Split:
    """One way to split the slides.

    Attributes
    ----------
    repeat : number, from 0
    train, valid, test : slide ids, sorted
    """

    repeat: int
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        check_disjoint(f"split {self.repeat}", {part: getattr(self, part) for part in PARTS})

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write list_train.csv, list_valid.csv and list_test.csv, one slide a line; returns the folder."""
        for name in PARTS:
            write_table(Path(folder) / f"list_{name}.csv", [(slide,) for slide in getattr(self, name)])
        return Path(folder)


def splits(
    slides: Iterable[str],
    *,
    ratios: Sequence[float] = (80, 20, 20),
    lists: Lists | None = None,
    repeats: int = 1,
    seed: int = 0,
    stratify: Mapping[str, object] | None = None,
) -> list[Split]:
    """Split slides into training, validation and test.

    Parameters
    ----------
    slides : ids; their order does not matter
    ratios : of training, validation and test; put to a sum of 1, with a warning where they are neither 1 nor 100
        together (the original's 80/20/20 is 66.7/16.7/16.7 %)
    lists : instead of ratios: a folder with list_train.csv, list_valid.csv and list_test.csv (one slide a line), or
        with one such folder a repeat, which gives a split each; or a mapping of train, valid and test to ids. An id may
        have the slide's ending or lack it
    repeats : how many splits are drawn, each with other random numbers
    seed : the same seed gives the same splits
    stratify : class of each slide: every class is spread over the three parts as the ratios say

    Raises
    ------
    SpecError
        A slide would be in two parts, is not known, or a part with a ratio above 0 would be empty.

    Examples
    --------
    >>> [(len(s.train), len(s.valid), len(s.test)) for s in splits("abcdefghij", ratios=(60, 20, 20), repeats=2)]
    [(6, 2, 2), (6, 2, 2)]
    """
    known = sorted({str(s) for s in slides})
    if not known:
        raise SpecError("splits: no slides given")
    if lists is not None:
        return _from_lists(lists, known)
    if repeats < 1:
        raise SpecError(f"repeats={repeats!r}: expected at least 1")
    shares = _shares(ratios)
    if stratify is not None and (missing := [s for s in known if s not in stratify]):
        raise SpecError(f"stratify: no class for {len(missing)} slides, such as '{missing[0]}'")
    classes: dict[str, list[str]] = {}
    for slide in known:
        classes.setdefault(str(stratify[slide]) if stratify is not None else "", []).append(slide)
    return [_draw(classes, shares, repeat, seed) for repeat in range(repeats)]


def _shares(ratios: Sequence[float]) -> tuple[float, ...]:
    if len(ratios) != 3 or not all(np.isfinite(r) and r >= 0 for r in ratios) or not ratios[0] > 0:
        raise SpecError(
            f"ratios={list(ratios)!r}: expected three numbers for training, validation and test, the first above 0"
        )
    total = float(sum(ratios))
    shares = tuple(r / total for r in ratios)
    if abs(total - 1) > 1e-9 and abs(total - 100) > 1e-9:
        said, meant = ("/".join(f"{v:.3g}" for v in values) for values in (ratios, [100 * s for s in shares]))
        warnings.warn(f"ratios {said} add up to {total:g}: taken as {meant} %", UserWarning, stacklevel=3)
    return shares


def _draw(classes: Mapping[str, list[str]], shares: Sequence[float], repeat: int, seed: int) -> Split:
    rng = np.random.default_rng([seed, repeat])
    parts: list[list[str]] = [[], [], []]
    owed = np.zeros(3)  # what rounding in the classes before left open, so that the totals come out right too
    for name in sorted(classes):
        members = [classes[name][i] for i in rng.permutation(len(classes[name]))]
        wanted = np.asarray(shares) * len(members) + owed
        counts = np.maximum(np.floor(wanted + 1e-9), 0).astype(int)
        while counts.sum() > len(members):
            counts[np.argmax(counts - wanted)] -= 1
        while counts.sum() < len(members):
            counts[np.argmax(wanted - counts)] += 1
        owed = wanted - counts
        first = 0
        for part, count in zip(parts, counts, strict=True):
            part += members[first : first + count]
            first += count
    for part, name, share in zip(parts, PARTS, shares, strict=True):
        if share > 0 and not part:
            total = sum(len(v) for v in classes.values())
            raise SpecError(f"splits: {total} slides leave none for '{name}' at a share of {share:.1%}")
    return Split(repeat, *(tuple(sorted(part)) for part in parts))


def _from_lists(lists: Lists, known: Sequence[str]) -> list[Split]:
    partitions, missing = read_partitions(lists, known)
    if missing:
        raise SpecError(f"lists: '{missing[0]}' is none of the {len(known)} slides, such as '{known[0]}'")
    if unknown := sorted({part for p in partitions for part in p.parts} - {*PARTS, EXTERNAL}):
        raise SpecError(f"lists: unknown parts {unknown}; expected {', '.join(PARTS)}")
    return [
        Split(repeat, *(tuple(sorted(partition.parts.get(part, ()))) for part in PARTS))
        for repeat, partition in enumerate(partitions)
    ]
