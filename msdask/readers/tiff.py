"""The TIFF family as a reader: SVS, NDPI, SCN, OME-TIFF, Philips, generic pyramids and flat files, through tifffile.

tifffile parses the structure; the bytes of tiles are read by offset, and decoded by simplejpeg where that is certain
to give the same colours, else by tifffile's own decoders. Pixels become RGB uint8: gray is repeated, alpha composited
on white, palettes looked up, MINISWHITE inverted, 16 bits become value / 257 rounded, 1 bit 0 and 255; everything else
is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError, UnreachableError
from msdask.readers.base import LevelInfo, SlideMetadata, UnsupportedSlideError, stored_downsample
from msdask.readers.limits import check_text, limited_file
from msdask.readers.orientation import TurnedImage, is_transposed, orientation_of, page_image
from msdask.readers.overlaps import overlap
from msdask.readers.place import Place
from msdask.readers.rectangle import from_finer
from msdask.readers.tiff_metadata import check_xml, read_metadata, vendor_of
from msdask.readers.tiff_page import PARSE_ERRORS, TiffImage, shrink_tile
from msdask.storage.ranges import READ_AHEAD
from msdask.storage.source import ByteSource, fingerprint

__all__ = ["TiffReader", "accepts", "is_tiff", "open_place"]

_NDPI_TAG = 65420
_ASSOCIATED = ("label", "macro", "thumbnail")
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


class TiffReader:
    """A slide in a TIFF file. Thread-safe; opening reads the directories and a few KiB of one tile a level."""

    format = "tiff"
    reads_ahead: bool
    """Whether reading is a request to a server, and `prefetch` saves most of them."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.reads_ahead = source.reads_ahead
        try:
            self._open()
        except (SlideError, UnreachableError):
            source.close()
            raise
        except PARSE_ERRORS as error:
            source.close()
            raise SlideError(
                f"slide {source.path!r}: a TIFF of {source.size} bytes whose structure cannot be read "
                f"({type(error).__name__}: {error}); expected whole directories: it is damaged or was cut short, copy "
                "it again"
            ) from error

    def _open(self) -> None:
        source = self._source
        # given a stream and told what it is, tifffile neither follows the file's ending nor opens files that
        # its OME-XML names
        with limited_file(source) as file, tifffile.TiffFile(file, is_ndpi=_is_ndpi(source)) as tif:
            if not len(tif.pages):
                raise SlideError(f"slide {source.path!r}: a TIFF without a single image; it is damaged: copy it again")
            description = str(tif.pages.first.description)
            check_text(description, source.path, images=len(tif.pages))
            check_xml(description, source.path)
            self._refuse_overlaps(tif, tif.pages.first)
            series = [s for s in tif.series if _pages(s)]
            if not series:
                raise SlideError(f"slide {source.path!r}: a TIFF without an image that could be read; copy it again")
            main = max(series, key=lambda s: _area(_pages(s)[0]))  # the first of equals
            others = [s for s in series if s is not main]
            self._refuse_overlaps(tif, _pages(main)[0].keyframe)
            vendor = vendor_of({flag: bool(getattr(tif, flag)) for flag in _FLAGS})
            self._skipped: dict[str, str] = {}
            self._images = self._level_images(main, others, is_grouped=vendor != "generic")
            page = _pages(main)[0]
            stored = int(page.keyframe.imagelength), int(page.keyframe.imagewidth)
            metadata = read_metadata(page.keyframe, description, vendor, stored)
            if metadata.mpp is not None and is_transposed(orientation_of(page.keyframe)):
                metadata = replace(metadata, mpp=metadata.mpp[::-1])
            self._associated = self._associated_images(others, vendor)
            self._directories = _directories(tif)
        self._leaves_out_glass = vendor in _SPARSE_VENDORS
        warnings, empty = self._empty_tiles()
        self.metadata: SlideMetadata = replace(
            metadata,
            properties={**metadata.properties, **self._skipped, **empty},
            warnings=(*metadata.warnings, *warnings),
        )
        self.associated: tuple[str, ...] = tuple(name for name in _ASSOCIATED if name in self._associated)
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
            return shrink_tile(self._replaced(level, row, column), image.tile, scale)
        return image.read(row, column, scale, out)

    def _replaced(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """What stands for a tile that was never stored."""
        info = self.levels[level]
        if level == 0:
            return np.full((*info.tile, 3), 255, np.uint8)
        finer = partial(self.read_tile, level - 1)
        return from_finer(finer, self.levels[level - 1], info, row, column)

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

    def _level_images(self, main: Any, others: list[Any], *, is_grouped: bool) -> list[TiffImage | TurnedImage]:
        """Level 0 and every smaller level that can be read, finest first."""
        self._refuse_stack(main)
        first = _pages(main)[0]
        images = [page_image(self._source, first, "level 0")]
        pages = [pages[0] for level in main.levels[1:] if len(pages := _pages(level)) == 1]
        if not is_grouped:
            # pyramids as plain pages, whose factors tifffile does not know (it tries 2, 3 and 4)
            alone = [_pages(s)[0] for s in others if len(_pages(s)) == 1]
            pages += [page for page in alone if _is_reduction(page.keyframe, first.keyframe)]
        for page in sorted(pages, key=_area, reverse=True):
            if _area(page) >= images[-1].shape[0] * images[-1].shape[1]:
                continue
            name = f"skipped level {page.keyframe.imagewidth} x {page.keyframe.imagelength}"
            if orientation_of(page.keyframe) != orientation_of(first.keyframe):
                self._skipped[name] = f"its orientation tag says {orientation_of(page.keyframe)}, level 0's another"
                continue
            try:
                images.append(page_image(self._source, page, f"level {len(images)}"))
            except SlideError as error:  # a finer level serves in its place
                self._skipped[name] = str(error)
        return images

    def _empty_tiles(self) -> tuple[list[str], dict[str, str]]:
        """Warnings and properties about tiles that were never stored."""
        found = {
            level: f"{image.empty_tiles} of {image.grid[0] * image.grid[1]}"
            for level, image in enumerate(self._images)
            if image.empty_tiles
        }
        fate = "are white: this scanner leaves out glass" if self._leaves_out_glass else "are bad tiles (on_bad_tile)"
        warnings = [
            f"{count} tiles of level {level} have no bytes in the file; they "
            + (f"are filled from level {level - 1}" if level else fate)
            for level, count in found.items()
        ]
        return warnings, {f"empty tiles of level {level}": count for level, count in found.items()}

    def _refuse_overlaps(self, tif: tifffile.TiffFile, page: Any) -> None:
        found = overlap(tif, page)
        if found is None:
            return
        kind = UnsupportedSlideError if found[1] else SlideError  # OpenSlide takes what it does not know as it lies
        remedy = "open it with backend='openslide', or convert it" if found[1] else "convert it"
        raise kind(
            f"slide {self._source.path!r}: {found[0]}, whose tiles overlap: side by side they would show strips twice; "
            f"expected tiles that meet: {remedy} to a pyramidal TIFF or OME-TIFF"
        )

    def _refuse_stack(self, main: Any) -> None:
        pages = _pages(main)
        planes = int(np.prod(main.shape, dtype=np.int64)) // max(
            1, int(np.prod(pages[0].keyframe.shape, dtype=np.int64))
        )
        if len(main.pages) > 1 or planes > 1:
            raise SlideError(
                f"slide {self._source.path!r}: a stack of {max(len(main.pages), planes)} planes, axes {main.axes}, "
                f"shape {tuple(main.shape)}; expected one RGB or gray plane: export the plane or channels wanted as RGB"
            )

    def _associated_images(self, others: list[Any], vendor: str) -> dict[str, TiffImage | TurnedImage]:
        found: dict[str, TiffImage | TurnedImage] = {}
        for series in others:
            pages = _pages(series)
            text = f"{series.name} {str(pages[0].keyframe.description)[:200]}".lower()
            name = next((name for name in _ASSOCIATED if name in series.name.lower()), None)
            name = name or next((name for name in _ASSOCIATED if name in text), None)
            if name is None and vendor == "leica":
                name = "macro"  # an SCN's other image is the overview of the glass
            if name is None or name in found:
                continue
            try:
                found[name] = page_image(self._source, pages[0], f"associated image {name!r}")
            except SlideError as error:
                self._skipped[f"skipped {name}"] = str(error)
        return found


def _pages(series: Any) -> list[Any]:
    """A series' pages that exist and have pixels."""
    return [
        page for page in series.pages if page is not None and page.keyframe.imagewidth and page.keyframe.imagelength
    ]


def _area(page: Any) -> int:
    return int(page.keyframe.imagewidth) * int(page.keyframe.imagelength)


def _is_reduction(page: Any, full: Any) -> bool:
    """Whether a page is the whole slide again, smaller: of one proportion, tiled alike, not named as something else."""
    text = str(page.description)[:200].lower()
    if any(name in text for name in _ASSOCIATED) or page.is_tiled != full.is_tiled:
        return False
    if page.samplesperpixel != full.samplesperpixel or page.photometric != full.photometric:
        return False
    x, y = full.imagewidth / page.imagewidth, full.imagelength / page.imagelength
    # what one px of rounding on each side of the small page can do to the proportion
    slack = 1 / page.imagewidth + 1 / page.imagelength
    return bool(min(x, y) >= 1.5 and abs(x / y - 1) <= slack)


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
