"""The TIFF family as a reader: SVS, NDPI, SCN, OME-TIFF, Philips, generic pyramids and flat files, through tifffile.

tifffile parses the structure; the bytes of tiles are read by offset, and decoded by simplejpeg where that is certain
to give the same colours, else by tifffile's own decoders. Pixels become RGB uint8: gray is repeated, alpha composited
on white, palettes looked up, MINISWHITE inverted, 16 bits become value / 257 rounded, 1 bit 0 and 255; everything else
is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError, UnreachableError
from msdask.readers.base import LevelInfo, PartTileError, SlideMetadata, stored_downsample
from msdask.readers.empty_tiles import empty_tile, said_of_empty_tiles
from msdask.readers.limits import checked_description, limited_file
from msdask.readers.orientation import TurnedImage, is_transposed, orientation_of, page_image
from msdask.readers.overlaps import refuse_overlaps
from msdask.readers.place import Place
from msdask.readers.regions import RegionFacts, choose_region, region_properties, region_warnings
from msdask.readers.tiff_levels import ASSOCIATED, Pyramid, find_images
from msdask.readers.tiff_metadata import read_metadata, vendor_of
from msdask.readers.tiff_page import PARSE_ERRORS, TiffImage, shrink_tile
from msdask.readers.tiff_xml import Described
from msdask.storage.ranges import READ_AHEAD
from msdask.storage.source import ByteSource, fingerprint

__all__ = ["TiffReader", "accepts", "is_tiff", "open_place", "open_region"]

_NDPI_TAG = 65420
_SPARSE_VENDORS = {"philips"}
"""Whose scanners do not store tiles of glass: those are white."""
_FLAGS = ("is_svs", "is_ndpi", "is_scn", "is_philips", "is_ome")


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with `head` (>= 4 bytes) is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def accepts(place: Place) -> bool:
    """See `ReaderModule.accepts`."""
    return is_tiff(place.head)


def open_place(place: Place) -> TiffReader:
    """See `ReaderModule.open_place`."""
    return TiffReader(place.open())


def open_region(place: Place, region: str | int) -> TiffReader:
    """See `Backend`: an image of a file of several, by name or number."""
    return TiffReader(place.open(), region)


class TiffReader:
    """A slide in a TIFF file. Thread-safe; opening reads the directories and a few KiB of one tile a level."""

    format = "tiff"
    reads_ahead: bool
    """Whether reading is a request to a server, and `prefetch` saves most of them."""

    def __init__(self, source: ByteSource, region: str | int | None = None) -> None:
        self._source = source
        self.reads_ahead = source.reads_ahead
        try:
            self._open(region)
        except (SlideError, SpecError, UnreachableError):
            source.close()
            raise
        except PARSE_ERRORS as error:
            source.close()
            raise SlideError(
                f"slide {source.path!r}: a TIFF of {source.size} bytes whose structure cannot be read "
                f"({type(error).__name__}: {error}); expected whole directories: it is damaged or was cut short, copy "
                "it again"
            ) from error

    def _open(self, region: str | int | None) -> None:
        source = self._source
        # given a stream and told what it is, tifffile neither follows the file's ending nor opens files that
        # its OME-XML names
        with limited_file(source) as file, tifffile.TiffFile(file, is_ndpi=_is_ndpi(source)) as tif:
            if not len(tif.pages):
                raise SlideError(f"slide {source.path!r}: a TIFF without a single image; it is damaged: copy it again")
            description = str(tif.pages.first.description)
            described = checked_description(description, source.path, images=len(tif.pages))
            refuse_overlaps(tif, tif.pages.first, source.path)
            vendor = vendor_of({flag: bool(getattr(tif, flag)) for flag in _FLAGS})
            found = find_images(tif, described, vendor)
            if not found.pyramids:
                raise SlideError(f"slide {source.path!r}: a TIFF without an image that could be read; copy it again")
            stated = [_metadata(pyramid, described, vendor) for pyramid in found.pyramids]
            facts = [_facts(pyramid, one) for pyramid, one in zip(found.pyramids, stated, strict=True)]
            chosen = choose_region(facts, region, source.path)
            refuse_overlaps(tif, found.pyramids[chosen].levels[0].page.keyframe, source.path)
            self._skipped: dict[str, str] = dict(found.notes)
            self._images = self._level_images(found.pyramids[chosen], region_properties(facts, chosen))
            self._associated = self._associated_images(found.associated)
            self._directories = _directories(tif)
        self._leaves_out_glass = vendor in _SPARSE_VENDORS
        metadata = stated[chosen]
        empty, counts = said_of_empty_tiles(self._images, leaves_out_glass=self._leaves_out_glass)
        others = region_warnings(facts, chosen) if region is None else ()
        self.metadata: SlideMetadata = replace(
            metadata,
            properties={**metadata.properties, **self._skipped, **region_properties(facts, chosen), **counts},
            warnings=(*metadata.warnings, *others, *found.warnings, *empty),
        )
        self.associated: tuple[str, ...] = tuple(name for name in ASSOCIATED if name in self._associated)
        self.levels: tuple[LevelInfo, ...] = tuple(
            LevelInfo(image.shape, image.tile, stored_downsample(self._images[0].shape, image.shape), image.dct_scales)
            for image in self._images
        )

    def read_tile(
        self, level: int, row: int, column: int, scale: int = 1, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Reader.read_tile`. Edge tiles come as stored, cut or padded.

        A tile of 0 bytes is the area mean of the next finer level. At level 0 it is missing, or white in the files of
        scanners that leave out glass.
        """
        if not 0 <= level < len(self._images):
            raise SpecError(f"level {level}: slide {self._source.path!r} has levels 0 to {len(self._images) - 1}")
        image = self._images[level]
        if not (0 <= row < image.grid[0] and 0 <= column < image.grid[1]) or scale not in image.dct_scales:
            raise SpecError(
                f"tile (row {row}, column {column}) reduced by {scale}: level {level} of slide {self._source.path!r} "
                f"has {image.grid[0]} x {image.grid[1]} tiles and reductions {image.dct_scales}"
            )
        if image.empty_tiles and image.is_empty(row, column) and (level or self._leaves_out_glass):
            finer = partial(self.read_tile, level - 1)
            shrunk = partial(shrink_tile, tile=image.tile, scale=scale)
            try:
                return shrunk(empty_tile(self.levels, level, row, column, finer))
            except PartTileError as error:
                raise error.changed(shrunk) from error
        return image.read(row, column, scale, out)

    def prefetch(self, level: int, tiles: Sequence[tuple[int, int]]) -> int:
        """See `ReadsAhead.prefetch`."""
        ranges: list[tuple[int, int]] = []
        total = 0
        for count, (row, column) in enumerate(tiles):
            own = self._images[level].byte_ranges(row, column)
            total += sum(size for _, size in own)
            if count and total > READ_AHEAD:
                break
            ranges += own
        else:
            count = len(tiles)
        try:
            self._source.prefetch(ranges)
        except UnreachableError as error:
            where = f"slide {self._source.path!r}: level {level}, {count} tiles from (row, column) {tiles[0]} on"
            raise UnreachableError(f"{where}: {error}") from error
        return count

    def forget(self, level: int, tile: tuple[int, int]) -> None:
        """See `ReadsAhead.forget`."""
        self._source.forget(self._images[level].byte_ranges(*tile))

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """See `Reader.read_associated`."""
        if name not in self._associated:
            raise SpecError(f"associated image {name!r}: slide {self._source.path!r} has {list(self.associated)}")
        return self._associated[name].read_all()

    def fingerprint(self) -> str:
        """See `Reader.fingerprint`. The tables of tiles are part of it."""
        return fingerprint(self._source, self._directories, extra=(image.segment_table() for image in self._images))

    def close(self) -> None:
        """See `Reader.close`."""
        self._source.close()

    def _level_images(self, pyramid: Pyramid, regions: Mapping[str, str]) -> list[TiffImage | TurnedImage]:
        """Level 0 and every smaller level that can be read, finest first."""
        full = pyramid.levels[0]
        if full.planes > 1:
            others = f"; or open another of its images with region=... ({len(regions) - 1})" if regions else ""
            raise SlideError(
                f"slide {self._source.path!r}: a stack of {full.planes} planes, {full.stack}; expected one RGB or gray "
                f"plane: export the plane or channels wanted as RGB{others}"
            )
        images = [page_image(self._source, full.page, "level 0")]
        orientation = orientation_of(full.page.keyframe)
        for level in sorted(pyramid.levels[1:], key=lambda level: level.area, reverse=True):
            if level.planes > 1 or level.area >= images[-1].shape[0] * images[-1].shape[1]:
                continue
            name = f"skipped level {level.size[1]} x {level.size[0]}"
            if (other := orientation_of(level.page.keyframe)) != orientation:
                self._skipped[name] = f"its orientation tag says {other}, level 0's {orientation}"
                continue
            try:
                images.append(page_image(self._source, level.page, f"level {len(images)}"))
            except SlideError as error:  # a finer level serves in its place
                self._skipped[name] = str(error)
        return images

    def _associated_images(self, pages: Mapping[str, Any]) -> dict[str, TiffImage | TurnedImage]:
        found: dict[str, TiffImage | TurnedImage] = {}
        for name, page in pages.items():
            try:
                found[name] = page_image(self._source, page, f"associated image {name!r}")
            except SlideError as error:
                self._skipped[f"skipped {name}"] = str(error)
        return found


def _metadata(pyramid: Pyramid, described: Described, vendor: str) -> SlideMetadata:
    full = pyramid.levels[0]
    stated = read_metadata(full.page.keyframe, described, vendor, full.size, pyramid.image)
    if stated.mpp is not None and is_transposed(orientation_of(full.page.keyframe)):
        return replace(stated, mpp=stated.mpp[::-1])
    return stated


def _facts(pyramid: Pyramid, stated: SlideMetadata) -> RegionFacts:
    full = pyramid.levels[0]
    shape = full.size[::-1] if is_transposed(orientation_of(full.page.keyframe)) else full.size
    mpp = sum(stated.mpp) / 2 if stated.mpp else None
    return RegionFacts(pyramid.name, shape, mpp, pyramid.is_alike)


def _is_ndpi(source: ByteSource) -> bool:
    """Whether the first directory is Hamamatsu's: a classic header with 64-bit offsets; tifffile must be told."""
    head = source.read(0, 12)
    if head[:4] != b"II*\0" or len(head) < 12:
        return False
    (offset,) = struct.unpack_from("<Q", head, 4)
    if offset + 2 > source.size:
        return False
    (count,) = struct.unpack("<H", source.read(offset, 2))
    entries = source.read(offset + 2, 12 * min(count, 4096))
    return any(tag == _NDPI_TAG for tag, _, _ in struct.iter_unpack("<HH8s", entries[: len(entries) // 12 * 12]))


def _directories(tif: tifffile.TiffFile) -> list[tuple[int, int]]:
    """(offset, size) of the file's directories, without what they point to."""

    def each() -> Iterator[tuple[int, int]]:
        for page in tif.pages:
            tags = getattr(page, "tags", ())
            yield int(page.offset), tif.tiff.tagnosize + len(tags) * tif.tiff.tagsize

    return sorted(set(each()))
