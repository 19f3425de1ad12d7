"""PNG and TIFF masks, as stored: the header is looked at first, and no image converter comes between.

Converters turn palette indices into colours, 16 bits into 8 and labels into gray levels without a word. Here a mask's
values are those in the file, or the file is refused.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.formats.base import Canvas, MaskContent
from msdask.readers.image import IMAGE_ERRORS, check_png_rows, image_format, open_image
from msdask.readers.limits import checked_description, limited_file
from msdask.readers.orientation import orientation_of, turned
from msdask.readers.tiff import is_tiff
from msdask.readers.tiff_page import PARSE_ERRORS
from msdask.storage.source import ByteSource

__all__ = ["MAX_MASK_PIXELS", "Raster", "read_raster"]

MAX_MASK_PIXELS = 1 << 28
_LOSSLESS_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
"""Uncompressed, CCITT, LZW, deflate, PackBits, LZMA, zstd."""
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}


class Raster:
    """Pixels whose values are the mask; what they mean, the file does not say."""

    name = "PNG or TIFF"
    priority = 80
    reason = "any PNG or TIFF is one, so that formats which know their own by more are asked before"
    places: tuple[str, ...] = ("{name}.png", "{name}.tif", "{name}.tiff")
    is_drawn = False

    def recognizes(self, path: str, head: bytes) -> bool:
        """By the first bytes. A JPEG too, which is refused with a reason."""
        return is_tiff(head) or image_format(head) in ("PNG", "JPEG")

    def read(self, source: ByteSource, canvas: Canvas | None) -> MaskContent:
        """Pixels as stored."""
        return MaskContent(read_raster(source))


def read_raster(source: ByteSource) -> NDArray[Any]:
    """Read a PNG or TIFF: its values as stored.

    PNG: gray of 1, 2, 4, 8 or 16 bits; a palette gives its indices, not its colours. TIFF: one channel of 1, 8, 16 or
    32 bits, integer, lossless; MINISWHITE is undone for 1 bit only, and the orientation tag turns
    it. Both: RGB whose channels are equal, alpha only if it is constant.

    Returns
    -------
    values : (y, x), bool for 1 bit, else the stored integer type

    Raises
    ------
    MaskError
        The file is damaged, lossy, of another format, larger than 2^28 px, or holds colours.
    """
    try:
        head = source.read(0, 64)
        if is_tiff(head):
            return np.ascontiguousarray(_read_tiff(source))
        if image_format(head) == "PNG":
            return np.ascontiguousarray(_read_png(source))
    except (*PARSE_ERRORS, *IMAGE_ERRORS) as error:
        raise MaskError(
            f"mask {source.path!r}: cannot be read ({type(error).__name__}: {error}); expected a whole PNG or TIFF: "
            "export it again"
        ) from error
    if image_format(head) == "JPEG":
        raise MaskError(
            f"mask {source.path!r}: a JPEG, which changes values; expected a lossless PNG or TIFF: export it again"
        )
    raise MaskError(f"mask {source.path!r}: begins with {head[:8]!r}; expected a PNG or TIFF")


def _read_png(source: ByteSource) -> NDArray[Any]:
    header = source.read(0, 33)
    if len(header) < 33 or header[12:16] != b"IHDR":
        raise ValueError("no IHDR chunk")
    width, height, bits, color = struct.unpack_from(">IIBB", header, 16)
    _check_size(source, width, height)
    if color not in _CHANNELS:
        raise ValueError(f"colour type {color}")
    data = source.read(0, source.size)
    check_png_rows(data)
    if bits == 16:
        pixels = np.asarray(imagecodecs.png_decode(data))
    else:
        with open_image(source, kind="PNG") as image:
            pixels = np.asarray(image)
            if color == _PALETTE and image.mode != "P":
                raise ValueError(f"a palette image that was decoded to mode {image.mode}")
    if color == _GRAY and bits in (2, 4):
        pixels = pixels // (255 // ((1 << bits) - 1))  # Pillow spreads these to 0..255: undone, exactly
    if pixels.ndim == 3 and pixels.shape[2] > _CHANNELS[color]:
        pixels = pixels[:, :, : _CHANNELS[color]]  # alpha from a tRNS chunk: transparency, not a value
    has_alpha = color in (_GRAY_ALPHA, _RGBA)
    return _single_channel(source, pixels, has_alpha=has_alpha)


def _read_tiff(source: ByteSource) -> NDArray[Any]:
    with (
        limited_file(source, kind="mask", error=MaskError) as file,
        tifffile.TiffFile(file, is_ndpi=False) as tif,
    ):
        if not len(tif.pages):
            raise ValueError("no image in it")
        page: Any = tif.pages.first
        description = str(page.description)
        checked_description(description, source.path, images=len(tif.pages), kind="mask", error=MaskError)
        _check_size(source, int(page.imagewidth), int(page.imagelength))
        if int(page.imagedepth) != 1:
            raise MaskError(f"mask {source.path!r}: a volume of {page.imagedepth} planes; expected one plane")
        if page.dtype is None or page.dtype.kind not in "bui" or isinstance(page.bitspersample, tuple):
            raise MaskError(
                f"mask {source.path!r}: samples of type {page.dtype}, {page.bitspersample} bits; expected integers: "
                "export labels"
            )
        if int(page.compression) not in _LOSSLESS_TIFF:
            name = getattr(page.compression, "name", page.compression)
            raise MaskError(
                f"mask {source.path!r}: compressed by {name}, which may change values; expected LZW, deflate or none: "
                "export again"
            )
        samples = int(page.samplesperpixel)
        _check_segments(source, page)
        if samples > 4:
            raise MaskError(f"mask {source.path!r}: {samples} channels; expected one")
        # frames of one size after the first would be more masks, not levels: which one is meant is not to be guessed
        keys: list[Any] = [other.keyframe for other in tif.pages]
        twins = sum((key.imagelength, key.imagewidth) == (page.imagelength, page.imagewidth) for key in keys)
        if twins > 1:
            raise MaskError(
                f"mask {source.path!r}: {twins} pages of {page.imagewidth} x {page.imagelength} px; expected one: "
                "export the one that is meant"
            )
        file.is_limited = False
        pixels = page.asarray()
        orientation = orientation_of(page)
    if samples > 1 and int(page.planarconfig) == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    if int(page.photometric) == 0:  # MINISWHITE says how to show the values; 1-bit masks mean what is shown
        pixels = ~pixels if pixels.dtype == np.bool_ else pixels
    return _single_channel(source, turned(pixels, orientation), has_alpha=samples in (2, 4))


def _check_segments(source: ByteSource, page: Any) -> None:
    """Whether every strip or tile that the size implies is in the file: tifffile gives zeros for those that are not."""
    segment = int(page.tilelength) * int(page.tilewidth) if page.is_tiled else 0
    if (
        segment > MAX_MASK_PIXELS
        or int(page.imagewidth) * int(page.imagelength) * page.dtype.itemsize > 4 * MAX_MASK_PIXELS
    ):
        raise ValueError(f"tiles of {page.tilewidth} x {page.tilelength} px of {page.dtype}")
    expected = math.prod(page.chunked)
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if not len(offsets) == len(counts) == expected:
        raise ValueError(
            f"{expected} strips or tiles expected, {len(offsets)} offsets and {len(counts)} byte counts found"
        )
    if (counts <= 0).any() or int((offsets + counts).max()) > source.size:
        raise ValueError(f"strips or tiles are missing or lie beyond the file's end at {source.size} bytes")


def _single_channel(source: ByteSource, pixels: NDArray[Any], *, has_alpha: bool) -> NDArray[Any]:
    """The one channel of a mask whose colour channels are equal."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3:
        raise MaskError(f"mask {source.path!r}: an array of shape {pixels.shape}; expected (y, x)")
    if has_alpha:
        alpha = pixels[:, :, -1]
        if alpha.size and (alpha != alpha.flat[0]).any():
            raise MaskError(
                f"mask {source.path!r}: alpha varies from {alpha.min()} to {alpha.max()}; expected none: export "
                "without transparency"
            )
        pixels = pixels[:, :, :-1]
    first = pixels[:, :, 0]
    differing = (pixels != first[:, :, np.newaxis]).any(axis=2)
    if differing.any():
        y, x = np.argwhere(differing)[0]
        raise MaskError(
            f"mask {source.path!r}: colours, such as {pixels[y, x].tolist()} at x {x}, y {y}; expected one value a "
            "pixel (R = G = B): export the labels as gray or palette PNG"
        )
    return first


def _check_size(source: ByteSource, width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_MASK_PIXELS:
        raise MaskError(
            f"mask {source.path!r}: claims {width} x {height} px; expected 1 to {MAX_MASK_PIXELS} px: save it at a "
            "lower resolution, 1.25x is usual"
        )
