"""JPEG tiles of a TIFF, decoded fast: tables merged once into a prefix, scaled by the decoder where asked."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from msdask.readers.coded_size import MAX_JPEG_SCANS, is_baseline, scan_count
from msdask.readers.jpeg_header import EOI, SOI, JpegHeader, read_header, tables_only, without_strays
from msdask.readers.jpeg_restarts import PADDING, without_interval_strays

__all__ = ["DCT_SCALES", "JpegTiles", "decode_rgb"]

DCT_SCALES = (1, 2, 4, 8)
"""Reductions that a JPEG decoder gives from the DCT coefficients alone."""

_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""APP14 without its last byte, the colour transform: 0 = RGB, 1 = YCbCr."""
_SUBSAMPLINGS = {(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)}
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd([0-79])")
_MAX_LEFT_OVER = 16
"""Bytes of any value that may follow the last pixel; a damaged stream leaves over more, mostly."""
_HARMLESS = ("Invalid SOS parameters", "Unknown Adobe color transform", "Warning: unknown JFIF revision")
"""What libjpeg says of headers whose pixels are whole."""


def decode_rgb(stream: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a JPEG stream into `pixels`, (height, width, 3): strictly, but for bytes that belong to nothing.

    What libjpeg only warns of (bytes missing or senseless) is an error here. Bytes between the segments of the header,
    after the end, and before restart markers and the end marker (a run of one value, or up to 16 of any) are left out,
    as other decoders do: then what is left must be whole. A reduction by 2, 4 or 8 follows from the size of `pixels`.

    Raises
    ------
    ValueError
        The stream is damaged, or has more scans than any encoder makes.
    """
    if not is_baseline(stream) and (scans := scan_count(stream)) > MAX_JPEG_SCANS:
        raise ValueError(f"{scans} scans, the limit is {MAX_JPEG_SCANS}")
    try:
        return _decode(stream, pixels)
    except ValueError:
        tidy = without_strays(stream)
    try:
        return _decode_end(tidy, pixels)
    except ValueError as error:
        found = _LEFT_OVER.search(str(error))
        if found is None or found[2] == "9":
            raise
        whole = without_interval_strays(tidy, _stray_bytes)
        if whole is None:
            raise
    return _decode_end(whole, pixels)


def _decode_end(stream: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a stream that may have stray bytes before its end marker."""
    try:
        return _decode(stream, pixels)
    except ValueError as error:
        if str(error).startswith(_HARMLESS):
            return _decode(stream, pixels, is_strict=False)  # it is the last warning: none came after
        found = _LEFT_OVER.search(str(error))
        count = int(found[1]) if found is not None else 0
        if found is None or found[2] != "9" or not _may_be_left_out(stream[:-2], count):
            raise
    return _decode(stream[: -2 - count] + EOI, pixels)


def _stray_bytes(picture: bytes, interval: bytes) -> int:
    """How many bytes at the end of an interval belong to nothing, in a picture of it; or a ValueError."""
    try:
        simplejpeg.decode_jpeg(picture, "RGB", strict=True)
    except ValueError as error:
        found = _LEFT_OVER.search(str(error))
        count = int(found[1]) - PADDING if found is not None and found[2] == "0" else -1
        if count < 0 or not _may_be_left_out(interval, count):
            raise
        return count
    raise ValueError("a restart interval of too few bytes")


def _may_be_left_out(coded: bytes, count: int) -> bool:
    """Whether bytes at the end of what was coded may be strays: a few, or a run of one value."""
    return count <= _MAX_LEFT_OVER or len(set(coded[-count:])) == 1


def _decode(stream: bytes, pixels: NDArray[np.uint8], *, is_strict: bool = True) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        stream, "RGB", min_height=height, min_width=width, buffer=pixels, strict=is_strict
    )
    return decoded


class JpegTiles:
    """Decoder of the JPEG tiles of one TIFF page.

    Made by `for_page`, which gives None wherever the fast way might differ from the general one. Strict, see
    `decode_rgb`. JPEG has no checksum: of single flipped bytes about a third are found, of 32 damaged bytes in a row
    nine in ten, of cut tiles all.
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
        if header is None and sample[:2] != SOI:
            return None
        shared = tables_only(tables)
        found = read_header(header if header is not None else SOI + shared + sample[2:])
        if not _is_plain(found, photometric):
            return None
        if header is not None:
            # the frame of the whole image, resized by tifffile to one tile: its markers stay, its end is missing
            return cls(header, skip=0, suffix=EOI, has_app=False) if header[:2] == SOI else None
        # libjpeg believes JFIF before Adobe, and guesses by component ids where there is neither
        is_ycbcr = photometric == "ycbcr" or found.has_jfif
        marker = b"" if photometric == "gray" else _ADOBE + bytes([is_ycbcr])
        return cls(SOI + marker + shared, skip=2, suffix=b"", has_app=_starts_with_app(sample))

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
            if len(data) < 4 or data[:2] != SOI or (data[3] & 0xF0 == 0xE0) is not self._has_app:
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
            decoded = decode_rgb(stream, pixels)
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
