"""Which images of a file are levels, which lie beside the slide, and which are other slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError
from msdask.readers import open_reader
from msdask.readers.regions import RegionFacts, choose_region
from msdask.slides.slide import open_slide
from tests.tools.reader_files import smooth_image
from tests.tools.vendor_files import APERIO, halved, philips_xml, scn_image, scn_xml, write_levels, write_svs

IMAGE = smooth_image(512, 768)
GLASS = np.full((300, 128, 3), 235, np.uint8)
TILED: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "software": False}
STRIPS: dict[str, Any] = {"rowsperstrip": 16, "photometric": "rgb", "metadata": None, "software": False}


def shapes(path: Path, **options: Any) -> list[tuple[int, int]]:
    return [info.shape for info in open_reader(path, **options).levels]


# Levels of an SVS


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("steps", [(), (4,), (2, 4), (4, 16)])
def test_levels_of_an_svs_need_no_thumbnail_and_no_flag(
    tmp_path: Path, thumbnail: bool, flag: int, steps: tuple[int, ...]
) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, IMAGE, levels=steps, thumbnail=thumbnail, flag=flag)
    reader = open_reader(path)
    assert [info.downsample for info in reader.levels] == [1, *steps]
    assert reader.associated == ("label", "macro", *["thumbnail"] * thumbnail)
    assert reader.metadata.warnings == ()


def svs_with(path: Path, image: NDArray[np.uint8], description: str, **options: Any) -> None:
    """A SVS of one level, and one page more."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, description=f"{APERIO}768x512 (128x128)|AppMag = 20|MPP = 0.5", **TILED)
        writer.write(image, description=f"{APERIO}{description}", **options)


@pytest.mark.parametrize(
    ("image", "description"),
    [
        (smooth_image(300, 300), "768x512"),
        (smooth_image(256, 384), "5000x5000 [0,0 5000x5000] (240x240) -> 384x256 JPEG/RGB Q=70"),
        (smooth_image(256, 384), "macro 384x256"),
        (smooth_image(256, 384), "label 384x256"),
    ],
    ids=["other proportions", "reduced from another size", "macro", "label"],
)
def test_an_image_that_is_not_of_the_slide_is_no_level(
    tmp_path: Path, image: NDArray[np.uint8], description: str
) -> None:
    path = tmp_path / "a.svs"
    svs_with(path, image, description, **TILED)
    assert shapes(path) == [(512, 768)]


def test_a_gray_page_of_the_proportions_of_an_svs_is_no_level(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    gray = {**TILED, "photometric": "minisblack"}
    svs_with(path, np.ascontiguousarray(halved(IMAGE)[:, :, 0]), "", **gray)
    reader = open_reader(path)
    assert len(reader.levels) == 1
    assert reader.metadata.properties["other image 384 x 256"] == "not of the slide's kind of pixels"


@pytest.mark.parametrize("crop", ["768x512 [0,0 768x512]", "768x512", "800x600 [10,20 768x512]", "9000x9000 [0,0 1x1]"])
def test_a_level_of_an_svs_may_say_what_it_was_reduced_from(tmp_path: Path, crop: str) -> None:
    path = tmp_path / "a.svs"
    own = "384x256" if not crop.startswith("9000") else "77x77"  # words of a converter's input are no reason
    svs_with(path, halved(IMAGE), f"{crop} (240x240) -> {own} JPEG/RGB Q=70", **TILED)
    assert shapes(path) == [(512, 768), (256, 384)]


def test_unnamed_pictures_in_strips_are_told_apart_by_flag_and_proportions(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, description=f"{APERIO}768x512|MPP = 0.5", **TILED)
        writer.write(smooth_image(90, 80), description=APERIO, subfiletype=1, **STRIPS)
        writer.write(smooth_image(60, 180), description=APERIO, subfiletype=9, **STRIPS)
        writer.write(halved(IMAGE, 8), description=APERIO, **STRIPS)
    reader = open_reader(path)
    assert reader.associated == ("label", "macro", "thumbnail")
    assert reader.read_associated("macro").shape == (60, 180, 3)
    assert reader.read_associated("thumbnail").shape == (64, 96, 3)


def test_a_word_that_begins_as_macro_does_is_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, description="macrophages, CD68", **TILED)
        writer.write(halved(IMAGE), description="macrophages, CD68", **TILED)
    assert shapes(path) == [(512, 768), (256, 384)]


# Regions


def write_regions(path: Path, nm: tuple[float, float], sides: tuple[int, int], light: str = "brightfield") -> None:
    """A SCN of two regions, 'first' and 'second', with two levels each."""
    parts = [np.ascontiguousarray(smooth_image(side, side)) for side in sides]
    described = [
        scn_image(name, part.shape, size, first_page=1 + 2 * i, power=f"{10_000 / size:g}", light=light)
        for i, (name, part, size) in enumerate(zip(("first", "second"), parts, nm, strict=True))
    ]
    levels = [GLASS, *(level for part in parts for level in (part, halved(part, 4)))]
    write_levels(path, levels, scn_xml(GLASS.shape, described), bigtiff=True, compression=None)


@pytest.mark.parametrize(
    ("nm", "sides", "opened"),
    [
        ((500, 500), (512, 400), "first"),
        ((500, 500), (400, 512), "second"),
        ((1000, 250), (512, 400), "second"),  # the finest, though it has fewer px
        ((250, 1000), (400, 512), "first"),
        ((250, 251), (400, 512), "second"),  # one scale, to the accuracy of a stage
    ],
)
def test_of_several_regions_the_finest_and_then_the_largest_is_opened_and_the_other_named(
    tmp_path: Path, nm: tuple[float, float], sides: tuple[int, int], opened: str
) -> None:
    path = tmp_path / "a.scn"
    write_regions(path, nm, sides)
    number = ("first", "second").index(opened)
    other = ("second", "first")[number]
    with pytest.warns(UserWarning, match=rf"several images; opened is {number} \('{opened}'.*not opened.*'{other}'"):
        slide = open_slide(path)
    assert slide.shape == (sides[number], sides[number])
    assert slide.mpp == pytest.approx(nm[number] / 1000)
    assert slide.objective_power == pytest.approx(10_000 / nm[number])
    assert slide.properties["region"] == str(number)
    assert slide.properties[f"region.{1 - number}"].startswith(f"'{other}', {sides[1 - number]} x {sides[1 - number]}")
    assert slide.associated == ("macro",)


def test_each_region_opens_by_name_and_number_with_its_own_pixels_scale_and_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.scn"
    write_regions(path, (500, 1000), (512, 400))
    by_name, by_number = open_slide(path, region="second"), open_slide(path, region=1)
    assert by_name.warnings == ()
    assert by_name.shape == by_number.shape == (400, 400)
    assert by_name.mpp == 1.0
    np.testing.assert_array_equal(by_name.levels[0].compute(scheduler="sync"), smooth_image(400, 400))
    np.testing.assert_array_equal(by_number.levels[1].compute(scheduler="sync"), halved(smooth_image(400, 400), 4))
    first = open_slide(path, region="0")
    assert first.fingerprint() != by_name.fingerprint() == by_number.fingerprint()


@pytest.mark.parametrize("region", ["third", 2, -1, ""])
def test_a_region_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, region: str | int) -> None:
    path = tmp_path / "a.scn"
    write_regions(path, (500, 500), (512, 400))
    with pytest.raises(SpecError, match=r"a\.scn.*expected the name or number of one of 0 \('first'.*1 \('second'"):
        open_reader(path, region=region)


def test_two_regions_of_one_name_are_asked_for_by_number() -> None:
    regions = [RegionFacts("a", (10, 10), 0.5), RegionFacts("a", (20, 20), 0.5)]
    assert choose_region(regions, None, "x") == 1
    assert choose_region(regions, 0, "x") == 0
    with pytest.raises(SpecError, match="several of that name; give its number"):
        choose_region(regions, "a", "x")


def test_the_only_image_of_a_file_is_region_0(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, **TILED)
    assert shapes(path, region=0) == [(512, 768)]
    assert "region" not in open_reader(path).metadata.properties


def test_readers_without_regions_say_so(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(SpecError, match=r"a\.png.*region 'x'.*'image' opens no regions apart"):
        open_reader(tmp_path / "a.png", region="x")


def write_ome(path: Path, *images: tuple[str, NDArray[np.uint8], float]) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128)}
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, pixels, mpp in images:
            facts = {"axes": "YXS", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            writer.write(pixels, subifds=1, metadata=facts, **options)
            writer.write(halved(pixels), subfiletype=1, **options)


def test_an_ome_tiff_of_several_images_opens_the_finest_and_names_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    small = smooth_image(300, 300)
    write_ome(path, ("coarse", IMAGE, 1.0), ("fine", small, 0.25), ("label image", smooth_image(90, 80), 20.0))
    with pytest.warns(UserWarning, match="not opened: 0 .'coarse', 768 x 512 px, 1 um/px"):
        slide = open_slide(path)
    assert (slide.shape, slide.mpp, slide.associated) == ((300, 300), 0.25, ("label",))
    coarse = open_slide(path, region="coarse")
    assert (coarse.shape, coarse.mpp) == ((512, 768), 1.0)
    np.testing.assert_array_equal(coarse.levels[1].compute(scheduler="sync"), halved(IMAGE))


def test_images_of_one_size_have_each_their_own_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, ("one", IMAGE, 0.5), ("two", IMAGE[::-1].copy(), 0.25))
    assert open_reader(path, region="one").metadata.mpp == (0.5, 0.5)
    assert open_reader(path, region="two").metadata.mpp == (0.25, 0.25)


def test_a_plain_tiff_of_two_pyramids_keeps_them_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    other = smooth_image(400, 400)
    with tifffile.TiffWriter(path) as writer:
        for page in (IMAGE, other, halved(IMAGE), halved(other)):
            writer.write(page, **TILED)
    assert shapes(path) == [(512, 768), (256, 384)]
    assert shapes(path, region=1) == [(400, 400), (200, 200)]
    assert "1 (400 x 400 px)" in open_reader(path).metadata.warnings[0]


# Philips


@pytest.mark.parametrize("macro", [None, 0.0315])
@pytest.mark.parametrize("sign", [".", ","])
def test_the_spacing_of_the_scan_counts_not_the_macros(tmp_path: Path, macro: float | None, sign: str) -> None:
    path = tmp_path / "a.tiff"
    levels = [IMAGE, halved(IMAGE), halved(IMAGE, 4)]
    write_levels(path, levels, philips_xml(0.00025, levels=3, macro=macro, sign=sign), is_philips=True)
    metadata = open_reader(path).metadata
    assert (metadata.mpp, metadata.mpp_source) == ((0.25, 0.25), "philips")


@pytest.mark.parametrize("stated", [0, 1, 2, 3, 4])
def test_fewer_spacings_than_levels_are_told_and_no_level_is_lost(tmp_path: Path, stated: int) -> None:
    path = tmp_path / "a.tiff"
    image = smooth_image(1000, 1300)
    levels = [image, *(halved(image, step) for step in (2, 4, 8))]
    write_levels(path, levels, philips_xml(0.00025, levels=stated), is_philips=True)
    reader = open_reader(path)
    assert [info.shape for info in reader.levels] == [(1024, 1408), (512, 704), (256, 352), (128, 176)]
    assert [info.downsample for info in reader.levels] == [1, 2, 4, 8]
    told = [w for w in reader.metadata.warnings if f"spacing of {stated} of its 4 levels" in w]
    assert bool(told) == (stated < 4)


@pytest.mark.parametrize("stated", [1, 5])
@pytest.mark.parametrize("shape", [(1207, 1413), (297, 368), (700, 2100)])
def test_small_levels_that_are_padded_to_one_size_have_sizes_of_their_own(
    tmp_path: Path, shape: tuple[int, int], stated: int
) -> None:
    path = tmp_path / "a.tiff"
    full = tuple(-(-side // 256) * 256 for side in shape)
    levels = [np.zeros((full[0] >> i, full[1] >> i, 3), np.uint8) for i in range(5)]
    write_levels(path, levels, philips_xml(0.00025, levels=stated), is_philips=True, side=256)
    assert shapes(path) == [level.shape[:2] for level in levels]  # as OpenSlide has them, where all are stated


# Fluorescence


def test_a_scn_in_fluorescence_warns(tmp_path: Path) -> None:
    path = tmp_path / "a.scn"
    write_regions(path, (500, 1000), (512, 400), light="fluorescence")
    assert any("fluorescence" in w for w in open_reader(path, region=0).metadata.warnings)


@pytest.mark.parametrize(
    ("facts", "warns"),
    [
        ("|ImageType = FLUOR", True),
        ("|Mode = Fluorescence", True),
        ("|Objective = Plan Fluor 20x", False),
        ("|Parmset = HE", False),
    ],
)
def test_an_aperio_scan_in_fluorescence_warns(tmp_path: Path, facts: str, warns: bool) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, IMAGE, extra=facts)
    assert any("fluorescence" in w for w in open_reader(path).metadata.warnings) == warns


@pytest.mark.parametrize(
    ("channel", "warns"),
    [
        ('ContrastMethod="Fluorescence"', True),
        ('IlluminationType="Epifluorescence"', True),
        ('EmissionWavelength="461"', True),
        ('Fluor="DAPI"', True),
        ('ContrastMethod="Brightfield" IlluminationType="Transmitted"', False),
        ("", False),
    ],
)
def test_an_ome_channel_in_fluorescence_warns(tmp_path: Path, channel: str, warns: bool) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, description=ome_xml("µm", channel).encode(), **{**TILED, "software": None})
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
    assert any("fluorescence" in w for w in open_reader(path).metadata.warnings) == warns


# Units


def ome_xml(unit: str, channel: str = "", size: str = "0.25") -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0" Name="x"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="768" '
        f'SizeY="512" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{size}" PhysicalSizeY="{size}" '
        f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"><Channel ID="Channel:0:0" SamplesPerPixel="3" '
        f'{channel}/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


@pytest.mark.parametrize(
    ("unit", "size"),
    [("micron", "0.25"), ("Microns", "0,25"), ("um", "0.25"), ("millimetre", "0.00025"), ("nanometer", "250")],
)
def test_units_of_ome_by_any_name(tmp_path: Path, unit: str, size: str) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, description=ome_xml(unit, size=size).encode(), **TILED)
    assert open_reader(path).metadata.mpp == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ("unit", "pixels", "mpp"),
    [
        ("micron", 4.0, 0.25),
        ("microns", 4.0, 0.25),
        ("um", 4.0, 0.25),
        (r"\u00B5m", 4.0, 0.25),
        ("mm", 4000.0, 0.25),
        ("millimeter", 4000.0, 0.25),
        ("cm", 40000.0, 0.25),
        ("inch", 101600.0, 0.25),
    ],
)
def test_units_of_imagej(tmp_path: Path, unit: str, pixels: float, mpp: float) -> None:
    path = tmp_path / "a.tif"
    text = f"ImageJ=1.53t\nunit={unit}\nloop=false\n"
    options = {**TILED, "description": text, "resolution": (pixels, pixels), "resolutionunit": "NONE"}
    tifffile.imwrite(path, IMAGE, **options)
    metadata = open_reader(path).metadata
    assert metadata.mpp == pytest.approx((mpp, mpp))
    assert metadata.mpp_source == "imagej"


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"description": "ImageJ=1.53t\nunit=furlong\n", "resolution": (4, 4)}, "4 x 4 px per 'furlong'"),
        ({"description": ome_xml("furlong").encode()}, "'0.25' 'furlong'"),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "72 x 72 px per inch"),
        ({"resolution": (40000, 40000), "resolutionunit": "NONE"}, "40000 x 40000 px without a unit"),
    ],
    ids=["imagej", "ome", "printer", "no unit"],
)
def test_what_cannot_be_used_is_quoted(tmp_path: Path, options: dict[str, Any], quoted: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, **{**TILED, **options})
    with pytest.raises(SlideError, match="no resolution in the file that can be used: it says") as failure:
        open_slide(path, strict=True)
    assert quoted in str(failure.value)


def test_an_mpp_that_cannot_be_read_is_quoted_where_the_objective_serves(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, IMAGE, mpp="about half")
    with pytest.warns(UserWarning, match="MPP = 'about half'.*objective power of 20"):
        slide = open_slide(path)
    assert slide.mpp == 0.5


@pytest.mark.parametrize(
    ("mpp", "magnification", "expected"),
    [("0,2738", "40", 0.2738), ("0,5000", "20", 0.5), ("0,2500", "40,000", 0.25), ("0.25 um", "40x", 0.25)],
)
def test_decimal_commas_of_an_svs(tmp_path: Path, mpp: str, magnification: str, expected: float) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, IMAGE, mpp=mpp, magnification=magnification)
    metadata = open_reader(path).metadata
    assert metadata.mpp == (expected, expected)
    assert metadata.objective_power == float(magnification.replace(",", ".").rstrip("x"))


@pytest.mark.parametrize(("resolution", "unit"), [(600, "CENTIMETER"), (3200, "INCH")])
def test_a_scale_far_from_any_microscope_warns(tmp_path: Path, resolution: int, unit: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, **TILED, resolution=(resolution, resolution), resolutionunit=unit)
    with pytest.warns(UserWarning, match="far from any microscope"):
        open_slide(path)


def test_a_file_of_thousands_of_images_opens_in_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    blank = np.zeros((700, 700, 3), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for n in range(600):  # no two of one proportion
            writer.write(
                blank[: 40 + n, : 640 - n], tile=(16, 16), photometric="rgb", metadata=None, compression="zlib"
            )
    reader = open_reader(path)
    assert reader.metadata.properties["other images"].startswith("more than 256")
    assert len(reader.metadata.warnings[0]) < 1000
