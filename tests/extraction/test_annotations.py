"""Annotations work wherever a label mask does: the patches of polygons are those of the same polygons as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdask.cli import main
from msdask.exports.geojson import write_geojson
from msdask.exports.tracing import polygons_of
from msdask.extraction.cohort import extract
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.masks.label_plane import ArrayPlane
from msdask.masks.labels import read_label_mask
from msdask.masks.outline_plane import OutlinePlane
from msdask.masks.outlines import Outlines
from msdask.sample.slides import SampleSlide
from msdask.selection.select import select
from msdask.slides.slide import Slide, open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore

CLASSES = ("tumor", "stroma")
GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, stride=32)
CENTROIDS = ExtractionSpec(mode="centroids", magnifications=(10, 5), patch_size=32)


@pytest.fixture
def slide(small_slide: SampleSlide) -> Slide:
    return open_slide(small_slide.path)


def discs(slide: Slide) -> Outlines:
    """Some polygons of many corners, of two classes in turn, one over the other."""
    height, width = slide.shape
    rng = np.random.default_rng(3)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    rings = [
        np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1)
        for x, y, r in zip(
            rng.uniform(0.2, 0.8, 8) * width, rng.uniform(0.2, 0.8, 8) * height, rng.uniform(200, 450, 8), strict=True
        )
    ]
    starts = np.arange(9)
    return Outlines(np.concatenate(rings), starts * 60, starts, np.arange(8, dtype=np.int32) % 2, CLASSES)


def selected(labels: Any, slide: Slide, spec: ExtractionSpec) -> set[tuple[int, int, int]]:
    table = select(slide, spec, labels=labels)
    return set(zip(*(table[name].values[:, 0].tolist() for name in ("x0", "y0", "label")), strict=True))


@pytest.mark.parametrize("spec", [GRID, CENTROIDS], ids=["grid", "centroids"])
def test_patches_selected_by_polygons_are_those_of_the_same_px(
    slide: Slide, tmp_path: Path, spec: ExtractionSpec
) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, discs(slide))
    drawn = read_label_mask(path, slide=slide)
    png = tmp_path / "a.png"
    Image.fromarray(drawn.values).save(png)
    from_png = selected(read_label_mask(png, slide=slide, classes=CLASSES), slide, spec)
    assert selected(drawn, slide, spec) == from_png
    assert {label for *_, label in from_png} == {0, 1}
    # The px as polygons are the px; drawn four times as finely the polygons differ from their px at borders only.
    steps = tuple(side / n for side, n in zip(slide.shape[::-1], drawn.shape[::-1], strict=True))
    write_geojson(path, polygons_of(drawn.values, classes=CLASSES, scale=steps))
    assert selected(read_label_mask(path, slide=slide), slide, spec) == from_png
    write_geojson(path, discs(slide))
    finer = selected(read_label_mask(path, slide=slide, shape=tuple(4 * n for n in drawn.shape)), slide, spec)
    assert len(finer ^ from_png) <= 0.1 * len(from_png)


def test_label_maps_are_drawn_from_polygons_at_their_own_scale(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / f"{slide.name}.geojson.gz"
    write_geojson(path, discs(slide))
    table = {"stroma": 0, "tumor": 1}
    plane = masks_of_slide(slide, str(path), MaskChoice(values=table), spec=GRID).plane
    assert isinstance(plane, OutlinePlane)
    assert plane.classes == ("stroma", "tumor")
    # A mask of every level-0 px is what polygons stand for.
    full = read_label_mask(path, values=table, slide=slide, shape=slide.shape)
    whole = ArrayPlane.of(full.values, slide.shape, what="mask")
    x0, y0 = np.meshgrid(np.arange(-100, slide.shape[1], 331), np.arange(-50, slide.shape[0], 277))
    at = x0.reshape(-1, 1).astype(np.int32), y0.reshape(-1, 1).astype(np.int32)
    maps, expected = plane.cut(*at, [64.0], 64), whole.cut(*at, [64.0], 64)
    np.testing.assert_array_equal(maps, expected)
    assert set(np.unique(maps)) == {0, 1, 2}


def test_a_cohort_takes_polygons_from_a_folder_a_column_and_the_command_line(
    slide: Slide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "masks"
    path = folder / f"{slide.name}.geojson"
    write_geojson(path, discs(slide))
    table = tmp_path / "slides.csv"
    table.write_text(f"path,mask\n{slide.path},{path}\n")
    stores = [tmp_path / f"{name}.zarr" for name in ("folder", "column", "shell")]
    for store, slides, options in ((stores[0], [slide.path], {"labels": folder}), (stores[1], table, {})):
        report = extract(slides, store, GRID, progress=False, **options)
        assert report.is_complete, report.failures
    with pytest.raises(SystemExit) as left:
        main(
            ["extract", slide.path, "-o", str(stores[2]), "-m", "10", "-s", "64", "-y", "-32", "-t", str(folder), "-q"]
        )
    assert left.value.code == 0, capsys.readouterr()
    found = []
    for store in stores:
        opened = PatchStore(store)
        found.append(opened[next(iter(opened))].open(slide.name)[["x0", "y0", "label"]].to_array().values.tolist())
    assert found[0]
    assert found[1:] == found[:1] * 2
