"""Masks come out as they are stored, or not at all."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import MaskError, UnreachableError
from msdask.masks.formats import read_content


def labels(high: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(high).integers(0, high, (30, 41)).astype(dtype)


def write_png(path: Path, values: NDArray[np.uint8], *, bits: int, color: int = 0, extra: bytes = b"") -> None:
    """A PNG of any bit depth, written byte by byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape
    places = np.unpackbits(values[:, :, np.newaxis], axis=2)[:, :, 8 - bits :].reshape(height, width * bits)
    rows = np.packbits(places, axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_gray_of_any_depth(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "m.png"
    values = labels(1 << bits)
    write_png(path, values, bits=bits)
    read = read_content(str(path)).values
    np.testing.assert_array_equal(read, values)
    assert read.dtype == (np.bool_ if bits == 1 else np.uint8)


def test_png_of_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    values = labels(65536, np.uint16)
    path.write_bytes(imagecodecs.png_encode(values))
    read = read_content(str(path)).values
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.uint16


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("is_transparent", [False, True])
def test_palette_png_gives_indices(tmp_path: Path, bits: int, is_transparent: bool) -> None:
    path = tmp_path / "m.png"
    values = labels(1 << bits)
    table = np.random.default_rng(1).bytes(3 << bits)
    extra = struct.pack(">I", len(table)) + b"PLTE" + table + struct.pack(">I", zlib.crc32(b"PLTE" + table))
    if is_transparent:
        extra += struct.pack(">I", 1) + b"tRNS" + b"\0" + struct.pack(">I", zlib.crc32(b"tRNS\0"))
    write_png(path, values, bits=bits, color=3, extra=extra)
    np.testing.assert_array_equal(read_content(str(path)).values, values)


def test_equal_channels_are_one(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    values = labels(5)
    for channels in ([values] * 3, [*[values] * 3, np.full_like(values, 255)]):
        Image.fromarray(np.dstack(channels)).save(path)
        np.testing.assert_array_equal(read_content(str(path)).values, values)
    wide = labels(65536, np.uint16)
    path.write_bytes(imagecodecs.png_encode(np.dstack([wide] * 3)))
    np.testing.assert_array_equal(read_content(str(path)).values, wide)


def test_colours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    colors = np.dstack([labels(5)] * 3)
    colors[3, 4] = (1, 2, 3)
    Image.fromarray(colors).save(path)
    with pytest.raises(MaskError, match=r"m\.png.*\[1, 2, 3\] at x 4, y 3"):
        read_content(str(path))
    Image.fromarray(np.dstack([labels(5)] * 3 + [labels(200)])).save(path)
    with pytest.raises(MaskError, match="alpha varies"):
        read_content(str(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int32])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"tile": (16, 16), "compression": "deflate"}], ids=str)
def test_tiff_integers(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    path = tmp_path / "m.tif"
    values = labels(120, dtype)
    tifffile.imwrite(path, values, **options)
    read = read_content(str(path)).values
    np.testing.assert_array_equal(read, values)
    assert read.dtype == dtype


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_of_one_bit(tmp_path: Path, photometric: str) -> None:
    path = tmp_path / "m.tif"
    stored = labels(2).astype(bool)
    tifffile.imwrite(path, stored, photometric=photometric)
    np.testing.assert_array_equal(read_content(str(path)).values, stored if photometric == "minisblack" else ~stored)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_tiff_rgb_with_equal_channels(tmp_path: Path, planarconfig: str) -> None:
    path = tmp_path / "m.tif"
    values = labels(5)
    stacked = np.stack([values] * 3, axis=-1 if planarconfig == "contig" else 0)
    tifffile.imwrite(path, stacked, photometric="rgb", planarconfig=planarconfig)
    np.testing.assert_array_equal(read_content(str(path)).values, values)


def test_palette_tiff_gives_indices(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    values = labels(256)
    tifffile.imwrite(path, values, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    np.testing.assert_array_equal(read_content(str(path)).values, values)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((32, 32), np.float32), {}, "float32"),
        (np.zeros((32, 32), np.uint8), {"compression": "jpeg", "tile": (16, 16)}, "JPEG"),
        (np.zeros((32, 32), np.uint8), {"compression": "jpeg2000"}, "compressed by"),
        (np.zeros((3, 32, 32), np.uint8), {"photometric": "minisblack"}, "3 pages"),
        (np.zeros((32, 32, 6), np.uint8), {"photometric": "rgb"}, "6 channels"),
    ],
    ids=["float", "jpeg", "jpeg2000", "stack", "channels"],
)
def test_other_tiffs_are_refused(tmp_path: Path, values: NDArray[Any], options: dict[str, Any], message: str) -> None:
    path = tmp_path / "a mask.tif"
    tifffile.imwrite(path, values, **options)
    with pytest.raises(MaskError, match=message) as failure:
        read_content(str(path))
    assert "a mask.tif" in str(failure.value)


def test_no_mask(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"mask .*no such file"):
        read_content(str(tmp_path / "absent.png"))
    with pytest.raises(MaskError, match="directory"):
        read_content(str(tmp_path))
    path = tmp_path / "m.png"
    contents = {b"": "empty", b"text" * 9: "begins with", b"\x89PNG\r\n\x1a\n": "IHDR", b"II*\0": "cannot be"}
    for content, message in contents.items():
        path.write_bytes(content)
        with pytest.raises(MaskError, match=message):
            read_content(str(path))
    Image.fromarray(labels(5)).save(path, "JPEG")
    with pytest.raises(MaskError, match="JPEG, which changes values"):
        read_content(str(path))


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_truncated_masks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"m.{kind}"
    values = labels(256)
    if kind == "png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, compression="deflate", rowsperstrip=4)
    data = path.read_bytes()
    for length in range(1, len(data) - 20, max(1, len(data) // 30)):
        path.write_bytes(data[:length])
        with pytest.raises(MaskError, match=f"m.{kind}"):
            read_content(str(path))


def test_claimed_sizes_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_png(path, labels(2), bits=8)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    path.write_bytes(data)
    with pytest.raises(MaskError, match="claims 100000 x 100000 px"):
        read_content(str(path))
    tiff = tmp_path / "m.tif"
    tifffile.imwrite(tiff, labels(2), compression="deflate", metadata=None)
    with tifffile.TiffFile(tiff, mode="r+") as tif:
        tif.pages[0].tags["ImageLength"].overwrite(16_000)
    with pytest.raises(MaskError, match="cannot be read"):
        read_content(str(tiff))


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_read_that_fails_is_never_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, original, reads = tmp_path / name, os.pread, []
    Image.fromarray(labels(5)).save(path)

    def pread(descriptor: int, size: int, at: int) -> bytes:
        reads.append(at)
        if len(reads) == failing[0]:
            raise OSError(errno.EIO, "Input/output error")
        return original(descriptor, size, at)

    monkeypatch.setattr("os.pread", pread)
    failing = [0]
    read_content(str(path))
    for number in range(1, len(reads) + 1):
        reads.clear()
        failing[0] = number
        with pytest.raises(UnreachableError, match=rf"{name}.*Input/output error"):
            read_content(str(path))


def test_url_reads_as_the_local_file(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(labels(5)).save(path)
    with fsspec.open("memory://masks/m.png", "wb") as file:
        file.write(path.read_bytes())
    np.testing.assert_array_equal(read_content("memory://masks/m.png").values, labels(5))


def test_monuseg_nuclei_are_zero_and_one(data_dir: Path) -> None:
    paths = sorted((data_dir / "monuseg" / "nuclei").glob("*.png"))
    if not paths:
        pytest.skip(f"no monuseg nuclei in {data_dir}")
    for path in paths[:3]:
        values = read_content(str(path)).values
        assert values.shape == (1000, 1000)
        assert np.unique(values).tolist() == [0, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32), "compression": "deflate"}])
def test_a_turned_tiff_is_as_pillow_turns_it(tmp_path: Path, orientation: int, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 9, (40, 60), np.uint8)
    tifffile.imwrite(path, values, extratags=[(274, 3, 1, orientation, True)], metadata=None, **layout)
    # from memory: from a path Pillow maps uncompressed pixels with the sides in the wrong order
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        np.testing.assert_array_equal(read_content(str(path)).values, np.asarray(picture))
