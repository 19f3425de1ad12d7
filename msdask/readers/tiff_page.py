"""One image of a TIFF file as tiles of RGB: where its segments lie, and how they are decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, TileError, UnreachableError
from msdask.readers.jpeg_tiles import DCT_SCALES, JpegTiles, coded_size
from msdask.readers.to_rgb import by_rows, from_palette, gray_to_rgb, over_background, shrink, to_uint8
from msdask.storage.source import ByteSource

__all__ = ["MAX_SIDE", "MAX_STRIP_BYTES", "MAX_TILE_BYTES", "PARSE_ERRORS", "TiffImage"]

MAX_SIDE = 1_000_000
"""px; no scanner makes more, and a size is a claim until the segments are there."""
MAX_TILE_BYTES = 64 << 20
MAX_STRIP_BYTES = 512 << 20
"""A flat TIFF may be a single strip: up to this much is decoded at once."""

PARSE_ERRORS: tuple[type[Exception], ...] = (
    tifffile.TiffFileError,
    struct.error,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # every imagecodecs error, NotImplementedError, RecursionError
    SyntaxError,  # xml.etree's ParseError
    TypeError,
    ValueError,
    ImportError,  # a codec that this build of imagecodecs lacks
)
"""What tifffile and imagecodecs raise on damaged files, found by mutating good ones."""

_JPEG_COMPRESSIONS = {6, 7, 34892, 33007}
_SAMPLE_BYTES = 4096
_STRIP_ROWS = 256


class TiffImage:
    """A page of tiles or strips. Thread-safe: after opening, tifffile reads nothing, it only decodes bytes given to it.

    Parameters
    ----------
    source : the file
    page : tifffile's page, or frame of a series
    name : what to call it in messages, such as "level 0"

    Attributes
    ----------
    shape : (height, width), px
    tile : (height, width) of a tile, px; of strips a tile is as many as make about 256 rows
    grid : number of tiles (rows, columns)
    dct_scales : reductions that `read` can give

    Raises
    ------
    SlideError
        The page's pixels are of a kind that has no conversion to RGB, or its sizes make no sense.
    """

    def __init__(self, source: ByteSource, page: Any, name: str) -> None:
        self._source = source
        self._name = name
        self._where = f"slide {source.path!r}: {name}"
        key = page.keyframe
        self.shape = (int(key.imagelength), int(key.imagewidth))
        if key.is_tiled:
            self.tile = (int(key.tilelength), int(key.tilewidth))
        else:
            self.tile = (min(int(key.rowsperstrip), self.shape[0]), self.shape[1])
        self._check_sizes(key)
        self._segment_height = self.tile[0]
        self._segment_rows = -(-self.shape[0] // self.tile[0])
        # strips may be 1 or 2 rows: several make a tile, or reading would be all overhead
        self._stack = 1 if key.is_tiled else max(1, _STRIP_ROWS // self.tile[0])
        self.tile = (min(self.tile[0] * self._stack, max(self.tile[0], self.shape[0])), self.tile[1])
        self.grid = (-(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1]))
        self._columns = self.grid[1]
        self._to_rgb = self._conversion(key)
        self._samples = int(key.samplesperpixel)
        self._planes = key.samplesperpixel if key.planarconfig == 2 else 1
        self._offsets = _integers(page.dataoffsets)
        self._counts = _integers(page.databytecounts)
        expected = self._segment_rows * self._columns * self._planes
        if not len(self._offsets) == len(self._counts) == expected:
            raise SlideError(
                f"{self._where} of {self.shape[1]} x {self.shape[0]} px needs {expected} tiles or strips, its tables "
                f"have {len(self._offsets)} offsets and {len(self._counts)} byte counts; it is damaged: copy it again"
            )
        raw = self._segment_height * self.tile[1] * key.samplesperpixel * key.dtype.itemsize
        self._max_count = 2 * raw + (1 << 20)  # no sane encoder doubles its input
        self._may_claim_size = key.compression != 1
        self._decode = key.decode  # built here: building it is not thread-safe and may read the file
        if key.compression in _JPEG_COMPRESSIONS:
            self._decode = partial(key.decode, jpegtables=page.jpegtables, jpegheader=key.jpegheader)
        self._jpeg = self._fast_decoder(page)
        self.dct_scales: tuple[int, ...] = (1,)
        if self._jpeg is not None:
            self.dct_scales = tuple(s for s in DCT_SCALES if self.tile[0] % s == 0 and self.tile[1] % s == 0)

    def read(self, row: int, column: int, scale: int = 1, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Decode one tile: (height, width, 3) uint8, reduced by `scale`.

        A tile that was never stored (0 bytes) is white. A tile at the edge comes as it is stored, cut or padded. `out`
        is memory that may be used for it.

        Raises
        ------
        TileError
            The tile lies outside the file or cannot be decoded.
        """
        index = row * self._columns + column
        jpeg = self._jpeg
        if jpeg is not None:
            count = self._counts[index]
            if count:
                data = self._segment(index, row, column)
                try:
                    pixels = jpeg.decode(data, self.tile[0], self.tile[1], scale, out)
                except (ValueError, MemoryError) as error:
                    raise self._tile_error(row, column, f"cannot be decoded ({error})") from error
                if pixels is not None:
                    return pixels
        full = self._read_general(row, column)
        if scale == 1:
            return full
        height, width = self.tile
        full = full[:height, :width]
        if full.shape[:2] != self.tile:
            edge = ((0, height - full.shape[0]), (0, width - full.shape[1]), (0, 0))
            full = np.pad(full, edge, mode="edge")
        return shrink(full, scale)

    def read_all(self) -> NDArray[np.uint8]:
        """The whole image, for small ones: (height, width, 3) uint8.

        Raises
        ------
        SlideError
            It would take more than 512 MiB.
        TileError
            One of its tiles cannot be read.
        """
        height, width = self.shape
        if height * width * 3 > MAX_STRIP_BYTES:
            raise SlideError(
                f"{self._where}: {width} x {height} px are too many to decode as one picture (limit 512 MiB)"
            )
        whole = np.full((height, width, 3), 255, np.uint8)
        for row in range(self.grid[0]):
            for column in range(self.grid[1]):
                y, x = row * self.tile[0], column * self.tile[1]
                pixels = self.read(row, column)[: height - y, : width - x]
                whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return whole

    def byte_ranges(self, row: int, column: int) -> list[tuple[int, int]]:
        """(offset, size) of what one tile is decoded from; what `read` would refuse is left out."""
        first = row * self._stack
        rows = range(first, min(first + self._stack, self._segment_rows))
        step = self._segment_rows * self._columns
        indexes = [r * self._columns + column + plane * step for r in rows for plane in range(self._planes)]
        return [(self._offsets[i], self._counts[i]) for i in indexes if 0 < self._counts[i] <= self._max_count]

    def segment_table(self) -> bytes:
        """Offsets and byte counts of the tiles as bytes, for a fingerprint."""
        return np.asarray([self._offsets, self._counts], dtype="<u8").tobytes()

    def _segment(self, index: int, row: int, column: int) -> bytes:
        offset, count = self._offsets[index], self._counts[index]
        if count > self._max_count:
            raise self._tile_error(
                row, column, f"claims {count} bytes, more than its pixels can take ({self._max_count})"
            )
        if offset + count > self._source.size:
            found = (
                f"lies at bytes {offset} to {offset + count}, the file ends at {self._source.size}: it was cut short"
            )
            raise self._tile_error(row, column, found)
        try:
            return self._source.read(offset, count)
        except UnreachableError as error:
            raise UnreachableError(f"{self._where}, tile (row {row}, column {column}): {error}") from error

    def _read_general(self, row: int, column: int) -> NDArray[np.uint8]:
        """One tile through tifffile's decoders: any compression, any pixel type."""
        first = row * self._stack
        last = min(first + self._stack, self._segment_rows)
        parts = [self._read_segment(segment_row, row, column) for segment_row in range(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_segment(self, segment_row: int, row: int, column: int) -> NDArray[np.uint8]:
        """One stored tile or strip, its planes put together."""
        index = segment_row * self._columns + column
        step = self._segment_rows * self._columns
        planes = [self._decode_segment(index + plane * step, row, column) for plane in range(self._planes)]
        stored = [plane for plane in planes if plane is not None]
        if len(stored) < len(planes):
            if stored:
                raise self._tile_error(row, column, f"has {len(stored)} of {len(planes)} colour planes")
            height = self._segment_height
            if self._stack > 1:
                height = min(height, self.shape[0] - segment_row * height)
            return np.full((height, self.tile[1], 3), 255, np.uint8)
        if len({plane.shape for plane in stored}) > 1:
            raise self._tile_error(row, column, f"has planes of different sizes {[plane.shape for plane in stored]}")
        pixels = stored[0] if len(stored) == 1 else np.concatenate(stored, axis=2)
        if pixels.shape[2] != self._samples:
            raise self._tile_error(row, column, f"was decoded to {pixels.shape[2]} of {self._samples} channels")
        return by_rows(self._to_rgb, pixels)

    def _decode_segment(self, index: int, row: int, column: int) -> NDArray[Any] | None:
        if self._counts[index] == 0:
            return None
        data = self._segment(index, row, column)
        claimed = coded_size(data) if self._may_claim_size else None
        if claimed is not None and claimed[0] * claimed[1] > 4 * self._segment_height * self.tile[1]:
            found = f"claims {claimed[1]} x {claimed[0]} px in a page of {self.tile[1]} x {self.tile[0]} px tiles"
            raise self._tile_error(row, column, found)
        try:
            decoded = self._decode(data, index)[0]
        except PARSE_ERRORS as error:
            raise self._tile_error(row, column, f"cannot be decoded ({type(error).__name__}: {error})") from error
        if decoded is None or decoded.ndim != 4 or decoded.shape[0] != 1:
            raise self._tile_error(row, column, "was decoded to nothing")
        pixels: NDArray[Any] = decoded[0]
        return pixels

    def _tile_error(self, row: int, column: int, found: str) -> TileError:
        return TileError(
            f"{self._where}, tile (row {row}, column {column}) {found}; expected a whole tile of {self.tile[1]} x "
            f"{self.tile[0]} px: copy the slide again, or have bad tiles filled"
        )

    def _check_sizes(self, key: Any) -> None:
        height, width = self.shape
        if height < 1 or width < 1 or self.tile[0] < 1 or self.tile[1] < 1:
            raise SlideError(
                f"{self._where} claims {width} x {height} px in tiles of {self.tile[1]} x {self.tile[0]}; the file is "
                "damaged"
            )
        if max(height, width) > MAX_SIDE:
            raise SlideError(
                f"{self._where} claims {width} x {height} px, more than {MAX_SIDE} on a side; the file is damaged"
            )
        if key.dtype is None:
            raise SlideError(
                f"{self._where} has samples of {key.bitspersample} bits, format {key.sampleformat}; expected 8 or 16 "
                "bits unsigned: convert it to 8-bit RGB"
            )
        # what is decoded, or what it becomes as RGB
        decoded = self.tile[0] * self.tile[1] * max(3, int(key.samplesperpixel) * key.dtype.itemsize)
        kind, limit = ("tile", MAX_TILE_BYTES) if key.is_tiled else ("strip", MAX_STRIP_BYTES)
        if decoded > limit:
            raise SlideError(
                f"{self._where}: one {kind} of {self.tile[1]} x {self.tile[0]} px takes {decoded >> 20} MiB, the limit "
                f"is {limit >> 20} MiB; save it again as a tiled, pyramidal TIFF"
            )
        if int(key.imagedepth) != 1 or (key.is_tiled and int(key.tiledepth) != 1):
            raise SlideError(
                f"{self._where} is a volume of {key.imagedepth} planes; expected one plane: export the plane in focus"
            )

    def _conversion(self, key: Any) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
        """How the page's samples become RGB."""
        photometric, samples, bits = int(key.photometric), int(key.samplesperpixel), key.bitspersample
        allowed = {1, 8, 16} if samples == 1 and photometric in (0, 1) else {8, 16}
        if isinstance(bits, tuple) or bits not in allowed or key.dtype.kind not in "ub":
            raise SlideError(
                f"{self._where} has {key.dtype} samples of {bits} bits; expected 8 or 16 bits unsigned: convert it to "
                "8-bit RGB"
            )
        alpha = int(key.extrasamples[0]) if key.extrasamples and len(key.extrasamples) == 1 else 0
        if photometric == 3 and samples == 1:
            if key.colormap is None:
                raise SlideError(f"{self._where} is a palette image without a colour map; convert it to 8-bit RGB")
            # 16-bit entries are 257 or 256 times the 8-bit value, depending on the writer: the high byte serves both
            return partial(_palette_rgb, palette=(key.colormap >> 8).astype(np.uint8).T)
        if photometric in (0, 1) and samples == 1:
            return partial(_gray_rgb, is_inverted=photometric == 0)
        if photometric in (0, 1) and samples == 2 and alpha in (1, 2):
            return partial(_gray_rgb, is_inverted=photometric == 0, premultiplied=alpha == 1)
        is_jpeg = int(key.compression) in _JPEG_COMPRESSIONS
        is_color = photometric == 2 or (photometric == 6 and (is_jpeg or int(key.compression) in _J2K_COMPRESSIONS))
        if is_color and samples in (3, 4) and not (photometric == 6 and key.planarconfig == 2):
            return partial(_color_rgb, alpha=alpha if samples == 4 else 0)
        raise SlideError(
            f"{self._where} has {samples} channel(s) of photometric interpretation {photometric}; expected RGB, YCbCr "
            "JPEG, gray or palette: convert it to 8-bit RGB"
        )

    def _fast_decoder(self, page: Any) -> JpegTiles | None:
        key = page.keyframe
        colors: dict[tuple[int, int], Literal["rgb", "ycbcr", "gray"]] = {
            (1, 1): "gray",
            (2, 3): "rgb",
            (6, 3): "ycbcr",
        }
        photometric = colors.get((int(key.photometric), int(key.samplesperpixel)))
        is_candidate = int(key.compression) == 7 and key.is_tiled and key.bitspersample == 8 and self._planes == 1
        first = next((i for i, count in enumerate(self._counts) if count), None)
        if photometric is None or not is_candidate or first is None or key.extrasamples:
            return None
        sample = self._source.read(self._offsets[first], min(self._counts[first], _SAMPLE_BYTES))
        return JpegTiles.for_page(sample, photometric=photometric, tables=page.jpegtables, header=key.jpegheader)


_J2K_COMPRESSIONS = {33003, 33004, 33005, 34712}
"""Aperio's JPEG 2000 with YCbCr (33003): the decoder converts."""


def _integers(values: Any) -> list[int]:
    """A table of segments as plain ints: indexing a list costs a third of indexing an array."""
    return np.asarray(values, dtype=np.uint64).tolist() if len(values) else []


def _palette_rgb(pixels: NDArray[Any], *, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return from_palette(pixels[:, :, 0], palette)


def _gray_rgb(pixels: NDArray[Any], *, is_inverted: bool, premultiplied: bool | None = None) -> NDArray[np.uint8]:
    samples = to_uint8(pixels)
    gray = samples[:, :, :1]
    if is_inverted:
        gray = 255 - gray
    if premultiplied is not None:
        gray = over_background(gray, samples[:, :, 1], premultiplied=premultiplied)
    return gray_to_rgb(gray[:, :, 0])


def _color_rgb(pixels: NDArray[Any], *, alpha: int) -> NDArray[np.uint8]:
    """`alpha` is TIFF's ExtraSamples: 1 associated, 2 unassociated; 0 has no stated meaning and is left out."""
    samples = to_uint8(pixels)
    if alpha in (1, 2):
        return over_background(samples[:, :, :3], samples[:, :, 3], premultiplied=alpha == 1)
    return samples[:, :, :3]
