"""What sources of patches share: a set of a store, its slides and patients, and how they are split."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.data.linked import LinkedSet
from msdask.errors import MsdaskError, SpecError
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.splits import PARTS, parts_of
from msdask.training.splits import Split, chosen_split

__all__ = ["PatchSource", "opened_store"]


def opened_store(place: str | os.PathLike[str]) -> PatchStore:
    """A patch store that has a set.

    Raises
    ------
    MsdaskError
        It is none, or has none.
    """
    store = PatchStore(place)
    if not len(store):
        raise MsdaskError(f"'{os.fspath(place)}' is no patch store, or has no patch set yet")
    return store


class PatchSource:
    """Patches of a set, of known classes.

    Parameters
    ----------
    place : patch store
    patches : set of it, or linked grids

    Attributes
    ----------
    slides : ids, sorted
    patients : patient of each slide that has one in its table
    classes : how many
    counts : (slides, classes) int64, how much of each class is on each slide
    dropped : reason -> what is left out for it
    """

    classes: int
    counts: NDArray[np.int64]

    def __init__(self, place: str, patches: PatchSet | LinkedSet) -> None:
        self.place = place
        self._set: PatchSet | LinkedSet = patches
        self.slides = sorted(patches.slides)
        self._cohort: dict[str, Mapping[str, Any]] = {s: patches.attrs(s).get("cohort", {}) for s in self.slides}
        found = {s: str(facts.get("patient", "")) for s, facts in self._cohort.items()}
        self.patients = {slide_id: patient for slide_id, patient in found.items() if patient}
        self.dropped: dict[str, int] = {}

    def split(
        self,
        *,
        lists: Path | None = None,
        ratios: Sequence[float] | None = None,
        seed: int = 0,
        is_checked: bool = True,
    ) -> Split:
        """Training, validation and test slides: by lists, by ratios (stratified, by patient), or as the table says.

        Raises
        ------
        SpecError
            A slide or patient is in two parts.
        """
        most = self.counts.argmax(1).tolist()
        return chosen_split(
            self.slides,
            self.stored_split(),
            lists=lists,
            ratios=ratios,
            seed=seed,
            stratify=dict(zip(self.slides, most, strict=True)),
            patients=self.patients,
        )

    def stored_split(self) -> dict[str, list[str]]:
        """Slides of each part, as the cohort's table says."""
        found = parts_of({slide_id: str(self._cohort[slide_id].get("split", "")) for slide_id in self.slides})
        return {part: found[part] for part in PARTS}

    def measured_slides(self, split: Split | None = None, *, everything: bool = False) -> list[str]:
        """Which slides a model is measured on; a class that none of them has is warned of.

        Parameters
        ----------
        split : its test slides; None: those of the cohort's table
        everything : all slides instead

        Raises
        ------
        MsdaskError
            There is none.
        """
        tested = self.stored_split()["test"] if split is None else list(split.test)
        slides = self.slides if everything else tested
        if not slides:
            raise MsdaskError(
                "no slide is in the test split: give lists or ratios (--lists, --ratios), or measure all slides (--all)"
            )
        self.warn_of_missing(slides)
        return slides

    def check(self, split: Split) -> None:
        """Refuse a split in which a part lacks a class; an empty test part is none.

        Raises
        ------
        SpecError
            Names the class, the part, and the slides that have it.
        """
        parts = [part for part in PARTS if getattr(split, part) or part != "test"]
        has = {part: self.counts[np.isin(self.slides, getattr(split, part))].sum(0) for part in parts}
        missing = [(part, number) for part in parts for number in np.flatnonzero(has[part] == 0).tolist()]
        if not missing:
            return
        holders = [[s for s, n in zip(self.slides, column, strict=True) if n] for column in self.counts.T]
        patients = [len({self.patients.get(s, s) for s in slides}) for slides in holders]
        part, number = min(missing, key=lambda pair: patients[pair[1]])  # a class that no split can do is said first
        if not holders[number]:
            why = f"it is on no slide: the labels are 0 to {int(np.flatnonzero(self.counts.sum(0)).max())}"
        elif patients[number] < len(parts):
            why = (
                f"slides with it: {len(holders[number])}, of {patients[number]} patients ({holders[number][:3]}), too "
                f"few for {len(parts)} parts: add slides with it, or leave it out of the masks' values"
            )
        else:
            why = f"slides with it: {len(holders[number])}, such as {holders[number][:3]}: split them otherwise"
        raise SpecError(
            f"split {split.repeat}: class {number} is missing from '{part}' ({len(getattr(split, part))} slides): {why}"
        )

    def warn_of_missing(self, slides: Sequence[str]) -> None:
        """Say which classes the slides do not have: what is measured on them says nothing of these."""
        has = self.counts[np.isin(self.slides, list(slides))].sum(0)
        if missing := np.flatnonzero(has == 0).tolist():
            warnings.warn(
                f"classes {missing} are on none of the {len(slides)} slides that are measured",
                UserWarning,
                stacklevel=2,
            )

    @property
    def patches(self) -> PatchSet | LinkedSet:
        """The set of centroids, the linked grids, or the one grid."""
        return self._set

    @property
    def patch_size(self) -> int:
        """Px a side."""
        return self._set.patch_size if isinstance(self._set, LinkedSet) else self._set.spec.patch_size
