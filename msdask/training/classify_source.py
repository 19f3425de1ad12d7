"""What a classifier learns from and is measured on: tuples of a patch store, how they are split, and what is wrong."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from msdask.data.dataset import PatchDataset
from msdask.data.linked import LinkedSet
from msdask.data.loader import PatchLoader, loader
from msdask.data.scales import MppRange
from msdask.data.virtual import VirtualSet
from msdask.errors import SpecError
from msdask.spec import format_magnification
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.training.classify_task import ClassifyTask, Losses
from msdask.training.patch_source import PatchSource, opened_store

__all__ = ["ClassifySource", "Relation"]

Relation = Literal["multicenter", "upper_region"]

_SAME_SCALE = 1.06
"""um/px up to this factor apart are one nominal scale: slides snap within 5 %."""


class ClassifySource(PatchSource):
    """Labeled patches or tuples of a store.

    Parameters
    ----------
    place : patch store
    relation : "multicenter": tuples around the patches of a set of centroids, with the label of the centroid;
        "upper_region": patches of the finest grid with the patches that contain them, with a label at each
    magnifications : which; None means all that the one fitting set, or all grids, have
    losses : "n+1" takes the labels at every magnification, "one" the first
    name : of the set of centroids, or of one of the grids, where several would do
    classes : how many there are; None means up to the highest label
    leave_out : names of sets that are not meant, where they would do as well

    Attributes
    ----------
    slides : ids, sorted
    magnifications : highest first
    classes : how many
    patients : patient of each slide that has one in its table
    counts : (slides, classes) int, labeled tuples of each slide
    dropped : reason -> tuples that are left out for it

    Raises
    ------
    SpecError
        The store has no such sets or magnifications, or no labels; a label is out of range; all have one class.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        relation: Relation = "multicenter",
        *,
        magnifications: Sequence[float] | None = None,
        losses: Losses = "one",
        name: str | None = None,
        classes: int | None = None,
        leave_out: Sequence[str] = (),
    ) -> None:
        if relation not in get_args(Relation):
            raise SpecError(f"relation={relation!r}: expected one of {', '.join(get_args(Relation))}")
        self.relation = relation
        store, where = opened_store(place), os.fspath(place)
        if relation == "multicenter":
            super().__init__(where, _centroids(store, where, magnifications, name))
        else:
            super().__init__(where, _linked(store, where, magnifications, name, leave_out))
        own = self._set.magnifications if isinstance(self._set, LinkedSet) else self._set.spec.magnifications
        self.magnifications = tuple(m for m in own if magnifications is None or m in magnifications)
        self.losses: Losses = losses
        if losses == "n+1" and self.magnifications[0] != own[0]:
            raise SpecError(
                f"n + 1 losses of tuples around {format_magnification(own[0])} patches, without that magnification "
                f"(asked for {list(self.magnifications)}): take it too, extract tuples of these alone, or take "
                "relation 'upper_region'"
            )
        if isinstance(self._set, LinkedSet):
            self.dropped = dict(self._set.dropped)
        self._count(classes)

    def _count(self, classes: int | None) -> None:
        index = self._set.index()
        label, keep = index["label"].values.astype(np.int64), index["keep"].values
        if (unlabeled := int((label < 0).sum())) or not isinstance(self._set, LinkedSet):
            self.dropped[f"no label at {format_magnification(self._highest)}"] = unlabeled
        self.dropped["white or of low contrast"] = int((~keep & (label >= 0)).sum())
        if not (label >= 0).any():
            raise SpecError(
                f"'{self._set.name}' of '{self.place}' has no labels: extract with annotated masks "
                "(msdask extract ... -t masks --values 50 100 150, or --labels)"
            )
        highest = int(label.max())
        if self.losses == "n+1":
            highest = max(highest, *(int(self._labels(s).max(initial=-1)) for s in self.slides))
        self.classes = highest + 1 if classes is None else classes
        if highest >= self.classes:
            raise SpecError(
                f"'{self._set.name}' of '{self.place}' has label {highest}, out of range for {self.classes} classes "
                f"(0 to {self.classes - 1}): give --classes {highest + 1}, or extract with the right values"
            )
        taken = keep & (label >= 0)
        names = [str(name) for name in index.attrs["slides"]]
        place = np.searchsorted(self.slides, names)  # slides without any patch are in the index, too
        cells = place[index["slide"].values[taken]] * self.classes + label[taken]
        shape = (len(self.slides), self.classes)
        self.counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        if (self.counts.sum(0) > 0).sum() < 2:
            what = f"are of one class, {label[taken][0]}" if taken.any() else "are white or of low contrast"
            raise SpecError(f"'{self._set.name}' of '{self.place}': all labeled patches {what}; expected two classes")

    @property
    def _highest(self) -> float:
        return self._set.magnifications[0] if isinstance(self._set, LinkedSet) else self._set.spec.magnifications[0]

    def _labels(self, slide_id: str) -> NDArray[np.int16]:
        if isinstance(self._set, LinkedSet):
            return self._set.labels(slide_id)
        return self._set.columns(slide_id, ["label"])[0]

    def dataset(self, slides: Sequence[str], *, mpp: tuple[float, float] | None = None) -> PatchDataset:
        """Labeled tuples of slides.

        Parameters
        ----------
        slides : ids
        mpp : finest and coarsest um/px; then each sample is read from its slide at a scale that is drawn for it, around
            the center and with the label of the stored patch, see `msdask.data.MppRange`

        Raises
        ------
        SpecError
            `mpp` with linked grids or n + 1 losses, whose labels belong to their scale, or a slide has no such scale.
        """
        scale = None if mpp is None else MppRange(*mpp)
        if scale is not None:
            self._check_any_scale(slides, scale)
        return PatchDataset(
            self._set if scale is None else self._virtual,
            scale=scale,
            magnifications=self.magnifications,
            slides=list(slides),
            labels="labeled",
            target="labels" if self.losses == "n+1" else "label",
        )

    def about(self, task: ClassifyTask) -> dict[str, Any]:
        """What model.json says of what a model learnt: with it a map of a slide is made without being told."""
        return {
            "relation": self.relation,
            "losses": task.losses,
            "classes": list(task.classes),
            "patch_size": self.patch_size,
        }

    @cached_property
    def _virtual(self) -> VirtualSet:
        """The same patches, read from their slides."""
        assert isinstance(self._set, PatchSet)
        return VirtualSet.of(self._set)

    def _check_any_scale(self, slides: Sequence[str], scale: MppRange) -> None:
        if isinstance(self._set, LinkedSet) or self.losses == "n+1":
            raise SpecError(
                f"mpp=({scale.finest:g}, {scale.coarsest:g}) with {self.relation}, losses '{self.losses}': labels of "
                "several magnifications belong to their scale; take relation 'multicenter' (or one grid) and one loss"
            )
        own = {slide: 10 / self._virtual.scale_limits(slide)[1] for slide in slides}
        coarser = [slide for slide, mpp in own.items() if mpp > scale.finest * _SAME_SCALE]
        if coarser and scale.finest < scale.coarsest:
            warnings.warn(
                f"{len(coarser)} of {len(own)} slides are coarser than {scale.finest:g} um/px, such as '{coarser[0]}' "
                f"({own[coarser[0]]:.3g}): their samples begin at their own px, nothing is enlarged",
                UserWarning,
                stacklevel=3,
            )

    def common_range(self, slides: Sequence[str], mpp: tuple[float, float]) -> tuple[float, float]:
        """What of a range of um/px all slides have: it begins at the px of the coarsest slide.

        Raises
        ------
        SpecError
            As `dataset`; or they have none of it in common.
        """
        self.dataset(slides, mpp=(mpp[1], mpp[1]))  # refuses what has not even the coarsest
        coarsest = max(10 / self._virtual.scale_limits(slide)[1] for slide in slides)
        finest = mpp[0] if coarsest <= mpp[0] * _SAME_SCALE else coarsest
        if finest >= mpp[1]:
            raise SpecError(f"the slides have no range of um/px within {mpp} in common: one has {coarsest:.3g}")
        return finest, mpp[1]

    def measured(
        self, slides: Sequence[str], *, batch_size: int, mpp: tuple[float, float] | None = None
    ) -> PatchLoader:
        """Batches in order, each tuple once; with `mpp` each at a scale that its number decides, see `dataset`."""
        return loader(self.dataset(slides, mpp=mpp), batch_size=batch_size, shuffle=False)


def _centroids(store: PatchStore, place: str, magnifications: Sequence[float] | None, name: str | None) -> PatchSet:
    """The set of centroids that has these magnifications."""
    found = [s for s in store.values() if s.spec.mode == "centroids" and (name is None or s.name == name)]
    there = {s.name: list(s.spec.magnifications) for s in found}
    if not found:
        raise SpecError(
            f"'{place}' has no set of centroids{f' named {name!r}' if name else ''}; it has {sorted(store)}: "
            "msdask extract SLIDES -o STORE -t MASKS --values ... -m 20 10 5, or take -r upper_region for grids"
        )
    wanted = set(magnifications or ())
    fitting = [s for s in found if wanted <= set(s.spec.magnifications)]
    if not fitting:
        raise SpecError(f"magnifications {sorted(wanted, reverse=True)} are in no set of '{place}'; there are {there}")
    exact = [s for s in fitting if set(s.spec.magnifications) == wanted] or fitting
    if len(exact) > 1:
        raise SpecError(f"'{place}': any of {[s.name for s in exact]} would do: name one (--set)")
    return exact[0]


def _linked(
    store: PatchStore,
    place: str,
    magnifications: Sequence[float] | None,
    name: str | None,
    leave_out: Sequence[str],
) -> PatchSet | LinkedSet:
    """Grids at these magnifications, linked; or the one grid."""
    grids = [s for s in store.values() if s.spec.mode == "grid" and s.name not in leave_out]
    if name is not None:
        named = [s for s in grids if s.name == name]
        if not named:
            raise SpecError(f"'{place}' has no grid named {name!r}; it has {[s.name for s in grids]}")
        finest, size = named[0].spec.magnifications[0], named[0].spec.patch_size
        grids = [named[0], *(s for s in grids if s.spec.patch_size == size and s.spec.magnifications[0] != finest)]
    there = sorted({s.spec.magnifications[0] for s in grids}, reverse=True)
    wanted = sorted(set(magnifications or there), reverse=True)
    if not wanted or set(wanted) - set(there):
        raise SpecError(
            f"magnifications {wanted} asked for, '{place}' has grid sets at {there}: "
            "msdask extract SLIDES -o STORE -t MASKS --values ... --mode grid -m 20 10 5"
        )
    taken = [s for s in grids if s.spec.magnifications[0] in wanted]
    if len(taken) > len(wanted):
        raise SpecError(
            f"'{place}' has several grids at one magnification, {[s.name for s in taken]}: name one (--set); the "
            "others are then those of its patch size"
        )
    return taken[0] if len(taken) == 1 else LinkedSet(taken)
