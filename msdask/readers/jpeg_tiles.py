"""JPEG tiles of a TIFF, decoded fast: tables merged once into a prefix, scaled by the decoder where asked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

__all__ = ["DCT_SCALES", "JpegHeader", "JpegTiles", "coded_size", "read_header"]

DCT_SCALES = (1, 2, 4, 8)
"""Reductions that a JPEG decoder gives from the DCT coefficients alone."""

_SOI = b"\xff\xd8"
_EOI = b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""APP14 without its last byte, the colour transform: 0 = RGB, 1 = YCbCr."""
_SUBSAMPLINGS = {(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)}


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


def read_header(stream: bytes) -> JpegHeader:
    """Markers of a JPEG stream up to its first scan; stops without a word where the bytes end."""
    facts: dict[str, Any] = {}
    position = 2 if stream[:2] == _SOI else 0
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", stream, position + 2)
        body = stream[position + 4 : position + 2 + length]
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
        position += 2 + max(length, 2)
    return JpegHeader(**facts)


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG or JPEG 2000 stream claims, or None: decoders allocate by it, so check it first."""
    if data[:2] == _SOI:
        return read_header(data).size
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # a bare codestream, or one inside a JP2 file's boxes
    if start >= 0 and len(data) >= start + 24:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return max(0, bottom - top), max(0, right - left)
    return None


class JpegTiles:
    """Decoder of the JPEG tiles of one TIFF page.

    Made by `for_page`, which gives None wherever the fast way might differ from the general one. Strict: what libjpeg
    only warns of (bytes missing, left over, or senseless) is an error. JPEG has no checksum: of single flipped bytes
    about a third are found, of 32 damaged bytes in a row nine in ten, of cut tiles all.
    """

    __slots__ = ("_has_app", "_prefix", "_skip", "_suffix")

    def __init__(self, prefix: bytes, *, skip: int, suffix: bytes, has_app: bool) -> None:
        self._prefix = prefix
        self._skip = skip
        self._suffix = suffix
        self._has_app = has_app

    @classmethod
    def for_page(
        cls, sample: bytes, *, photometric: Literal["rgb", "ycbcr", "gray"], tables: bytes | None, header: bytes | None
    ) -> JpegTiles | None:
        """Decoder for tiles like `sample`, or None if they need the general way.

        Parameters
        ----------
        sample : the first bytes of one tile
        photometric : what the TIFF says of the colours
        tables : the page's JPEGTables, a stream of tables between SOI and EOI
        header : NDPI's tile header, before tiles that are bare entropy-coded segments
        """
        if header is None and sample[:2] != _SOI:
            return None
        shared = b"" if tables is None else tables.removeprefix(_SOI).removesuffix(_EOI)
        found = read_header(header if header is not None else _SOI + shared + sample[2:])
        if not _is_plain(found, photometric):
            return None
        if header is not None:
            # the frame of the whole image, resized by tifffile to one tile: its markers stay, its end is missing
            return cls(header, skip=0, suffix=_EOI, has_app=False) if header[:2] == _SOI else None
        # libjpeg believes JFIF before Adobe, and guesses by component ids where there is neither
        is_ycbcr = photometric == "ycbcr" or found.has_jfif
        marker = b"" if photometric == "gray" else _ADOBE + bytes([is_ycbcr])
        return cls(_SOI + marker + shared, skip=2, suffix=b"", has_app=_starts_with_app(sample))

    def decode(
        self, data: bytes, height: int, width: int, scale: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8] | None:
        """One tile of `height` x `width` px as RGB, reduced by `scale`; None if this tile needs the general way.

        `out` is used for the pixels if it has their shape.

        Raises
        ------
        ValueError
            The tile is damaged; says what libjpeg said.
        """
        if self._skip:
            if len(data) < 4 or data[:2] != _SOI or (data[3] & 0xF0 == 0xE0) is not self._has_app:
                return None
            stream = self._prefix + memoryview(data)[2:]
        else:
            is_marked = len(data) >= 2 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD9
            stream = self._prefix + (data[:-2] if is_marked else data) + self._suffix
        height //= scale
        width //= scale
        # a buffer of our own: the decoder refuses to write more than it holds, whatever the stream claims
        pixels = out if out is not None and out.shape == (height, width, 3) else np.empty((height, width, 3), np.uint8)
        try:
            decoded = simplejpeg.decode_jpeg(stream, "RGB", min_height=height, min_width=width, buffer=pixels)
        except ValueError:
            size = read_header(stream).size
            if size is not None and size != (height * scale, width * scale):
                return None  # cut at the edge, or padded: legal
            raise
        return pixels if decoded.shape == pixels.shape else None


def _starts_with_app(stream: bytes) -> bool:
    return len(stream) >= 4 and stream[3] & 0xF0 == 0xE0


def _is_plain(found: JpegHeader, photometric: str) -> bool:
    """Whether every reader would give such a stream the same colours."""
    if found.process not in (0, 1, 2) or found.precision != 8:
        return False
    samplings = [sampling for _, sampling in found.components]
    if photometric == "gray":
        return len(samplings) == 1 and samplings[0] == (1, 1)
    if len(samplings) != 3 or samplings[0] not in _SUBSAMPLINGS or samplings[1:] != [(1, 1), (1, 1)]:
        return False
    ids = bytes(component for component, _ in found.components)
    if photometric == "rgb":
        if found.has_jfif:
            return found.adobe is None
        return samplings[0] == (1, 1) and found.adobe in (None, 0)
    return found.adobe in (None, 1) and (found.has_jfif or ids != b"RGB")
