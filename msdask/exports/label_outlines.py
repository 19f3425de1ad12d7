"""Outlines of a segmentation as GeoJSON, traced band by band: no plane of the whole slide is held."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdask.exports.geojson import write_geojson
from msdask.exports.tracing import polygons_of
from msdask.masks.outlines import Outlines

__all__ = ["traced_bands", "write_label_outlines"]

BAND_PX = 32 * 2**20
"""Px of labels that are traced at once: some 500 MB."""


class Labels(Protocol):
    """A plane of labels that is read in parts, such as a zarr array."""

    shape: tuple[int, ...]

    def __getitem__(self, part: Any) -> Any: ...


def traced_bands(
    labels: Labels, *, classes: tuple[str, ...], scale: tuple[float, float], origin: tuple[float, float], shard: int = 1
) -> Iterator[Outlines]:
    """Polygons of a label plane, from the top down, a band of rows at a time.

    A map of at most 32 Mpx is one band. Of a larger one, an area that lies in two bands is two polygons that touch
    along the border of the bands; nothing overlaps, and nothing is left out.

    Parameters
    ----------
    labels : (y, x) uint8, 0 = unlabeled, k + 1 = class k
    classes : names
    scale : level-0 px per px of the labels, (x, y)
    origin : (x, y) of their first corner, level-0 px
    shard : rows that are stored together; bands are whole multiples of it
    """
    height, width = labels.shape
    rows = max(1, BAND_PX // max(1, width) // shard) * shard
    for top in range(0, height, rows):
        band: NDArray[np.uint8] = np.asarray(labels[top : top + rows, :])
        if band.any():
            yield polygons_of(band, classes=classes, origin=(origin[0], origin[1] + top * scale[1]), scale=scale)


def write_label_outlines(
    path: str | os.PathLike[str],
    labels: Labels,
    *,
    classes: tuple[str, ...],
    scale: tuple[float, float],
    origin: tuple[float, float] = (0.0, 0.0),
    shard: int = 1,
    colors: Mapping[str, tuple[int, int, int]] | None = None,
) -> int:
    """Write the areas of each class as a FeatureCollection for QuPath.

    Parameters
    ----------
    path : file to write; compressed where its name ends in ".gz"
    labels, classes, scale, origin, shard : see `traced_bands`
    colors : of classes, RGB of 0 to 255

    Returns
    -------
    count : polygons written
    """
    bands = traced_bands(labels, classes=classes, scale=scale, origin=origin, shard=shard)
    return write_geojson(path, bands, colors=colors)
