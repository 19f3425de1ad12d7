"""GeoJSON for QuPath: valid rings, ids and bytes that depend on the polygons alone, written as they come."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest

from msdask.errors import SpecError
from msdask.exports import geojson
from msdask.exports.geojson import write_geojson
from msdask.exports.tracing import polygons_of
from msdask.masks.outlines import Outlines

LABELS = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 0]])
OUTLINES = polygons_of(LABELS, classes=("tumor", "stroma"), scale=2.5)


def outlines(*rings: list[tuple[float, float]]) -> Outlines:
    """Polygons without holes, of one class."""
    lengths = [len(ring) for ring in rings]
    return Outlines(
        np.array([corner for ring in rings for corner in ring], float),
        np.cumsum([0, *lengths]),
        np.arange(len(rings) + 1),
        np.zeros(len(rings), np.int32),
        ("a",),
    )


def test_features_are_what_qupath_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    assert write_geojson(path, OUTLINES, colors={"tumor": (200, 0, 0)}) == 2
    tumor, stroma = json.loads(path.read_text())["features"]
    assert tumor["type"] == "Feature"
    assert tumor["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "tumor", "color": [200, 0, 0]},
    }
    assert stroma["properties"]["classification"] == {"name": "stroma"}
    assert tumor["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[0, 0], [7.5, 0], [7.5, 7.5], [0, 7.5], [0, 0]],
            [[5, 2.5], [2.5, 2.5], [2.5, 5], [5, 5], [5, 2.5]],
        ],
    }
    assert UUID(tumor["id"]).version == 5


def test_an_id_is_the_uuid_of_class_number_and_corners(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, OUTLINES)
    features = json.loads(path.read_text())["features"]
    for number, feature in enumerate(features):
        corners = json.dumps(feature["geometry"]["coordinates"], separators=(",", ":"))[1:-1].replace(".0,", ",")
        text = "\0".join((feature["properties"]["classification"]["name"], str(number), corners[1:-1]))
        assert feature["id"] == str(uuid5(UUID(bytes=geojson._NAMESPACE), text.replace(".0]", "]")))


@pytest.mark.parametrize("ending", ["geojson", "geojson.gz"])
def test_parts_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(geojson, "_MEMBER_BYTES", 500)
    labels = np.random.default_rng(0).integers(0, 3, (12, 12))
    many = polygons_of(labels, classes=("tumor", "stroma"), scale=0.5)
    paths = [tmp_path / f"{name}.{ending}" for name in ("whole", "one by one", "in pieces")]
    write_geojson(paths[0], many)
    write_geojson(paths[1], (many.take(slice(i, i + 1)) for i in range(len(many))))
    monkeypatch.setattr(geojson, "_AT_ONCE", 7)
    write_geojson(paths[2], [many])
    first, *others = (path.read_bytes() for path in paths)
    assert others == [first, first]
    text = gzip.decompress(first) if ending.endswith(".gz") else first
    features = json.loads(text)["features"]
    assert len({feature["id"] for feature in features}) == len(many)


def test_rings_are_turned_and_numbers_rounded(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, outlines([(0, 0), (0, 1 / 3), (2, -1e-9)], [(0, 0), (5, 0), (5, 1e6)]), object_type="detection")
    first, second = json.loads(path.read_text())["features"]
    assert first["geometry"]["coordinates"] == [[[0, 0], [2, 0], [0, 0.333], [0, 0]]]
    assert second["geometry"]["coordinates"] == [[[0, 0], [5, 0], [5, 1000000], [0, 0]]]
    assert first["properties"]["objectType"] == "detection"
    assert "-0" not in path.read_text().split('"coordinates"')[1].split("}")[0]


def test_nothing_to_write_is_an_empty_collection(tmp_path: Path) -> None:
    assert write_geojson(tmp_path / "a.geojson.gz", []) == 0
    text = gzip.decompress((tmp_path / "a.geojson.gz").read_bytes())
    assert json.loads(text) == {"type": "FeatureCollection", "features": []}


def test_what_is_no_polygon_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, OUTLINES)
    before = path.read_bytes()
    with pytest.raises(SpecError, match=r"polygon 1 has a ring of 2 corners; expected three"):
        write_geojson(path, outlines([(0, 0), (1, 0), (1, 1)], [(0, 0), (1, 0)]))
    with pytest.raises(SpecError, match=r"polygon 2 has a corner at \[nan, 0\.0\]"):
        write_geojson(path, [OUTLINES, outlines([(np.nan, 0), (1, 0), (1, 1)])])
    with pytest.raises(SpecError, match="expected 'annotation' or 'detection'"):
        write_geojson(path, OUTLINES, object_type="cell")  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_whole_numbers_have_no_point_and_no_others_change(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    corners = [(0.0, 100.0), (10.05, 20.0), (1e16, 5e17), (1.005e15, 0.001), (30.0, 10.01)]
    holes = outlines(corners, [(1.0, 1.0), (2.0, 1.0), (2.0, 2.5)])
    both = Outlines(holes.xy, holes.rings, np.array([0, 2]), holes.class_of[:1], holes.classes)
    write_geojson(path, [both.take(slice(0, 0)), both, both.take(slice(0, 0)), both])
    text = path.read_text()
    first, second = json.loads(text)["features"]
    rings = first["geometry"]["coordinates"]
    assert second["geometry"]["coordinates"] == rings
    assert sorted(map(tuple, rings[0][1:])) == sorted(corners)
    assert [rings[0][0], rings[1][0]] == [rings[0][-1], rings[1][-1]] == [[0, 100], [1, 1]]
    assert ".0," not in text
    assert ".0]" not in text
