"""What a coded picture claims of itself, by its own header: decoders allocate by it, so it is looked at first."""

from __future__ import annotations

import struct
from collections.abc import Callable

from msdask.readers.jpeg_header import SOI, read_header

__all__ = ["MAX_JPEG_SCANS", "claimed_size", "is_baseline", "scan_count"]

MAX_JPEG_SCANS = 50
"""Encoders make 10, those that search for the best order a few more; each scan goes through the whole picture."""

_J2K_START = b"\xff\x4f\xff\x51"
_BOX_STARTS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n")
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, of a JPEG XL header that states the height alone."""


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG, JPEG 2000, JPEG XL, WebP, PNG, JPEG XR or LERC stream; None for other bytes.

    (0, 0) where it begins like one of these, but says no size.
    """
    read = next((read for start, read in _READERS if data.startswith(start)), None)
    if read is None:
        return None
    try:
        return read(data)
    except (struct.error, IndexError):
        return 0, 0


def scan_count(stream: bytes) -> int:
    """Scans of a JPEG stream: in coded pixels a 0xFF is followed by 0, so that these two bytes are a marker."""
    return stream.count(b"\xff\xda")


def is_baseline(stream: bytes) -> bool:
    """Whether a JPEG stream's frame is surely no progressive one: looked up in a fortieth of the time of counting."""
    first_scan = stream.find(b"\xff\xda")
    return first_scan > 0 and stream.find(b"\xff\xc0\0", 0, first_scan) > 0


def _jpeg(data: bytes) -> tuple[int, int]:
    return read_header(data).size or (0, 0)


def _jpeg2000(data: bytes) -> tuple[int, int]:
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    return max(0, bottom - top), max(0, right - left)


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _webp(data: bytes) -> tuple[int, int]:
    """The largest of what the chunks claim: the canvas, and each picture."""
    found, at = [(0, 0)], 12
    while at + 18 <= len(data):
        kind, (size,), body = data[at : at + 4], struct.unpack_from("<I", data, at + 4), data[at + 8 : at + 22]
        if kind == b"VP8X":
            found.append((1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")))
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            found.append((height & 0x3FFF, width & 0x3FFF))
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            found.append((1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)))
        at += 8 + size + size % 2
    return max(found, key=lambda size: size[0] * size[1])


def _jpeg_xr(data: bytes) -> tuple[int, int]:
    """Its container is a directory like a TIFF's, with tags of its own for the sizes."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = struct.iter_unpack("<HHIHH", data[at + 2 : at + 2 + 12 * count][: 12 * (len(data) // 12)])
    sizes = {tag: low | (high << 16 if kind == 4 else 0) for tag, kind, _, low, high in entries}
    return sizes.get(0xBC81, 0), sizes.get(0xBC80, 0)


def _lerc(data: bytes) -> tuple[int, int]:
    (version,) = struct.unpack_from("<i", data, 6)
    height, width = struct.unpack_from("<ii", data, 14 if version >= 3 else 10)
    return abs(height), abs(width)


def _boxes(data: bytes) -> tuple[int, int]:
    """The codestream inside a JP2 or JPEG XL file's boxes."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        body += 4 if kind == b"jxlp" else 0
        if kind in (b"jp2c", b"jxlc", b"jxlp"):
            stream = data[body : body + 64]
            return (_jpeg2000 if stream.startswith(_J2K_START) else _jpeg_xl)(stream)
        if not size:
            break
        at += max(size, 8)
    return 0, 0


def _jpeg_xl(data: bytes) -> tuple[int, int]:
    """Its sizes are numbers of few bits each."""
    bits = int.from_bytes(data[2:18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def length(is_small: int) -> int:
        return 8 * (1 + take(5)) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    is_small = take(1)
    height = length(is_small)
    ratio = take(3)
    if not ratio:
        return height, length(is_small)
    across, down = _JXL_RATIOS[ratio - 1]
    return height, height * across // down


_READERS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...] = (
    (SOI, _jpeg),
    (_J2K_START, _jpeg2000),
    (_BOX_STARTS[0], _boxes),
    (_BOX_STARTS[1], _boxes),
    (b"\xff\x0a", _jpeg_xl),
    (b"RIFF", _webp),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"II\xbc", _jpeg_xr),
    (b"Lerc2 ", _lerc),
)
