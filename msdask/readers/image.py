"""Plain images (PNG, JPEG, BMP, WebP) as slides of one level.

The header decides whether the image may be decoded, by the memory that this takes at its peak; it is decoded once, at
the first tile, and kept with the reader. EXIF orientation is ignored (coordinates are those of the stored pixels), and
so are print densities (pHYs, JFIF): they are defaults of the writing program, not scales. Pixels become RGB by the
rules of the TIFF reader; CMYK and float are refused.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SlideError, SpecError, TileError, UnreachableError
from msdask.readers.base import LevelInfo, SlideMetadata
from msdask.readers.coded_size import MAX_JPEG_SCANS, scan_count
from msdask.readers.jpeg_header import read_header
from msdask.readers.jpeg_tiles import decode_rgb
from msdask.readers.place import Place
from msdask.readers.to_rgb import by_rows, gray_to_rgb, over_background, to_uint8
from msdask.storage.source import ByteSource, SourceFile, fingerprint

__all__ = [
    "IMAGE_ERRORS",
    "MAX_DECODED_BYTES",
    "ImageReader",
    "accepts",
    "check_png_rows",
    "image_format",
    "open_image",
    "open_place",
]

MAX_DECODED_BYTES = 512 << 20
"""Of memory at once: what the decoder holds beside the picture counts, too."""
_TILE = 512

IMAGE_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,  # Pillow's UnidentifiedImageError and every truncated file
    RuntimeError,  # every imagecodecs error
    SyntaxError,  # Pillow's broken PNG
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow, simplejpeg and imagecodecs raise on damaged images."""

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of an interlaced PNG's passes."""
_HEADER = 1 << 20
"""Bytes in which a JPEG's frame is looked for, behind colour profiles and thumbnails."""
_ROWS = 64
"""That Pillow's picture is copied by: all at once would be two copies more."""
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I;16B", "I"}


def image_format(head: bytes) -> str | None:
    """Name of the format ("PNG", "JPEG", "BMP", "WEBP") or None, by a file's first 12 bytes or more."""
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:2] == b"BM" and len(head) > 5 and head[6:10] == b"\0\0\0\0":
        return "BMP"
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def accepts(place: Place) -> bool:
    """See `ReaderModule.accepts`."""
    return image_format(place.head) is not None


def open_place(place: Place) -> ImageReader:
    """See `ReaderModule.open_place`."""
    return ImageReader(place.open())


def open_image(source: ByteSource, *, kind: str) -> Image.Image:
    """Pillow's lazy image of a source: its header is read, no pixel decoded. `kind` is one of `image_format`."""
    with warnings.catch_warnings():
        # the caller's own limit decides, with an error that says what to do
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(SourceFile.buffered(source), formats=[kind])


def check_png_rows(data: bytes) -> None:
    """Refuse a PNG whose pixel data ends before its last row: Pillow gives black rows there, without a word.

    Raises
    ------
    ValueError
        Says how much there is, and how much the header promises.
    """
    width, height, bits, color, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    depth = bits * _PNG_CHANNELS[color]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    expected = sum(rows * (1 + -(-columns * depth // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    inflate, found, at = zlib.decompressobj(), 0, 8
    while at + 12 <= len(data) and found < expected and not inflate.eof:
        (length,) = struct.unpack_from(">I", data, at)
        part = data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        while part and found < expected:
            found += len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
        at += 12 + length
    if found < expected:
        raise ValueError(f"{found} bytes of rows, {width} x {height} px need {expected}")


class ImageReader:
    """A slide of one level in a PNG, JPEG, BMP or WebP file. Thread-safe; opening reads the header."""

    format = "image"
    associated: tuple[str, ...] = ()

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._pixels: NDArray[np.uint8] | None = None
        self._failure: Exception | None = None
        try:
            kind = image_format(source.read(0, 16))
            if kind is None:
                raise SlideError(
                    f"slide {source.path!r}: not a PNG, JPEG, BMP or WebP image; give one of these, or a TIFF"
                )
            self._kind = kind
            header = source.read(24, 2) if kind == "PNG" else b""
            with open_image(source, kind=kind) as image:
                width, height, mode = *image.size, image.mode
                self._is_direct = _is_direct(kind, header, "transparency" in image.info, getattr(image, "n_frames", 1))
                properties = {
                    f"image.{key}": str(value)
                    for key, value in image.info.items()
                    if isinstance(value, str | int | float | tuple)
                }
        except (SlideError, UnreachableError):
            source.close()
            raise
        except IMAGE_ERRORS as error:
            source.close()
            if isinstance(error, Image.DecompressionBombError):
                raise SlideError(self._too_large("too many pixels")) from error
            raise SlideError(
                f"slide {source.path!r}: an image whose header cannot be read ({type(error).__name__}: {error}); it is "
                "damaged or was cut short: copy it again"
            ) from error
        try:
            self._check(width, height, mode, bytes_per_sample=2 if header[:1] == b"\x10" else 1)
        except SlideError:
            source.close()
            raise
        self.levels: tuple[LevelInfo, ...] = (LevelInfo((height, width), (_TILE, _TILE)),)
        properties |= {"image.format": kind, "image.mode": mode}
        self.metadata = SlideMetadata(vendor="generic", properties=properties)

    def _check(self, width: int, height: int, mode: str, *, bytes_per_sample: int) -> None:
        if width < 1 or height < 1:
            raise SlideError(f"slide {self._source.path!r}: claims {width} x {height} px; it is damaged: copy it again")
        peak = width * height * self._bytes_a_pixel(mode, bytes_per_sample) + self._source.size
        if self._kind == "JPEG" and 3 * peak > MAX_DECODED_BYTES and not self._is_baseline():
            peak = 3 * peak - 2 * self._source.size  # of several scans the coefficients are kept, 2 bytes each
        if peak > MAX_DECODED_BYTES:
            raise SlideError(self._too_large(f"{width} x {height} px take {peak >> 20} MiB of memory and"))
        if mode not in _MODES:
            raise SlideError(
                f"slide {self._source.path!r}: pixels of mode {mode} in a {self._kind}; expected RGB, RGBA, gray or a "
                "palette of 8 or 16 bits: convert it to RGB"
            )

    def _is_baseline(self) -> bool:
        return read_header(self._source.read(0, _HEADER)).process in (0, 1)

    def _bytes_a_pixel(self, mode: str, bytes_per_sample: int) -> int:
        """Memory at the peak: the decoded picture, and the RGB made of it where that is another array."""
        if not self._is_direct:
            inside = 4 if mode in ("RGB", "RGBA", "RGBX", "LA", "PA") else 1
            return 3 + (16 if self._kind == "WEBP" else inside)  # of an animation, two frames and two copies
        if self._kind == "JPEG":
            return 3
        channels = {"L": 1, "1": 1, "LA": 2, "RGBA": 4}.get(mode, 1 if mode.startswith("I") else 3)
        inside = 4 if self._kind == "WEBP" else 0  # a lossless one is decoded to four channels before
        return channels * bytes_per_sample + inside + (0 if (channels, bytes_per_sample) == (3, 1) else 3)

    def _too_large(self, found: str) -> str:
        return (
            f"slide {self._source.path!r}: {found} would be decoded at once, the limit is {MAX_DECODED_BYTES >> 20} "
            "MiB; save it as a tiled, pyramidal TIFF"
        )

    def read_tile(
        self, level: int, row: int, column: int, scale: int = 1, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Reader.read_tile`. The first call decodes the whole image; edge tiles are cut."""
        rows, columns = self.levels[0].grid
        if level != 0 or scale != 1 or not (0 <= row < rows and 0 <= column < columns):
            raise SpecError(
                f"tile (row {row}, column {column}) of level {level} reduced by {scale}: slide {self._source.path!r} "
                f"has one level of {rows} x {columns} tiles, not reducible"
            )
        pixels = self._decoded(row, column)
        return pixels[row * _TILE : (row + 1) * _TILE, column * _TILE : (column + 1) * _TILE].copy()

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """See `Reader.read_associated`: a plain image has none."""
        raise SpecError(f"associated image {name!r}: slide {self._source.path!r} is a plain image and has none")

    def fingerprint(self) -> str:
        """See `Reader.fingerprint`."""
        return fingerprint(self._source)

    def close(self) -> None:
        """See `Reader.close`."""
        self._source.close()
        self._pixels = None

    def _decoded(self, row: int, column: int) -> NDArray[np.uint8]:
        pixels = self._pixels
        if pixels is not None:
            return pixels
        with self._lock:
            if self._pixels is None and self._failure is None:
                try:
                    self._pixels = self._decode()
                except IMAGE_ERRORS as error:  # kept: the other tiles need not try again
                    self._failure = error
            if self._pixels is None:
                raise TileError(
                    f"slide {self._source.path!r}: level 0, tile (row {row}, column {column}) cannot be decoded "
                    f"({type(self._failure).__name__}: {self._failure}); expected a whole {self._kind}: copy it again"
                ) from self._failure
            return self._pixels

    def _decode(self) -> NDArray[np.uint8]:
        height, width = self.levels[0].shape
        data = self._source.read(0, self._source.size)
        if self._kind == "PNG":
            check_png_rows(data)
        with open_image(self._source, kind=self._kind) as image:
            if image.size != (width, height):
                raise ValueError(f"now {image.size[0]} x {image.size[1]} px, {width} x {height} when it was opened")
            if not self._is_direct:
                return _by_bands(image)
        if self._kind == "JPEG":
            if (scans := scan_count(data)) > MAX_JPEG_SCANS:
                raise ValueError(f"{scans} scans, the limit is {MAX_JPEG_SCANS}")
            # strict, where Pillow fills what a damaged stream leaves out
            return decode_rgb(data, np.empty((height, width, 3), np.uint8))
        # of 16 bits Pillow keeps 8, by cutting
        return _rgb(imagecodecs.png_decode(data) if self._kind == "PNG" else imagecodecs.webp_decode(data))


def _is_direct(kind: str, png_header: bytes, has_transparency: bool, frames: int) -> bool:
    """Whether a decoder gives the picture's samples at once, without Pillow's own copy of them."""
    if kind == "PNG":
        bits, color = png_header
        return bits == 16 or (bits == 8 and color != 3 and not has_transparency)
    return kind == "JPEG" or (kind == "WEBP" and frames == 1)


def _by_bands(image: Image.Image) -> NDArray[np.uint8]:
    """Pillow's picture as RGB."""
    width, height = image.size
    image.load()
    target = image.mode
    if "transparency" in image.info or image.mode == "PA":
        target = "RGBA"
    elif image.mode == "P":
        target = "RGB"
    colors = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        band = image.crop((0, top, width, min(top + _ROWS, height)))
        colors[top : top + _ROWS] = _rgb(np.asarray(band if target == band.mode else band.convert(target)))
    return colors


def _rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 1 to 4) samples of 1, 8 or 16 bits; the 2nd or 4th channel is alpha."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return pixels if pixels.dtype == np.uint8 and pixels.shape[2] == 3 else by_rows(_part_rgb, pixels)


def _part_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    samples = to_uint8(pixels)
    if samples.shape[2] in (2, 4):
        samples = over_background(samples[:, :, :-1], samples[:, :, -1])
    return gray_to_rgb(samples[:, :, 0]) if samples.shape[2] == 1 else samples
