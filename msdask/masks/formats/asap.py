"""ASAP's annotations: XML of groups and of annotations that belong to them, in level-0 px."""

from __future__ import annotations

from collections import Counter
from typing import Final
from xml.etree.ElementTree import Element

from msdask.errors import MaskError
from msdask.masks.formats.annotation_xml import elements, number_of, root_name
from msdask.masks.formats.outline_format import UNCLASSIFIED, OutlineFormat, Ring, gathered, warn_of_left_out
from msdask.masks.outlines import Outlines
from msdask.storage.source import ByteSource

__all__ = ["Asap"]

_WITH_AREA: Final = {"polygon", "spline", "rectangle"}
_WITHOUT_AREA: Final = {"dot", "pointset", "measurement", "none", ""}


class Asap(OutlineFormat):
    """An annotation's class is the name of its group. Its corners are joined by straight lines, those of splines too.

    ASAP knows no holes: what is to be left out is drawn later, in a group of its own, which gets class -1.
    """

    name = "ASAP XML"
    priority = 30
    reason = "its first element names it; drawn by hand, it goes before masks of px that were made from it"
    places: tuple[str, ...] = ("{name}.xml",)

    def recognizes(self, path: str, head: bytes) -> bool:
        """By the name of the first element."""
        return root_name(head) == "ASAP_Annotations"

    def read_outlines(self, source: ByteSource, slide_shape: tuple[int, int]) -> Outlines:
        """See `OutlineFormat.read_outlines`."""
        rings: list[list[Ring]] = []
        names: list[str] = []
        left_out: Counter[str] = Counter()
        for event, name, element in elements(source):
            if event != "end" or name != "Annotation":
                continue
            kind = element.get("Type", "")
            if kind.lower() in _WITH_AREA:
                rings.append([_corners(element, source.path)])
                group = element.get("PartOfGroup", "None")
                names.append(UNCLASSIFIED if group in ("None", "") else group)
            elif kind.lower() in _WITHOUT_AREA:
                left_out[kind or "annotation without a type"] += 1
            else:
                raise MaskError(
                    f"mask {source.path!r}: annotation {element.get('Name')!r} of type {kind!r}; expected Polygon, "
                    "Spline or Rectangle (Dot, PointSet and Measurement are left out): draw it as a polygon"
                )
            element.clear()
        warn_of_left_out(left_out, source.path)
        return gathered(rings, names, source.path, slide_shape)


def _corners(annotation: Element, path: str) -> Ring:
    """In the order that they are numbered in, which is not always that of the file."""
    found = [
        (number_of(point, "Order", path), number_of(point, "X", path), number_of(point, "Y", path))
        for point in annotation.iter("Coordinate")
    ]
    return [(x, y) for _, x, y in sorted(found, key=lambda corner: corner[0])]
