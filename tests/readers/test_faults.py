"""Slides that are damaged, cut, lying or no slides: only our errors come out, and they say what was found."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from msdask.errors import SlideError, SpecError, TileError, UnreachableError
from msdask.readers import open_reader
from tests.tools.reader_files import smooth_image


def write_slide(path: Path, **options: Any) -> None:
    """A small pyramid of a JPEG and a LZW level."""
    image = smooth_image(256, 256)
    with tifffile.TiffWriter(path, **options) as writer:
        writer.write(image, tile=(64, 64), photometric="ycbcr", compression="jpeg", subifds=1)
        writer.write(image[::2, ::2], tile=(64, 64), photometric="rgb", compression="lzw", subfiletype=1)


def read_everything(path: Path) -> tuple[int, int]:
    """Number of (read, refused) tiles; any error but a TileError goes through."""
    reader = open_reader(path)
    read = refused = 0
    for level, info in enumerate(reader.levels):
        rows, columns = info.grid
        for row in range(min(rows, 8)):
            for column in range(min(columns, 8)):
                try:
                    assert reader.read_tile(level, row, column, info.dct_scales[-1]).ndim == 3
                    read += 1
                except TileError:
                    refused += 1
    for name in reader.associated:
        try:
            reader.read_associated(name)
        except SlideError:
            refused += 1
    reader.close()
    return read, refused


# What cannot be read now


def failing_read(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the so-manieth read of a file fail, as a network file system's do; the reads so far."""
    original, reads = os.pread, []

    def pread(descriptor: int, size: int, at: int) -> bytes:
        reads.append(at)
        if len(reads) == number:
            raise OSError(errno.EIO, "Input/output error")
        return original(descriptor, size, at)

    monkeypatch.setattr("os.pread", pread)
    return reads


@pytest.mark.parametrize("name", ["a.svs", "a.ome.tif", "a.png"])
def test_a_read_that_fails_at_the_opening_never_costs_a_level_or_is_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        Image.fromarray(smooth_image(64, 64)).save(path)
    else:
        write_slide(path, ome=name.endswith("ome.tif"))
    with monkeypatch.context() as patch:
        reads = failing_read(patch, 0)
        expected = open_reader(path)
        expected.fingerprint()
    for number in range(1, len(reads) + 1):
        with monkeypatch.context() as patch:
            failing_read(patch, number)
            with pytest.raises(UnreachableError, match=rf"{name}.*Input/output error"):
                open_reader(path).fingerprint()
    assert open_reader(path).levels == expected.levels


def test_an_image_that_could_not_be_read_once_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_image(64, 64)
    Image.fromarray(image).save(tmp_path / "a.png")
    reader = open_reader(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        failing_read(patch, 1)
        with pytest.raises(UnreachableError, match="Input/output error"):
            reader.read_tile(0, 0, 0)
    np.testing.assert_array_equal(reader.read_tile(0, 0, 0), image)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(tmp_path / "a.svs")

    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.open", denied)
    with pytest.raises(UnreachableError, match=r"a\.svs.*cannot be opened now.*Permission denied"):
        open_reader(tmp_path / "a.svs")


# What is no slide


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"II", "begins with"),
        (b"hello, I am a text\n" * 9, "begins with"),
        (b"%PDF-1.7 ....", "PDF"),
        (b"PK\x03\x04....", "zip"),
        (b"\0" * 128 + b"DICM" + b"\0" * 64, "DICOM"),
        (b"II*\0", "TIFF of 4 bytes"),
        (b"II*\0\xff\xff\xff\x7f" + b"\0" * 40, "TIFF"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "TIFF"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, "TIFF"),
        (b"MM\0*\0\0\0\x08\x00\x05", "TIFF"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"\xff\xd8\xff\xe0", "header"),
        (b"BM\0\0\0\0\0\0\0\0", "header"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
def test_no_slide(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "not a slide.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=message) as failure:
        open_reader(path)
    assert "not a slide.svs" in str(failure.value)


def test_missing_directory_and_url(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"absent\.svs.*no such file"):
        open_reader(tmp_path / "absent.svs")
    with pytest.raises(SlideError, match="directory"):
        open_reader(tmp_path)
    with pytest.raises(SlideError, match="no such file"):
        open_reader("memory://nowhere/absent.svs")
    with pytest.raises(SlideError, match="cannot be opened"):
        open_reader("nosuchprotocol://bucket/a.svs")


def test_backend_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_slide(path)
    assert open_reader(path, backend="tiff").format == "tiff"
    with pytest.raises(SpecError, match="'tiff', 'openslide', 'image'"):
        open_reader(path, backend="openslid")
    with pytest.raises(SlideError, match="backend 'image'"):
        open_reader(path, backend="image")


# Damage


def test_one_corrupt_tile_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_slide(path)
    with tifffile.TiffFile(path) as tif:
        finest, coarsest = (level.pages[0] for level in tif.series[0].levels)
        offset, count = finest.dataoffsets[6], finest.databytecounts[6]
        lossless, size = coarsest.dataoffsets[3], coarsest.databytecounts[3]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = b"\0" * (count - count // 2)
    data[lossless : lossless + size] = b"\xff" * size
    path.write_bytes(data)
    reader = open_reader(path)
    for scale in (1, 8):
        with pytest.raises(TileError, match=r"a\.tif.*level 0, tile \(row 1, column 2\)"):
            reader.read_tile(0, 1, 2, scale)
    with pytest.raises(TileError, match=r"level 1, tile \(row 1, column 1\)"):
        reader.read_tile(1, 1, 1)
    assert read_everything(path) == (18, 2)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_truncated_at_any_length(tmp_path: Path, bigtiff: bool) -> None:
    whole = tmp_path / "whole.tif"
    write_slide(whole, bigtiff=bigtiff)
    data = whole.read_bytes()
    path = tmp_path / "cut.tif"
    outcomes = []
    for length in sorted({1, 4, 8, 10, 16, 100, len(data) - 1, *range(200, len(data), max(1, len(data) // 25))}):
        path.write_bytes(data[:length])
        try:
            outcomes.append(read_everything(path))
        except SlideError:
            outcomes.append((0, 0))
    assert outcomes[0] == (0, 0)
    assert outcomes[-1][1] <= 1
    assert sum(refused for _, refused in outcomes) > 0


def test_directories_at_the_end_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(64, 64), photometric="rgb", tile=(32, 32))
    data = path.read_bytes()
    # the first directory is said to lie beyond the end, as in a download that stopped
    path.write_bytes(data[:4] + struct.pack("<I", len(data) + 1000) + data[8:])
    with pytest.raises(SlideError, match=r"damaged or was cut short|without a single image"):
        open_reader(path)


def _mutations(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not changed:
            break
        kind = rng.integers(4)
        # half the damage in the directories, where the lies are
        limit = len(changed) if rng.random() < 0.5 else min(len(changed), 800)
        at = int(rng.integers(0, limit))
        if kind == 0:
            changed[at] = int(rng.integers(256))
        elif kind == 1:
            changed[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 1, len(data)])))
        elif kind == 2:
            changed[at : at + 16] = rng.bytes(16)
        else:
            del changed[at : at + int(rng.integers(1, 64))]
    return bytes(changed)


def write_flat(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, smooth_image(96, 80), photometric="rgb", **options)


WRITERS: dict[str, Callable[[Path], None]] = {
    "pyramid": write_slide,
    "big": lambda path: write_slide(path, bigtiff=True),
    "strips": lambda path: write_flat(path, compression="lzw", rowsperstrip=8),
    "ome": lambda path: write_flat(path, ome=True, tile=(32, 32)),
    "jpeg2000": lambda path: write_flat(path, tile=(32, 32), compression="jpeg2000"),
    "png": lambda path: path.write_bytes(imagecodecs.png_encode(smooth_image(96, 80))),
    "jpeg": lambda path: path.write_bytes(imagecodecs.jpeg_encode(smooth_image(96, 80))),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")  # tifffile and Pillow warn of what they find: not what is tested
def test_mutations_give_pixels_or_our_errors(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole"
    WRITERS[kind](whole)
    data = whole.read_bytes()
    path = tmp_path / "mutated"
    refused = 0
    for seed in range(40):
        path.write_bytes(_mutations(data, seed))
        try:
            read_everything(path)
        except SlideError:
            refused += 1
    assert refused > 0


# Claims


def _claim(path: Path, **tags: int) -> None:
    """Overwrite tags of the first page."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        for name, value in tags.items():
            tif.pages[0].tags[name].overwrite(value)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageWidth": 1_000_000, "ImageLength": 1_000_000}, "needs .* offsets"),
        ({"ImageWidth": 2_000_000}, "more than 1000000"),
        ({"ImageWidth": 0}, "without an image"),
        ({"TileWidth": 65536, "TileLength": 65536}, "limit is 64 MiB"),
        ({"ImageWidth": 96}, "needs 12 tiles or strips.* 16 offsets"),
    ],
    ids=str,
)
def test_claimed_sizes_allocate_nothing(tmp_path: Path, tags: dict[str, int], message: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(128, 128), tile=(32, 32), photometric="rgb", metadata=None)
    _claim(path, **tags)
    with pytest.raises(SlideError, match=message):
        open_reader(path)


def test_huge_strip_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(64, 64), photometric="rgb", rowsperstrip=64, metadata=None)
    _claim(path, ImageWidth=40_000, ImageLength=40_000, RowsPerStrip=40_000)
    with pytest.raises(SlideError, match="limit is 512 MiB; save it again as a tiled"):
        open_reader(path)


def test_jpeg_tile_that_claims_another_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(64, 64), tile=(32, 32), photometric="ycbcr", compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[1]
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0", offset)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    path.write_bytes(data)
    with pytest.raises(TileError, match="claims 65000 x 65000 px"):
        open_reader(path).read_tile(0, 0, 1)


def test_xml_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    bomb = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><OME><Image Name="&b;"/></OME>'
    tifffile.imwrite(path, smooth_image(32, 32), photometric="rgb", description=bomb, metadata=None)
    with pytest.raises(SlideError, match="entities"):
        open_reader(path)


def test_ome_xml_cannot_name_other_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ome.tif"
    tifffile.imwrite(secret, np.zeros((32, 32, 3), np.uint8), photometric="rgb", ome=True)
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        '<Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint8" SizeX="32" SizeY="32" SizeC="3" SizeZ="1" SizeT="1">'
        '<Channel ID="C:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">'
        '<UUID FileName="secret.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    path = tmp_path / "a.ome.tif"
    image = smooth_image(32, 32)
    tifffile.imwrite(path, image, photometric="rgb", description=xml, metadata=None)
    np.testing.assert_array_equal(open_reader(path).read_tile(0, 0, 0), image)


def test_reading_after_close_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_slide(path)
    reader = open_reader(path)
    reader.close()
    with pytest.raises(UnreachableError, match=r"level 0, tile \(row 0, column 0\): .*closed"):
        reader.read_tile(0, 0, 0)
    with pytest.raises(UnreachableError, match="closed"):
        reader.fingerprint()
    reader.close()
