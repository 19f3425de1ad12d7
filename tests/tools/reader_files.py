"""TIFF files that tifffile does not write: JPEG tiles with chosen markers, and Hamamatsu's striped NDPI."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image


def smooth_image(height: int, width: int) -> NDArray[np.uint8]:
    """Coloured waves with a little noise: something that JPEG keeps, different in every tile and channel."""
    y, x = np.mgrid[:height, :width].astype(float)
    noise = np.random.default_rng(height * 10_007 + width).normal(0, 2, (height, width))
    channels = [
        150 + 70 * np.sin(x / 41 + phase) * np.cos(y / 33) + 20 * np.sin((x + y) / 9) + noise for phase in (0, 1, 2.2)
    ]
    return np.clip(np.dstack(channels), 0, 255).astype(np.uint8)


def empty_tiles(path: Path, page: int, *tiles: int) -> None:
    """Let a page's table say that some tiles have 0 bytes."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[page].tags  # type: ignore[union-attr]
        for name in ("TileOffsets", "TileByteCounts"):
            values = list(tags[name].value)
            for tile in tiles:
                values[tile] = 0
            tags[name].overwrite(values)


def _segments(stream: bytes) -> tuple[dict[int, bytes], bytes]:
    """Marker segments of a JPEG before its scan (several of one kind joined), and the scan with its header."""
    found: dict[int, bytes] = {}
    position = 2
    while stream[position + 1] != 0xDA:
        marker = stream[position + 1]
        (length,) = struct.unpack_from(">H", stream, position + 2)
        found[marker] = found.get(marker, b"") + stream[position : position + 2 + length]
        position += 2 + length
    return found, stream[position:]


def write_jpeg_tiff(
    path: Path, image: NDArray[np.uint8], *, photometric: int, subsampling: str, with_jfif: bool, side: int = 128
) -> None:
    """A tiled JPEG TIFF as scanners write it: tables once in JPEGTables, tiles without them, with or without JFIF.

    Photometric RGB without JFIF holds RGB components with ids 1, 2, 3: a decoder that guesses by them is wrong. With
    JFIF the components are YCbCr, whatever the TIFF says.
    """
    is_rgb = photometric == 2 and not with_jfif
    tiles, tables = [], b""
    for y in range(0, image.shape[0], side):
        for x in range(0, image.shape[1], side):
            file = io.BytesIO()
            tile = Image.fromarray(image[y : y + side, x : x + side])
            tile.save(file, "JPEG", quality=90, subsampling=subsampling, keep_rgb=is_rgb)
            segments, scan = _segments(file.getvalue())
            tables = b"\xff\xd8" + segments[0xDB] + segments[0xC4] + b"\xff\xd9"
            frame = segments[0xC0]
            if is_rgb:  # ids R, G, B become 1, 2, 3
                for index, letter in enumerate(b"RGB"):
                    frame = frame.replace(bytes([letter]), bytes([index + 1]), 1)
                    scan = scan.replace(bytes([letter]), bytes([index + 1]), 1)
            tiles.append(b"\xff\xd8" + (segments[0xE0] if with_jfif else b"") + frame + scan)
    _write_tiles(path, image.shape, tiles, tables, side=side, photometric=photometric)


def _write_tiles(
    path: Path, shape: tuple[int, ...], tiles: list[bytes], tables: bytes, *, side: int, photometric: int
) -> None:
    """A classic little-endian TIFF of one page."""
    offsets, position = [], 8
    for tile in tiles:
        offsets.append(position)
        position += len(tile)
    entries: list[tuple[int, int, bytes]] = [
        (256, 4, struct.pack("<I", shape[1])),
        (257, 4, struct.pack("<I", shape[0])),
        (258, 3, struct.pack("<3H", 8, 8, 8)),
        (259, 3, struct.pack("<H", 7)),
        (262, 3, struct.pack("<H", photometric)),
        (277, 3, struct.pack("<H", 3)),
        (284, 3, struct.pack("<H", 1)),
        (322, 4, struct.pack("<I", side)),
        (323, 4, struct.pack("<I", side)),
        (324, 4, struct.pack(f"<{len(tiles)}I", *offsets)),
        (325, 4, struct.pack(f"<{len(tiles)}I", *map(len, tiles))),
        (347, 7, tables),
    ]
    path.write_bytes(b"II*\0" + struct.pack("<I", position) + b"".join(tiles) + _directory(entries, position))


def write_ndpi(path: Path, image: NDArray[np.uint8], *, blocks: int) -> NDArray[np.uint8]:
    """A NDPI of one page: one JPEG with a restart marker every `blocks` MCUs, whose places are listed in a tag.

    Returns
    -------
    expected : the JPEG decoded whole
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling="4:4:4", restart_marker_blocks=blocks)
    stream = file.getvalue()
    scan = stream.index(b"\xff\xda")
    (length,) = struct.unpack_from(">H", stream, scan + 2)
    starts = [scan + 2 + length]
    starts += [i + 2 for i in range(starts[0], len(stream) - 1) if stream[i] == 0xFF and 0xD0 <= stream[i + 1] <= 0xD7]
    entries: list[tuple[int, int, bytes]] = [
        (256, 4, struct.pack("<I", image.shape[1])),
        (257, 4, struct.pack("<I", image.shape[0])),
        (258, 3, struct.pack("<3H", 8, 8, 8)),
        (259, 3, struct.pack("<H", 7)),
        (262, 3, struct.pack("<H", 6)),
        (271, 2, b"Hamamatsu\0"),
        (273, 4, struct.pack("<I", 16)),
        (277, 3, struct.pack("<H", 3)),
        (278, 4, struct.pack("<I", image.shape[0])),
        (279, 4, struct.pack("<I", len(stream))),
        (282, 5, struct.pack("<2I", 22000, 1)),
        (283, 5, struct.pack("<2I", 22000, 1)),
        (296, 3, struct.pack("<H", 3)),
        (530, 3, struct.pack("<2H", 1, 1)),
        (65420, 4, struct.pack("<I", 1)),
        (65421, 11, struct.pack("<f", 20.0)),
        (65424, 9, struct.pack("<i", 0)),
        (65426, 4, struct.pack(f"<{len(starts)}I", *starts)),
    ]
    position = 16 + len(stream)
    header = b"II*\0" + struct.pack("<Q", position) + b"\0" * 4
    path.write_bytes(header + stream + _directory(entries, position, is_ndpi=True))
    return np.asarray(Image.open(io.BytesIO(stream)))


def _directory(entries: list[tuple[int, int, bytes]], position: int, *, is_ndpi: bool = False) -> bytes:
    """A TIFF directory at `position`, values behind it; NDPI's keeps the high halves of its 64-bit offsets apart."""
    sizes = {2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 11: 4}
    values = position + 2 + 12 * len(entries) + (8 + 4 * len(entries) if is_ndpi else 4)
    table, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, value in entries:
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack("<I", values + len(tail))
            tail += value
        table += struct.pack("<HHI", tag, kind, len(value) // sizes[kind]) + field
    return table + (b"\0" * (8 + 4 * len(entries)) if is_ndpi else b"\0" * 4) + tail
