"""What a scale detector learns from and is measured on: the grid sets of a patch store, or images of known scale."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from msdask.data.dataset import PatchDataset
from msdask.data.images import image_lattice, image_patches
from msdask.data.loader import PatchLoader, loader
from msdask.data.scales import ScaleAugment, ScaleRange
from msdask.data.virtual import VirtualSet
from msdask.errors import MsdaskError, SpecError
from msdask.extraction.slide_table import read_slides
from msdask.scale import SCALE_CLASSES
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.splits import PARTS, parts_of
from msdask.training.splits import Split, chosen_split

__all__ = ["ScaleDraws", "ScaleSource"]

ScaleDraws = Literal["enlarge", "exact", "range", "none"]

_BELOW, _ABOVE = 1.8, 1.5
"""How far beyond the magnifications that are to be recognized a network learns: 2.8x to 60x for 5x to 40x."""


class ScaleSource:
    """Slides at several magnifications, and how they are split.

    Parameters
    ----------
    place : a patch store with grid sets at two or more magnifications; or images: a CSV with a column mpp or
        magnification, a folder, one image
    magnifications : which; None means all that the store has, or the detector's 5, 8, 10, 15, 20, 30 and 40
    patch_size : px a side of the crops of images that are learnt from
    crop : px a side of those that are measured; a store's patches have a size of their own

    Attributes
    ----------
    slides : ids, sorted
    magnifications : nominal ones, ascending
    crop : px a side of what is measured

    Raises
    ------
    SpecError
        A store with fewer than two magnifications.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        magnifications: Sequence[float] | None = None,
        patch_size: int = 64,
        crop: int = 96,
    ) -> None:
        self.place = os.fspath(place)
        self.sets: list[PatchSet] = []
        self.crop, self._patch_size = crop, patch_size
        if (Path(place) / "zarr.json").is_file() or self.place.endswith(".zarr"):
            self.sets = _grid_sets(self.place, magnifications)
            self.magnifications = sorted({s.spec.magnifications[0] for s in self.sets})
            self.crop = self.sets[0].spec.patch_size
            stored = {i: s.attrs(i).get("cohort", {}) for s in self.sets for i in s.slides}
        else:
            self._rows = {row.slide_id: row for row in read_slides(self.place)}
            self.magnifications = sorted(magnifications or SCALE_CLASSES)
            stored = {i: row.facts for i, row in self._rows.items()}
        self.slides = sorted(stored)
        self._cohort: Mapping[str, Mapping[str, Any]] = stored

    def split(self, *, lists: Path | None = None, ratios: Sequence[float] | None = None, seed: int = 0) -> Split:
        """Training, validation and test slides: by lists, by ratios, or as the cohort's table says."""
        return chosen_split(self.slides, self.stored_split(), lists=lists, ratios=ratios, seed=seed)

    def stored_split(self) -> dict[str, list[str]]:
        """Slides of each part, as the cohort's table says."""
        found = parts_of({slide_id: str(self._cohort[slide_id].get("split", "")) for slide_id in self.slides})
        return {part: found[part] for part in PARTS}

    def training(
        self, slides: Sequence[str], draws: ScaleDraws | None = None, *, emphasis: float = 0.0, mosaic: float = 0.0
    ) -> tuple[PatchDataset, ScaleAugment | None]:
        """What is learnt from, and what is to enlarge the middle of its patches.

        Parameters
        ----------
        slides : ids
        draws : where scales between the nominal ones come from: "enlarge" the middle of patches; "exact": read the
            patch at any scale up to the next one from its slide; "range": read any scale, from below the lowest to
            above the highest, see `ScaleRange`; "none". None means "enlarge" for a store, "range" for images
        emphasis, mosaic : of `ScaleRange`
        """
        draws = draws or ("enlarge" if self.sets else "range")
        if draws not in get_args(ScaleDraws) or (draws != "range" and not self.sets):
            raise SpecError(
                f"scales {draws!r}: expected one of {', '.join(get_args(ScaleDraws))}; with images 'range', as they "
                "have one scale each"
            )
        lowest, highest = self.magnifications[0], self.magnifications[-1]
        scale: ScaleAugment | ScaleRange | None = None
        if draws == "range":
            scale = ScaleRange(lowest / _BELOW, highest * _ABOVE, emphasis=emphasis, mosaic=mosaic)
        elif draws != "none":
            scale = ScaleAugment(self.magnifications)
        sets: Sequence[PatchSet | VirtualSet] = self.sets
        if not self.sets:
            sets = [image_patches([self._rows[i] for i in slides], patch_size=self._patch_size)]
        elif draws == "range":
            sets = [VirtualSet.of(max(self.sets, key=lambda s: s.spec.magnifications))]
        elif draws == "exact":
            sets = [VirtualSet.of(s) for s in self.sets]
        is_read = draws in ("exact", "range")
        dataset = PatchDataset(sets, slides=slides, target="magnification", scale=scale if is_read else None)
        return dataset, scale if draws == "enlarge" and isinstance(scale, ScaleAugment) else None

    def measured(self, slides: Sequence[str], *, batch_size: int) -> PatchLoader:
        """Batches at the nominal magnifications, in order."""
        sets: Sequence[PatchSet | VirtualSet] = self.sets
        if not self.sets:
            rows = [self._rows[i] for i in slides]
            sets = image_lattice(rows, magnifications=self.magnifications, patch_size=self.crop)
        dataset = PatchDataset(sets, slides=slides, target="magnification")
        return loader(dataset, batch_size=batch_size, shuffle=False)


def _grid_sets(store: str, magnifications: Sequence[float] | None) -> list[PatchSet]:
    """Grid sets of a store, one a magnification."""
    opened = PatchStore(store)
    if not len(opened):
        raise MsdaskError(f"'{store}' is no patch store, or has no patch set yet")
    grids = [s for s in opened.values() if s.spec.mode == "grid"]
    wanted = [s for s in grids if magnifications is None or s.spec.magnifications[0] in magnifications]
    if len({s.spec.magnifications[0] for s in wanted}) < 2:
        raise SpecError(
            f"'{store}' has grid sets at {sorted(s.spec.magnifications[0] for s in grids)}"
            f"{f', asked for {sorted(magnifications)}' if magnifications is not None else ''}: a scale detector needs "
            "two or more magnifications: msdask extract SLIDES -o STORE --mode grid -m 40 30 20 15 10 8 5"
        )
    return wanted
