"""Every kind of slide with both readers: msdask's own, and OpenSlide as the second opinion."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from msdask.readers import Reader, open_reader
from msdask.sample.slides import SampleSlide
from msdask.slides.region import read_region
from tests.tools.slide_kinds import KINDS, Kind

openslide = pytest.importorskip("openslide")

TABLE = Path(__file__).parents[2] / "docs" / "readers_table.py"


def boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(y0, y1, x0, x1) of the whole, the four corners, and a part across tiles."""
    h, w = min(100, height), min(150, width)
    corners = [(y, y + h, x, x + w) for y in (0, height - h) for x in (0, width - w)]
    y, x = (height - h // 2) // 3, (width - w // 2) // 3
    return [(0, height, 0, width), *corners, (y, y + h // 2, x, x + w // 2)]


def theirs(slide: Any, level: int, box: tuple[int, int, int, int], origin: tuple[int, int] = (0, 0)) -> NDArray[Any]:
    """A region through OpenSlide, on white; `origin` is (x, y) in px of level 0."""
    y0, y1, x0, x1 = box
    step = slide.level_downsamples[level]
    place = round(origin[0] + x0 * step), round(origin[1] + y0 * step)
    rgba = np.asarray(slide.read_region(place, level, (x1 - x0, y1 - y0))).astype(float)
    alpha = rgba[:, :, 3:] / 255
    return rgba[:, :, :3] * alpha + 255 * (1 - alpha)


def check_level(ours: Reader, slide: Any, level: int, origin: tuple[int, int] = (0, 0), tolerance: float = 0.5) -> None:
    """A level is the same through both, in the middle and at its edges, but for the rounding of alpha."""
    for y0, y1, x0, x1 in boxes(*ours.levels[level].shape):
        mine = read_region(ours, level, 1, (y0, y1), (x0, x1)).astype(float)
        assert np.abs(mine - theirs(slide, level, (y0, y1, x0, x1), origin)).max() <= tolerance, (level, y0, x0)


def check_all(ours: Reader, slide: Any, tolerance: float = 0.5) -> None:
    """Sizes, levels, scale, pictures beside the slide, and every level are the same."""
    assert [info.shape for info in ours.levels] == [(height, width) for width, height in slide.level_dimensions]
    downsamples = [info.downsample for info in ours.levels]
    assert downsamples == pytest.approx(slide.level_downsamples, rel=0.01)
    stated = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    assert ours.metadata.mpp == (None if None in stated else pytest.approx([float(s) for s in stated], rel=1e-3))
    assert set(ours.associated) == set(slide.associated_images)
    for name in ours.associated:
        picture = np.asarray(slide.associated_images[name].convert("RGB"))
        np.testing.assert_array_equal(ours.read_associated(name), picture)
    for level in range(len(ours.levels)):
        check_level(ours, slide, level, tolerance=tolerance)


def decoded(path: Path) -> NDArray[Any]:
    """Level 0 by another decoder."""
    if path.suffix in (".tif", ".tiff", ".svs"):
        return tifffile.imread(path, series=0, level=0)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_read_as_it_was_written_and_as_openslide_reads_it(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / kind.name
    written = kind.write(path)
    ours = open_reader(path)
    height, width = ours.levels[0].shape
    pixels = read_region(ours, 0, 1, (0, height), (0, width))
    if written is not None:
        np.testing.assert_array_equal(pixels, written)
    elif kind.agrees == "none":
        np.testing.assert_array_equal(pixels, decoded(path))
    assert (kind.agrees == "all") == (not kind.reason)
    if kind.agrees == "none":
        with pytest.raises(openslide.OpenSlideError):
            openslide.OpenSlide(str(path))
        return
    with openslide.OpenSlide(str(path)) as slide:
        if kind.agrees == "all":
            check_all(ours, slide, kind.tolerance)
        elif kind.agrees == "level 0":
            assert slide.level_dimensions[0] == (width, height)
            check_level(ours, slide, 0)
        else:
            check_regions(path, slide)


def check_regions(path: Path, slide: Any) -> None:
    """The regions that OpenSlide places on its canvas are those that msdask opens, each level of them."""
    facts = slide.properties
    count = sum(name.endswith("].x") and name.startswith("openslide.region[") for name in facts)
    for number in range(count):
        x, y, width, height = (
            int(facts[f"openslide.region[{number}].{side}"]) for side in ("x", "y", "width", "height")
        )
        ours = open_reader(path, region=number)
        assert ours.levels[0].shape == (height, width)
        for level in range(len(ours.levels)):
            check_level(ours, slide, level, (x, y))
    with pytest.raises(Exception, match="expected the name or number"):
        open_reader(path, region=count)


def test_generated_slides_are_the_same_through_both(small_slide: SampleSlide) -> None:
    with openslide.OpenSlide(str(small_slide.path)) as slide:
        check_all(open_reader(small_slide.path), slide)


def test_every_real_file_is_the_same_through_both(data_dir: Path) -> None:
    paths = [path for path in sorted(data_dir.rglob("*")) if path.suffix in (".svs", ".tif", ".tiff", ".ndpi", ".scn")]
    if not paths:
        pytest.skip(f"no slides in {data_dir}")
    for path in paths:
        ours = open_reader(path)
        try:
            slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideUnsupportedFormatError:  # TIFF in strips: another decoder tells
            with tifffile.TiffFile(path) as tif:
                assert not tif.pages.first.is_tiled
            height, width = ours.levels[0].shape
            np.testing.assert_array_equal(read_region(ours, 0, 1, (0, height), (0, width)), decoded(path)[:, :, :3])
            continue
        with slide:
            check_all(ours, slide)


def test_the_table_of_the_docs_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(TABLE), "--check"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(TABLE), run_name="__main__")
    assert not done.value.code
