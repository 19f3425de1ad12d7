"""Outlines of a segmentation as GeoJSON, traced band by band: no plane of the whole slide is held."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdask.exports.band_joining import Joiner
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
    """Polygons of a label plane, traced a band of rows at a time.

    An area that lies in several bands is one polygon, given when the last of them is traced: what is held is one band,
    and the corners of the areas that reach beyond it.

    Parameters
    ----------
    labels : (y, x) uint8, 0 = unlabeled, k + 1 = class k
    classes : names
    scale : level-0 px per px of the labels, (x, y)
    origin : (x, y) of their first corner, level-0 px
    shard : rows that are stored together; bands are whole multiples of it

    Yields
    ------
    outlines : some polygons, in level-0 px
    """
    height, width = labels.shape
    rows = max(1, BAND_PX // max(1, width) // shard) * shard
    joiner = Joiner(width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band: NDArray[np.uint8] = np.asarray(labels[top:bottom, :])
        traced = polygons_of(band, classes=classes, origin=(0.0, float(top)))
        for part in joiner.add(traced, top, bottom, is_last=bottom == height):
            yield replace(part, xy=part.xy * np.array(scale) + np.array(origin))


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
