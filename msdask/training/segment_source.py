"""What a segmentation model learns from and is measured on: patches of a store with their label maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.data.dataset import PatchDataset
from msdask.data.loader import PatchLoader, loader
from msdask.data.patches import StoredPatches
from msdask.errors import SpecError
from msdask.masks.label_plane import MAX_LABEL
from msdask.spec import format_magnification
from msdask.store.layout import sharded_names
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.training.patch_source import PatchSource, opened_store
from msdask.training.segment_task import SegmentTask

__all__ = ["SegmentSource"]


class SegmentSource(PatchSource):
    """Patches or tuples of a store that have label maps.

    Parameters
    ----------
    place : patch store
    magnifications : which of the set's, the first is the target; None means all that the one fitting set has
    name : of the set, where several would do
    classes : how many there are; None means as many as have names, or up to the highest label

    Attributes
    ----------
    slides : ids, sorted
    magnifications : highest first
    names : of the classes; their numbers where the store has no names
    classes : how many
    patients : patient of each slide that has one in its table
    counts : (slides, classes) int64, px of each class in the target's label maps of the patches that are taken
    dropped : reason -> patches that are left out for it

    Raises
    ------
    SpecError
        The store has no such set, or no label maps in it; a label is out of range; all px have one class.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        magnifications: Sequence[float] | None = None,
        name: str | None = None,
        classes: int | None = None,
    ) -> None:
        where, store = os.fspath(place), opened_store(place)
        wanted = None if magnifications is None else sorted(set(map(float, magnifications)), reverse=True)
        self._patches = _set_of(store, where, wanted, name)
        super().__init__(where, self._patches)
        own = self._patches.spec.magnifications
        self.magnifications = tuple(m for m in own if wanted is None or m in wanted)
        self._column = own.index(self.magnifications[0])
        self._count(classes)

    def _count(self, classes: int | None) -> None:
        found = {slide: self._pixels(slide) for slide in self.slides}
        given = next((self._patches.attrs(s).get("classes") for s in self.slides), None)
        total = sum(found.values(), start=np.zeros(MAX_LABEL + 1, np.int64))
        if not total[1:].any():
            raise SpecError(f"'{self._set.name}' of '{self.place}': no px of its label maps is labeled")
        highest = int(np.flatnonzero(total)[-1]) - 1
        self.classes = classes or max(highest + 1, len(given or ()))
        if highest >= self.classes:
            raise SpecError(
                f"'{self._set.name}' of '{self.place}' has class {highest} in its label maps, out of range for "
                f"{self.classes} classes (0 to {self.classes - 1}): give --classes {highest + 1}"
            )
        is_named = given is not None and len(given) == self.classes
        self.names = tuple(map(str, given if is_named and given is not None else range(self.classes)))
        self.counts = np.stack([found[slide][1 : self.classes + 1] for slide in self.slides])
        if (self.counts.sum(0) > 0).sum() < 2:
            raise SpecError(
                f"'{self._set.name}' of '{self.place}': all labeled px are of class {highest}; expected two"
            )

    def _pixels(self, slide_id: str) -> NDArray[np.int64]:
        """Px of each label, (256,) int64, in the target's label maps of the patches of a slide that are taken."""
        keep = np.asarray(self._patches.columns(slide_id, ["keep"])[0], bool)
        reason = "white or of low contrast"
        self.dropped[reason] = self.dropped.get(reason, 0) + int((~keep).sum())
        counts = StoredPatches(self._patches).label_pixels(slide_id, self._column)[keep].sum(0, dtype=np.int64)
        return np.pad(counts, (0, MAX_LABEL + 1 - len(counts)))

    def class_weights(self, slides: Sequence[str]) -> list[float]:
        """Weights of the classes in the loss, 1 / how many px of each the slides have; their mean over px is 1."""
        counts = self.counts[np.isin(self.slides, list(slides))].sum(0)
        if (counts == 0).any():
            raise SpecError(f"classes {np.flatnonzero(counts == 0).tolist()} have no px: they cannot be weighted")
        return [float(w) for w in counts.sum() / (self.classes * counts)]

    def dataset(self, slides: Sequence[str], *, magnifications: Sequence[float] | None = None) -> PatchDataset:
        """Patches of slides with their label maps, at the source's magnifications or some of these."""
        taken = self.magnifications if magnifications is None else magnifications
        return PatchDataset(self._patches, magnifications=taken, slides=list(slides), label_maps=True)

    def about(self, task: SegmentTask) -> dict[str, Any]:
        """What model.json says of what a model learnt: with it slides are segmented without being told."""
        return {
            "classes": list(task.classes),
            "magnifications": list(self.magnifications),
            "patch_size": self.patch_size,
            "loss_weights": list(task.loss_weights),
        }

    def measured(self, slides: Sequence[str], *, batch_size: int) -> PatchLoader:
        """Batches in order, each patch once."""
        return loader(self.dataset(slides), batch_size=batch_size, shuffle=False)


def _set_of(store: PatchStore, place: str, wanted: Sequence[float] | None, name: str | None) -> PatchSet:
    """The set with label maps that has these magnifications."""
    named = [s for s in store.values() if name is None or s.name == name]
    mapped = [s for s in named if _has_maps(s)]
    if not mapped:
        which = f"set {name!r}" if name else f"sets {sorted(store)}"
        raise SpecError(
            f"'{place}' has no label maps in its {which}: msdask extract SLIDES -o STORE -t MASKS --values ... "
            "-m 20 5 --label-maps"
        )
    fitting = [s for s in mapped if set(wanted or ()) <= set(s.spec.magnifications)]
    if not fitting:
        asked = ", ".join(map(format_magnification, wanted or ()))
        there = {s.name: list(s.spec.magnifications) for s in mapped}
        raise SpecError(f"no set of '{place}' with label maps has {asked} together; there are {there}")
    exact = [s for s in fitting if wanted is not None and set(s.spec.magnifications) == set(wanted)] or fitting
    if len(exact) > 1:
        raise SpecError(f"'{place}': any of {[s.name for s in exact]} would do: name one (--set)")
    return exact[0]


def _has_maps(patches: PatchSet) -> bool:
    """Whether every slide of a set has label maps."""
    slides = patches.slides
    return bool(slides) and (
        patches.spec.label_maps or all("label_map" in sharded_names(patches.arrays(slide)) for slide in slides)
    )
