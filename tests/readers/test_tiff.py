"""TIFF slides: pixels as tifffile reads them, levels, metadata, and every kind of pixel."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError
from msdask.readers import Reader, open_reader
from msdask.readers.base import stored_downsample
from msdask.readers.to_rgb import shrink, to_uint8
from tests.tools.reader_files import smooth_image, write_jpeg_tiff, write_ndpi


def assemble(reader: Reader, level: int = 0, scale: int = 1) -> NDArray[np.uint8]:
    """A whole level from its tiles, cut to the level's size."""
    info = reader.levels[level]
    height, width = (-(-side // scale) for side in info.shape)
    whole = np.zeros((height, width, 3), np.uint8)
    for row in range(info.grid[0]):
        for column in range(info.grid[1]):
            y, x = row * info.tile[0] // scale, column * info.tile[1] // scale
            tile = reader.read_tile(level, row, column, scale)
            assert tile.dtype == np.uint8
            assert tile.flags.c_contiguous
            part = tile[: height - y, : width - x]
            expected = min(height - y, info.tile[0] // scale), min(width - x, info.tile[1] // scale)
            assert part.shape[:2] == expected
            whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


# Pixels equal tifffile's


JPEG_KINDS = {
    "420": {"photometric": "ycbcr", "subsampling": (2, 2), "compressionargs": {"level": 90}},
    "422": {"photometric": "ycbcr", "subsampling": (2, 1), "compressionargs": {"level": 90}},
    "444": {"photometric": "ycbcr", "subsampling": (1, 1), "compressionargs": {"level": 90}},
    "rgb": {"photometric": "rgb", "compressionargs": {"level": 90, "outcolorspace": "rgb"}},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpeg_tiles_equal_tifffile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    options = JPEG_KINDS[kind]
    tifffile.imwrite(path, smooth_image(300, 420), tile=(128, 128), compression="jpeg", **options)
    reader = open_reader(path)
    assert reader.levels[0].dct_scales == (1, 2, 4, 8)
    np.testing.assert_array_equal(assemble(reader), tifffile.imread(path))


@pytest.mark.parametrize(
    ("photometric", "subsampling", "with_jfif"),
    [
        (2, "4:4:4", False),  # RGB, as Aperio stores it
        (2, "4:4:4", True),  # YCbCr, although the TIFF says RGB: JFIF knows nothing else
        (2, "4:2:0", True),
        (6, "4:4:4", False),
        (6, "4:4:4", True),
        (6, "4:2:0", False),
        (6, "4:2:0", True),
    ],
)
def test_jpeg_with_shared_tables_equals_tifffile(
    tmp_path: Path, photometric: int, subsampling: str, with_jfif: bool
) -> None:
    path = tmp_path / "a.tif"
    write_jpeg_tiff(path, smooth_image(256, 384), photometric=photometric, subsampling=subsampling, with_jfif=with_jfif)
    np.testing.assert_array_equal(assemble(open_reader(path)), tifffile.imread(path))


def test_ndpi_stripes_equal_the_whole_jpeg(tmp_path: Path) -> None:
    # the ending says nothing: the tag does
    path = tmp_path / "hamamatsu.tif"
    expected = write_ndpi(path, smooth_image(128, 512), blocks=8)
    reader = open_reader(path)
    assert reader.metadata.vendor == "hamamatsu"
    assert reader.metadata.objective_power == 20.0
    assert reader.metadata.mpp == pytest.approx((0.4545, 0.4545), rel=1e-3)
    assert reader.levels[0].tile == (8, 64)
    np.testing.assert_array_equal(assemble(reader), expected)
    assert psnr(assemble(reader, scale=4), shrink(expected, 4)) > 40


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "deflate"},
        {"compression": "deflate", "predictor": True},
        {"compression": "lzw", "predictor": True},
        {"compression": "packbits"},
        {"compression": "zstd"},
        {"compression": "jpeg2000"},
        {"compression": "webp", "compressionargs": {"level": 100}},
        {"compression": None},
        {"bigtiff": True, "compression": "lzw"},
        {"byteorder": ">", "compression": "lzw"},
        {"planarconfig": "separate", "compression": "lzw"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tile", [(64, 80), None], ids=["tiles", "strips"])
def test_lossless_kinds_equal_tifffile(tmp_path: Path, options: dict[str, Any], tile: tuple[int, int] | None) -> None:
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 256, (150, 203, 3), np.uint8)
    is_planar = options.get("planarconfig") == "separate"
    stored = np.moveaxis(image, -1, 0) if is_planar else image
    strips = {} if tile else {"rowsperstrip": 7}
    tifffile.imwrite(path, stored, photometric="rgb", tile=tile, **strips, **options)
    reader = open_reader(path)
    assert reader.levels[0].dct_scales == (1,)
    read = tifffile.imread(path)
    np.testing.assert_array_equal(assemble(reader), np.moveaxis(read, 0, -1) if is_planar else read)


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
def test_strips_are_grouped_into_tiles(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(700, 96), photometric="rgb", rowsperstrip=16, compression=compression)
    reader = open_reader(path)
    assert reader.levels[0].tile == (256, 96)
    np.testing.assert_array_equal(assemble(reader), tifffile.imread(path))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_scaled_decoding_is_near_the_area_mean(tmp_path: Path, scale: int, subsampling: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, smooth_image(512, 512), tile=(256, 256), compression="jpeg", photometric="ycbcr", subsampling=subsampling
    )
    reader = open_reader(path)
    assert reader.read_tile(0, 0, 0, scale).shape == (256 // scale, 256 // scale, 3)
    assert psnr(assemble(reader, scale=scale), shrink(assemble(reader), scale)) > 40


def test_scales_are_not_offered_without_a_dct(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(240, 208), tile=(48, 208), compression="deflate", photometric="rgb")
    with pytest.raises(SpecError, match="reductions"):
        open_reader(path).read_tile(0, 0, 0, 2)


def test_tile_outside_the_level_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(64, 64), tile=(32, 32), photometric="rgb")
    reader = open_reader(path)
    for request in [(1, 0, 0), (0, 2, 0), (0, 0, -1)]:
        with pytest.raises(SpecError, match="level"):
            reader.read_tile(*request)


# Kinds of pixels


def test_gray_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    gray = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    tifffile.imwrite(path, gray, photometric="minisblack", compression="lzw")
    np.testing.assert_array_equal(assemble(open_reader(path)), np.dstack([gray] * 3))
    tifffile.imwrite(path, gray, photometric="miniswhite")
    np.testing.assert_array_equal(assemble(open_reader(path)), np.dstack([255 - gray] * 3))
    tifffile.imwrite(path, smooth_image(64, 64)[:, :, 0], tile=(32, 32), photometric="minisblack", compression="jpeg")
    np.testing.assert_array_equal(assemble(open_reader(path)), np.dstack([tifffile.imread(path)] * 3))
    bits = gray > 128
    tifffile.imwrite(path, bits, photometric="minisblack")
    np.testing.assert_array_equal(assemble(open_reader(path)), np.dstack([bits * np.uint8(255)] * 3))


def test_sixteen_bits_become_value_over_257(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 65536, (33, 47, 3), np.uint16)
    tifffile.imwrite(path, image, photometric="rgb", compression="deflate")
    np.testing.assert_array_equal(assemble(open_reader(path)), np.rint(image / 257).astype(np.uint8))


def test_every_sixteen_bit_value_is_rounded_once() -> None:
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_uint8(values), np.rint(values / 257).astype(np.uint8))


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 4), np.uint8)
    alpha = image[:, :, 3:] / 255
    tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unassalpha"])
    expected = image[:, :, :3] * alpha + 255 * (1 - alpha)
    assert np.abs(assemble(open_reader(path)) - expected).max() <= 0.51
    premultiplied = np.rint(image[:, :, :3] * alpha).astype(np.uint8)
    tifffile.imwrite(path, np.dstack([premultiplied, image[:, :, 3]]), photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(assemble(open_reader(path)) - expected).max() <= 0.51


def test_extra_channel_without_meaning_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 4), np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(assemble(open_reader(path)), image[:, :, :3])


@pytest.mark.parametrize("factor", [256, 257])
def test_palette_is_looked_up(tmp_path: Path, factor: int) -> None:
    path = tmp_path / "a.tif"
    indices = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    colors = np.random.default_rng(0).integers(0, 256, (3, 256), np.uint8)
    tifffile.imwrite(path, indices, photometric="palette", colormap=(colors.astype(np.uint16) * factor))
    np.testing.assert_array_equal(assemble(open_reader(path)), colors.T[indices])


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((32, 32, 4), np.uint8), {"photometric": "separated"}, "photometric"),
        (np.zeros((32, 32, 3), np.float32), {"photometric": "rgb"}, "float32"),
        (np.zeros((32, 32), np.int8), {"photometric": "minisblack"}, "int8"),
        (np.zeros((32, 32), np.uint32), {"photometric": "minisblack"}, "32 bits"),
        (np.zeros((32, 32, 5), np.uint8), {"photometric": "rgb"}, "5 channel"),
        (np.zeros((32, 32, 2), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "2 channel"),
        (np.zeros((7, 32, 32), np.uint8), {"photometric": "minisblack"}, "stack of 7 planes"),
        (np.zeros((4, 32, 32, 3), np.uint8), {"photometric": "rgb"}, "stack of 4 planes"),
        (
            np.zeros((4, 32, 32), np.uint8),
            {"photometric": "minisblack", "volumetric": True, "tile": (4, 16, 16)},
            "4 planes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_pixels_are_refused(tmp_path: Path, image: NDArray[Any], options: dict[str, Any], message: str) -> None:
    path = tmp_path / "odd pixels.tif"
    tifffile.imwrite(path, image, **options)
    with pytest.raises(SlideError, match=message) as failure:
        open_reader(path)
    assert "odd pixels.tif" in str(failure.value)


# Levels


def test_subifd_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = smooth_image(513, 770)
    levels = [image, image[::2, ::2], image[::4, ::4]]
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], subifds=2, tile=(64, 64), photometric="rgb")
        for level in levels[1:]:
            writer.write(level, subfiletype=1, tile=(64, 64), photometric="rgb")
    reader = open_reader(path)
    assert [info.downsample for info in reader.levels] == [1, 2, 4]
    for index, level in enumerate(levels):
        np.testing.assert_array_equal(assemble(reader, index), level)


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 4, 16), (1, 8, 20)])
@pytest.mark.parametrize("is_marked", [True, False])
def test_pyramid_of_plain_pages(tmp_path: Path, steps: tuple[int, ...], is_marked: bool) -> None:
    path = tmp_path / "a.tif"
    image = smooth_image(640, 960)
    with tifffile.TiffWriter(path) as writer:
        for step in steps:
            reduced = int(is_marked and step > 1)
            writer.write(image[::step, ::step], subfiletype=reduced, tile=(32, 32), photometric="rgb", metadata=None)
        writer.write(smooth_image(100, 300), photometric="rgb", description="label", metadata=None)
    reader = open_reader(path)
    assert tuple(info.downsample for info in reader.levels) == steps
    assert reader.associated == ("label",)
    assert reader.read_associated("label").shape == (100, 300, 3)
    for index, step in enumerate(steps):
        np.testing.assert_array_equal(assemble(reader, index), image[::step, ::step])


def test_largest_series_is_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(smooth_image(64, 200), photometric="rgb", metadata=None)
        writer.write(smooth_image(300, 300), photometric="rgb", tile=(64, 64), metadata=None)
    assert [info.shape for info in open_reader(path).levels] == [(300, 300)]


def test_aperio_levels_are_not_its_other_images(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    image = smooth_image(512, 768)
    head = "Aperio Image Library v11\r\n768x512"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, tile=(64, 64), description=f"{head}|AppMag = 40|MPP = 0.2525", **options)
        # the thumbnail has the proportions of a level
        writer.write(image[::4, ::4].copy(), description=head, rowsperstrip=16, **options)
        writer.write(image[::4, ::4].copy(), tile=(64, 64), description=head, **options)
        writer.write(smooth_image(50, 60), description=f"{head}\nlabel", subfiletype=1, rowsperstrip=16, **options)
        writer.write(smooth_image(50, 99), description=f"{head}\nmacro", subfiletype=9, rowsperstrip=16, **options)
    reader = open_reader(path)
    assert [(info.shape, info.downsample) for info in reader.levels] == [((512, 768), 1), ((128, 192), 4)]
    assert reader.associated == ("label", "macro", "thumbnail")
    assert reader.read_associated("macro").shape == (50, 99, 3)
    metadata = reader.metadata
    assert (metadata.vendor, metadata.mpp, metadata.mpp_source) == ("aperio", (0.2525, 0.2525), "aperio")
    assert metadata.objective_power == 40
    with pytest.raises(SpecError, match="thumbnail"):
        reader.read_associated("barcode")


def test_downsample_is_an_integer_where_the_sizes_allow_it() -> None:
    assert stored_downsample((32914, 46000), (2057, 2875)) == 16  # floor
    assert stored_downsample((32914, 46000), (2058, 2875)) == 16  # ceiling
    assert stored_downsample((1000, 1000), (400, 400)) == 2.5
    assert stored_downsample((1000, 1003), (250, 252)) == pytest.approx((4 + 1003 / 252) / 2)


# Metadata


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1000), ("mm", 0.001)])
def test_ome_scale_with_units(tmp_path: Path, unit: str, factor: float) -> None:
    path = tmp_path / "a.ome.tif"
    size = {f"PhysicalSize{axis}": value * factor for axis, value in (("X", 0.25), ("Y", 0.26))}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    image = smooth_image(96, 128)
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, tile=(32, 32), photometric="rgb", subifds=1, metadata={"axes": "YXS", **size, **units})
        writer.write(image[::2, ::2], tile=(32, 32), photometric="rgb", subfiletype=1)
    reader = open_reader(path)
    assert reader.metadata.vendor == "ome"
    assert reader.metadata.mpp == pytest.approx((0.25, 0.26))
    assert [info.downsample for info in reader.levels] == [1, 2]
    np.testing.assert_array_equal(assemble(reader, 1), image[::2, ::2])


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((40000, 40000), "CENTIMETER", (0.25, 0.25)),
        ((50800, 50800), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((40000, 40000), "NONE", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_resolution_tags_count_only_as_a_microscope(
    tmp_path: Path, resolution: tuple[int, int], unit: str, expected: tuple[float, float] | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(32, 32), photometric="rgb", resolution=resolution, resolutionunit=unit)
    metadata = open_reader(path).metadata
    assert metadata.mpp == (pytest.approx(expected) if expected else None)
    assert metadata.mpp_source == ("tiff resolution" if expected else None)


SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="9" sizeY="9">
<image name="image_0"><pixels sizeX="64" sizeY="96"><dimension sizeX="64" sizeY="96" r="0" ifd="0"/></pixels>
<view sizeX="1000000" sizeY="1500000"/></image>
<image name="image_1"><pixels sizeX="256" sizeY="192"><dimension sizeX="256" sizeY="192" r="0" ifd="1"/>
<dimension sizeX="64" sizeY="48" r="1" ifd="2"/></pixels><view sizeX="64000" sizeY="48000"/>
<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings></scanSettings></image></collection></scn>"""


def test_leica_takes_the_largest_image(tmp_path: Path) -> None:
    path = tmp_path / "a.scn"
    image = smooth_image(192, 256)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(smooth_image(96, 64), description=SCN, **options)
        writer.write(image, **options)
        writer.write(image[::4, ::4], **options)
    reader = open_reader(path)
    assert reader.metadata.vendor == "leica"
    assert reader.metadata.mpp == pytest.approx((0.25, 0.25))
    assert reader.metadata.objective_power == 40
    assert [info.downsample for info in reader.levels] == [1, 4]
    assert reader.associated == ("macro",)
    np.testing.assert_array_equal(assemble(reader, 1), image[::4, ::4])


# Reading


def test_eight_threads_read_what_one_does(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(smooth_image(512, 512), tile=(64, 64), photometric="ycbcr", compression="jpeg", subifds=1)
        writer.write(smooth_image(256, 256), tile=(64, 64), photometric="rgb", compression="lzw", subfiletype=1)
    reader = open_reader(path)
    requests = [(0, i // 8, i % 8, scale) for i in range(64) for scale in (1, 4)]
    requests += [(1, i // 4, i % 4, 1) for i in range(16)]
    serial = [reader.read_tile(*request) for request in requests]
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            parallel = list(pool.map(lambda request: reader.read_tile(*request), requests))
        for expected, found in zip(serial, parallel, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_names_with_spaces_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with Ünïcode 切片"
    folder.mkdir()
    path = folder / ("Schnitt № 1 " + "x" * 150 + ".tif")
    tifffile.imwrite(path, smooth_image(32, 32), photometric="rgb")
    assert open_reader(path).levels[0].shape == (32, 32)


def test_the_ending_does_not_matter(tmp_path: Path) -> None:
    image = smooth_image(64, 64)
    for name in ("a.png", "a.ndpi", "a.txt", "a"):
        path = tmp_path / name
        with path.open("wb") as file:
            tifffile.imwrite(file, image, photometric="rgb", tile=(32, 32))
        np.testing.assert_array_equal(assemble(open_reader(path)), image)


def test_url_reads_as_the_local_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(256, 256), tile=(64, 64), photometric="ycbcr", compression="jpeg")
    url = "memory://readers/a slide.tif"
    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())
    local, remote = open_reader(path), open_reader(url)
    assert local.levels == remote.levels
    assert local.metadata == remote.metadata
    assert local.fingerprint() == remote.fingerprint()
    np.testing.assert_array_equal(assemble(local), assemble(remote))


def test_fingerprint_sees_changed_bytes_and_not_the_name(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.tif", tmp_path / "b.svs"
    tifffile.imwrite(path, smooth_image(256, 256), tile=(64, 64), photometric="ycbcr", compression="jpeg")
    shutil.copy(path, copy)
    first = open_reader(path).fingerprint()
    assert len(first) == 64
    assert first == open_reader(copy).fingerprint()
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    assert open_reader(copy).fingerprint() != first


# Real slides


def test_cmu_small_region(cmu_small: Path) -> None:
    reader = open_reader(cmu_small)
    (level,) = reader.levels
    assert (level.shape, level.tile, level.dct_scales) == ((2967, 2220), (240, 240), (1, 2, 4, 8))
    assert reader.metadata.mpp == (0.499, 0.499)
    assert reader.metadata.objective_power == 20
    assert reader.associated == ("label", "macro", "thumbnail")
    with tifffile.TiffFile(cmu_small) as tif:
        # RGB that the TIFF stores as such: libjpeg's guess would be YCbCr, and pink tissue green
        np.testing.assert_array_equal(assemble(reader), tif.series[0].asarray())
        for series in tif.series[1:]:
            np.testing.assert_array_equal(reader.read_associated(series.name.lower()), series.asarray())


def test_monuseg_crops_open(data_dir: Path) -> None:
    paths = sorted((data_dir / "monuseg" / "images").glob("*.tif"))
    if not paths:
        pytest.skip(f"no monuseg crops in {data_dir}")
    for path in paths:
        reader = open_reader(path)
        assert reader.levels[0].shape == (1000, 1000)
        assert reader.metadata.mpp is None
    np.testing.assert_array_equal(assemble(reader), tifffile.imread(path))
