"""A slide's segmentation: everything that decides it, as plain values, and the lazy table of what is in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import dask.array as da
import numpy as np
import xarray as xr

from msdask.inference.planned_group import GroupPlan, as_tuples
from msdask.inference.tiles import Tiling

__all__ = ["Precision", "Probabilities", "SegmentPlan", "segmentation"]

Probabilities = Literal["uint8", "float16"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class SegmentPlan(GroupPlan):
    """Everything that decides the bytes of a segmentation. It is stored with it, and says whether a run may go on.

    Attributes
    ----------
    slide_id : of the slide
    fingerprint : of its file
    shape : (height, width) of level 0, px
    mpp, mpp_used : um/px of level 0 as stated, and as planned with
    magnifications : of the model, the target first
    step : level-0 px on the side of a px of the map, which is a px of the target
    grid : (rows, columns) of the map
    mask : SHA-256 of the mask that says where tissue is
    model : class and configuration of the network, SHA-256 of its weights
    classes : names
    tiling : see `msdask.inference.tiles.Tiling`
    shard, chunk : px a side
    probabilities : type in which they are kept, or None
    batch_size : tiles that go through the network at once: another one may change the last bits of a logit
    device, precision : kind of device, and type that the network computes in, for the same reason
    """

    slide_id: str
    fingerprint: str
    shape: tuple[int, int]
    mpp: float
    mpp_used: float
    magnifications: tuple[float, ...]
    step: float
    grid: tuple[int, int]
    mask: str
    model: Mapping[str, Any]
    classes: tuple[str, ...]
    tiling: Tiling
    shard: int
    chunk: int
    probabilities: Probabilities | None
    batch_size: int
    device: str
    precision: Precision

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote."""
        return super().from_dict({**values, "tiling": Tiling(**as_tuples(values["tiling"]))})

    @property
    def px_um(self) -> float:
        """Side of a px of the map, um, by the resolution that the slide states."""
        return self.step * self.mpp


def segmentation(
    plan: SegmentPlan,
    label: Any,
    probability: Any,
    counts: Sequence[int],
    *,
    unread: Mapping[str, int],
    levels: int,
    path: str,
    level: int = 0,
) -> xr.Dataset:
    """A segmentation as a Dataset of lazy arrays.

    Parameters
    ----------
    plan : of the segmentation
    label : zarr array (y, x)
    probability : zarr array (class, y, x), or None
    counts : px of each class
    unread : "tiles" that could not be read, and "px" of tissue over them, which have no class
    levels : of its pyramid
    path : of its file
    level : of the pyramid, which the arrays are

    Returns
    -------
    found : see `msdask.segment_slide`
    """
    y, x = ((np.arange(n) + 0.5) * plan.step * 2**level for n in label.shape)
    space = ("y", "x")
    data: dict[str, Any] = {"label": (space, da.from_zarr(label, chunks=(plan.shard, plan.shard)))}
    if probability is not None:
        chunks = (len(plan.classes), plan.shard, plan.shard)
        data["probability"] = (("class", *space), da.from_zarr(probability, chunks=chunks))
    coords = {
        "class": list(plan.classes),
        "y": ("y", y, {"units": "level-0 px"}),
        "x": ("x", x, {"units": "level-0 px"}),
        "y_um": ("y", y * plan.mpp, {"units": "um"}),
        "x_um": ("x", x * plan.mpp, {"units": "um"}),
    }
    area = plan.px_um**2 / 1e6
    attrs = plan.to_dict() | {
        "path": path,
        "levels": levels,
        "level": level,
        "px": {name: int(n) for name, n in zip(plan.classes, counts, strict=True)},
        "area_mm2": {name: int(n) * area for name, n in zip(plan.classes, counts, strict=True)},
        "unread": dict(unread),
    }
    return xr.Dataset(data, coords, attrs)
