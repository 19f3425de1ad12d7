"""Regions of one file are slides of their own: in a table, in a store, in its repair and in what streams from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msdask.cli.app import main
from msdask.data.virtual import VirtualSet
from msdask.errors import SpecError
from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.extraction.slide_table import read_slides
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.reader_files import smooth_image
from tests.tools.vendor_files import halved, scn_image, scn_xml, write_levels

SPEC = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.0)
FIRST, SECOND = smooth_image(512, 512), np.ascontiguousarray(smooth_image(384, 384)[::-1])


@pytest.fixture
def scn(tmp_path: Path) -> Path:
    path = tmp_path / "two.scn"
    glass = np.full((300, 128, 3), 235, np.uint8)
    described = [
        scn_image(name, part.shape, 500, first_page=1 + 2 * i)
        for i, (name, part) in enumerate((("first", FIRST), ("second", SECOND)))
    ]
    levels = [glass, FIRST, halved(FIRST, 4), SECOND, halved(SECOND, 4)]
    write_levels(path, levels, scn_xml(glass.shape, described), bigtiff=True, compression=None)
    return path


def test_a_table_names_regions_and_each_has_an_id_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_region\na.scn,first\na.scn,1\nb.scn,\n")
    rows = read_slides(table)
    assert [(row.slide_id, row.slide_region) for row in rows] == [
        ("a.scn#first", "first"),
        ("a.scn#1", "1"),
        ("b.scn", None),
    ]
    (row,) = read_slides([{"path": "a.scn", "slide_region": 1.0, "slide_id": "x"}])  # a column with gaps
    assert (row.slide_id, row.slide_region) == ("x", "1")


def test_scales_in_a_table_may_have_decimal_commas() -> None:
    (row,) = read_slides([{"path": "a.svs", "mpp": "0,25"}])
    assert row.mpp == 0.25
    with pytest.raises(SpecError, match=r"mpp is '1\.2\.3', expected a number"):
        read_slides([{"path": "a.svs", "mpp": "1.2.3"}])


def test_both_regions_of_a_file_are_extracted_repaired_and_streamed(scn: Path, tmp_path: Path) -> None:
    slides = [{"path": str(scn), "slide_region": name} for name in ("first", "second")]
    assert extract(slides, tmp_path / "s", SPEC, progress=False).is_complete
    patch_set = PatchStore(tmp_path / "s")[SPEC.name]
    for name, image in (("first", FIRST), ("second", SECOND)):
        slide_id = f"two.scn#{name}"
        assert patch_set.attrs(slide_id)["slide_region"] == name
        table = patch_set.open(slide_id)
        x, y = (int(table[axis].values[3, 0]) for axis in ("x0", "y0"))
        np.testing.assert_array_equal(table["image"].values[3, 0], image[y : y + 64, x : x + 64])
    shard = next(path for path in (tmp_path / "s").rglob("two.scn#second/image/c/**/*") if path.is_file())
    whole = shard.read_bytes()
    shard.write_bytes(b"\0" * len(whole))
    assert repair(tmp_path / "s").is_complete
    assert shard.read_bytes() == whole
    virtual = VirtualSet.of(patch_set, slides={f"two.scn#{name}": str(scn) for name in ("first", "second")})
    assert virtual.attrs("two.scn#second")["mpp"] == 0.5


def test_a_region_of_a_run_that_goes_on_is_the_same(scn: Path, tmp_path: Path) -> None:
    slides = [{"path": str(scn), "slide_region": "second", "slide_id": "x"}]
    assert extract(slides, tmp_path / "s", SPEC, progress=False).is_complete
    assert extract(slides, tmp_path / "s", SPEC, progress=False).is_complete
    report = extract([{**slides[0], "slide_region": "first"}], tmp_path / "s", SPEC, progress=False)
    assert not report.is_complete  # another region is another slide


def test_the_command_line_opens_a_region_and_lists_them(scn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(scn), "--region", "second"])
    out = capsys.readouterr().out
    assert "384 x 384 px" in out
    assert "region 0    'first', 512 x 512 px" in out


def test_a_dark_slide_warns_when_it_is_extracted(tmp_path: Path) -> None:
    from PIL import Image

    dark = (smooth_image(256, 256) // 12).astype(np.uint8)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    Image.fromarray(smooth_image(256, 256)).save(tmp_path / "bright.png")
    slides = [{"path": str(tmp_path / f"{name}.png"), "mpp": 0.5} for name in ("dark", "bright")]
    report = extract(slides, tmp_path / "s", SPEC, progress=False)
    found = {slide.slide_id: [w for w in slide.warnings if "nearly black" in w] for slide in report.outcomes}
    assert (len(found["dark.png"]), found["bright.png"]) == (1, [])


def test_slides_of_one_file_are_not_mixed_up_in_a_process(scn: Path) -> None:
    first, second = open_slide(scn, region="first"), open_slide(scn, region="second")
    assert first.levels[0].name != second.levels[0].name
    np.testing.assert_array_equal(first.levels[0].compute(scheduler="sync"), FIRST)
    np.testing.assert_array_equal(second.levels[0].compute(scheduler="sync"), SECOND)
