"""One image of a TIFF file as tiles of RGB: where its segments lie, and how they are decoded."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, TileError, UnreachableError
from msdask.readers.coded_size import MAX_JPEG_SCANS, claimed_size, scan_count
from msdask.readers.jpeg2000 import J2K_COMPRESSIONS, holds_ycbcr
from msdask.readers.jpeg_tiles import DCT_SCALES, JpegTiles
from msdask.readers.tiff_colors import JPEG_COMPRESSIONS, conversion
from msdask.readers.to_rgb import by_rows, from_ycbcr, shrink, to_uint8
from msdask.storage.source import ByteSource

__all__ = ["MAX_SIDE", "MAX_STRIP_BYTES", "MAX_TILE_BYTES", "PARSE_ERRORS", "TiffImage", "shrink_tile"]

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

_SMALL_PICTURE = 1 << 22
"""px; up to this much a tile's own header may claim more than the tile has, up to four times."""
_BARE_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
"""Uncompressed, CCITT, LZW, deflate, PackBits, LZMA, zstd: samples alone, without a picture's header."""
_WIDE_COMPRESSIONS = J2K_COMPRESSIONS | {50002, 52546}
"""JPEG 2000 and JPEG XL, whose decoders hold 4 bytes a sample beside the picture."""
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
        self._to_rgb = conversion(key, self._where)
        self._compression, self._photometric = int(key.compression), int(key.photometric)
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
        self.empty_tiles = self._count_empty()
        self._decode = key.decode  # built here: building it is not thread-safe and may read the file
        if key.compression in JPEG_COMPRESSIONS:
            self._decode = partial(key.decode, jpegtables=page.jpegtables, jpegheader=key.jpegheader)
        self._jpeg = self._fast_decoder(page)
        self.dct_scales: tuple[int, ...] = (1,)
        if self._jpeg is not None:
            self.dct_scales = tuple(s for s in DCT_SCALES if self.tile[0] % s == 0 and self.tile[1] % s == 0)

    def read(self, row: int, column: int, scale: int = 1, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Decode one tile: (height, width, 3) uint8, reduced by `scale`.

        A tile at the edge comes as it is stored, cut or padded. `out` is memory that may be used for it.

        Raises
        ------
        TileError
            The tile was never stored (see `is_empty`), lies outside the file or cannot be decoded.
        """
        index = row * self._columns + column
        jpeg = self._jpeg
        if jpeg is not None:
            data = self._segment(index, row, column)
            try:
                pixels = jpeg.decode(data, self.tile[0], self.tile[1], scale, out)
            except (ValueError, MemoryError) as error:
                raise self._tile_error(row, column, f"cannot be decoded ({error})") from error
            if pixels is not None:
                return pixels
        full = self._read_general(row, column)
        return shrink_tile(full, self.tile, scale)

    def is_empty(self, row: int, column: int) -> bool:
        """Whether a tile, or a strip of it, was never stored: its table says 0 bytes."""
        if not self.empty_tiles:
            return False
        first = row * self._stack
        rows = range(first, min(first + self._stack, self._segment_rows))
        return any(not any(self._counts[i] for i in self._indexes(r, column)) for r in rows)

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
        whole = np.empty((height, width, 3), np.uint8)
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
        indexes = [i for r in rows for i in self._indexes(r, column)]
        return [(self._offsets[i], self._counts[i]) for i in indexes if 0 < self._counts[i] <= self._max_count]

    def segment_table(self) -> bytes:
        """Offsets and byte counts of the tiles as bytes, for a fingerprint."""
        return np.asarray([self._offsets, self._counts], dtype="<u8").tobytes()

    def _indexes(self, segment_row: int, column: int) -> range:
        """Where a stored tile or strip is in the tables, once for every plane."""
        step = self._segment_rows * self._columns
        first = segment_row * self._columns + column
        return range(first, first + self._planes * step, step)

    def _count_empty(self) -> int:
        """How many tiles `is_empty` is true of."""
        if 0 not in self._counts:
            return 0
        is_stored = np.asarray(self._counts).reshape(self._planes, self._segment_rows, self._columns).any(axis=0)
        return int(np.logical_or.reduceat(~is_stored, range(0, self._segment_rows, self._stack), axis=0).sum())

    def _segment(self, index: int, row: int, column: int) -> bytes:
        offset, count = self._offsets[index], self._counts[index]
        if not count:
            raise self._tile_error(row, column, "was never stored, or a part of it (0 bytes in the file's table)")
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
        stored = [self._decode_segment(index, row, column) for index in self._indexes(segment_row, column)]
        if len({plane.shape for plane in stored}) > 1:
            raise self._tile_error(row, column, f"has planes of different sizes {[plane.shape for plane in stored]}")
        pixels = stored[0] if len(stored) == 1 else np.concatenate(stored, axis=2)
        if pixels.shape[2] != self._samples:
            raise self._tile_error(row, column, f"was decoded to {pixels.shape[2]} of {self._samples} channels")
        return by_rows(self._to_rgb, pixels)

    def _decode_segment(self, index: int, row: int, column: int) -> NDArray[Any]:
        data = self._segment(index, row, column)
        self._check_claims(data, row, column)
        try:
            decoded = self._decode(data, index)[0]
        except PARSE_ERRORS as error:
            raise self._tile_error(row, column, f"cannot be decoded ({type(error).__name__}: {error})") from error
        if decoded is None or decoded.ndim != 4 or decoded.shape[0] != 1:
            raise self._tile_error(row, column, "was decoded to nothing")
        pixels: NDArray[Any] = decoded[0]
        if self._compression in J2K_COMPRESSIONS and holds_ycbcr(
            data, compression=self._compression, photometric=self._photometric
        ):
            return from_ycbcr(to_uint8(pixels))
        return pixels

    def _check_claims(self, data: bytes, row: int, column: int) -> None:
        """Refuse what would cost far more than a tile: by the picture's own header, nothing is decoded for it."""
        if self._compression in _BARE_COMPRESSIONS:
            return
        claimed = claimed_size(data)
        tile = self._segment_height * self.tile[1]
        if claimed is not None and not 0 < claimed[0] * claimed[1] <= max(tile, min(4 * tile, _SMALL_PICTURE)):
            found = f"claims {claimed[1]} x {claimed[0]} px in a page of {self.tile[1]} x {self._segment_height} px"
            raise self._tile_error(row, column, f"{found} tiles")
        scans = scan_count(data) if self._compression in JPEG_COMPRESSIONS else 0
        if scans > MAX_JPEG_SCANS:
            raise self._tile_error(row, column, f"is a JPEG of {scans} scans, the limit is {MAX_JPEG_SCANS}")

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
        if not key.is_tiled and int(key.compression) in _WIDE_COMPRESSIONS:
            decoded *= 5
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


def shrink_tile(pixels: NDArray[np.uint8], tile: tuple[int, int], scale: int) -> NDArray[np.uint8]:
    """A tile reduced by `scale` as area means; one cut at the edge is first padded to (height, width) `tile`."""
    if scale == 1:
        return pixels
    pixels = pixels[: tile[0], : tile[1]]
    if pixels.shape[:2] != tile:
        edge = ((0, tile[0] - pixels.shape[0]), (0, tile[1] - pixels.shape[1]), (0, 0))
        pixels = np.pad(pixels, edge, mode="edge")
    return shrink(pixels, scale)


def _integers(values: Any) -> list[int]:
    """A table of segments as plain ints: indexing a list costs a third of indexing an array."""
    return np.asarray(values, dtype=np.uint64).tolist() if len(values) else []
