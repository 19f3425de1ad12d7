"""A slide's map of classes: which tuples it is made of, and the table of what is known of every px of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import SpecError
from msdask.inference import ome_zarr
from msdask.inference.planned_group import GroupPlan
from msdask.scale import footprint, magnification_to_mpp
from msdask.selection.coverage import outside_shares
from msdask.selection.positions import round_coordinates
from msdask.spec import ExtractionSpec, format_magnification

__all__ = ["MapPlan", "MapRows", "class_map", "mask_hash", "prediction_table"]

_LEAST_STEP = 2.0
"""Level-0 px between neighbours from which on rounded origins tell which cell of the lattice is meant."""


@dataclass(frozen=True)
class MapPlan(GroupPlan):
    """Everything that decides the bytes of a map. It is stored with it, and says whether a run may go on with it.

    Attributes
    ----------
    slide_id : of the slide
    fingerprint : of its file
    shape : (height, width) of level 0, px
    mpp, mpp_used : um/px of level 0 as stated, and as planned with
    spec : which tuples, and how they are read
    start : (x, y) of the first position of the lattice, level-0 px
    step : level-0 px between neighbours, which is the side of a px of the map
    grid : (rows, columns) of the map
    mask : SHA-256 of the mask that says where tissue is
    model : class and configuration of the network, SHA-256 of its weights
    classes : names
    batch_size : tuples that go through the network at once: another one changes the last bits of a probability
    device : kind of device that it runs on, for the same reason
    has_attention : whether the model says how much it looked at each magnification
    """

    slide_id: str
    fingerprint: str
    shape: tuple[int, int]
    mpp: float
    mpp_used: float
    spec: Mapping[str, Any]
    start: tuple[float, float]
    step: float
    grid: tuple[int, int]
    mask: str
    model: Mapping[str, Any]
    classes: tuple[str, ...]
    batch_size: int
    device: str
    has_attention: bool

    @property
    def magnifications(self) -> tuple[float, ...]:
        """Of a tuple, the highest first."""
        return ExtractionSpec.from_dict(self.spec).magnifications

    @property
    def footprints(self) -> tuple[float, ...]:
        """Level-0 px of the side of each of a tuple's patches."""
        size = ExtractionSpec.from_dict(self.spec).patch_size
        targets = map(magnification_to_mpp, self.magnifications)
        return tuple(footprint(size, target_mpp=mpp, slide_mpp=self.mpp_used) for mpp in targets)

    @property
    def first_center(self) -> tuple[float, float]:
        """(y, x) of the center of the first px of the map, level-0 px."""
        half = self.footprints[0] / 2
        return self.start[1] + half, self.start[0] + half


@dataclass(frozen=True)
class MapRows:
    """Where the tuples of a selection lie in the map.

    Attributes
    ----------
    row, column : (tuples,) of the map
    shard : (tuples,) number of the shard that a tuple lies in, from 0 in the order in which they are read
    shards : (row, column) of each
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    shard: NDArray[np.int64]
    shards: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, table: xr.Dataset) -> MapRows:
        """Those of a selection in Morton order, in which the tuples of a shard follow each other.

        Raises
        ------
        SpecError
            Neighbours are less than 2 level-0 px apart.
        """
        start, step = table.attrs["start"], float(table.attrs["step"])
        if step < _LEAST_STEP:
            raise SpecError(
                f"slide {table.attrs['slide_id']!r}: stride of {step:g} level-0 px; a map needs {_LEAST_STEP:g} or more"
            )
        column, row = (
            np.rint((table[name].values[:, 0] - first) / step).astype(np.int64)
            for name, first in zip(("x0", "y0"), start, strict=True)
        )
        at = np.stack([row // ome_zarr.SHARD, column // ome_zarr.SHARD], 1)
        begins = np.any(np.diff(at, axis=0, prepend=-1), axis=1)
        shard = np.cumsum(begins) - 1
        return cls(row, column, shard, tuple(map(tuple, at[begins].tolist())))


def mask_hash(mask: NDArray[np.bool_]) -> str:
    """SHA-256 (hex) of a mask's shape and px."""
    shape = np.asarray(mask.shape, "<i8").tobytes()
    return hashlib.sha256(shape + np.packbits(mask).tobytes()).hexdigest()


def class_map(
    plan: MapPlan,
    probability: NDArray[np.float32],
    attention: NDArray[np.float32] | None,
    unread: Mapping[str, int],
) -> xr.Dataset:
    """The map as a Dataset.

    Parameters
    ----------
    plan : of the map
    probability : (class, y, x) float32, NaN where no tuple was looked at
    attention : (magnification, y, x) float32, or None
    unread : "tiles" that could not be read, and "tuples" over them, which have no class

    Returns
    -------
    map : see `msdask.classify_slide`
    """
    known = ~np.isnan(probability[0]) if len(probability) else np.zeros(plan.grid, bool)
    predicted = np.full(plan.grid, -1, np.int16)
    predicted[known] = probability[:, known].argmax(0)
    left, top = (first + np.arange(n) * plan.step for first, n in zip(plan.start, plan.grid[::-1], strict=True))
    y, x = top + plan.footprints[0] / 2, left + plan.footprints[0] / 2
    x0, y0 = _origins(plan, left), _origins(plan, top)
    at_x, at_y = (np.broadcast_to(v, (len(y), *x0.shape)).reshape(-1, x0.shape[1]) for v in (x0[None], y0[:, None]))
    outside = outside_shares(at_x, at_y, plan.footprints, plan.shape)
    outside = np.where(known.reshape(-1, 1), outside, np.nan).astype(np.float32)
    shares = outside[known.ravel()].mean(0, dtype=np.float64) if known.any() else np.zeros(x0.shape[1])
    names = [format_magnification(m) for m in plan.magnifications]
    space = ("y", "x")
    data: dict[str, Any] = {
        "probability": (("class", *space), probability),
        "predicted": (space, predicted),
        "outside": (("magnification", *space), np.moveaxis(outside.reshape(*plan.grid, -1), -1, 0)),
    }
    if attention is not None:
        data["attention"] = (("magnification", *space), attention)
    coords = {
        "class": list(plan.classes),
        "magnification": list(plan.magnifications),
        "y": ("y", y, {"units": "level-0 px"}),
        "x": ("x", x, {"units": "level-0 px"}),
        "y_um": ("y", y * plan.mpp, {"units": "um"}),
        "x_um": ("x", x * plan.mpp, {"units": "um"}),
    }
    attrs = {key: value for key, value in plan.to_dict().items() if key not in ("grid", "has_attention")}
    attrs |= {
        "footprint": list(plan.footprints),
        "tuples": int(known.sum()),
        "outside_share": {name: float(share) for name, share in zip(names, shares, strict=True)},
        "unread": dict(unread),
    }
    return xr.Dataset(data, coords, attrs)


def _origins(plan: MapPlan, position: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """(n, magnifications): origins along one axis of the tuples at some positions, as a selection has them."""
    sides = plan.footprints
    center = position + sides[0] / 2
    return round_coordinates(np.stack([position, *(center - side / 2 for side in sides[1:])], axis=-1))


def prediction_table(found: xr.Dataset) -> pd.DataFrame:
    """A map as a table, a row a tuple, from the top to the bottom and from left to right.

    Returns
    -------
    table : slide, row, column (of the map), x0, y0 (of the patch of the highest magnification, level-0 px), predicted
        (name of the class), probability_<class>, attention_20x ... and outside_20x ... (float32)
    """
    row, column = np.nonzero(found["predicted"].values >= 0)
    (left, top), step = found.attrs["start"], found.attrs["step"]
    names = np.asarray(found["class"].values, object)
    columns: dict[str, Any] = {
        "slide": np.full(len(row), found.attrs["slide_id"], object),
        "row": row.astype(np.int32),
        "column": column.astype(np.int32),
        "x0": round_coordinates(left + column * step),
        "y0": round_coordinates(top + row * step),
        "predicted": names[found["predicted"].values[row, column]],
    }
    for k, name in enumerate(names):
        columns[f"probability_{name}"] = found["probability"].values[k, row, column]
    for what in ("attention", "outside"):
        for i, m in enumerate(found["magnification"].values if what in found else []):
            columns[f"{what}_{format_magnification(m)}"] = found[what].values[i, row, column]
    return pd.DataFrame(columns)
