"""Splits by slide, never by patch: from three lists, or by ratio, stratified and repeated."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msdask.errors import SpecError
from msdask.storage.tables import write_table
from msdask.store.splits import EXTERNAL, PARTS, Lists, check_disjoint, read_partitions

__all__ = ["Split", "check_patients", "chosen_split", "splits"]


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
    patients: Mapping[str, str] | None = None,
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
    patients : patient of each slide: all slides of one go into the same part, and ratios count patients; the class of
        a patient is that of most of its slides. A slide without one is a patient of its own

    Raises
    ------
    SpecError
        A slide or patient would be in two parts, is not known, or a part with a ratio above 0 would be empty.

    Examples
    --------
    >>> [(len(s.train), len(s.valid), len(s.test)) for s in splits("abcdefghij", ratios=(60, 20, 20), repeats=2)]
    [(6, 2, 2), (6, 2, 2)]
    """
    known = sorted({str(s) for s in slides})
    if not known:
        raise SpecError("splits: no slides given")
    if lists is not None:
        found = _from_lists(lists, known)
        for split in found:
            check_patients(split, patients or {})
        return found
    if repeats < 1:
        raise SpecError(f"repeats={repeats!r}: expected at least 1")
    shares = _shares(ratios)
    if stratify is not None and (missing := [s for s in known if s not in stratify]):
        raise SpecError(f"stratify: no class for {len(missing)} slides, such as '{missing[0]}'")
    members: dict[str, list[str]] = {}
    for slide in known:
        members.setdefault((patients or {}).get(slide, slide), []).append(slide)
    classes: dict[str, list[str]] = {}
    for patient, slides_of in members.items():
        of_each = Counter(str(stratify[slide]) if stratify is not None else "" for slide in slides_of)
        classes.setdefault(min(of_each, key=lambda name: (-of_each[name], name)), []).append(patient)
    drawn = [_draw({k: sorted(v) for k, v in classes.items()}, shares, repeat, seed) for repeat in range(repeats)]
    return [
        Split(repeat, *(tuple(sorted(s for patient in part for s in members[patient])) for part in parts))
        for repeat, parts in enumerate(drawn)
    ]


def check_patients(split: Split, patients: Mapping[str, str]) -> None:
    """Refuse a patient whose slides are in two parts.

    Parameters
    ----------
    patients : patient of each slide; slides that have none are not looked at

    Raises
    ------
    SpecError
        Names the patient, the slides and the parts.
    """
    first: dict[str, tuple[str, str]] = {}
    for part in PARTS:
        for slide in getattr(split, part):
            if slide not in patients:
                continue
            other, before = first.setdefault(patients[slide], (slide, part))
            if before != part:
                raise SpecError(
                    f"split {split.repeat}: patient '{patients[slide]}' is in two parts: slide '{other}' is in "
                    f"'{before}' and slide '{slide}' in '{part}': put all slides of a patient into one part"
                )


def chosen_split(
    slides: Sequence[str],
    stored: Mapping[str, Sequence[str]],
    *,
    lists: Path | None = None,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    stratify: Mapping[str, object] | None = None,
    patients: Mapping[str, str] | None = None,
) -> Split:
    """One split: by lists, by ratios, or as the cohort's table says.

    Parameters
    ----------
    slides : ids
    stored : part -> slides, as the table says
    lists, ratios : at most one of them
    seed, stratify, patients : see `splits`

    Raises
    ------
    SpecError
        Both are given, the lists are of several repeats, or none is given and the table says nothing.
    """
    if lists is not None and ratios is not None:
        raise SpecError(f"--lists {lists} and --ratios: each says which slides are for training; give one of them")
    if lists is not None:
        given = splits(slides, lists=lists, patients=patients)
        if len(given) > 1:
            raise SpecError(f"--lists {lists}: lists of {len(given)} repeats; give the folder of one of them")
        return given[0]
    if ratios is not None:
        return splits(slides, ratios=ratios, seed=seed, stratify=stratify, patients=patients)[0]
    if not stored["train"] or not stored["valid"]:
        raise SpecError(
            "the slides have no split, or none for training or validation: extract from a table with a column "
            "'split' (train, valid, test), or give --lists or --ratios"
        )
    return splits(slides, lists=stored, patients=patients)[0]


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


def _draw(classes: Mapping[str, list[str]], shares: Sequence[float], repeat: int, seed: int) -> list[list[str]]:
    """Members of each part."""
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
            raise SpecError(
                f"splits: {total} slides (or patients, where they are known) leave none for '{name}' at a share of "
                f"{share:.1%}"
            )
    return parts


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
