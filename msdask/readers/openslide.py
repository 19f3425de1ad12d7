"""Slides through OpenSlide: MRXS, VMS, VMU, BIF, Trestle, CZI and svslide, and with `backend="openslide"` what else it
reads.

OpenSlide opens files by name, so it reads local files only. Tiles are regions of its levels on a lattice of the tile
size that it states. Its pixels have alpha: where nothing was scanned they are transparent, and become the background
colour that the file states, else white.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError, TileError, UnreachableError
from msdask.extras import MissingExtraError, how_to_install
from msdask.readers.base import LevelInfo, SlideMetadata, UnsupportedSlideError, stored_downsample
from msdask.readers.place import Place
from msdask.readers.quantities import read_number
from msdask.readers.tiff import is_tiff
from msdask.readers.tiff_metadata import FLUORESCENT, says_fluorescence
from msdask.readers.tiff_page import MAX_STRIP_BYTES
from msdask.readers.to_rgb import over_background
from msdask.storage.source import fingerprint

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["OpenSlideReader", "accepts", "open_place", "parts"]

_KEY_FILES = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")
"""First lines of Hamamatsu's VMS and VMU."""
_BOM = b"\xef\xbb\xbf"
_ASSOCIATED = ("label", "macro", "thumbnail")
_LIGHT = ("SLIDE_TYPE", "illumination-source")
_SIDES = ("width", "height")
_VENDORS = {"generic-tiff": "generic"}
_SMALLEST_TILE, _LARGEST_TILE, _TILE = 128, 2048, 512
_PROBE, _PIECE = 64 << 10, 8 << 20
"""Bytes at a file's end that tell whether it can be read at all, and bytes of a read through all of it."""
_NAMED_FILE = re.compile(r"^(?:INDEXFILE|FILE_\d+|\w*File(?:\(\d+(?:,\d+)*\))?|MacroImage)\s*=\s*(\S.*?)\s*$", re.M)
"""A line of Slidedat.ini, VMS or VMU that names another file of the slide."""


def accepts(place: Place) -> bool:
    """See `ReaderModule.accepts`. A MRXS begins as a JPEG: its ending and its folder of data tell."""
    if place.ending == ".mrxs":
        return not place.is_folder
    head = place.head.removeprefix(_BOM)
    if head.startswith(b"SQLite format 3\0"):
        return place.ending == ".svslide"
    return is_tiff(head) or head.startswith((*_KEY_FILES, b"ZISRAWFILE"))


def open_place(place: Place) -> OpenSlideReader:
    """See `ReaderModule.open_place`."""
    return OpenSlideReader(place)


def parts(place: Place) -> list[str]:
    """Names of the files beside a VMS or VMU that are part of it; a MRXS has them in a folder of their own."""
    is_key_file = place.ending != ".mrxs" and place.head.removeprefix(_BOM).startswith(_KEY_FILES)
    return _named_files(place) if is_key_file else []


def _named_files(place: Place) -> list[str]:
    """Names of files that a text of keys and values names, those in its own folder."""
    source = place.open()
    try:
        text = source.read(0, source.size).decode("utf-8", "surrogateescape")
    finally:
        source.close()
    return sorted({name for name in _NAMED_FILE.findall(text) if "/" not in name and "\\" not in name})


def _data_files(place: Place) -> list[Place]:
    """The other files of a slide that are there and not empty, in order."""
    if place.ending == ".mrxs":
        folder = place.beside(place.stem)
        index = folder.inside("Slidedat.ini")
        files = [index, *(folder.inside(name) for name in _named_files(index))]
    else:
        files = [place.beside(name) for name in parts(place)]
    return [file for file in files if file.size]


class OpenSlideReader:
    """A slide that OpenSlide reads. Thread-safe; opening reads metadata only."""

    format = "openslide"

    def __init__(self, place: Place) -> None:
        self._place = place
        if place.is_url:
            raise SlideError(
                f"slide {place.path!r}: OpenSlide reads local files only, not URLs; copy the slide, with all of its "
                "files, to a local folder"
            )
        if place.ending == ".mrxs" and place.beside(place.stem).inside("Slidedat.ini").size is None:
            raise SlideError(
                f"slide {place.path!r}: a MRXS without its data: expected the folder {place.stem!r} with Slidedat.ini "
                "beside it; copy both"
            )
        self._library = _library(place)
        self._files = [(file.path, file.size or 0) for file in (place, *_data_files(place))]
        self._was_read_through = False
        self._check_lock = threading.Lock()
        self._slide = self._opened()
        try:
            stated = self._slide.properties
            facts = {name: value for name in stated if (value := stated.get(name)) is not None}
            self.levels: tuple[LevelInfo, ...] = self._level_infos(facts)
            self.metadata: SlideMetadata = _metadata(facts)
            self._ratios: tuple[float, ...] = self._slide.level_downsamples
            names = set(self._slide.associated_images)
        except (self._library.OpenSlideError, ValueError) as error:  # ValueError: text that is no UTF-8
            raise SlideError(f"slide {place.path!r}: OpenSlide cannot read it ({error}); copy it again") from error
        self.associated: tuple[str, ...] = (
            *(name for name in _ASSOCIATED if name in names),
            *sorted(names.difference(_ASSOCIATED)),
        )
        self._background = _color(facts.get("openslide.background-color"))

    def _opened(self) -> Any:
        """A handle of OpenSlide's."""
        path = self._place.path
        try:
            return self._library.OpenSlide(path)
        except self._library.OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(f"slide {path!r}: OpenSlide does not know its format") from error
        except (self._library.OpenSlideError, OSError) as error:
            self._check_files()
            raise SlideError(
                f"slide {path!r}: OpenSlide cannot open it ({error}); it is damaged, or one of its files is missing: "
                "copy it again, with all of its files"
            ) from error

    def _level_infos(self, facts: dict[str, str]) -> tuple[LevelInfo, ...]:
        sizes = [(height, width) for width, height in self._slide.level_dimensions]
        return tuple(
            LevelInfo(size, _tile(facts, level, size), stored_downsample(sizes[0], size))
            for level, size in enumerate(sizes)
        )

    def read_tile(
        self, level: int, row: int, column: int, scale: int = 1, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Reader.read_tile`; edge tiles are cut."""
        if not 0 <= level < len(self.levels):
            raise SpecError(f"level {level}: slide {self._place.path!r} has levels 0 to {len(self.levels) - 1}")
        info = self.levels[level]
        rows, columns = info.grid
        if not (0 <= row < rows and 0 <= column < columns) or scale != 1:
            raise SpecError(
                f"tile (row {row}, column {column}) reduced by {scale}: level {level} of slide {self._place.path!r} "
                f"has {rows} x {columns} tiles, not reducible"
            )
        y, x = row * info.tile[0], column * info.tile[1]
        size = min(info.tile[1], info.shape[1] - x), min(info.tile[0], info.shape[0] - y)
        # OpenSlide wants level-0 px, and divides them by its own ratio: where the quotient is not whole, it blends px
        ratio = self._ratios[level]
        try:
            image = self._region((round(x * ratio), round(y * ratio)), level, size)
        except self._library.OpenSlideError as error:
            raise TileError(
                f"slide {self._place.path!r}: level {level}, tile (row {row}, column {column}) cannot be decoded "
                f"({error}); expected {size[0]} x {size[1]} px: copy the slide again, or have bad tiles filled"
            ) from error
        return self._rgb(image, out)

    def _region(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """A region as RGBA. A handle that failed once fails for ever, so a failure counts only on a fresh one.

        OpenSlide says the same of bytes that do not decode and of bytes that it could not read: the files tell.
        """
        try:
            return self._slide.read_region(origin, level, size)
        except self._library.OpenSlideError:
            self._check_files(through=True)
            fresh = self._opened()
            image = fresh.read_region(origin, level, size)
            self._slide = fresh  # other threads may still read with the old one: it is closed when they are done
            return image

    def _check_files(self, *, through: bool = False) -> None:
        """Make sure that the slide's files can be read now: all of them `through`, the first time, then their ends.

        Raises
        ------
        UnreachableError
            One cannot be read, or is not as long as when the slide was opened.
        """
        with self._check_lock:
            for path, size in self._files:
                _check_file(path, size, 0 if through and not self._was_read_through else max(0, size - _PROBE))
            self._was_read_through |= through

    def _rgb(self, image: Image.Image, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        rgba: NDArray[np.uint8] = np.asarray(image)
        height, width = rgba.shape[:2]
        pixels = out if out is not None and out.shape == (height, width, 3) else np.empty((height, width, 3), np.uint8)
        if rgba[:, :, 3].min() == 255:
            cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB, dst=pixels)
        else:
            pixels[:] = over_background(rgba[:, :, :3], rgba[:, :, 3], self._background)
        return pixels

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """See `Reader.read_associated`."""
        if name not in self.associated:
            raise SpecError(f"associated image {name!r}: slide {self._place.path!r} has {list(self.associated)}")
        stated = self.metadata.properties
        width, height = (read_number(stated.get(f"openslide.associated.{name}.{side}")) or 0 for side in _SIDES)
        if width * height * 4 > MAX_STRIP_BYTES:
            raise SlideError(
                f"slide {self._place.path!r}: its {name} of {width:g} x {height:g} px is too large to decode as one "
                "picture (limit 512 MiB)"
            )
        try:
            with self._opened() as slide:
                return self._rgb(slide.associated_images[name])
        except self._library.OpenSlideError as error:
            self._check_files()
            raise TileError(f"slide {self._place.path!r}: its {name} cannot be decoded ({error})") from error

    def fingerprint(self) -> str:
        """See `Reader.fingerprint`. Of a slide of several files, that of each, with its name."""
        own = _file_fingerprint(self._place)  # without its name, which may change
        others = "".join(f"{file.name}\0{_file_fingerprint(file)}\n" for file in _data_files(self._place))
        return hashlib.sha256(f"{own}\n{others}".encode("utf-8", "surrogateescape")).hexdigest() if others else own

    def close(self) -> None:
        """See `Reader.close`."""
        self._slide.close()


def _check_file(path: str, size: int, start: int) -> None:
    """Read a file of so many bytes from `start` to its end; UnreachableError where that is not possible."""
    at = start
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while piece := file.read(_PIECE):
                at += len(piece)
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UnreachableError(
            f"'{path}' cannot be read now ({error.strerror or error}, at byte {at}); check the disk or the network "
            "file system, and run again"
        ) from error
    if min(at, found) != size:
        raise UnreachableError(
            f"'{path}' had {size} bytes when the slide was opened, now it has {found}: run again when it is whole"
        )


def _file_fingerprint(place: Place) -> str:
    source = place.open()
    try:
        return fingerprint(source)
    finally:
        source.close()


def _library(place: Place) -> Any:
    """The module of openslide-python; where it cannot be loaded, an error that says what to install."""
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the library that it wraps is missing
        raise MissingExtraError(
            f"slide {place.path!r}: is read by OpenSlide, which cannot be loaded ({error}): "
            f"{how_to_install('openslide')}"
        ) from error
    return openslide


def _metadata(facts: dict[str, str]) -> SlideMetadata:
    vendor = facts.get("openslide.vendor", "generic")
    vendor = _VENDORS.get(vendor, vendor)
    x, y = read_number(facts.get("openslide.mpp-x")), read_number(facts.get("openslide.mpp-y"))
    mpp = (x, y) if x is not None and y is not None else None
    return SlideMetadata(
        mpp=mpp,
        mpp_source=None if mpp is None else "tiff resolution" if vendor == "generic" else vendor,
        objective_power=read_number(facts.get("openslide.objective-power")),
        vendor=vendor,
        properties=facts,
        warnings=(FLUORESCENT,) if _is_fluorescent(facts) else (),
    )


def _is_fluorescent(facts: dict[str, str]) -> bool:
    """By MRXS's type of slide, a SCN's light, or the words of another scanner."""
    stated = " ".join(value for name, value in facts.items() if name.endswith(_LIGHT)).lower()
    return "fluor" in stated or says_fluorescence(facts.get("openslide.comment", ""))


def _tile(facts: dict[str, str], level: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the lattice: stored tiles, several of them where they are small, or none are stated."""
    sides = []
    for name, side in (("height", size[0]), ("width", size[1])):
        stated = int(facts.get(f"openslide.level[{level}].tile-{name}", 0))
        tile = stated * -(-_SMALLEST_TILE // stated) if 0 < stated <= _LARGEST_TILE else _TILE
        sides.append(min(tile, side))
    return sides[0], sides[1]


def _color(text: str | None) -> tuple[int, int, int]:
    """RGB of "E6E6E6"; white where nothing is stated."""
    if text is None or not re.fullmatch("[0-9A-Fa-f]{6}", text):
        return 255, 255, 255
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)
