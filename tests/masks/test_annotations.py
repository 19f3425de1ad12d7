"""Annotations of ASAP, ImageScope and QuPath: files of their layout, classes, holes, and what is wrong in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdask.errors import MaskError, SpecError
from msdask.exports.geojson import write_geojson
from msdask.exports.tracing import polygons_of
from msdask.masks.files import find_mask, read_tissue_mask
from msdask.masks.formats import annotation_xml, json_features, mask_formats, outline_format, read_content
from msdask.masks.formats.geojson import GeoJson
from msdask.masks.labels import read_label_mask
from msdask.masks.outlines import Outlines
from msdask.storage.source import open_source

SHAPE = (100, 200)
Corners = list[tuple[float, float]]


class SlideOfShape:
    def __init__(self, name: str = "a.svs", shape: tuple[int, int] = SHAPE) -> None:
        self.shape, self.name, self.path = shape, name, name


def box(left: float, top: float, right: float, bottom: float) -> Corners:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def closed(ring: Corners) -> list[list[float]]:
    return [list(corner) for corner in [*ring, ring[0]]]


def drawn(path: Path, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """At full size."""
    labels = read_label_mask(path, slide=SlideOfShape(), shape=SHAPE, **options)
    return labels.values, labels.attrs["classes"]


def painted(*boxes: tuple[int, tuple[int, int, int, int]]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for value, (left, top, right, bottom) in boxes:
        labels[top:bottom, left:right] = value
    return labels


# --- ASAP -------------------------------------------------------------------------------------------------------------


def asap(path: Path, *annotations: tuple[str, str, Corners]) -> Path:
    """(type, group, corners) of each annotation; the numbers of corners say their order, not their place."""
    parts = []
    for number, (kind, group, corners) in enumerate(annotations):
        points = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(corners)]
        parts.append(
            f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(reversed(points))}</Coordinates></Annotation>"
        )
    path.write_text(
        '<?xml version="1.0"?>\n<ASAP_Annotations>\n\t<Annotations>'
        + "\n".join(parts)
        + '</Annotations>\n\t<AnnotationGroups><Group Name="tumor" PartOfGroup="None" Color="#00ff00"><Attributes />'
        "</Group></AnnotationGroups>\n</ASAP_Annotations>\n"
    )
    return path


def test_groups_of_asap_are_classes_and_later_annotations_cover_earlier_ones(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml",
        ("Polygon", "tumor", box(10, 10, 60, 60)),
        ("Rectangle", "stroma", box(40, 20, 80, 50)),
        ("Spline", "None", box(100, 0, 110, 10)),
        ("Polygon", "out", box(12, 12, 20, 20)),
    )
    labels, classes = drawn(path)
    assert classes == ("tumor", "stroma", "unclassified", "out")
    expected = [(1, (10, 10, 60, 60)), (2, (40, 20, 80, 50)), (3, (100, 0, 110, 10)), (4, (12, 12, 20, 20))]
    np.testing.assert_array_equal(labels, painted(*expected))
    # A group that is to be left out wipes out what is under it.
    table = {"tumor": 0, "stroma": 0, "unclassified": -1, "out": -1}
    one = [(1, (10, 10, 60, 60)), (1, (40, 20, 80, 50)), (0, (12, 12, 20, 20))]
    np.testing.assert_array_equal(drawn(path, values=table)[0], painted(*one))


def test_what_has_no_area_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("Dot", "tumor", [(1, 1)]), ("Polygon", "tumor", box(0, 0, 9, 9)))
    with pytest.warns(UserWarning, match=r"left out what has no area: 1 Dot; draw polygons"):
        assert drawn(path)[0].sum() == 81
    path = asap(tmp_path / "b.xml", ("Blob", "tumor", box(0, 0, 9, 9)))
    with pytest.raises(MaskError, match="'Annotation 0' of type 'Blob'; expected Polygon, Spline or Rectangle"):
        drawn(path)


# --- ImageScope -------------------------------------------------------------------------------------------------------


def region(number: int, corners: Corners, kind: int = 0, *, hole: bool = False, inside: int = 0) -> str:
    points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    return (
        f'<Region Id="{number}" Type="{kind}" Zoom="0.06" Selected="0" Text="" NegativeROA="{int(hole)}" '
        f'InputRegionId="{inside}" Analyze="1" DisplayId="{number}"><Attributes/><Vertices>{points}</Vertices></Region>'
    )


def imagescope(path: Path, *layers: tuple[str, str, list[str]]) -> Path:
    """(name, description, regions) of each layer."""
    text = "".join(
        f'<Annotation Id="{number}" Name="{name}" ReadOnly="0" Type="4" LineColor="65280" Visible="1"><Attributes>'
        f'<Attribute Name="Description" Id="0" Value="{description}"/></Attributes><Regions><RegionAttributeHeaders>'
        '<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/></RegionAttributeHeaders>'
        f"{''.join(regions)}</Regions><Plots/></Annotation>"
        for number, (name, description, regions) in enumerate(layers, 1)
    )
    path.write_text(f'<Annotations MicronsPerPixel="0.2525">{text}</Annotations>')
    return path


def test_layers_of_imagescope_are_classes_and_their_negative_regions_holes(tmp_path: Path) -> None:
    path = imagescope(
        tmp_path / "a.xml",
        (
            "tumor",
            "",
            [
                region(1, box(10, 10, 90, 90)),
                region(2, box(20, 20, 30, 30), hole=True),  # in region 1, as it lies
                region(3, box(40, 40, 60, 60), hole=True, inside=1),
                region(4, closed(box(45, 45, 55, 55))),  # in the hole
            ],
        ),
        ("", "stroma", [region(1, [(100, 10), (120, 30)], 1)]),
        ("", "", [region(1, [(130, 10), (170, 30)], 2)]),
    )
    labels, classes = drawn(path)
    assert classes == ("tumor", "stroma", "layer 3")
    expected = painted(
        (1, (10, 10, 90, 90)),
        (0, (20, 20, 30, 30)),
        (0, (40, 40, 60, 60)),
        (1, (45, 45, 55, 55)),
        (2, (100, 10, 120, 30)),
    )
    y, x = np.mgrid[:100, :200] + 0.5
    expected[((x - 150) / 20) ** 2 + ((y - 20) / 10) ** 2 < 1] = 3
    assert (labels != expected).sum() <= 4, "but for px at the border of the ellipse"


def test_a_hole_in_no_region_is_refused(tmp_path: Path) -> None:
    regions = [region(1, box(10, 10, 20, 20)), region(2, box(50, 50, 60, 60), hole=True)]
    with pytest.raises(MaskError, match=r"a hole \(NegativeROA\) of layer 'x' at x 50, y 50 lies in no outline"):
        drawn(imagescope(tmp_path / "a.xml", ("x", "", regions)))


def test_arrows_are_left_out_and_unknown_regions_refused(tmp_path: Path) -> None:
    arrow = imagescope(tmp_path / "a.xml", ("x", "", [region(1, [(0, 0), (9, 9)], 3), region(2, box(0, 0, 9, 9))]))
    with pytest.warns(UserWarning, match="1 arrow"):
        drawn(arrow)
    with pytest.raises(MaskError, match="region 1 of layer 'x' is of type '9'; expected 0"):
        drawn(imagescope(tmp_path / "b.xml", ("x", "", [region(1, box(0, 0, 9, 9), 9)])))


# --- QuPath -----------------------------------------------------------------------------------------------------------


def feature(rings: list[Corners], classification: Any = None, kind: str = "Polygon") -> dict[str, Any]:
    coordinates: Any = [closed(ring) for ring in rings]
    properties = {"objectType": "annotation"} | ({} if classification is None else {"classification": classification})
    if kind == "MultiPolygon":
        coordinates = [[ring] for ring in coordinates]
    return {
        "type": "Feature",
        "id": "0d7d3cd6-9c7a-4f9c-8c1c-5a1c6a1b9a0e",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


TUMOR = feature([box(10, 10, 60, 60), box(20, 20, 30, 30)], {"name": "tumor", "color": [200, 0, 0]})
STROMA = feature([box(70, 10, 80, 20), box(90, 10, 99, 20)], {"name": "stroma", "colorRGB": -3670016}, "MultiPolygon")
EXPECTED = painted((1, (10, 10, 60, 60)), (0, (20, 20, 30, 30)), (2, (70, 10, 80, 20)), (2, (90, 10, 99, 20)))


@pytest.mark.parametrize("ending", [".geojson", ".json", ".geojson.gz"])
@pytest.mark.parametrize("layout", ["collection", "list", "properties first", "indented"])
def test_features_of_qupath_in_all_their_layouts(tmp_path: Path, ending: str, layout: str) -> None:
    features = [TUMOR, STROMA]
    document: Any = {"type": "FeatureCollection", "features": features, "name": 'with "features":[ in it \\'}
    if layout == "list":
        document = features
    elif layout == "properties first":
        document = {"about": {"features": [1]}, **document}
    text = json.dumps(document, indent=2 if layout == "indented" else None).encode()
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(text) if ending.endswith(".gz") else b"\xef\xbb\xbf" + text)
    labels, classes = drawn(path)
    assert classes == ("tumor", "stroma")
    np.testing.assert_array_equal(labels, EXPECTED)


def test_old_new_and_single_features(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    old = {**TUMOR, "id": "PathAnnotationObject"}
    old["properties"] = {
        "object_type": "annotation",
        "classification": {"name": "tumor", "colorRGB": -377282},
        "isLocked": False,
        "measurements": [{"name": "Area", "value": 1.5}],
    }
    for single in (old, TUMOR):
        path.write_text(json.dumps(single))
        assert drawn(path)[1] == ("tumor",)
    path.write_text(json.dumps(TUMOR["geometry"]))
    assert drawn(path)[1] == ("unclassified",)
    parts = {"type": "GeometryCollection", "geometries": [TUMOR["geometry"], STROMA["geometry"]]}
    others = [
        {"type": "Feature", "geometry": parts, "properties": {"classification": {"names": ["a", "b"]}}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}},
        {"type": "Feature", "geometry": None, "properties": None},
        feature([[(0, 90, 7), (9, 90, 7), (9, 99, 7)]], "plain"),  # type: ignore[list-item]
    ]
    path.write_text(json.dumps(others))
    with pytest.warns(UserWarning, match="left out what has no area: 1 Point, 1 feature without a geometry"):
        labels, classes = drawn(path)
    assert classes == ("a: b", "plain")
    np.testing.assert_array_equal(labels == 1, EXPECTED > 0)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_features_are_found_wherever_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Strings with brackets, quotes and backslashes in them included."""
    monkeypatch.setattr(json_features, "_BLOCK", block)
    names = ['}]"', "\\", '\\"]}', "[{", "é☃"]
    features = [feature([box(i, i, i + 5, i + 5)], {"name": name}) for i, name in enumerate(names)]
    text = json.dumps({"type": "FeatureCollection", "features": features, "tail": [{}, "]}"]})
    for path, data in (
        (tmp_path / "a.geojson", text.encode()),
        (tmp_path / "b.geojson.gz", gzip.compress(text.encode())),
    ):
        path.write_bytes(data)
        source = open_source(path)
        found = [member for members in json_features.feature_lists(source) for member in members]
        source.close()
        assert found == features


def test_geojson_to_mask_to_geojson(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (20, 40)).astype(np.uint8)
    traced = polygons_of(labels, classes=("tumor", "stroma"), scale=5)
    first, second = tmp_path / "a.geojson", tmp_path / "b.geojson.gz"
    write_geojson(first, traced)
    read = GeoJson().read_outlines(open_source(first), SHAPE)
    assert read.oriented() == traced
    for shape in ((20, 40), (40, 80)):
        content = read_content(str(first), slide_shape=SHAPE, shape=shape)
        again = polygons_of(content.values, classes=content.classes, scale=SHAPE[0] / shape[0])
        assert again == traced
    write_geojson(second, again)
    assert gzip.decompress(second.read_bytes()) == first.read_bytes()


# --- what is wrong in them --------------------------------------------------------------------------------------------


def as_file(path: Path, kind: str, *rings: Corners) -> Path:
    """The same outlines, in each of the formats."""
    if kind == "asap":
        return asap(path.with_suffix(".xml"), *(("Polygon", "tumor", ring) for ring in rings))
    if kind == "imagescope":
        regions = [region(i, ring) for i, ring in enumerate(rings)]
        return imagescope(path.with_suffix(".xml"), ("tumor", "", regions))
    path = path.with_suffix(".geojson")
    path.write_text(json.dumps([feature([ring], {"name": "tumor"}) for ring in rings]))
    return path


GOOD = box(1, 1, 9, 9)


@pytest.mark.parametrize("kind", ["asap", "imagescope", "geojson"])
@pytest.mark.parametrize(
    ("ring", "message"),
    [
        ([(5, 5), (50, 5)], r"2 points in outline 2 \('tumor', at x 5, y 5\); expected three or more"),
        ([(0, 0), (50, 50), (50, 0), (0, 50)], r"outline 2 \('tumor', at x 0, y 0\) crosses itself at x 25, y 25"),
        (
            box(-500, 50, 4000, 90),
            r"1 of 2 outlines \(4 corners\) lie outside .*x -500 to 4000, y 1 to 90; the slide has 200 x 100 px.*level",
        ),
        (box(205, 50, 210, 90), r"1 of 2 outlines"),
        ([(5, 5), (50, 5), (float("nan"), 5)], "no finite numbers in outline 2|unexpected character"),
    ],
)
def test_outlines_that_cannot_be_are_refused_by_place(tmp_path: Path, kind: str, ring: Corners, message: str) -> None:
    path = as_file(tmp_path / "a", kind, GOOD, ring)
    with pytest.raises(MaskError, match=message) as raised:
        drawn(path)
    assert repr(str(path)) in str(raised.value)


def test_reaching_a_little_beyond_the_edge_is_no_fault(tmp_path: Path) -> None:
    labels, _ = drawn(as_file(tmp_path / "a", "geojson", box(-3, 90, 20, 103)))
    np.testing.assert_array_equal(labels, painted((1, (0, 90, 20, 100))))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "Topology", "features": []}, "JSON of type 'Topology' with features in it"),
        ({"type": "Topology"}, "feature 1: a geometry of type 'Topology'"),
        ([TUMOR, 7], "no whole GeoJSON .*7. in the list of features"),
        ([7, TUMOR], "feature 1: .*expected GeoJSON features"),
        ([{"type": "Feature", "geometry": {"type": "Polygon"}}], "feature 1: no 'coordinates'"),
        (
            [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1], [2], [1]]]}}],
            "feature 1: not enough",
        ),
        ([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}}], "a polygon without corners"),
        ([{**TUMOR, "properties": {"classification": {"name": 5}}}], "feature 1: a classification 5"),
    ],
)
def test_json_that_is_no_geojson_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    with pytest.raises(MaskError, match=message):
        drawn(path)


def test_open_rings_of_geojson_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    ring = feature([GOOD], {"name": "x"})
    ring["geometry"]["coordinates"][0].pop()
    path.write_text(json.dumps([TUMOR, ring]))
    with pytest.raises(MaskError, match=r"1 open outlines, the first of class 'x' at x 1, y 1; .*close them"):
        drawn(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    text = json.dumps({"type": "FeatureCollection", "features": [TUMOR, STROMA]}).encode()
    path, packed = tmp_path / "a.geojson", tmp_path / "a.geojson.gz"
    for damaged in (text[:-40], text[:-1], text.replace(b"}, {", b"} {"), text[:-2] + b",]}", b"[1 2]", b"{"):
        path.write_bytes(damaged)
        with pytest.raises(MaskError, match=r"a\.geojson': is no whole GeoJSON|feature 1"):
            drawn(path)
    for damaged in (gzip.compress(text)[:-9], gzip.compress(text)[:60], b"\x1f\x8b\x08\0" + b"x" * 50):
        packed.write_bytes(damaged)
        with pytest.raises(MaskError, match=r"a\.geojson\.gz': is no whole GeoJSON"):
            drawn(packed)
    xml = asap(tmp_path / "b.xml", ("Polygon", "tumor", GOOD))
    xml.write_text(xml.read_text()[:-30])
    with pytest.raises(MaskError, match=r"b\.xml': is no whole XML file"):
        drawn(xml)
    xml.write_text('<!DOCTYPE x [<!ENTITY a "b">]>\n<ASAP_Annotations>&a;</ASAP_Annotations>')
    with pytest.raises(MaskError, match="declares entities or a document type"):
        drawn(xml)
    with pytest.raises(MaskError, match="X='left' of a Coordinate; expected a number"):
        drawn(asap(tmp_path / "c.xml", ("Polygon", "tumor", [("left", 1)])))  # type: ignore[list-item]


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((annotation_xml, "MAX_ANNOTATION_BYTES"), (json_features, "MAX_TEXT_BYTES")):
        monkeypatch.setattr(module, name, 100)
    with pytest.raises(MaskError, match=r"\d+ bytes of XML; expected at most 100"):
        drawn(as_file(tmp_path / "a", "asap", GOOD))
    with pytest.raises(MaskError, match="more than 100 bytes of JSON"):
        drawn(as_file(tmp_path / "a", "geojson", GOOD))
    monkeypatch.setattr(json_features, "MAX_TEXT_BYTES", 10_000)
    bomb = tmp_path / "b.geojson.gz"
    bomb.write_bytes(gzip.compress(b"[" + b" " * 50_000))
    with pytest.raises(MaskError, match="more than 10000 bytes"):
        drawn(bomb)
    monkeypatch.setattr(outline_format, "MAX_CANVAS_PIXELS", 100)
    with pytest.raises(MaskError, match="200 x 100 px to draw it at; expected at most 100 px"):
        drawn(as_file(tmp_path / "c", "geojson", GOOD))


# --- where masks are looked for, and what they show -------------------------------------------------------------------


def test_classes_are_chosen_by_name_and_unknown_ones_refused_however_small(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    speck = feature([box(150.1, 50.1, 150.2, 50.2)], {"name": "speck"})
    path.write_text(json.dumps([STROMA, TUMOR, speck]))
    with pytest.raises(MaskError, match=r"unknown classes \['speck'\] \(it has \['stroma', 'tumor', 'speck'\]\)"):
        drawn(path, values=["tumor", "stroma"])
    labels, classes = drawn(path, values={"tumor": 0, "stroma": 1, "speck": -1})
    assert classes == ("tumor", "stroma")
    np.testing.assert_array_equal(labels, EXPECTED)
    with pytest.raises(SpecError, match="names its classes"):
        drawn(path, values=[1, 2])
    with pytest.raises(MaskError, match="annotated, with classes"):
        read_tissue_mask(path, slide=SlideOfShape())
    with pytest.raises(MaskError, match="drawn for a slide; pass slide="):
        read_label_mask(path)


def test_a_folder_of_masks_may_hold_annotations(tmp_path: Path) -> None:
    as_file(tmp_path / "a", "imagescope", GOOD)
    as_file(tmp_path / "b.svs", "geojson", GOOD)
    (tmp_path / "c.geojson.gz").write_bytes(gzip.compress(json.dumps([TUMOR]).encode()))
    for name, file in (("a.svs", "a.xml"), ("b.svs", "b.geojson"), ("c.svs", "c.geojson.gz")):
        assert find_mask(tmp_path, name) == tmp_path / file
        assert read_label_mask(tmp_path, slide=SlideOfShape(name)).attrs["classes"] == ("tumor",)
    assert {f.name for f in mask_formats()} >= {"ASAP XML", "ImageScope XML", "GeoJSON"}


def test_an_empty_file_of_annotations_has_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type":"FeatureCollection","features":[]}')
    labels, classes = drawn(path)
    assert classes == ()
    assert not labels.any()
    content = read_content(str(path), slide_shape=SHAPE)
    assert isinstance(content.outlines, Outlines)
