"""The file of a class map: OME-Zarr that is written shard by shard, and gone on with where a run was killed.

    map.ome.zarr/            "ome": probabilities (c, y, x); "msdask": the plan and the state
        0/ 1/ ...            levels, each half of the one before
        labels/class/0/ ...  0 nothing, k + 1 class k
        attention/0/ ...     (c, y, x), a channel a magnification, of models that have it

The order of the writing is that of every planned group (`planned_group`); shards follow in any order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.colors import class_colors
from msdask.inference import ome_zarr
from msdask.inference.class_map import MapPlan, class_map
from msdask.inference.planned_group import PlannedGroup, stored_complete
from msdask.spec import format_magnification
from msdask.storage import places

__all__ = ["MapFile", "read_class_map"]

KIND = "class map"


class MapFile(PlannedGroup):
    """A class map on its way to its file.

    Parameters
    ----------
    path, plan, overwrite : see `PlannedGroup`
    """

    def __init__(self, path: str | os.PathLike[str], plan: MapPlan, *, overwrite: bool = False) -> None:
        super().__init__(path, plan, KIND, overwrite=overwrite)
        self.plan = plan

    def begin(self) -> None:
        """Write the documents of the arrays that shards go into."""
        ome_zarr.write_array_document(self.at("0"), (len(self.plan.classes), *self.plan.grid), np.float32)
        if self.plan.has_attention:
            shape = (len(self.plan.magnifications), *self.plan.grid)
            ome_zarr.write_array_document(self.at("attention", "0"), shape, np.float32)

    def written(self, shards: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        """Whether each shard is there: (shards,) bool."""
        return np.asarray([ome_zarr.is_written(self.at("0"), 3, *shard) for shard in shards], bool)

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Probability (class, y, x) and attention (magnification, y, x), NaN where nothing is written yet."""
        attention = ome_zarr.read_array(self.at("attention", "0")) if self.plan.has_attention else None
        return ome_zarr.read_array(self.at("0")), attention

    def write(
        self, shard: tuple[int, int], probability: NDArray[np.float32], attention: NDArray[np.float32] | None
    ) -> None:
        """Write one shard of the maps, which are given whole; that of probabilities, which says it is there, last."""
        if attention is not None:
            ome_zarr.write_shard(self.at("attention", "0"), attention, *shard)
        ome_zarr.write_shard(self.at("0"), probability, *shard)

    def finish(
        self, probability: NDArray[np.float32], attention: NDArray[np.float32] | None, *, unread_tuples: int
    ) -> None:
        """Write coarser levels, classes, and the documents in which viewers find them."""
        names = list(self.plan.classes)
        colors = class_colors(len(names))
        levels = ome_zarr.pyramid(probability)
        for number, level in enumerate(levels):
            if number:
                ome_zarr.write_array(self.at(str(number)), level)
            ome_zarr.write_array(self.at("labels", "class", str(number)), _labels(level))
        label = {"multiscales": self._multiscales("class", len(levels), kind="argmax of mean", has_channels=False)}
        label["image-label"] = ome_zarr.image_label(names, colors)
        ome_zarr.write_document(self.at("labels", "class"), ome_zarr.group_document(label))
        ome_zarr.write_document(self.at("labels"), ome_zarr.group_document({"labels": ["class"]}))
        if attention is not None:
            for number, level in enumerate(ome_zarr.pyramid(attention)[1:], start=1):
                ome_zarr.write_array(self.at("attention", str(number)), level)
            shown = [format_magnification(m) for m in self.plan.magnifications]
            gray = {
                "multiscales": self._multiscales("attention", len(levels)),
                "omero": ome_zarr.omero(shown, ["#FFFFFF"] * len(shown)),
            }
            ome_zarr.write_document(self.at("attention"), ome_zarr.group_document(gray))
        image = {"multiscales": self._multiscales("probability", len(levels)), "omero": ome_zarr.omero(names, colors)}
        self.complete(image, unread={"tuples": unread_tuples})

    def _multiscales(self, name: str, levels: int, *, kind: str = "mean", has_channels: bool = True) -> Any:
        # The slide's own px have whole numbers at their centers, as viewers take an image without a translation.
        first = tuple((value - 0.5) * self.plan.mpp for value in self.plan.first_center)
        return ome_zarr.multiscales(
            name,
            levels=levels,
            px_um=self.plan.step * self.plan.mpp,
            first_um=first,  # type: ignore[arg-type]
            has_channels=has_channels,
            kind=kind,
        )


def _labels(probability: NDArray[np.float32]) -> NDArray[np.unsignedinteger[Any]]:
    """(y, x): 0 nothing, k + 1 class k; of probabilities (class, y, x)."""
    known = ~np.isnan(probability[0])
    labels = np.zeros(known.shape, np.uint8 if len(probability) < 256 else np.uint16)
    labels[known] = probability[:, known].argmax(0) + 1
    return labels


def read_class_map(path: str | os.PathLike[str]) -> xr.Dataset:
    """A class map from its file.

    Parameters
    ----------
    path : folder or URL that `msdask.classify_slide` wrote

    Returns
    -------
    map : see `msdask.classify_slide`

    Raises
    ------
    StoreError
        There is no map, or it is not complete.
    """
    place = places.location(path)
    said = stored_complete(place, KIND, made_by="classify_slide")
    plan, unread = MapPlan.from_dict(said["plan"]), said.get("unread", {"tiles": [], "tuples": 0})
    attention = ome_zarr.read_array(places.join(place, "attention", "0")) if plan.has_attention else None
    counts = {"tiles": len(unread["tiles"]), "tuples": unread["tuples"]}
    return class_map(plan, ome_zarr.read_array(places.join(place, "0")), attention, counts)
