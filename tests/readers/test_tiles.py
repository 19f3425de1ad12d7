"""Tiles that are stored oddly: missing, of other colours than the tag says, turned, overlapping, with stray bytes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import msdask as ms
from msdask.errors import SlideError, TileError
from msdask.readers import Reader, open_reader
from msdask.readers.base import UnsupportedSlideError
from msdask.readers.to_rgb import shrink
from tests.tools.jpeg2000_files import encode_components, to_ycbcr
from tests.tools.reader_files import empty_tiles, smooth_image

APERIO = "Aperio Image Library v11\r\n256x256|AppMag = 20|MPP = 0.5"


def whole(reader: Reader, level: int = 0) -> NDArray[np.uint8]:
    """A level from its tiles."""
    info = reader.levels[level]
    rows = [np.hstack([reader.read_tile(level, y, x) for x in range(info.grid[1])]) for y in range(info.grid[0])]
    return np.vstack(rows)[: info.shape[0], : info.shape[1]]


# Tiles of 0 bytes


def write_pyramid(path: Path, *, steps: tuple[int, ...] = (1, 4), description: str | None = None) -> NDArray[np.uint8]:
    image = smooth_image(512, 768)
    with tifffile.TiffWriter(path) as writer:
        for step in steps:
            writer.write(
                shrink(image, step),
                tile=(64, 64),
                photometric="rgb",
                description=description if step == 1 else None,
                metadata=None,
                software=False,
            )
    return image


def test_an_empty_tile_is_filled_from_the_finer_level_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = write_pyramid(path)
    empty_tiles(path, 1, 1, 5)
    reader = open_reader(path)
    np.testing.assert_array_equal(whole(reader, 1), shrink(image, 4))
    assert reader.metadata.properties["empty tiles of level 1"] == "2 of 6"
    assert reader.metadata.warnings == (
        "2 of 6 tiles of level 1 have no bytes in the file; they are filled from level 0",
    )
    with pytest.warns(UserWarning, match="2 of 6 tiles of level 1"):
        ms.open_slide(path, mpp=0.5)


def test_an_empty_tile_is_filled_over_several_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = write_pyramid(path, steps=(1, 2, 8))
    empty_tiles(path, 1, 0)
    empty_tiles(path, 2, 0)
    reader = open_reader(path)
    found = whole(reader, 2).astype(int)
    assert np.abs(found - shrink(image, 8)).max() <= 1  # two means are rounded one after the other
    np.testing.assert_array_equal(whole(reader, 1), shrink(image, 2))


def test_an_empty_tile_is_what_openslide_shows(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    image = smooth_image(512, 768)
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=APERIO, software=False, **options)
        writer.write(image[::8, ::8].copy(), description="thumbnail", photometric="rgb", metadata=None)
        writer.write(shrink(image, 4), description="Aperio Image Library\r\nlevel", **options)
    empty_tiles(path, 2, 1, 5)
    other = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 1, (192, 128)))[:, :, :3]
    found = whole(open_reader(path), 1)
    assert np.abs(found.astype(int) - other).mean() < 1.5
    assert not (found == 255).all(axis=2).any()


def test_an_empty_tile_of_level_0_is_a_bad_tile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = write_pyramid(path, steps=(1,))
    empty_tiles(path, 0, 2)
    reader = open_reader(path)
    with pytest.raises(TileError, match=r"tile \(row 0, column 2\) was never stored.*have bad tiles filled"):
        reader.read_tile(0, 0, 2)
    np.testing.assert_array_equal(reader.read_tile(0, 0, 1), image[:64, 64:128])
    with pytest.warns(UserWarning, match=r"1 of 96 tiles of level 0 .* bad tiles"):
        slide = ms.open_slide(path, mpp=0.5)
    table = ms.grid(slide, magnification=20, patch_size=128, min_tissue=0)
    filled = ms.patches(slide, table, on_bad_tile="fill").compute()["filled"].values.ravel()
    assert sorted(filled.tolist())[-2:] == [0, 0.25]
    with pytest.raises(TileError, match="never stored"):
        ms.patches(slide, table).compute()


@pytest.mark.parametrize("orientation", [1, 6])
def test_only_the_part_over_a_bad_tile_is_filled(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.tif"
    image = smooth_image(512, 768)
    levels = [image, shrink(image, 4), shrink(shrink(image, 4), 2)]
    tags = [(274, 3, 1, orientation, True)]
    with tifffile.TiffWriter(path) as writer:
        for level in levels:
            writer.write(level, tile=(64, 64), photometric="rgb", extratags=tags, metadata=None)
    empty_tiles(path, 0, 13)  # row 1, column 1 of 64 px
    empty_tiles(path, 1, 0)
    empty_tiles(path, 2, 0)
    with pytest.raises(TileError, match=r"level 0, tile .* was never stored"):
        open_reader(path).read_tile(1, 0, int(orientation == 6))
    with pytest.warns(UserWarning, match="tiles of level"):
        slide = ms.open_slide(path, mpp=0.5).with_bad_tiles("fill")
    for number, step in ((1, 4), (2, 8)):
        expected = levels[number]
        expected[64 // step : 128 // step, 64 // step : 128 // step] = 255
        expected = np.rot90(expected, -1) if orientation == 6 else expected
        np.testing.assert_array_equal(slide.levels[number].compute(), expected)
    table = ms.grid(slide, magnification=5, patch_size=32, min_tissue=0)
    cut = ms.patches(slide, table, on_bad_tile="fill").compute()
    filled = cut["filled"].values.ravel()
    assert sorted(filled.tolist())[-2:] == [0, (16 / 32) ** 2]
    np.testing.assert_array_equal((cut["image"].values == 255).all(axis=-1).mean(axis=(1, 2, 3)), filled)


def test_glass_that_philips_leaves_out_is_white_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    xml = '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"></DataObject>'
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    tifffile.imwrite(path, smooth_image(128, 128), description=xml, software="Philips DP v1.0", **options)
    empty_tiles(path, 0, 3)
    reader = open_reader(path)
    assert reader.metadata.vendor == "philips"
    assert (reader.read_tile(0, 1, 1) == 255).all()
    assert reader.read_tile(0, 1, 1, 8).shape == (8, 8, 3)
    assert reader.metadata.warnings[0].startswith("1 of 4 tiles of level 0 have no bytes in the file; they are white")


def test_an_empty_strip_of_a_thumbnail_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(smooth_image(128, 128), tile=(64, 64), photometric="rgb", metadata=None)
        writer.write(smooth_image(40, 60), tile=(16, 16), photometric="rgb", description="label", metadata=None)
    empty_tiles(path, 1, 2)
    with pytest.raises(TileError, match=r"associated image 'label', tile .* never stored"):
        open_reader(path).read_associated("label")


# Colours


def write_one_tile(path: Path, data: bytes, *, compression: int, photometric: str) -> None:
    tifffile.imwrite(
        path,
        iter([data]),
        shape=(256, 256, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric=photometric,
        compression=compression,
        description=APERIO,
        metadata=None,
        software=False,
    )


JPEG_2000 = [
    (compression, photometric, stream)
    for compression in (33003, 33004, 33005, 34712)
    for photometric in ("rgb", "ycbcr")
    for stream in ("rgb with transform", "4:2:2", "4:2:0", "4:4:4")
    # full chroma without a transform, and no tag that calls it YCbCr, is RGB for every reader
    if stream != "4:4:4" or compression == 33003 or photometric == "ycbcr"
]


@pytest.mark.parametrize(("compression", "photometric", "stream"), JPEG_2000)
def test_jpeg_2000_is_judged_by_its_stream(tmp_path: Path, compression: int, photometric: str, stream: str) -> None:
    image = smooth_image(256, 256)
    luma, *chroma = np.moveaxis(to_ycbcr(image), -1, 0)
    down, across = {"4:2:2": (1, 2), "4:2:0": (2, 2)}.get(stream, (1, 1))
    reduced = [plane.reshape(256 // down, down, 256 // across, across).mean((1, 3)).round() for plane in chroma]
    data = encode_components([luma.copy(), *(plane.astype(np.uint8) for plane in reduced)], (256, 256))
    if stream == "rgb with transform":
        data = imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k", mct=True)
    path = tmp_path / "a.svs"
    write_one_tile(path, data, compression=compression, photometric=photometric)
    found = open_reader(path, backend="tiff").read_tile(0, 0, 0).astype(int)
    assert np.abs(found - image).mean() < 1


def test_rgb_in_jpeg_2000_without_a_transform_stays_rgb(tmp_path: Path) -> None:
    image = smooth_image(256, 256)
    data = imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k", mct=False)
    path = tmp_path / "a.svs"
    write_one_tile(path, data, compression=33005, photometric="rgb")
    np.testing.assert_array_equal(open_reader(path).read_tile(0, 0, 0), image)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize(
    ("colorspace", "subsampling"), [("RGB", "444"), ("YCBCR", "444"), ("YCBCR", "420"), ("YCBCR", "422")]
)
def test_jpeg_is_judged_by_its_stream(tmp_path: Path, photometric: str, colorspace: str, subsampling: str) -> None:
    image = smooth_image(256, 256)
    data = imagecodecs.jpeg8_encode(
        image, level=95, colorspace="RGB", outcolorspace=colorspace, subsampling=subsampling
    )
    path = tmp_path / "a.svs"
    write_one_tile(path, data, compression=7, photometric=photometric)
    assert np.abs(open_reader(path).read_tile(0, 0, 0).astype(int) - image).mean() < 2


# Orientation


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("layout", [{"tile": (32, 48)}, {"rowsperstrip": 7}, {"tile": (32, 48), "compression": "jpeg"}])
def test_orientation_is_as_pillow_turns_it(tmp_path: Path, orientation: int, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tags = [(274, 3, 1, orientation, True)]
    resolution = {"resolution": (20000, 40000), "resolutionunit": "CENTIMETER"}
    image = smooth_image(101, 150)
    tifffile.imwrite(path, image, photometric="rgb", extratags=tags, metadata=None, **layout, **resolution)
    expected = np.asarray(Image.open(path))
    reader = open_reader(path)
    assert reader.levels[0].shape == expected.shape[:2]
    np.testing.assert_array_equal(whole(reader), expected)
    mpp = (0.5, 0.25)
    assert reader.metadata.mpp == pytest.approx(mpp[::-1] if 5 <= orientation <= 8 else mpp)


def test_a_turned_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = smooth_image(256, 384)
    with tifffile.TiffWriter(path) as writer:
        for step, orientation in ((1, 6), (2, 6), (4, 1)):
            tags = [(274, 3, 1, orientation, True)]
            writer.write(shrink(image, step), tile=(64, 64), photometric="rgb", extratags=tags, metadata=None)
    empty_tiles(path, 1, 0)
    reader = open_reader(path)
    assert [info.shape for info in reader.levels] == [(384, 256), (192, 128)]
    np.testing.assert_array_equal(whole(reader), np.rot90(image, -1))
    np.testing.assert_array_equal(whole(reader, 1), np.rot90(shrink(image, 2), -1))
    assert reader.metadata.properties["empty tiles of level 1"] == "1 of 6"
    assert "orientation" in reader.metadata.properties["skipped level 96 x 64"]


# Few bits


@pytest.mark.parametrize("compression", [None, "group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_bilevel_slides_are_as_pillow_reads_them(
    tmp_path: Path, compression: str | None, photometric: int, fill_order: int
) -> None:
    path = tmp_path / "a.tif"
    bits = Image.fromarray(smooth_image(70, 93)[:, :, 0] > 150)
    bits.save(path, compression=compression, tiffinfo={262: photometric, 266: fill_order})
    np.testing.assert_array_equal(whole(open_reader(path)), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "palette"])
def test_samples_of_few_bits(tmp_path: Path, bits: int, photometric: str) -> None:
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 1 << bits, (70, 93), np.uint8)
    colors = np.random.default_rng(1).integers(0, 256, (3, 1 << bits), np.uint16) * 257
    stored = values.astype(bool) if bits == 1 else values
    tags = [(320, 3, colors.size, colors.ravel().tolist(), True)] if photometric == "palette" else []
    tifffile.imwrite(
        path, stored, photometric="minisblack", bitspersample=bits, tile=(32, 32), extratags=tags, metadata=None
    )
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["PhotometricInterpretation"].overwrite(  # type: ignore[union-attr]
            {"miniswhite": 0, "minisblack": 1, "palette": 3}[photometric]
        )
    gray = values * np.uint8(255 // ((1 << bits) - 1))
    gray = 255 - gray if photometric == "miniswhite" else gray
    expected = (colors >> 8).astype(np.uint8).T[values] if photometric == "palette" else np.dstack([gray] * 3)
    np.testing.assert_array_equal(whole(open_reader(path)), expected)


# Overlaps


@pytest.mark.parametrize(
    ("options", "is_known"),
    [
        ({"software": "MedScan v1", "description": "Background Color=E5E5E5;OverlapsXY= 32 32"}, True),
        ({"software": "ScanOutputManager 1.1.0.15854", "extratags": [(700, 7, 8, b"<EncodeI", True)]}, True),
        ({"extratags": [(700, 7, 29, b'<iScan ScanRes="0.25"></iScan>'[:29], True)]}, True),
        ({"description": "Objective=20;OverlapsXY= 16 0"}, False),
        ({"description": '<Scan><TileJointInfo OverlapX="48" OverlapY="0"/></Scan>'}, False),
        ({"description": "<Scan><TileOverlapX>8</TileOverlapX></Scan>"}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_overlapping_tiles_are_refused_with_the_way_out(
    tmp_path: Path, options: dict[str, Any], is_known: bool
) -> None:
    path = tmp_path / "a.tif"
    options = {"software": False, **options}
    tifffile.imwrite(path, smooth_image(128, 128), tile=(64, 64), photometric="rgb", metadata=None, **options)
    way_out = "backend='openslide', or convert" if is_known else "convert it"
    with pytest.raises(SlideError, match=f"a.tif.*tiles overlap.*{way_out}") as failure:
        open_reader(path, backend="tiff")
    assert isinstance(failure.value, UnsupportedSlideError) is is_known
    if not is_known:  # OpenSlide would take the tiles as they lie
        with pytest.raises(SlideError, match="tiles overlap"):
            open_reader(path)


@pytest.mark.parametrize(
    "text", ["OverlapsXY= 0 0", "GridOverlap=10", '<a OverlapX="0" OverlapY="0.0"/>', "Overlap: 5"]
)
def test_tiles_that_meet_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tif"
    image = smooth_image(128, 128)
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, description=text)
    np.testing.assert_array_equal(whole(open_reader(path)), image)


# Stray bytes


def _stray(stream: bytes, kind: str) -> bytes:
    after_app0 = 4 + int.from_bytes(stream[4:6], "big")
    tables = stream.index(b"\xff\xdb")
    return {
        "zeros before the end": stream[:-2] + b"\0" * 7 + stream[-2:],
        "many zeros before the end": stream[:-2] + b"\0" * 700 + stream[-2:],
        "fill bytes before the end": stream[:-2] + b"\xff" * 9 + stream[-2:],
        "some bytes before the end": stream[:-2] + b"\x12\x34\x56" + stream[-2:],
        "zeros after the end": stream + b"\0" * 8,
        "bytes after the end": stream + b"some text\xff\x00\xff",
        "no end": stream[:-2],
        "after the first segment": stream[:after_app0] + b"\0" * 5 + stream[after_app0:],
        "before the tables": stream[:tables] + b"\x01\xff\x00junk" + stream[tables:],
    }[kind]


STRAYS = (
    "zeros before the end",
    "many zeros before the end",
    "fill bytes before the end",
    "some bytes before the end",
    "zeros after the end",
    "bytes after the end",
    "no end",
    "after the first segment",
    "before the tables",
)


@pytest.mark.parametrize("kind", STRAYS)
@pytest.mark.parametrize("is_progressive", [False, True])
def test_stray_bytes_change_no_pixel(tmp_path: Path, kind: str, is_progressive: bool) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth_image(256, 256)).save(file, "JPEG", quality=90, progressive=is_progressive)
    stream = file.getvalue()
    expected = np.asarray(Image.open(file))
    strange = _stray(stream, kind)
    picture, tiled = tmp_path / "a.jpg", tmp_path / "a.svs"
    picture.write_bytes(strange)
    np.testing.assert_array_equal(whole(open_reader(picture)), expected)
    write_one_tile(tiled, strange, compression=7, photometric="ycbcr")
    np.testing.assert_array_equal(open_reader(tiled).read_tile(0, 0, 0), expected)


def _with_restarts(pixels: NDArray[np.uint8], strays: dict[int, bytes], **options: Any) -> tuple[bytes, bytes]:
    """A JPEG with restart markers, and the same with bytes put before some of them, by their place; -1 is the end."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, **options)
    stream = file.getvalue()
    scan = stream.index(b"\xff\xda")
    marks = [scan + found.start() for found in re.finditer(b"\xff[\xd0-\xd7]", stream[scan:])] + [len(stream) - 2]
    strange = stream
    for at, stray in sorted(((marks[place], stray) for place, stray in strays.items()), reverse=True):
        strange = strange[:at] + stray + strange[at:]
    return stream, strange


@pytest.mark.parametrize(
    "strays",
    [
        {1: b"\0" * 7},
        {2: b"\0" * 700},
        {0: b"\x12\x34\x56", 9: b"\x12\x34", 10: b"\0" * 3, -1: b"\0" * 9},
        dict.fromkeys(range(15), b"\0\0"),
    ],
    ids=["one", "many", "several", "all"],
)
@pytest.mark.parametrize("options", [{"restart_marker_rows": 1}, {"restart_marker_blocks": 5}, {"subsampling": 0}])
@pytest.mark.parametrize("is_gray", [False, True])
def test_stray_bytes_before_restart_markers_change_no_pixel(
    tmp_path: Path, strays: dict[int, bytes], options: dict[str, Any], is_gray: bool
) -> None:
    image = smooth_image(256, 256)
    options = {"restart_marker_rows": 1, **options} if "restart_marker_blocks" not in options else options
    stream, strange = _with_restarts(image[:, :, 0] if is_gray else image, strays, **options)
    expected = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))
    (tmp_path / "a.jpg").write_bytes(strange)
    np.testing.assert_array_equal(whole(open_reader(tmp_path / "a.jpg")), expected)
    if not is_gray:
        write_one_tile(tmp_path / "a.svs", strange, compression=7, photometric="ycbcr")
        np.testing.assert_array_equal(open_reader(tmp_path / "a.svs").read_tile(0, 0, 0), expected)


def test_a_damaged_interval_is_no_stray_byte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, 700, np.uint8) >> 1  # no 0xFF among them
    _, strange = _with_restarts(smooth_image(256, 256), {1: b"\0" * 7, 3: noise.tobytes()}, restart_marker_rows=1)
    write_one_tile(tmp_path / "a.svs", strange, compression=7, photometric="ycbcr")
    with pytest.raises(TileError, match="extraneous bytes"):
        open_reader(tmp_path / "a.svs").read_tile(0, 0, 0)


def test_other_tiles_are_found_when_the_first_has_strays(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    image = smooth_image(256, 512)
    streams = [imagecodecs.jpeg8_encode(image[:, x : x + 256].copy(), level=90) for x in (0, 256)]
    parts = [_stray(streams[0], "before the tables"), streams[1]]
    tifffile.imwrite(
        path,
        iter(parts),
        shape=image.shape,
        dtype=np.uint8,
        tile=(256, 256),
        photometric="ycbcr",
        compression=7,
        metadata=None,
    )
    reader = open_reader(path)
    assert reader.levels[0].dct_scales == (1, 2, 4, 8)
    for column, stream in enumerate(streams):
        np.testing.assert_array_equal(reader.read_tile(0, 0, column), np.asarray(Image.open(io.BytesIO(stream))))


@pytest.mark.parametrize("cut", [3, 40, 400])
def test_a_cut_tile_is_no_stray_byte(tmp_path: Path, cut: int) -> None:
    stream = imagecodecs.jpeg8_encode(smooth_image(256, 256), level=90)
    for strange in (stream[:-cut], stream[:-cut] + b"\xff\xd9", stream[: -2 - cut] + b"\0" * cut + stream[-2:]):
        write_one_tile(tmp_path / "a.svs", strange, compression=7, photometric="ycbcr")
        if cut > 3:
            with pytest.raises(TileError, match="cannot be decoded"):
                open_reader(tmp_path / "a.svs").read_tile(0, 0, 0)
