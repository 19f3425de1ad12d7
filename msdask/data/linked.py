"""Upper-region tuples: patches with the patches at coarser magnifications that contain them, for n + 1 losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.data.patches import StoredPatches
from msdask.errors import SpecError, StoreError
from msdask.selection.parents import CONTAINMENT_TOLERANCE
from msdask.spec import format_magnification
from msdask.storage import places
from msdask.store.patch_set import PatchSet
from msdask.store.reading_threads import Begun

__all__ = ["LinkedSet"]

_SLACK = 1e-6


class LinkedSet:
    """A grid set and the coarser ones that it is linked to, as one set of tuples.

    A tuple is a patch of the finest set and, at each coarser magnification, the stored patch whose footprint contains
    it (its parent). Datasets and loaders take it as they take a set of centroids: images (B, M, 3, S, S), with
    ``target="labels"`` the label at every magnification, and ``linked_row`` (B, M), the row of each image in its own
    set. Tuples without a parent, or without a label at some magnification, are left out and counted. A tuple's verdict
    `keep` is that of all its patches together.

    Links are written where one extraction makes several grids: ``msdask extract ... --mode grid -m 20 10 5``.

    Parameters
    ----------
    sets : grid sets of one store and one patch size, two or more, in any order
    labeled : leave out tuples that lack a label at some magnification
    slides : ids; None means all of the finest set

    Attributes
    ----------
    magnifications : highest first
    patch_size : px
    dropped : reason -> number of patches of the finest set that are left out for it, the first one that applies

    Raises
    ------
    SpecError
        Sets that cannot be linked, an unknown slide, or no tuple is left.
    StoreError
        A slide was written without links, or its links point into a set of another spec or at patches that are gone.

    Examples
    --------
    >>> grids = [store[f"grid-{m}x-224"] for m in (20, 10, 5)]  # doctest: +SKIP
    >>> ms.data.PatchDataset(ms.data.LinkedSet(grids), splits="train", target="labels")  # doctest: +SKIP
    """

    def __init__(self, sets: Sequence[PatchSet], *, labeled: bool = True, slides: Sequence[str] | None = None) -> None:
        self._sets = sorted(sets, key=lambda s: -s.spec.magnifications[0])
        self.magnifications: tuple[float, ...] = tuple(s.spec.magnifications[0] for s in self._sets)
        _check_sets(self._sets)
        self.name = " + ".join(s.name for s in self._sets)
        self.patch_size = self._sets[0].spec.patch_size
        self._stored = [StoredPatches(s) for s in self._sets]
        known = self._sets[0].slides
        if unknown := [s for s in slides or () if s not in known]:
            raise SpecError(f"'{self._sets[0].name}' has no complete slides {unknown}; it has {known[:20]}")
        wanted = known if slides is None else [s for s in known if s in slides]
        rows = places.gather(self._sets[0].path, self._linked_rows, wanted)
        self._rows = dict(zip(wanted, rows, strict=True))
        labels = places.gather(self._sets[0].path, self._linked_labels, wanted)
        self._labels = dict(zip(wanted, labels, strict=True))
        self.dropped = dict.fromkeys([f"no parent at {format_magnification(m)}" for m in self.magnifications[1:]], 0)
        if labeled:
            self.dropped |= {f"no label at {format_magnification(m)}": 0 for m in self.magnifications}
        self._complete = {slide_id: self._drop(slide_id) for slide_id in wanted}
        if not any(complete.any() for complete in self._complete.values()):
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.dropped.items())
            raise SpecError(
                f"'{self.name}': no tuple is left of {sum(map(len, rows))} patches ({counts}); extract with a label "
                "mask, or take unlabeled ones too (labeled=False)"
            )

    def _linked_rows(self, slide_id: str) -> NDArray[np.int64]:
        """Row in each set of the tuple of each of the slide's patches: (patch, magnification), -1 none."""
        fine, attrs = self._sets[0], self._sets[0].attrs(slide_id)
        origins = [values[:, 0].astype(np.int64) for values in fine.columns(slide_id, ("y0", "x0"))]
        columns = [np.arange(len(origins[0]))]
        for coarse in self._sets[1:]:
            column = f"parent_{format_magnification(coarse.spec.magnifications[0])}"
            link = attrs.get("links", {}).get(column)
            where = f"slide '{slide_id}' of '{fine.name}'"
            again = "extract these grids again in one run, with overwrite (msdask extract ... --mode grid -m 20 10 5)"
            if link is None or link["set"] != coarse.name:
                into = f"only into '{link['set']}'" if link else "nothing"
                raise StoreError(f"{where} is linked to {into} at this magnification, not to '{coarse.name}': {again}")
            if link["spec_hash"] != coarse.spec_hash:
                raise StoreError(
                    f"{where} was linked to '{coarse.name}' of spec {link['spec_hash'][:8]}, which is now of spec "
                    f"{coarse.spec_hash[:8]}: {again}"
                )
            parent = fine.columns(slide_id, [column])[0].astype(np.int64)
            if not self._contain(coarse, slide_id, origins, parent, attrs):
                raise StoreError(
                    f"{where} is linked to patches of '{coarse.name}' that do not contain its own: that slide was "
                    f"extracted anew since; {again}"
                )
            columns.append(parent)
        return np.stack(columns, axis=1)

    @staticmethod
    def _contain(
        coarse: PatchSet,
        slide_id: str,
        origins: Sequence[NDArray[np.int64]],
        parent: NDArray[np.int64],
        attrs: dict[str, Any],
    ) -> bool:
        """Whether every parent is there, and its footprint contains its child's."""
        above = coarse.attrs(slide_id)
        room = float(above["footprint"][0]) - float(attrs["footprint"][0])
        has = parent >= 0
        for origin, values in zip(origins, coarse.columns(slide_id, ("y0", "x0")), strict=True):
            start = values[:, 0].astype(np.int64)
            if parent.max(initial=-1) >= len(start):
                return False
            inset = origin[has] - start[parent[has]]
            slack = CONTAINMENT_TOLERANCE + _SLACK
            if ((inset < -slack) | (inset > room + slack)).any():
                return False
        return True

    def _linked_labels(self, slide_id: str) -> NDArray[np.int16]:
        """(patch, magnification): label of the patch and of its parents, -1 none."""
        rows = self._rows[slide_id]
        found = [
            np.append(stored.labels(slide_id)[:, 0], np.int16(-1))[rows[:, m]] for m, stored in enumerate(self._stored)
        ]
        return np.stack(found, axis=1)

    def _drop(self, slide_id: str) -> NDArray[np.bool_]:
        """Which patches make a complete tuple; counts the others."""
        complete = np.ones(len(self._rows[slide_id]), bool)
        lacks = {"parent": self._rows[slide_id] < 0, "label": self._labels[slide_id] < 0}
        for reason in self.dropped:
            what, magnification = reason.split()[1], reason.split()[-1]
            column = [format_magnification(m) for m in self.magnifications].index(magnification)
            missing = complete & lacks[what][:, column]
            self.dropped[reason] += int(missing.sum())
            complete &= ~missing
        return complete

    @property
    def sets(self) -> list[PatchSet]:
        """The sets, the finest first."""
        return list(self._sets)

    @property
    def slides(self) -> list[str]:
        """Ids of the slides, sorted."""
        return list(self._rows)

    def index(self) -> xr.Dataset:
        """Columns of the complete tuples, as `PatchSet.index` gives them for single patches."""
        index = self._sets[0].index()
        names = index.attrs["slides"]
        taken = np.zeros(index.sizes["patch"], bool)
        keep = np.zeros(index.sizes["patch"], bool)
        for number, slide_id in enumerate(names):
            if slide_id not in self._rows:
                continue
            mine = index["slide"].values == number
            rows = self._rows[slide_id][index["row"].values[mine]]
            taken[mine] = self._complete[slide_id][index["row"].values[mine]]
            verdicts = [s.columns(slide_id, ["keep"])[0] for s in self._sets]
            keep[mine] = np.stack([v[rows[:, m]] for m, v in enumerate(verdicts)]).all(axis=0)
        return index.assign(keep=("patch", keep)).isel(patch=np.flatnonzero(taken))

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """Facts of a slide, as the finest set states them."""
        return self._stored[0].attrs(slide_id)

    def labels(self, slide_id: str) -> NDArray[np.int16]:
        """(patch, magnification) int16, 0-based class of the finest set's patches and their parents, -1 none."""
        return self._labels[slide_id]

    def label_pixels(self, slide_id: str, column: int) -> NDArray[np.uint32]:
        """See `Patches.label_pixels`; 0 where there is no parent."""
        counts, rows = self._stored[column].label_pixels(slide_id, 0), self._rows[slide_id][:, column]
        return np.concatenate([counts, np.zeros_like(counts, shape=(1, counts.shape[1]))])[rows]

    def linked_rows(self, slide_id: str) -> NDArray[np.int64]:
        """(patch, magnification) row in each set of the finest set's patches and their parents, -1 none."""
        return self._rows[slide_id]

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """See `Patches.open`; a block is one of the finest set."""
        blocks = [stored.open(slide_id, names) for stored in self._stored]
        return blocks[0]

    def begin(
        self,
        slide_id: str,
        name: str,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        *,
        places: NDArray[np.int64],
        columns: Sequence[int],
    ) -> list[Begun]:
        """See `Patches.begin`: each magnification is read from its own set, straight into its place in the batch."""
        linked = self._rows[slide_id][rows]
        return [
            part
            for j, m in enumerate(columns)
            for part in self._stored[m].begin(
                slide_id, name, linked[:, m], out[:, j : j + 1], places=places, columns=(0,)
            )
        ]

    def __repr__(self) -> str:
        tuples = sum(int(complete.sum()) for complete in self._complete.values())
        left = "; ".join(f"{reason}: {count}" for reason, count in self.dropped.items() if count) or "none left out"
        return f"<LinkedSet {self.name}: {tuples} tuples on {len(self._rows)} slides ({left})>"


def _check_sets(sets: Sequence[PatchSet]) -> None:
    """Grids of one patch size, each at a magnification of its own."""
    magnifications = [s.spec.magnifications[0] for s in sets]
    if len(sets) < 2 or len(set(magnifications)) < len(sets):
        raise SpecError(f"LinkedSet: expected grid sets at two or more magnifications, found them at {magnifications}")
    for one in sets:
        if one.spec.mode != "grid" or one.spec.patch_size != sets[0].spec.patch_size:
            raise SpecError(
                f"LinkedSet: '{one.name}' holds {one.spec.mode} patches of {one.spec.patch_size} px; expected grids of "
                f"{sets[0].spec.patch_size} px, as in '{sets[0].name}'"
            )
