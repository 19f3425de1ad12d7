"""AreaSet: tuples whose contexts are replaced by the fine patches that lie in the same area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.data.linked import LinkedSet
from msdask.data.patches import StoredPatches
from msdask.errors import SpecError
from msdask.selection.covering import covering_patches
from msdask.spec import format_magnification
from msdask.store.patch_set import PatchSet
from msdask.store.reading_threads import Begun

__all__ = ["AreaSet"]

_LEAST_COVER = 0.5
"""Of the contexts' area, on average, that fine patches must cover to stand for them."""


class AreaSet:
    """Tuples as fine patches: their own, and those that cover the area of each coarser context.

    A dataset gets K images a tuple, all at the highest of the magnifications: first the tuple's own patch, then the
    patches in each context, white where a tuple has fewer. `shares` says how much of each context each covers.

    Parameters
    ----------
    tuples : set of centroids, or linked grids
    magnifications : of a model, two or more; patches are those at the highest
    fine : set at the highest magnification whose patches cover the contexts; None: the tuples' own patches
    slides : ids; None means all

    Attributes
    ----------
    fine, fine_column : the set whose patches cover the contexts, and which of its images do
    covered : magnification -> share of the contexts' area that the patches cover, on average over the tuples

    Raises
    ------
    SpecError
        The patches cover less than half of the contexts, or `fine` is of another magnification or patch size.
    """

    def __init__(
        self,
        tuples: PatchSet | LinkedSet,
        magnifications: Sequence[float],
        *,
        fine: PatchSet | None = None,
        slides: Sequence[str] | None = None,
    ) -> None:
        self._tuples = tuples if isinstance(tuples, LinkedSet) else StoredPatches(tuples)
        self._scales = tuple(sorted(magnifications, reverse=True))
        known = list(self._tuples.magnifications)
        if len(self._scales) < 2 or set(self._scales) - set(known):
            raise SpecError(f"areas at {list(self._scales)}: expected two or more of {known}")
        self._set = tuples
        self._column = known.index(self._scales[0])
        self.patch_size = self._tuples.patch_size
        if fine is None:
            fine = tuples.sets[self._column] if isinstance(tuples, LinkedSet) else tuples
        self.fine, self.fine_column = fine, _column_at(fine, self._scales[0], self.patch_size)
        self._fine = StoredPatches(fine)
        wanted = [s for s in tuples.slides if slides is None or s in slides]
        found = {slide_id: self._cover(slide_id) for slide_id in wanted}
        self._width = 1 + max((rows.shape[1] for rows, _ in found.values()), default=0)
        self._found = found
        self.name = f"{self._fine.name} in contexts of {self._tuples.name}"
        self.covered = self._check_cover()

    @property
    def magnifications(self) -> tuple[float, ...]:
        """That of every image: the highest."""
        return (self._scales[0],) * self._width

    def _cover(self, slide_id: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Fine patches in the contexts of each tuple, (tuples, k), and what each covers of each, (tuples, M - 1, k)."""
        patches, footprint = self._fine_origins(slide_id)
        found = [
            covering_patches(*self._origins(slide_id, magnification), patches, footprint)
            for magnification in self._scales[1:]
        ]
        rows = np.concatenate([of for of, _ in found], axis=1)
        shares = np.zeros((len(rows), len(found), rows.shape[1]), np.float32)
        first = 0
        for m, (_, share) in enumerate(found):  # a patch in two contexts is there twice
            shares[:, m, first : first + share.shape[1]] = share
            first += share.shape[1]
        return rows, shares

    def _origins(self, slide_id: str, magnification: float) -> tuple[NDArray[np.int64], float]:
        """Origins (tuples, 2) of the tuples' patches at a magnification, and the side of their footprints."""
        m = list(self._tuples.magnifications).index(magnification)
        if not isinstance(self._tuples, LinkedSet):
            assert isinstance(self._set, PatchSet)
            return _origins(self._set, slide_id, m)
        origins, side = _origins(self._tuples.sets[m], slide_id, 0)
        # tuples without a parent are never taken: where their context would lie does not matter
        return np.append(origins, [[0, 0]], axis=0)[self._tuples.linked_rows(slide_id)[:, m]], side

    def _fine_origins(self, slide_id: str) -> tuple[NDArray[np.int64], float]:
        if slide_id not in self.fine.slides:
            raise SpecError(f"'{self.fine.name}' has no complete slide '{slide_id}': extract it there, too")
        return _origins(self.fine, slide_id, self.fine_column)

    def _density(self, slide_id: str) -> float:
        """How many fine patches lie over a point inside of a closed grid of them."""
        attrs = self.fine.attrs(slide_id)
        side = float(attrs["footprint"][self.fine_column])
        return max(1.0, side / float(attrs.get("step") or side)) ** 2

    def _check_cover(self) -> dict[float, float]:
        index = self.index()
        covered = {}
        for m, magnification in enumerate(self._scales[1:]):
            sums = []
            for number, slide_id in enumerate(index.attrs["slides"]):
                if slide_id in self._found:
                    taken = index["row"].values[(index["slide"].values == number) & (index["label"].values >= 0)]
                    sums.append(self._found[slide_id][1][taken, m].sum(1) / self._density(slide_id))
            covered[magnification] = float(np.minimum(np.concatenate(sums), 1).mean()) if sums else 0.0
        worst = min(covered, key=lambda m: covered[m])
        if covered[worst] < _LEAST_COVER:
            fine = format_magnification(self._scales[0])
            raise SpecError(
                f"contexts at {format_magnification(worst)} cannot be replaced by {fine} patches: those of "
                f"'{self._fine.name}' cover {covered[worst]:.1%} of their area, expected {_LEAST_COVER:.0%} or more: "
                f"extract a grid at {fine} without gaps as a set of its own (msdask.extract(..., name='fine')) and "
                "name it (fine=..., in an experiment pooled_set), or leave this baseline out of the experiment "
                '(baselines = ["matched"])'
            )
        return covered

    def shares(self, slide_id: str) -> NDArray[np.float32]:
        """(tuple, M, K) share of each area that each image covers; a tuple's own patch is all of its own area."""
        _, shares = self._found[slide_id]
        whole = np.zeros((len(shares), len(self._scales), self._width), np.float32)
        whole[:, 0, 0] = 1
        whole[:, 1:, 1 : 1 + shares.shape[2]] = shares
        # a context without any fine patch is seen as the tuple's own patch
        empty = whole[:, 1:].sum(2) == 0
        whole[:, 1:, 0][empty] = 1
        return whole

    def covering(self, slide_id: str) -> NDArray[np.int64]:
        """(tuple, K - 1) rows of the patches in the contexts, -1 none; of the set `fine`."""
        rows, _ = self._found[slide_id]
        padded = np.full((len(rows), self._width - 1), -1, np.int64)
        padded[:, : rows.shape[1]] = rows
        return padded

    def index(self) -> xr.Dataset:
        """See `Patches.index`: that of the tuples."""
        return self._tuples.index()

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """See `Patches.attrs`."""
        return self._tuples.attrs(slide_id)

    def labels(self, slide_id: str) -> NDArray[np.int16]:
        """(tuple, magnification) of the tuples."""
        return self._tuples.labels(slide_id)

    def labels_of_areas(self, slide_id: str) -> NDArray[np.int16]:
        """(tuple, M) of the patches that the areas stand for, -1 none."""
        known = list(self._tuples.magnifications)
        return self._tuples.labels(slide_id)[:, [known.index(m) for m in self._scales]]

    def label_pixels(self, slide_id: str, column: int) -> NDArray[np.uint32]:
        """See `Patches.label_pixels`; of the contexts."""
        if column:
            raise SpecError(f"'{self.name}': px of labels are counted in contexts, column 0, not in column {column}")
        return self._tuples.label_pixels(slide_id, self._column)

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """See `Patches.open`."""
        self._fine.open(slide_id, names)
        return self._tuples.open(slide_id, names)

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
        """See `Patches.begin`."""
        begun: list[Begun] = []
        covering = self.covering(slide_id)[rows]
        for j, k in enumerate(columns):
            image = out[:, j : j + 1]
            if k == 0:
                begun += self._tuples.begin(slide_id, name, rows, image, places=places, columns=(self._column,))
                continue
            there = covering[:, k - 1] >= 0
            image[places[~there]] = 255
            if there.any():
                begun += self._fine.begin(
                    slide_id,
                    name,
                    covering[there, k - 1],
                    image,
                    places=places[there],
                    columns=(self.fine_column,),
                )
        return begun


def _origins(patch_set: PatchSet, slide_id: str, column: int) -> tuple[NDArray[np.int64], float]:
    """Origins (patches, 2) as x, y of a set's patches at one magnification, and the side of their footprints."""
    x, y = (values[:, column].astype(np.int64) for values in patch_set.columns(slide_id, ("x0", "y0")))
    return np.stack([x, y], axis=1), float(patch_set.attrs(slide_id)["footprint"][column])


def _column_at(patch_set: PatchSet, magnification: float, patch_size: int) -> int:
    """Which of a set's images are at a magnification."""
    own, size = list(patch_set.spec.magnifications), patch_set.spec.patch_size
    if magnification not in own or size != patch_size:
        raise SpecError(
            f"'{patch_set.name}' has patches of {size} px at {own}; expected {patch_size} px at "
            f"{format_magnification(magnification)}, to cover the contexts"
        )
    return own.index(magnification)
