"""The file of a segmentation: an OME-Zarr label pyramid that is written shard by shard, and gone on with.

    slide.ome.zarr/          "ome": the classes, or the probabilities where they are kept; "msdask": plan and state
        labels/class/0/ ...  (y, x) uint8: 0 nothing was looked at, k + 1 class k
        0/ 1/ ...            probabilities (c, y, x), only where they were asked for

A px of a coarser level is the class that most of the px below it have that were looked at, the first of them where two
are as many. A shard of a coarser level is made of the four below it, while they are in hand, or, in a run that goes on
with another, from their files: no plane of a slide is ever held.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.colors import class_colors
from msdask.computing import side_by_side
from msdask.errors import SpecError
from msdask.inference import ome_zarr
from msdask.inference.halving import InHand, Shard, halved_labels, halved_means
from msdask.inference.planned_group import PlannedGroup, stored_complete
from msdask.inference.segment_plan import SegmentPlan, segmentation
from msdask.storage import places

if TYPE_CHECKING:
    import zarr

__all__ = ["LabelFile", "label_level", "open_segmentation"]

KIND = "segmentation"
_LABELS = ("labels", "class")


class LabelFile(PlannedGroup):
    """A segmentation on its way to its file.

    Parameters
    ----------
    path, plan, overwrite : see `PlannedGroup`
    """

    def __init__(self, path: str | os.PathLike[str], plan: SegmentPlan, *, overwrite: bool = False) -> None:
        super().__init__(path, plan, KIND, overwrite=overwrite)
        self.plan = plan
        self.shapes = ome_zarr.level_shapes(plan.grid)
        self._arrays: dict[str, Any] = {}

    def begin(self, shards: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Write the documents of the arrays that shards go into.

        Parameters
        ----------
        shards : (n, 2) row and column of those that have tissue, in Morton order

        Returns
        -------
        wanted : (n,) bool, which of them are still to be written
        """
        sides = {"shard": self.plan.shard, "chunk": self.plan.chunk}
        kept = self.plan.probabilities and (len(self.plan.classes), self.plan.probabilities)
        for level, shape in enumerate(self.shapes):
            ome_zarr.write_array_document(self.at(*_LABELS, str(level)), shape, np.uint8, **sides)
            if kept:
                ome_zarr.write_array_document(self.at(str(level)), (kept[0], *shape), kept[1], **sides)
        wanted = np.array([not self._is_written(0, row, column) for row, column in shards.tolist()], np.bool_)
        self._in_hand = InHand(self.shapes, self.plan.shard, shards, wanted, kept or None)
        self._shards = shards
        self._px = np.zeros(len(self.plan.classes) + 1, np.int64)
        for one in side_by_side(self._counted, shards[~wanted].tolist()):
            self._px += one
        return wanted

    def _is_written(self, level: int, row: int, column: int) -> bool:
        """Whether a shard is there; it is whole then."""
        return ome_zarr.is_written(self.at(*_LABELS, str(level)), 2, row, column)

    def empty(self, row: int, column: int) -> Shard:
        """A shard of the finest level, to be filled in and written."""
        return self._in_hand.empty(0, row, column)

    def write(self, shard: Shard) -> None:
        """Write a shard of the finest level, and the coarser ones that lack nothing with it."""
        self._px += np.bincount(shard.labels.reshape(-1), minlength=len(self._px))
        one: Shard | None = shard
        while one is not None:
            if one.level == 0 or one.labels.any():
                self._write(one)
            one = self._in_hand.above(one)

    def _write(self, shard: Shard) -> None:
        """Write a shard; that of the labels, which says it is there, last."""
        sides = {"shard": self.plan.shard, "chunk": self.plan.chunk}
        level, at = str(shard.level), (shard.row, shard.column)
        if shard.probability is not None:
            ome_zarr.write_part(self.at(level), shard.probability, *at, **sides)
        ome_zarr.write_part(self.at(*_LABELS, level), shard.labels, *at, **sides)

    def finish(self, *, tissue_px: int) -> None:
        """Write what coarser levels still lack, and the documents in which viewers find everything.

        Parameters
        ----------
        tissue_px : px of the map that lie over tissue: those without a class could not be read
        """
        plan = self.plan
        shards = self._shards
        for level in range(1, len(self.shapes)):
            shards = np.unique(shards // 2, axis=0)
            left = [(level, *at) for at in shards.tolist()]
            side_by_side(self._make, [at for at in left if at not in self._in_hand.made])
        names = list(plan.classes)
        colors = class_colors(len(names))
        label = {"multiscales": self._multiscales("class", has_channels=False)}
        shown = {**label, "image-label": ome_zarr.image_label(names, colors)}
        ome_zarr.write_document(self.at(*_LABELS), ome_zarr.group_document(shown))
        ome_zarr.write_document(self.at("labels"), ome_zarr.group_document({"labels": ["class"]}))
        image: dict[str, Any] = {"multiscales": self._multiscales("class", has_channels=False, folder="labels/class/")}
        if plan.probabilities is not None:
            top = 255.0 if plan.probabilities == "uint8" else 1.0
            image = {
                "multiscales": self._multiscales("probability", has_channels=True),
                "omero": ome_zarr.omero(names, colors, top=top),
            }
        self.complete(image, px=self._px[1:].tolist(), unread={"px": tissue_px - int(self._px[1:].sum())})

    def _counted(self, shard: Sequence[int]) -> NDArray[np.int64]:
        """Px of each label in a shard of the finest level that is there."""
        here = tuple(slice(i * self.plan.shard, (i + 1) * self.plan.shard) for i in shard)
        labels = np.asarray(self._array(*_LABELS, "0")[here])
        return np.bincount(labels.reshape(-1), minlength=len(self.plan.classes) + 1)

    def _make(self, shard: tuple[int, int, int]) -> None:
        """Write a shard of a coarser level from the files below it, unless it is there or has nothing below it."""
        (level, row, column), side = shard, self.plan.shard
        below = [(level - 1, 2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
        if self._is_written(*shard) or not any(self._is_written(*one) for one in below):
            return
        four = slice(2 * row * side, 2 * (row + 1) * side), slice(2 * column * side, 2 * (column + 1) * side)
        labels = np.asarray(self._array(*_LABELS, str(level - 1))[four])
        if labels.any():
            means = None
            if self.plan.probabilities is not None:
                means = halved_means(np.asarray(self._array(str(level - 1))[(slice(None), *four)]), labels)
            self._write(Shard(level, row, column, halved_labels(labels), means))

    def _array(self, *names: str) -> Any:
        """An array of the group, opened once."""
        path = self.at(*names)
        if path not in self._arrays:
            self._arrays[path] = ome_zarr.open_array(path)
        return self._arrays[path]

    def _multiscales(self, name: str, *, has_channels: bool, folder: str = "") -> Any:
        # The slide's own px have whole numbers at their centers, as viewers take an image without a translation.
        first = (self.plan.step / 2 - 0.5) * self.plan.mpp
        return ome_zarr.multiscales(
            name,
            levels=len(self.shapes),
            px_um=self.plan.px_um,
            first_um=(first, first),
            has_channels=has_channels,
            kind="mean" if has_channels else "majority",
            folder=folder,
        )


def open_segmentation(path: str | os.PathLike[str], *, level: int = 0) -> xr.Dataset:
    """A segmentation from its file: lazy, nothing but metadata is read.

    Parameters
    ----------
    path : folder or URL that `msdask.segment_slide` wrote
    level : of the pyramid, 0 the finest; the px of each are twice as large as those of the one before, and have the
        class of most px below them

    Returns
    -------
    found : see `msdask.segment_slide`

    Raises
    ------
    StoreError
        There is no segmentation, or it is not complete.
    SpecError
        It has no such level.
    """
    place = places.location(path)
    said = stored_complete(place, KIND, made_by="segment_slide")
    plan = SegmentPlan.from_dict(said["plan"])
    levels = len(ome_zarr.level_shapes(plan.grid))
    if not 0 <= level < levels:
        raise SpecError(f"'{place}': level {level}; expected 0 to {levels - 1}")
    label = label_level(place, level)
    probability = None if plan.probabilities is None else ome_zarr.open_array(places.join(place, str(level)))
    unread = said.get("unread", {"tiles": [], "px": 0})
    counts = {"tiles": len(unread["tiles"]), "px": unread["px"]}
    return segmentation(plan, label, probability, said["px"], unread=counts, levels=levels, path=place, level=level)


def label_level(path: str, level: int) -> zarr.Array[Any]:
    """The labels of one level of a complete segmentation, to be read in parts: (y, x) uint8."""
    return ome_zarr.open_array(places.join(path, *_LABELS, str(level)))
