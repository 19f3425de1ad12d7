"""Small files that claim much: refused by the claim, before anything is parsed, allocated or decoded by it."""

from __future__ import annotations

import io
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from msdask.errors import MaskError, SlideError, TileError
from msdask.masks.formats.raster import read_raster
from msdask.readers import limits, open_reader
from msdask.readers.coded_size import claimed_size
from msdask.storage.source import open_source
from tests.tools.reader_files import smooth_image


@pytest.fixture(autouse=True)
def _small_and_quick() -> Iterator[None]:
    """Every test of this file ends soon and takes little memory of Python's."""
    tracemalloc.start()
    begun = time.perf_counter()
    try:
        yield
        taken = time.perf_counter() - begun
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 20  # 2 s without tracing, on a machine with nothing else to do
    assert peak < 300 << 20


# Descriptions


def ome(images: str) -> str:
    return f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'


def image(planes: int = 1, content: str = "<TiffData/>") -> str:
    return (
        '<Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint8" SizeX="32" SizeY="32" SizeC="3" '
        f'SizeZ="{planes}" SizeT="1"><Channel ID="C:0" SamplesPerPixel="3"/>{content}</Pixels></Image>'
    )


def scn(dimensions: str) -> str:
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>'
        f'<image name="a"><pixels sizeX="32" sizeY="32">{dimensions}</pixels></image></collection></scn>'
    )


DESCRIPTIONS: dict[str, tuple[Callable[[], str], str]] = {
    "planes of OME": (lambda: ome(image(10**9)), r"claims 3000000000 planes, the file has 1 images"),
    "planes of many images": (lambda: ome(image(9000) * 60), r"claims 162\d+ planes"),
    "PlaneCount": (lambda: ome(image(1, '<TiffData IFD="0" PlaneCount="1000000000"/>')), r"claims 1000000003 planes"),
    "TiffData": (
        lambda: ome(image(1, '<TiffData IFD="0"/>' * 300_000)),
        r"XML of 300008 tags; expected at most 100000",
    ),
    "empty elements": (lambda: ome(image() + "<a/>" * 2_000_000), r"XML of 2000009 tags"),
    "attributes": (lambda: ome("<a " + " ".join(f"b{i} = '1'" for i in range(10**5)) + "/>"), r"of 100002 attributes"),
    "planes of SCN": (
        lambda: scn('<dimension r="0" ifd="0"/><dimension r="0" z="200000000" ifd="0"/>'),
        r"claims 2000000\d\d planes",
    ),
    "a long text": (lambda: "Aperio Image Library|" + "a=1|" * 300_000, r"a text of 12000\d\d characters"),
    "40 MB": (lambda: "x" * 40_000_000, r"claims 40000001 bytes; expected at most 16777216"),
    "40 MB of XML": (lambda: ome(image() + "<!--" + "x" * 40_000_000 + "-->"), r"claims 400\d+ bytes"),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
@pytest.mark.parametrize("is_mask", [False, True])
def test_descriptions_are_refused_by_their_claim(tmp_path: Path, kind: str, is_mask: bool) -> None:
    path = tmp_path / "a.tif"
    make, message = DESCRIPTIONS[kind]
    pixels = np.zeros((32, 32), np.uint8) if is_mask else smooth_image(32, 32)
    tifffile.imwrite(path, pixels, photometric=None if is_mask else "rgb", description=make(), metadata=None)
    if is_mask:
        with pytest.raises(MaskError, match=rf"mask '.*a\.tif': .*{message}"):
            read_raster(open_source(path))
    else:
        with pytest.raises(SlideError, match=rf"slide '.*a\.tif': .*{message}"):
            open_reader(path)


def test_descriptions_of_later_pages_count_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(smooth_image(32, 32), photometric="rgb", subifds=1, metadata=None)
        reduced = smooth_image(32, 32)[::2, ::2]
        writer.write(reduced, photometric="rgb", description="x" * 20_000_000, subfiletype=1, metadata=None)
    with pytest.raises(SlideError, match="claims 20000001 bytes"):
        open_reader(path)


def test_many_large_descriptions_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    monkeypatch.setattr(limits, "_MAX_TAG_BYTES", 1 << 20)
    with tifffile.TiffWriter(path) as writer:
        for _ in range(4):
            writer.write(smooth_image(32, 32), photometric="rgb", description="x" * 400_000, metadata=None)
    with pytest.raises(SlideError, match="1048576 of all"):
        open_reader(path)


@pytest.mark.parametrize(
    "text",
    [
        ome(image() + "<StructuredAnnotations>" + "<a/>" * 5000 + "</StructuredAnnotations>"),
        ome(image(1, '<TiffData IFD="0" PlaneCount="1"/>')),
        ome(image() + "<!--" + "x" * 5_000_000 + "-->"),
        '<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_IMAGE_DATA">'
        + "QUJD" * 500_000
        + "</Attribute></DataObject>",
        "Aperio Image Library v11|" + "|".join(f"a{i} = {i}" for i in range(500)),
    ],
    ids=["annotations", "TiffData", "5 MB", "Philips", "Aperio"],
)
def test_what_scanners_write_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tif"
    pixels = smooth_image(32, 32)
    tifffile.imwrite(path, pixels, photometric="rgb", description=text, metadata=None)
    np.testing.assert_array_equal(open_reader(path, backend="tiff").read_tile(0, 0, 0), pixels)


# Pictures in tiles


def _jpeg2000(pixels: np.ndarray[Any, Any], kind: str) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=kind))


ENCODERS: dict[str, tuple[int, Callable[[np.ndarray[Any, Any]], bytes]]] = {
    "JPEG": (7, lambda pixels: imagecodecs.jpeg8_encode(pixels)),
    "JPEG 2000": (34712, lambda pixels: _jpeg2000(pixels, "j2k")),
    "JP2": (34712, lambda pixels: _jpeg2000(pixels, "jp2")),
    "JPEG XL": (50002, lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True)),
    "JPEG XL in boxes": (50002, lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=True)),
    "WebP": (50001, lambda pixels: imagecodecs.webp_encode(pixels)),
    "lossless WebP": (50001, lambda pixels: imagecodecs.webp_encode(pixels, lossless=True)),
    "WebP with alpha": (50001, lambda pixels: imagecodecs.webp_encode(np.dstack([pixels, pixels[:, :, :1]]))),
    "PNG": (34933, lambda pixels: imagecodecs.png_encode(pixels)),
    "JPEG XR": (22610, lambda pixels: imagecodecs.jpegxr_encode(pixels)),
    "LERC": (34887, lambda pixels: imagecodecs.lerc_encode(pixels)),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("size", [(48, 48), (40, 64), (64, 48), (57, 131), (256, 256), (500, 300), (301, 777)])
def test_the_claim_is_read_from_each_header(kind: str, size: tuple[int, int]) -> None:
    assert claimed_size(ENCODERS[kind][1](smooth_image(*size))) == size


def test_other_bytes_claim_nothing() -> None:
    assert claimed_size(b"anything else") is None
    assert claimed_size(b"") is None
    for kind in ENCODERS:
        data = ENCODERS[kind][1](smooth_image(32, 32))
        for length in range(1, 60):
            claimed_size(data[:length])  # raises nothing


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "WebP with alpha"])
def test_a_picture_far_larger_than_its_tile_is_not_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    compression, encode = ENCODERS[kind]
    data = encode(np.zeros((1000, 1000, 3), np.uint8))
    options: dict[str, Any] = {"compression": compression, "photometric": "rgb", "tile": (256, 256), "metadata": None}
    tifffile.imwrite(path, iter([data]), shape=(256, 256, 3), dtype=np.uint8, **options)
    with pytest.raises(TileError, match="claims 1000 x 1000 px in a page of 256 x 256 px tiles"):
        open_reader(path).read_tile(0, 0, 0)


@pytest.mark.parametrize(("compression", "is_refused"), [(8, False), (34712, True), (50002, True)])
def test_what_a_decoder_holds_counts_for_a_strip(tmp_path: Path, compression: int, is_refused: bool) -> None:
    path = tmp_path / "a.tif"
    shape = (8000, 8000, 3)  # 183 MiB of pixels, 915 MiB with 4 bytes a sample
    options: dict[str, Any] = {"compression": compression, "photometric": "rgb", "rowsperstrip": 8000}
    tifffile.imwrite(path, iter([b"nothing"]), shape=shape, dtype=np.uint8, metadata=None, **options)
    if is_refused:
        with pytest.raises(SlideError, match="8000 x 8000 px takes 915 MiB, the limit is 512 MiB"):
            open_reader(path)
    else:
        assert open_reader(path).levels[0].shape == shape[:2]


def _with_scans(count: int) -> bytes:
    """A progressive JPEG whose first scan comes `count` times."""
    file = io.BytesIO()
    Image.fromarray(smooth_image(256, 256)).save(file, "JPEG", progressive=True)
    stream = file.getvalue()
    first, second, *_ = [found.start() for found in re.finditer(b"\xff\xda", stream)]
    return stream[:first] + stream[first:second] * count + stream[second:]


def test_scans_are_counted(tmp_path: Path) -> None:
    picture, tiled = tmp_path / "a.jpg", tmp_path / "a.tif"
    picture.write_bytes(_with_scans(400))
    with pytest.raises(TileError, match="409 scans, the limit is 50"):
        open_reader(picture).read_tile(0, 0, 0)
    for photometric, backend in (("ycbcr", "tiff"), ("rgb", "tiff")):
        options: dict[str, Any] = {"photometric": photometric, "compression": 7, "tile": (256, 256), "metadata": None}
        tifffile.imwrite(tiled, iter([_with_scans(400)]), shape=(256, 256, 3), dtype=np.uint8, **options)
        with pytest.raises(TileError, match="409 scans, the limit is 50"):
            open_reader(tiled, backend=backend).read_tile(0, 0, 0)
    picture.write_bytes(_with_scans(1))
    assert open_reader(picture).read_tile(0, 0, 0).shape == (256, 256, 3)


# Plain images


def _png(width: int, height: int, bits: int, color: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "color", "bytes_a_pixel"),
    [(8, 2, 3), (8, 6, 7), (8, 0, 4), (8, 4, 5), (8, 3, 4), (1, 0, 4), (16, 2, 9), (16, 6, 11), (16, 0, 5)],
)
def test_the_limit_is_the_memory_at_the_peak(tmp_path: Path, bits: int, color: int, bytes_a_pixel: int) -> None:
    path = tmp_path / "a.png"
    side = int(((512 << 20) / bytes_a_pixel) ** 0.5)
    path.write_bytes(_png(side + 4, side + 4, bits, color))
    with pytest.raises(SlideError, match="would be decoded at once, the limit is 512 MiB"):
        open_reader(path)
    path.write_bytes(_png(side - 4, side - 4, bits, color))
    assert open_reader(path).levels[0].shape == (side - 4, side - 4)


@pytest.mark.parametrize("is_progressive", [False, True])
def test_the_coefficients_of_a_progressive_jpeg_count(tmp_path: Path, is_progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth_image(32, 32)).save(path, progressive=is_progressive)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc2" if is_progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 8000, 8000)
    path.write_bytes(data)
    if is_progressive:
        with pytest.raises(SlideError, match="8000 x 8000 px take 549 MiB"):
            open_reader(path)
    else:
        assert open_reader(path).levels[0].shape == (8000, 8000)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA", "P", "P with transparency", "1", "16 bits"])
def test_the_peak_is_what_is_promised(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    side = 1500
    pixels = np.dstack([smooth_image(side, side), smooth_image(side, side)[:, :, :1]])
    if kind == "16 bits":
        path.write_bytes(imagecodecs.png_encode(pixels[:, :, :3].astype(np.uint16) * 257))
    else:
        picture = Image.fromarray(pixels).convert("RGB" if kind[0] in "P1" else kind)
        picture = picture.convert(kind[0]) if kind[0] in "P1" else picture
        options = {"transparency": 3} if "transparency" in kind else {}
        picture.save(path, **options)
    reader = open_reader(path)
    expected = Image.open(path)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    found = reader.read_tile(0, 0, 0)
    _, peak = tracemalloc.get_traced_memory()
    # of NumPy's arrays: Pillow's own picture is not traced
    assert peak - before < side * side * 11 + (24 << 20) + path.stat().st_size
    if kind in ("RGB", "L", "P", "1"):
        np.testing.assert_array_equal(found, np.asarray(expected.convert("RGB"))[:512, :512])
    elif kind != "16 bits":
        color, alpha = np.split(np.asarray(expected.convert("RGBA"))[:512, :512].astype(float), [3], axis=2)
        assert np.abs(found - (color * alpha / 255 + 255 - alpha)).max() <= 0.51
