"""Aperio ImageScope's annotations: XML of layers, of regions in them, and of vertices in level-0 px."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.formats.annotation_xml import elements, number_of, root_name
from msdask.masks.formats.outline_format import UNCLASSIFIED, OutlineFormat, Ring, gathered, warn_of_left_out
from msdask.masks.outlines import Outlines
from msdask.storage.source import ByteSource

__all__ = ["ImageScope"]

_POLYGON, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_WITHOUT_AREA: Final = {"3": "arrow", "4": "ruler", "5": "pointer"}
_OFF_BY: Final = 0.25
"""px by which corners that stand for an ellipse may miss it."""


@dataclass
class _Layer:
    """What is read of one layer: `holes` are regions, with the id of the region that they say they are in."""

    name: str
    ids: list[str] = field(default_factory=list)
    polygons: list[list[Ring]] = field(default_factory=list)
    holes: list[tuple[str, Ring]] = field(default_factory=list)


class ImageScope(OutlineFormat):
    """A region's class is its layer: the layer's name, or else its description, or else its number.

    A region with NegativeROA="1" is a hole of the region that it names by InputRegionId, or else of the smallest one
    of its layer that most of it lies in.
    """

    name = "ImageScope XML"
    priority = 31
    reason = "its first element names it; drawn by hand, it goes before masks of px that were made from it"
    places: tuple[str, ...] = ("{name}.xml",)

    def recognizes(self, path: str, head: bytes) -> bool:
        """By the name of the first element."""
        return root_name(head) == "Annotations"

    def read_outlines(self, source: ByteSource, slide_shape: tuple[int, int]) -> Outlines:
        """See `OutlineFormat.read_outlines`."""
        layers: list[_Layer] = []
        left_out: Counter[str] = Counter()
        for event, name, element in elements(source):
            if event == "start" and name == "Annotation":
                given = (element.get("Name") or "").strip()
                layers.append(_Layer(given or _numbered(element)))
                is_named = bool(given)
            elif event == "end" and name == "Attribute" and layers and not layers[-1].polygons and not is_named:
                description = (element.get("Value") or "").strip()
                if element.get("Name") == "Description" and description:
                    layers[-1].name, is_named = description, True
            elif event == "end" and name == "Region" and layers:
                _add(layers[-1], element, left_out, source.path)
                element.clear()
        warn_of_left_out(left_out, source.path)
        for layer in layers:
            _place_holes(layer, source.path)
        rings = [polygon for layer in layers for polygon in layer.polygons]
        names = [layer.name for layer in layers for _ in layer.polygons]
        return gathered(rings, names, source.path, slide_shape)


def _numbered(layer: Element) -> str:
    number = layer.get("Id")
    return f"layer {number}" if number else UNCLASSIFIED


def _add(layer: _Layer, region: Element, left_out: Counter[str], path: str) -> None:
    kind = region.get("Type", _POLYGON)
    if kind in _WITHOUT_AREA:
        left_out[_WITHOUT_AREA[kind]] += 1
        return
    corners: Ring = [(number_of(point, "X", path), number_of(point, "Y", path)) for point in region.iter("Vertex")]
    if kind == _ELLIPSE:
        corners = _ellipse(corners, path)
    elif kind == _RECTANGLE and len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind not in (_POLYGON, _RECTANGLE):
        raise MaskError(
            f"mask {path!r}: region {region.get('Id')} of layer {layer.name!r} is of type {kind!r}; expected 0 "
            "(outline), 1 (rectangle) or 2 (ellipse): draw it as an outline"
        )
    if region.get("NegativeROA", "0") == "1":
        layer.holes.append((region.get("InputRegionId", "0"), corners))
    else:
        layer.ids.append(region.get("Id", ""))
        layer.polygons.append([corners])


def _ellipse(corners: Ring, path: str) -> Ring:
    """An ellipse that two corners of its box stand for, as a polygon that misses it by a quarter px at most."""
    if len(corners) != 2:
        raise MaskError(
            f"mask {path!r}: an ellipse of {len(corners)} points; expected the two corners of its box: draw it again"
        )
    (left, top), (right, bottom) = corners
    a, b = abs(right - left) / 2, abs(bottom - top) / 2
    radius = max(a, b, 1.0)
    count = max(16, math.ceil(math.pi / math.acos(max(0.0, 1 - _OFF_BY / radius))))
    angles = np.arange(count) * (2 * math.pi / count)
    x, y = (left + right) / 2 + a * np.cos(angles), (top + bottom) / 2 + b * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _place_holes(layer: _Layer, path: str) -> None:
    """Give each hole to its outline."""
    if not layer.holes:
        return
    outer = [np.array(polygon[0], np.float64).reshape(-1, 2) for polygon in layer.polygons]
    areas = np.array([_area(ring) for ring in outer])
    for owner, ring in layer.holes:
        corners = np.array(ring, np.float64).reshape(-1, 2)
        if owner != "0" and owner in layer.ids:
            layer.polygons[layer.ids.index(owner)].append(ring)
            continue
        around = [k for k, candidate in enumerate(outer) if len(corners) and _share_inside(corners, candidate) > 0.5]
        if not around:
            x, y = ring[0] if ring else (math.nan, math.nan)
            raise MaskError(
                f"mask {path!r}: a hole (NegativeROA) of layer {layer.name!r} at x {x:.0f}, y {y:.0f} lies in no "
                "outline of that layer; expected one around it: draw it, or remove the hole"
            )
        layer.polygons[min(around, key=lambda k: areas[k])].append(ring)


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def _share_inside(points: NDArray[np.float64], ring: NDArray[np.float64]) -> float:
    """Share of some points that lie inside a ring, by the even-odd rule."""
    if (points.max(axis=0) < ring.min(axis=0)).any() or (points.min(axis=0) > ring.max(axis=0)).any():
        return 0.0
    x, y = points[:, :1], points[:, 1:]
    (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
    spans = (y1 <= y) != (y2 <= y)
    height = np.where(y1 == y2, 1.0, y2 - y1)
    crossings = spans & (x < x1 + (y - y1) / height * (x2 - x1))
    return float((crossings.sum(axis=1) % 2).mean())
