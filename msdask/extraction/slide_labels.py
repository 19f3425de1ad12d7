"""Where the label maps of a slide's patches come from, wherever its blocks are computed, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.measures import count_labels
from msdask.errors import MaskError
from msdask.masks.choice import SlideMasks
from msdask.masks.label_plane import ArrayPlane, LabelPlane
from msdask.selection.coverage import outside_shares
from msdask.slides.slide import Slide
from msdask.storage import places
from msdask.store import documents, layout, shards
from msdask.store.slide_arrays import SlideArrays

__all__ = ["StoredPlane", "as_stored", "label_plane", "origin", "plane_again", "with_outside", "write_maps"]

LABELS_FROM: Final = "labels_from"
"""Attribute of a slide whose label maps can be cut again: from its stored "mask", or from "outlines" in a file."""


@dataclass(frozen=True, slots=True)
class StoredPlane:
    """The label mask that is stored with a slide, as a `LabelPlane`: it is read once a process and never travels.

    Attributes
    ----------
    path : of the slide's group
    shape : (height, width) of the slide's level 0, px
    classes : names of the classes
    """

    path: str
    shape: tuple[int, int]
    classes: tuple[str, ...]

    def cut(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], footprints: Sequence[float], patch_size: int
    ) -> NDArray[np.uint8]:
        """The label map under each patch; see `LabelPlane.cut`."""
        state = documents.document_state(places.join(self.path, "mask"))
        return _read(self, state).cut(x0, y0, footprints, patch_size)


@lru_cache(maxsize=8)
def _read(plane: StoredPlane, state: int) -> ArrayPlane:
    labels = layout.read_column(plane.path, "mask")
    return ArrayPlane.of(labels, plane.shape, plane.classes, what=f"label mask of '{plane.path}'")


def label_plane(slide: Slide, masks: SlideMasks) -> LabelPlane:
    """The classes of a slide that label maps are asked of.

    Raises
    ------
    MaskError
        The slide has no label mask, or one with more classes than a label map can hold.
    """
    if masks.plane is not None:
        return masks.plane
    if masks.labels is None:
        found = masks.tissue.attrs.get("source", "msdask") if masks.tissue is not None else "msdask"
        what = "no mask of its own" if found == "msdask" else f"a tissue mask, '{found}'"
        raise MaskError(
            f"slide '{slide.path}': label maps were asked for, but it has {what}: give annotated masks (labels=, or "
            "values= with masks= or a column 'mask'), or leave label_maps out"
        )
    classes, source = masks.labels.attrs["classes"], masks.labels.attrs.get("source")
    return ArrayPlane.of(masks.labels.values, slide.shape, classes, what=f"label mask '{source}'")


def as_stored(plane: LabelPlane, path: str) -> LabelPlane:
    """The plane that travels to where blocks are computed: a label mask stays behind, it is stored with the slide."""
    return StoredPlane(path, plane.shape, plane.classes) if isinstance(plane, ArrayPlane) else plane


def origin(plane: LabelPlane) -> dict[str, str]:
    """The attribute of a slide that says what its label maps are cut from."""
    return {LABELS_FROM: "mask" if isinstance(plane, ArrayPlane) else "outlines"}


def plane_again(slide: Slide, path: str, attrs: Mapping[str, Any], read: Callable[[], SlideMasks]) -> LabelPlane | None:
    """What the label maps of a stored slide were cut from; None where it has none, or they were given.

    Parameters
    ----------
    slide : opened
    path, attrs : of its group
    read : reads its mask again; called only for outlines, since a label mask is stored
    """
    if LABELS_FROM not in attrs:
        return None
    if attrs[LABELS_FROM] == "mask":
        return StoredPlane(path, slide.shape, tuple(attrs["classes"]))
    return label_plane(slide, read())


def with_outside(table: xr.Dataset) -> xr.Dataset:
    """The selection with the column `outside`: the share of each patch outside of the slide, which is padded."""
    x0, y0 = table["x0"].values, table["y0"].values
    shares = outside_shares(x0, y0, table.attrs["footprint"], tuple(table.attrs["shape"]))
    return table.assign(outside=(("patch", "magnification"), shares))


def write_maps(arrays: SlideArrays, block: int, plane: LabelPlane, maps: NDArray[np.uint8]) -> None:
    """Write the label maps of one block, and how many px of each label its targets have."""
    shards.write_shard(arrays, "label_map", block, maps)
    shards.write_label_pixels(arrays, block, count_labels(maps, len(plane.classes) + 1))
