"""The file of a class map: OME-Zarr that is written shard by shard, and gone on with where a run was killed.

    map.ome.zarr/            "ome": probabilities (c, y, x); "msdask": the plan and the state
        0/ 1/ ...            levels, each half of the one before
        labels/class/0/ ...  0 nothing, k + 1 class k
        attention/0/ ...     (c, y, x), a channel a magnification, of models that have it

The plan goes first, with the state "writing"; shards follow in any order; the document with the state "complete", in
which viewers find the image, comes last. Nothing in it depends on when, where or by how many threads it was made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import StoreError
from msdask.inference import ome_zarr
from msdask.inference.class_map import MapPlan, class_map
from msdask.plots.drawing import LABEL_COLORS
from msdask.spec import format_magnification
from msdask.storage import places

__all__ = ["MapFile", "read_class_map"]

FORMAT = 1


class MapFile:
    """A class map on its way to its file.

    Parameters
    ----------
    path : folder ending in .ome.zarr, or URL of object storage
    plan : what is to be there

    Attributes
    ----------
    is_complete : whether it is there already

    Raises
    ------
    StoreError
        Something else is there: another map, or no map at all.
    """

    def __init__(self, path: str | os.PathLike[str], plan: MapPlan, *, overwrite: bool = False) -> None:
        self.path, self.plan = places.location(path), plan
        place = places.at(self.path)
        found = _stored(self.path)
        if found is None and place.is_taken(self.path):
            raise StoreError(f"'{self.path}' exists and is no class map: give another path")
        if found is not None and found["plan"] != plan.to_dict():
            if not overwrite:
                raise StoreError(f"'{self.path}' is another map: {_differences(found['plan'], plan.to_dict())}")
            place.remove_tree(self.path)
            found = None
        self.is_complete = found is not None and found["state"] == "complete"
        if found is None:
            ome_zarr.write_document(self.path, ome_zarr.group_document(None, msdask=self._said("writing")))
        elif not self.is_complete:
            place.remove_leftovers(self.path)

    def _said(self, state: str) -> dict[str, Any]:
        return {"format": FORMAT, "kind": "class map", "state": state, "plan": self.plan.to_dict()}

    def begin(self) -> None:
        """Write the documents of the arrays that shards go into."""
        ome_zarr.write_array_document(self._at("0"), (len(self.plan.classes), *self.plan.grid), np.float32)
        if self.plan.has_attention:
            shape = (len(self.plan.magnifications), *self.plan.grid)
            ome_zarr.write_array_document(self._at("attention", "0"), shape, np.float32)

    def _at(self, *names: str) -> str:
        return places.join(self.path, *names)

    def written(self, shards: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        """Whether each shard is there: (shards,) bool."""
        return np.asarray([ome_zarr.is_written(self._at("0"), 3, *shard) for shard in shards], bool)

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Probability (class, y, x) and attention (magnification, y, x), NaN where nothing is written yet."""
        attention = ome_zarr.read_array(self._at("attention", "0")) if self.plan.has_attention else None
        return ome_zarr.read_array(self._at("0")), attention

    def write(
        self, shard: tuple[int, int], probability: NDArray[np.float32], attention: NDArray[np.float32] | None
    ) -> None:
        """Write one shard of the maps, which are given whole; that of probabilities, which says it is there, last."""
        if attention is not None:
            ome_zarr.write_shard(self._at("attention", "0"), attention, *shard)
        ome_zarr.write_shard(self._at("0"), probability, *shard)

    def finish(self, probability: NDArray[np.float32], attention: NDArray[np.float32] | None) -> None:
        """Write coarser levels, classes, and the documents in which viewers find them."""
        names = list(self.plan.classes)
        colors = [LABEL_COLORS[k % len(LABEL_COLORS)] for k in range(len(names))]
        levels = ome_zarr.pyramid(probability)
        for number, level in enumerate(levels):
            if number:
                ome_zarr.write_array(self._at(str(number)), level)
            ome_zarr.write_array(self._at("labels", "class", str(number)), _labels(level))
        label = {"multiscales": self._multiscales("class", len(levels), kind="argmax of mean", has_channels=False)}
        label["image-label"] = ome_zarr.image_label(names, colors)
        ome_zarr.write_document(self._at("labels", "class"), ome_zarr.group_document(label))
        ome_zarr.write_document(self._at("labels"), ome_zarr.group_document({"labels": ["class"]}))
        if attention is not None:
            for number, level in enumerate(ome_zarr.pyramid(attention)[1:], start=1):
                ome_zarr.write_array(self._at("attention", str(number)), level)
            shown = [format_magnification(m) for m in self.plan.magnifications]
            gray = {
                "multiscales": self._multiscales("attention", len(levels)),
                "omero": ome_zarr.omero(shown, ["#FFFFFF"] * len(shown)),
            }
            ome_zarr.write_document(self._at("attention"), ome_zarr.group_document(gray))
        image = {"multiscales": self._multiscales("probability", len(levels)), "omero": ome_zarr.omero(names, colors)}
        place = places.at(self.path)
        place.sync(self.path)
        ome_zarr.write_document(self.path, ome_zarr.group_document(image, msdask=self._said("complete")))
        self.is_complete = True

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


def _stored(path: str) -> dict[str, Any] | None:
    """What a map says of itself; None where there is none."""
    try:
        attributes = ome_zarr.read_document(path)
    except ValueError as error:
        raise StoreError(f"'{path}' has a damaged zarr.json ({error}): remove the folder, or restore it") from error
    if attributes is None:
        return None
    said = attributes.get("msdask", {})
    if said.get("kind") != "class map":
        raise StoreError(f"'{path}' is a Zarr group, but no class map of msdask: give another path")
    if said["format"] > FORMAT:
        raise StoreError(f"'{path}' has format {said['format']}, this msdask reads {FORMAT}: update msdask")
    return dict(said)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, the parts of the spec and of the model each on its own."""
    pairs = [(key, found.get(key), wanted[key]) for key in wanted if found.get(key) != wanted[key]]
    flat = [
        (f"{key}.{name}", old.get(name), new[name])
        for key, old, new in pairs
        if isinstance(old, dict) and isinstance(new, dict)
        for name in new
        if old.get(name) != new[name]
    ]
    flat += [pair for pair in pairs if not isinstance(pair[1], dict)]
    shown = "; ".join(f"{key} {_short(old)} there, {_short(new)} now" for key, old, new in flat[:4])
    return f"{shown}: give another path, or overwrite (overwrite=True, --overwrite)"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
    found = _stored(place)
    if found is None:
        raise StoreError(f"'{place}' does not exist: expected a class map (classify_slide(..., output=...))")
    plan = MapPlan.from_dict(found["plan"])
    if found["state"] != "complete":
        raise StoreError(f"'{place}' is not complete: run the same command again, it goes on where it stopped")
    attention = ome_zarr.read_array(places.join(place, "attention", "0")) if plan.has_attention else None
    return class_map(plan, ome_zarr.read_array(places.join(place, "0")), attention)
