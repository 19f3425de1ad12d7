"""The file of a segmentation: an OME-Zarr label pyramid that is written shard by shard, and gone on with.

    slide.ome.zarr/          "ome": the classes, or the probabilities where they are kept; "msdask": plan and state
        labels/class/0/ ...  (y, x) uint8: 0 nothing was looked at, k + 1 class k
        0/ 1/ ...            probabilities (c, y, x), only where they were asked for

A px of a coarser level is the class that most of the px below it have that were looked at, the first of them where two
are as many. Levels are made from the files of the one before, four shards at a time, some of them beside each other: no
plane of a slide is ever held.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.colors import class_colors
from msdask.computing import side_by_side
from msdask.errors import SpecError
from msdask.inference import ome_zarr
from msdask.inference.planned_group import PlannedGroup, stored_complete
from msdask.inference.segment_plan import SegmentPlan, segmentation
from msdask.storage import places

if TYPE_CHECKING:
    import zarr

__all__ = ["LabelFile", "halved_labels", "halved_means", "label_level", "open_segmentation"]

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

    def begin(self) -> None:
        """Write the documents of the arrays that shards go into."""
        sides = {"shard": self.plan.shard, "chunk": self.plan.chunk}
        for level, shape in enumerate(self.shapes):
            ome_zarr.write_array_document(self.at(*_LABELS, str(level)), shape, np.uint8, **sides)
            if self.plan.probabilities is not None:
                whole = (len(self.plan.classes), *shape)
                ome_zarr.write_array_document(self.at(str(level)), whole, self.plan.probabilities, **sides)

    def is_written(self, row: int, column: int, level: int = 0) -> bool:
        """Whether a shard is there; it is whole then."""
        return ome_zarr.is_written(self.at(*_LABELS, str(level)), 2, row, column)

    def write(
        self,
        row: int,
        column: int,
        labels: NDArray[np.uint8],
        probability: NDArray[Any] | None,
        level: int = 0,
    ) -> None:
        """Write a shard from its px; that of the labels, which says it is there, last."""
        sides = {"shard": self.plan.shard, "chunk": self.plan.chunk}
        if probability is not None:
            ome_zarr.write_part(self.at(str(level)), probability, row, column, **sides)
        ome_zarr.write_part(self.at(*_LABELS, str(level)), labels, row, column, **sides)

    def finish(self, *, tissue_px: int) -> None:
        """Write coarser levels, and the documents in which viewers find everything.

        Parameters
        ----------
        tissue_px : px of the map that lie over tissue: those without a class could not be read
        """
        plan = self.plan
        counts = np.zeros(len(plan.classes) + 1, np.int64)
        for one in side_by_side(self._counted, self._shards(0)):
            counts += one
        for level in range(1, len(self.shapes)):
            side_by_side(partial(self._make, level), self._shards(level))
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
        self.complete(image, px=counts[1:].tolist(), unread={"px": tissue_px - int(counts[1:].sum())})

    def _shards(self, level: int) -> list[tuple[int, int]]:
        """(row, column) of every shard that a level may have."""
        rows, columns = (-(-length // self.plan.shard) for length in self.shapes[level])
        return [(row, column) for row in range(rows) for column in range(columns)]

    def _counted(self, shard: tuple[int, int]) -> NDArray[np.int64]:
        """Px of each label in a shard of the finest level; none where it is not there."""
        (row, column), side, labels = shard, self.plan.shard, len(self.plan.classes) + 1
        if not self.is_written(row, column):
            return np.zeros(labels, np.int64)
        here = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        return np.bincount(np.asarray(self._array(*_LABELS, "0")[here]).reshape(-1), minlength=labels)

    def _make(self, level: int, shard: tuple[int, int]) -> None:
        """Write a shard of a coarser level, unless it is there or has nothing below it."""
        (row, column), side = shard, self.plan.shard
        below = [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
        if self.is_written(row, column, level) or not any(self.is_written(*one, level - 1) for one in below):
            return
        four = slice(2 * row * side, 2 * (row + 1) * side), slice(2 * column * side, 2 * (column + 1) * side)
        labels = np.asarray(self._array(*_LABELS, str(level - 1))[four])
        if labels.any():
            means = None
            if self.plan.probabilities is not None:
                means = halved_means(np.asarray(self._array(str(level - 1))[(slice(None), *four)]), labels)
            self.write(row, column, halved_labels(labels), means, level)

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


def _quarters(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The four px of `values` (y, x) under each px of the next level: each (y / 2, x / 2); 0 beyond the edge."""
    if values.shape[0] % 2 or values.shape[1] % 2:
        values = np.pad(values, [(0, n % 2) for n in values.shape])
    return [values[i::2, j::2] for i in (0, 1) for j in (0, 1)]


def halved_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels at half the size: the most frequent of each 2 x 2 px but 0, of several the least; 0 where all are.

    >>> halved_labels(np.array([[2, 1, 0, 0, 3], [1, 2, 0, 3, 0]], np.uint8)).tolist()
    [[1, 3, 3]]
    """
    a, b, c, d = _quarters(labels)
    # A network that sorts: what is the same then stands beside each other, 0 first.
    a, b, c, d = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    a, c, b, d = np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)
    b, c = np.minimum(b, c), np.maximum(b, c)
    least = np.where(a > 0, a, np.where(b > 0, b, np.where(c > 0, c, d)))
    # Two in the middle are most, or as many as others that are no less; the last two are most where the first differ.
    last = np.where((c == d) & ((a != b) | (a == 0)), c, least)
    return np.where((b == c) & (b > 0), b, last)


def halved_means(values: NDArray[Any], labels: NDArray[np.uint8]) -> NDArray[Any]:
    """Probabilities at half the size: the mean over those of each 2 x 2 px that were looked at.

    Parameters
    ----------
    values : (class, y, x) uint8 or float16
    labels : (y, x), 0 where nothing was looked at

    Returns
    -------
    means : (class, y, x) of the same type; 0 of uint8 and NaN of float16 where there is nothing
    """
    known = _quarters(labels > 0)
    count = np.sum(known, axis=0)
    total = np.zeros((len(values), *count.shape), np.float32)
    for k, one in enumerate(values):
        for quarter, is_known in zip(_quarters(one), known, strict=True):
            np.add(total[k], quarter, out=total[k], where=is_known)
    mean = total / np.maximum(count, 1)
    if values.dtype == np.uint8:
        return np.floor(mean + np.float32(0.5)).astype(np.uint8)
    return np.where(count > 0, mean, np.nan).astype(values.dtype)


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
