"""Small slides of the formats that OpenSlide reads and tifffile does not, lossless where the format allows it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def _encoded(pixels: Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_mrxs(path: Path, levels: list[Pixels], *, side: int = 64, mpp: float = 0.25, missing: int = 0) -> None:
    """A MRXS of PNG tiles: the .mrxs, a JPEG, and beside it a folder with Slidedat.ini, Index.dat and Data0000.dat.

    Parameters
    ----------
    levels : (height, width, 3) uint8, each half of the one before, all sides multiples of `side`
    side : of a tile, px
    missing : so many tiles, the first ones of level 0, were never scanned
    """
    slide_id = "ABCDEF0123456789ABCDEF0123456789"
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(_encoded(levels[-1], "JPEG"))
    columns, rows = levels[0].shape[1] // side, levels[0].shape[0] // side
    general = {"SLIDE_ID": slide_id, "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows, "OBJECTIVE_MAGNIFICATION": 40}
    hierarchy: dict[str, object] = {"HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat"}
    hierarchy |= {"HIER_0_NAME": "Slide zoom level", "HIER_0_COUNT": len(levels)}
    hierarchy |= {f"HIER_0_VAL_{i}_SECTION": f"LEVEL_{i}" for i in range(len(levels))}
    sections: dict[str, dict[str, object]] = {
        "GENERAL": {**general, "CameraImageDivisionsPerSide": 1},
        "HIERARCHICAL": hierarchy,
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for i in range(len(levels)):
        sections[f"LEVEL_{i}"] = {
            **dict.fromkeys(("OVERLAP_X", "OVERLAP_Y"), 0),
            **dict.fromkeys(("MICROMETER_PER_PIXEL_X", "MICROMETER_PER_PIXEL_Y"), mpp * 2**i),
            **{"IMAGE_FORMAT": "PNG", "IMAGE_FILL_COLOR_BGR": 0xE0F0FF, "IMAGE_CONCAT_FACTOR": int(i > 0)},
            **dict.fromkeys(("DIGITIZER_WIDTH", "DIGITIZER_HEIGHT"), side),
        }
    lines = [
        line for name, keys in sections.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in keys.items()))
    ]
    (folder / "Slidedat.ini").write_text("\r\n".join([*lines, ""]), encoding="utf-8-sig")
    data, entries = bytearray(b"01.02" + slide_id.encode() + bytes(20)), []
    for i, level in enumerate(levels):
        tiles = []
        for y in range(0, level.shape[0], side):
            for x in range(0, level.shape[1], side):
                tile = _encoded(np.ascontiguousarray(level[y : y + side, x : x + side]), "PNG")
                tiles.append((((y // side) * columns + x // side) * 2**i, len(data), len(tile), 0))
                data += tile
        entries.append(tiles[missing if i == 0 else 0 :])
    (folder / "Data0000.dat").write_bytes(data)
    index = bytearray(b"01.02" + slide_id.encode())
    root, table = len(index), len(index) + 8
    index += bytes(8 + 4 * len(levels))
    struct.pack_into("<i", index, root, table)
    for i, tiles in enumerate(entries):
        struct.pack_into("<i", index, table + 4 * i, len(index))
        index += struct.pack("<4i", 0, len(index) + 8, len(tiles), 0)
        index += b"".join(struct.pack("<4i", *entry) for entry in tiles)
    (folder / "Index.dat").write_bytes(index)


def write_vmu(path: Path, levels: tuple[Pixels, Pixels]) -> None:
    """A Hamamatsu VMU: a text of keys, and beside it two raw images of 12 bits and a JPEG of the glass."""
    names = f"{path.stem}.ngr", f"{path.stem}_map.ngr", f"{path.stem}_macro.jpg"
    for name, level in zip(names, levels, strict=False):
        height, width = level.shape[:2]
        columns = [np.ascontiguousarray(level[:, x : x + 64]).astype("<u2") << 4 for x in range(0, width, 64)]
        head = b"GN\0\0" + struct.pack("<3i8xi36x", width, height, 64, 64)
        (path.parent / name).write_bytes(head + b"".join(column.tobytes() for column in columns))
    _write_key_file(
        path, "Uncompressed Virtual Microscope Specimen", names, levels[1], BitsPerPixel=36, PixelOrder="RGB"
    )


def write_vms(path: Path, image: Pixels) -> Pixels:
    """A Hamamatsu VMS: a text of keys, and beside it three JPEGs; returns level 0 as it is decoded."""
    names = f"{path.stem}.jpg", f"{path.stem}_map2.jpg", f"{path.stem}_macro.jpg"
    for name, pixels in zip(names, (image, image[::2, ::2]), strict=False):
        jpeg = _encoded(np.ascontiguousarray(pixels), "JPEG", quality=90, subsampling="4:4:4", restart_marker_blocks=8)
        (path.parent / name).write_bytes(jpeg)
    _write_key_file(path, "Virtual Microscope Specimen", names, image[::2, ::2], NoJpegColumns=1, NoJpegRows=1)
    return np.asarray(Image.open(path.parent / names[0]))


def _write_key_file(path: Path, kind: str, names: tuple[str, str, str], macro: Pixels, **more: object) -> None:
    (path.parent / names[2]).write_bytes(_encoded(np.ascontiguousarray(macro), "JPEG"))
    keys = {"NoLayers": 1, "ImageFile": names[0], "MapFile": names[1], "MacroImage": names[2], "SourceLens": 20}
    keys |= {"PhysicalWidth": macro.shape[1] * 2 * 500, "PhysicalHeight": macro.shape[0] * 2 * 500}
    lines = [f"[{kind}]", *(f"{key}={value}" for key, value in {**keys, **more}.items()), ""]
    path.write_text("\n".join(lines))


def write_trestle(path: Path, levels: list[Pixels]) -> None:
    """A Trestle TIFF without overlaps: all its directories are levels, and its background is E6E6E6."""
    text = "Background Color=e6e6e6;Objective Power=20;JPEG Quality=80;OverlapsXY=" + "0 0 " * len(levels) + ";"
    with tifffile.TiffWriter(path) as writer:
        for level in levels:
            options: dict[str, Any] = {"photometric": "rgb", "compression": "lzw", "metadata": None}
            writer.write(level, tile=(64, 64), software="MedScan 1.0", description=text, **options)


def write_bif(path: Path, levels: list[Pixels], *, side: int = 64, overlap: int = 0) -> None:
    """A Ventana BIF of one area, its tiles stored by rows and numbered from the lower left, there and back."""
    rows, columns = levels[0].shape[0] // side, levels[0].shape[1] // side

    def number(column: int, row: int) -> int:
        return row * columns + (column if row % 2 == 0 else columns - 1 - column) + 1

    right = [("RIGHT", (c, r), (c + 1, r), (overlap, 0)) for r in range(rows) for c in range(columns - 1)]
    up = [("UP", (c, r), (c, r + 1), (0, overlap)) for r in range(rows - 1) for c in range(columns)]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{direction}" Tile1="{number(*one)}" '
        f'Tile2="{number(*other)}" OverlapX="{x}" OverlapY="{y}"/>'
        for direction, one, other, (x, y) in right + up
    )
    size = f'NumRows="{rows}" NumCols="{columns}" Width="{side}" Height="{side}" Pos-X="0" Pos-Y="0"'
    encode_info = (
        f'<?xml version="1.0"?><EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" {size}>'
        f'{joints}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = '<?xml version="1.0"?><iScan Magnification="20" ScanRes="0.5" UnitNumber="1"/>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for i, (level, text) in enumerate(zip([levels[-1], *levels], [scan, encode_info, scan, scan], strict=False)):
            facts: dict[str, Any] = {
                "description": f"level={i - 1} mag={20 >> max(i - 1, 0)} quality=90",
                "tile": (side,) * 2,
            }
            facts = facts if i else {"description": "Label Image"}
            tags = [(700, 1, len(text), text.encode(), True)]
            writer.write(level, photometric="rgb", compression="lzw", metadata=None, extratags=tags, **facts)
