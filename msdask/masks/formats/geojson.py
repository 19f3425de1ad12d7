"""QuPath's GeoJSON: polygons of features, with the names of their classifications, in level-0 px."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msdask.computing import Beside
from msdask.errors import MaskError
from msdask.masks.formats.json_features import feature_lists
from msdask.masks.formats.outline_format import UNCLASSIFIED, OutlineFormat, warn_of_left_out
from msdask.masks.formats.plain_polygons import STAND_IN, PlainFeatures, RingsOfPolygons
from msdask.masks.outline_checks import check_inside, check_outlines
from msdask.masks.outlines import Outlines, join_outlines
from msdask.storage.source import ByteSource

__all__ = ["GeoJson"]

_ENDINGS: Final = (".geojson", ".json", ".geojson.gz", ".json.gz")
_WITHOUT_AREA: Final = {"Point", "MultiPoint", "LineString", "MultiLineString"}
_MALFORMED: Final = (AttributeError, KeyError, TypeError, ValueError)


class GeoJson(OutlineFormat):
    """A FeatureCollection, a list of features, a feature or a geometry; of any age, since measurements are not read."""

    name = "GeoJSON"
    priority = 32
    reason = "its ending names it; drawn by hand, it goes before masks of px that were made from it"
    places: tuple[str, ...] = tuple(f"{{name}}{ending}" for ending in _ENDINGS)

    def recognizes(self, path: str, head: bytes) -> bool:
        """By its ending and its first byte."""
        begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return path.lower().endswith(_ENDINGS) and (begin in (b"{", b"[") or head[:2] == b"\x1f\x8b")

    def read_outlines(self, source: ByteSource, slide_shape: tuple[int, int]) -> Outlines:
        """See `OutlineFormat.read_outlines`; features are parsed and checked as they are read."""
        parts: list[Outlines] = []
        left_out: Counter[str] = Counter()
        classes: dict[str, int] = {}
        features = count = 0
        with _no_search_for_circles(), Beside() as thread:
            for members in feature_lists(source, PlainFeatures(_name_of)):
                if isinstance(members, RingsOfPolygons):
                    found, more = members, len(members.names)
                else:
                    found, more = _of_any(members, features, left_out, source.path), len(members)
                part = _outlines(found, features, more, classes, source.path)
                thread.call(check_outlines, part, source.path, first=count)
                features += more
                count += len(part)
                parts.append(part)
        warn_of_left_out(left_out, source.path)
        outlines = join_outlines(parts)
        check_inside(outlines.boxes, np.diff(outlines.corners), source.path, slide_shape)
        return outlines


@contextmanager
def _no_search_for_circles() -> Iterator[None]:
    """Python looks for circles among new objects while it parses: two thirds of the time, and there are none.

    Threads that do this at once do not disturb each other: who found the search on puts it on again.
    """
    is_searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_searching:
            gc.enable()


def _name_of(feature: Any) -> str | None:
    """Class of a feature that is a polygon with the coordinates `STAND_IN`; None for any other, and what is wrong."""
    left_out: Counter[str] = Counter()
    try:
        polygons, names = _any([feature], 0, left_out, "")
    except MaskError:
        return None
    return names[0] if polygons == [STAND_IN] else None


def _of_any(features: list[Any], first: int, left_out: Counter[str], path: str) -> RingsOfPolygons:
    """The polygons of features, whatever they are; `left_out` grows by what has no area."""
    polygons, names = _plain(features) or _any(features, first, left_out, path)
    try:
        xy, lengths = _corners(list(chain.from_iterable(polygons)))
        counts = np.fromiter(map(len, polygons), np.int64, len(polygons))
    except _MALFORMED as why:
        raise _malformed(path, first + 1, why, last=first + len(features)) from why
    return RingsOfPolygons(names, xy, lengths, counts)


def _outlines(found: RingsOfPolygons, first: int, features: int, classes: dict[str, int], path: str) -> Outlines:
    """Polygons of some features, of rings that are closed; `classes` grows by the names that are new."""
    names, xy, lengths, counts = found
    for name in dict.fromkeys(names):
        classes.setdefault(name, len(classes))
    class_of = [classes[name] for name in names]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if (counts == 0).any() or (lengths == 0).any():
        raise MaskError(f"mask {path!r}: a polygon without corners among features {first + 1} to {first + features}")
    is_open = (xy[starts] != xy[ends - 1]).any(axis=1)
    if is_open.any():
        x, y = xy[starts[is_open][0]].tolist()
        ring = np.flatnonzero(is_open)[0]
        name = tuple(classes)[class_of[int(np.searchsorted(np.cumsum(counts), ring, side="right"))]]
        raise MaskError(
            f"mask {path!r}: {int(is_open.sum())} open outlines, the first of class {name!r} at x {x:.0f}, y {y:.0f}; "
            "expected rings that end where they begin: close them"
        )
    kept = np.ones(len(xy), np.bool_)
    kept[ends - 1] = False
    return Outlines(
        xy[kept],
        np.concatenate([[0], ends - np.arange(1, len(ends) + 1)]).astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array(class_of, np.int32),
        tuple(classes),
    )


def _plain(features: list[Any]) -> tuple[list[Any], list[str]] | None:
    """Polygons and names of classes where all are features of one polygon with a class, as nearly always; else None."""
    try:
        geometries = [feature["geometry"] for feature in features if feature["type"] == "Feature"]
        names = [feature["properties"]["classification"]["name"] for feature in features]
        polygons = [geometry["coordinates"] for geometry in geometries if geometry["type"] == "Polygon"]
    except (KeyError, TypeError):
        return None
    is_plain = len(polygons) == len(features) and set(map(type, names)) == {str} and all(names)
    return (polygons, names) if is_plain else None


def _any(features: list[Any], first: int, left_out: Counter[str], path: str) -> tuple[list[Any], list[str]]:
    """Polygons and names of classes, whatever the features are."""
    polygons: list[Any] = []
    names: list[str] = []
    for number, feature in enumerate(features, first + 1):
        try:
            is_feature = feature["type"] == "Feature"
            name = _class_name(feature.get("properties")) if is_feature else UNCLASSIFIED
            found = _polygons(feature.get("geometry") if is_feature else feature, left_out)
        except _MALFORMED as why:
            raise _malformed(path, number, why) from why
        polygons += found
        names += [name] * len(found)
    return polygons, names


def _corners(rings: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n, 2) corners of all rings, and the number of corners of each; a third coordinate is left out."""
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    points: list[Any] = list(chain.from_iterable(rings))
    if set(map(len, points)) - {2}:
        points = [(x, y) for x, y, *_ in points]
    numbers = chain.from_iterable(points)
    return np.fromiter(numbers, np.float64, 2 * len(points)).reshape(-1, 2), lengths


def _polygons(geometry: Any, left_out: Counter[str]) -> list[Any]:
    """The polygons of a geometry, each a list of rings."""
    if geometry is None:
        left_out["feature without a geometry"] += 1
        return []
    kind = geometry["type"]
    if kind == "Polygon":
        return [geometry["coordinates"]]
    if kind == "MultiPolygon":
        return list(geometry["coordinates"])
    if kind == "GeometryCollection":
        return [polygon for part in geometry["geometries"] for polygon in _polygons(part, left_out)]
    if kind in _WITHOUT_AREA:
        left_out[kind] += 1
        return []
    raise ValueError(f"a geometry of type {kind!r}")


def _class_name(properties: Any) -> str:
    """Name of the classification; newer files may have the parts of a derived class apart, older ones a plain name."""
    found = properties.get("classification") if properties else None
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(found.get("names") or ())
    if found is not None and not isinstance(found, str):
        raise ValueError(f"a classification {found!r}")
    return found or UNCLASSIFIED


def _malformed(path: str, number: int, why: Exception, *, last: int | None = None) -> MaskError:
    where = f"feature {number}" if last in (None, number) else f"features {number} to {last}"
    what = f"no {why}" if isinstance(why, KeyError) else str(why)
    return MaskError(
        f"mask {path!r}: {where}: {what}; expected GeoJSON features with a Polygon, MultiPolygon or "
        "GeometryCollection of corners [x, y]: export it again"
    )
