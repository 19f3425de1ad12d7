"""Features read from their text alone give what parsing all of it gives, or nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdask.errors import MaskError
from msdask.masks.formats import geojson, json_features
from msdask.masks.formats.geojson import GeoJson
from msdask.masks.formats.plain_polygons import STAND_IN, PlainFeatures, RingsOfPolygons
from msdask.storage.source import open_source

COMPACT = (",", ":")
Ring = list[list[float]]


def square(x: float, y: float, side: float) -> Ring:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(k: int, rings: list[Ring], **more: Any) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": rings}
    properties = {"objectType": "annotation", "classification": {"name": ["a", "b: ]]]}"][k % 2]}}
    return {"type": "Feature", "id": f"{k:08x}-ab", "geometry": geometry, "properties": properties, **more}


FEATURES = [
    feature(k, [square(10.125 * k, 1e-3 * k, 9), *[square(10.125 * k + i, 2.5, 0.5) for i in (2, 4)[: k % 3]]])
    for k in range(6)
]


def name_of(found: Any) -> str | None:
    name: str = found["properties"]["classification"]["name"]
    return name if found["geometry"] == {"type": "Polygon", "coordinates": STAND_IN} else None


def members(features: list[Any], separators: tuple[str, str] = COMPACT) -> bytes:
    return json.dumps(features, separators=separators)[1:-1].encode()


@pytest.mark.parametrize("separators", [COMPACT, (", ", ": ")])
@pytest.mark.parametrize("with_id", [True, False])
def test_corners_rings_and_classes_are_those_of_the_json(separators: tuple[str, str], with_id: bool) -> None:
    features = [{name: value for name, value in f.items() if with_id or name != "id"} for f in FEATURES]
    read = PlainFeatures(name_of)
    for _ in range(2):  # the second time from what is known
        found = read(members(features, separators))
        assert found is not None
        polygons = [f["geometry"]["coordinates"] for f in features]
        assert found.names == ["a", "b: ]]]}"] * 3
        assert found.polygons.tolist() == [len(rings) for rings in polygons]
        assert found.rings.tolist() == [len(ring) for rings in polygons for ring in rings]
        assert found.xy.tolist() == [corner for rings in polygons for ring in rings for corner in ring]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[[[0.0,0.0]", b"[[[0.0,0.0,7]"),
        (b"[[[0.0,0.0]", b"[[[0.0,01]"),
        (b"[[[0.0,0.0]", b"[[[0.0]1,[0.0]"),
        (b"[[[0.0,0.0],", b"[[[0.0,0.0],]"),
        (b"[[[0.0,0.0],", b"[[[,0.0],"),
        (b"[[[0.0,0.0],", b"[[[null,0.0],"),
        (b"[[[0.0,0.0],", b"[[0.0,0.0],[[0.0,0.0],"),
        (b"[[[0.0,0.0],", b"[[[[0.0,0.0],"),
        (b'"id":"00000001-ab"', b'"id":"1\\"-ab"'),
        (b'"id":"00000001-ab",', b'"id":"00000001-ab"'),
        (b',{"type":"Feature","id":"00000001', b'{"type":"Feature","id":"00000001'),
        (b',{"type":"Feature","id":"00000001', b',7,{"type":"Feature","id":"00000001'),
        (b'"Polygon"', b'"MultiPolygon"'),
        (b'"coordinates":[', b'"coordinates":0,"other":['),
        (b"]]]}", b"]]}"),
        (b"a", b"\xff"),
    ],
)
def test_what_is_not_plain_or_no_json_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    text = members(FEATURES)
    assert old in text
    assert PlainFeatures(name_of)(text.replace(old, new, 1)) is None


def outcome(path: Path) -> Any:
    """What reading a file gives: its outlines, or its message."""
    source = open_source(path)
    try:
        found = GeoJson().read_outlines(source, (1000, 1000))
    except MaskError as why:
        return str(why)
    finally:
        source.close()
    return found.xy.tolist(), found.rings.tolist(), found.polygons.tolist(), found.class_of.tolist(), found.classes


@pytest.mark.filterwarnings("ignore:mask .* left out what has no area")
def test_damaged_text_gives_the_same_message_or_outlines_as_parsing_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the file is cut into blocks, whatever is in it."""
    nucleus = {"nucleusGeometry": {"type": "Polygon", "coordinates": [square(1, 1, 1)]}}
    several = feature(8, [square(1, 1, 1)])
    several["geometry"] = {"type": "MultiPolygon", "coordinates": [[square(1, 1, 1)], [square(5, 5, 1)]]}
    others = [feature(7, [square(3, 3, 3)], **nucleus), several, feature(9, [square(3, 3, 3)], geometry=None)]
    draw = random.Random(3)
    bits = [b"", b"[", b"]", b",", b'"', b"{", b"}", b"[[[", b"]]]", b"],[", b"},{", b"\\", b"1", b"e", b" ", b"\0"]
    path, quick, outcomes = tmp_path / "a.geojson", 0, set()
    for k in range(150):
        features = draw.sample(FEATURES, 4) + ([draw.choice(others)] if k % 3 == 0 else [])
        text = b'{"type":"FeatureCollection","features":[%b]}' % members(
            features, (", ", ": ") if k % 4 == 1 else COMPACT
        )
        for _ in range(draw.choice([0, 1, 1, 2])):
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(bits) + text[at + draw.choice([0, 1, 3]) :]
        path.write_bytes(text)
        with monkeypatch.context() as patch:
            patch.setattr(json_features, "_BLOCK", draw.choice([100, 700, 1 << 20]))
            found = outcome(path)
            patch.setattr(geojson, "PlainFeatures", lambda _name_of: lambda _text: None)
            assert outcome(path) == found, text
        outcomes.add(isinstance(found, str))
        quick += isinstance(PlainFeatures(geojson._name_of)(members(features)), RingsOfPolygons)
    assert outcomes == {True, False}
    assert quick > 90


def test_the_first_fault_of_a_file_is_told_though_outlines_are_checked_beside_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_features, "_BLOCK", 400)
    crossing = feature(0, [[[0, 0], [50, 50], [50, 0], [0, 50], [0, 0]]])
    path = tmp_path / "a.geojson"
    path.write_bytes(b"[" + members([crossing, *FEATURES]) + b",")
    with pytest.raises(MaskError, match=r"outline 1 \('a', at x 0, y 0\) crosses itself at x 25, y 25"):
        GeoJson().read_outlines(open_source(path), (1000, 1000))
    path.write_bytes(b"[" + members(FEATURES) + b",")
    with pytest.raises(MaskError, match="it ends within the list of features"):
        GeoJson().read_outlines(open_source(path), (1000, 1000))


def test_parsed_numbers_are_those_of_python() -> None:
    numbers = np.random.default_rng(0).uniform(-1, 1, 400) * 10.0 ** np.arange(-200, 200)
    ring = [[float(x), float(y)] for x, y in numbers.reshape(-1, 2)]
    found = PlainFeatures(name_of)(members([feature(0, [ring])]))
    assert found is not None
    assert found.xy.tolist() == ring
