"""The markers of a JPEG stream: what it says before its pixels, and the stream without bytes that belong to nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["EOI", "RST0", "SOI", "JpegHeader", "read_header", "tables_only", "without_strays"]

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
RST0 = b"\xff\xd0"


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG stream says before its pixels.

    Attributes
    ----------
    size : (height, width), or None where there is no frame header
    process : the frame's SOF number: 0 baseline, 1 extended, 2 progressive
    precision : bits per sample
    components : per component its id and (horizontal, vertical) sampling
    has_jfif, adobe : markers that decide the colour space; `adobe` is the transform, or None
    """

    size: tuple[int, int] | None = None
    process: int = -1
    precision: int = 0
    components: tuple[tuple[int, tuple[int, int]], ...] = ()
    has_jfif: bool = False
    adobe: int | None = None


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, end) of the segments up to the first scan or the end; bytes between them are skipped.

    As libjpeg does: whatever is no marker is passed over until one comes.
    """
    position = 2 if stream[:2] == SOI else 0
    while True:
        position = stream.find(b"\xff", position)
        if position < 0 or position + 4 > len(stream):
            return
        marker = stream[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return
        end = position + 2 + max(2, *struct.unpack_from(">H", stream, position + 2))
        yield marker, position, end
        if marker == 0xDA:
            return
        position = end


def read_header(stream: bytes) -> JpegHeader:
    """Markers of a JPEG stream up to its first scan; stops without a word where the bytes end."""
    facts: dict[str, Any] = {}
    for marker, first, end in _segments(stream):
        body = stream[first + 4 : end]
        if marker == 0xE0 and body[:4] == b"JFIF":
            facts["has_jfif"] = True
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            facts["adobe"] = body[11]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            precision, height, width, count = struct.unpack_from(">BHHB", body)
            triples = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
            if all(len(triple) == 3 for triple in triples):
                facts["components"] = tuple((t[0], (t[1] >> 4, t[1] & 15)) for t in triples)
            facts.update(size=(height, width), process=marker - 0xC0, precision=precision)
    return JpegHeader(**facts)


def tables_only(tables: bytes | None) -> bytes:
    """The segments of a TIFF's JPEGTables, without what frames them."""
    return b"".join(tables[first:end] for _, first, end in _segments(tables)) if tables else b""


def without_strays(stream: bytes) -> bytes:
    """The stream from SOI to EOI without bytes between its first segments and after its end; a missing EOI is added."""
    parts, scan = [SOI], len(stream)
    for marker, first, end in _segments(stream):
        if marker == 0xDA:
            scan = first
        else:
            parts.append(stream[first:end])
    end = stream.rfind(EOI, scan)
    return b"".join((*parts, stream[scan:end] if end >= 0 else stream[scan:], EOI))
