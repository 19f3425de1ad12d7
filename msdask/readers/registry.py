"""Which readers there are, in which order they are asked, and the opening of a slide with the right one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import cast

from msdask.errors import SlideError, SpecError
from msdask.extras import MissingExtraError, how_to_install
from msdask.readers.base import Reader, ReaderModule, UnsupportedSlideError
from msdask.readers.place import Place

__all__ = ["ENTRY_POINTS", "Backend", "backends", "open_reader", "register"]

ENTRY_POINTS = "msdask.readers"
"""Group of entry points, each of which leads to a `Backend`."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A reader as the registry knows it. Its module is imported when a slide is opened.

    Attributes
    ----------
    name : what `backend=` calls it
    module : dotted name of a module with ``accepts(place)`` and ``open_place(place)``, see `ReaderModule`; and, where
        a slide is several files, ``parts(place)``, the names of the others that lie beside it; and, where a file holds
        several slides, ``open_region(place, region)``, the reader of one of them by its name or number
    formats : what it reads, in words
    endings : of files that are meant to be such slides, lower case with a dot: one that cannot be opened is an error
        in a folder of slides, not something else that lies there
    priority : lower numbers are asked first; msdask's own have 10, 20 and 30
    reason : why in that place
    needs : module that must be installed, or ""
    extra : of msdask that installs it, or ""
    """

    name: str
    module: str
    formats: tuple[str, ...]
    endings: tuple[str, ...] = ()
    priority: int = 100
    reason: str = ""
    needs: str = ""
    extra: str = ""

    @property
    def is_available(self) -> bool:
        """Whether what it needs is installed."""
        return not self.needs or find_spec(self.needs) is not None

    @property
    def remedy(self) -> str:
        """What installs what it needs."""
        return how_to_install(self.extra) if self.extra else f"pip install {self.needs}"

    def accepts(self, place: Place) -> bool:
        """Whether the place looks like a slide of its formats."""
        return bool(self._loaded().accepts(place))

    def open(self, place: Place, region: str | int | None = None) -> Reader:
        """The reader of a place; of one `region` of it.

        Raises
        ------
        MissingExtraError
            What it needs is not installed.
        SpecError
            It opens no regions, or there is none of that name or number.
        """
        if not self.is_available:
            raise MissingExtraError(
                f"slide {place.path!r}: the reader {self.name!r} ({', '.join(self.formats)}) needs {self.needs}, which "
                f"is not installed: {self.remedy}"
            )
        if region is None:
            return self._loaded().open_place(place)
        find = getattr(self._loaded(), "open_region", None)
        if find is None:
            raise SpecError(f"slide {place.path!r}: region {region!r}: the reader {self.name!r} opens no regions apart")
        return cast(Reader, find(place, region))

    def parts(self, place: Place) -> frozenset[str]:
        """Names of the other files beside a place that belong to the same slide."""
        find = getattr(self._loaded(), "parts", None)
        return frozenset(find(place)) if find is not None else frozenset()

    def _loaded(self) -> ReaderModule:
        return cast(ReaderModule, import_module(self.module))


_OWN = (
    Backend(
        "tiff",
        "msdask.readers.tiff",
        ("SVS", "NDPI", "SCN", "OME-TIFF", "Philips TIFF", "generic TIFF and BigTIFF"),
        (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".btf", ".tf2", ".tf8"),
        priority=10,
        reason="first: it reads byte ranges, also of URLs, and lets the JPEG decoder reduce",
    ),
    Backend(
        "openslide",
        "msdask.readers.openslide",
        ("MRXS", "VMS", "VMU", "BIF", "Trestle", "CZI", "svslide"),
        (".mrxs", ".vms", ".vmu", ".bif", ".czi", ".svslide"),
        priority=20,
        reason="for what tiff cannot read, on local files only; before image, since a MRXS begins as a JPEG",
        needs="openslide",
        extra="openslide",
    ),
    Backend(
        "image",
        "msdask.readers.image",
        ("PNG", "JPEG", "BMP", "WebP"),
        (".png", ".jpg", ".jpeg", ".bmp", ".webp"),
        priority=30,
        reason="last: any plain image is a slide of one level",
    ),
)
_registered: dict[str, Backend] = {backend.name: backend for backend in _OWN}


def register(backend: Backend) -> None:
    """Add a reader to this process; an installed package names it as an entry point of the group `msdask.readers`.

    Raises
    ------
    SpecError
        There is another one of that name.
    """
    if _registered.setdefault(backend.name, backend) != backend:
        raise SpecError(f"reader {backend.name!r}: there is one of that name already; choose another name")


def backends() -> dict[str, Backend]:
    """All readers by name, in the order in which they are asked.

    A plug-in that cannot be loaded is left out, with a warning that names it.
    """
    _register_plug_ins()
    return dict(sorted(_registered.items(), key=lambda item: item[1].priority))


@cache
def _register_plug_ins() -> None:
    """Once a process; two threads that come first together register the same twice, which changes nothing."""
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
            if not isinstance(found, Backend):
                raise TypeError(f"it is a {type(found).__name__}, expected a msdask.readers.Backend")
            register(found)
        except Exception as error:  # whatever a plug-in raises: slides of other formats must open all the same
            package = point.dist.name if point.dist is not None else "an unknown package"
            warnings.warn(
                f"the reader {point.name!r} of {package} ({point.value}) cannot be loaded and is left out: "
                f"{type(error).__name__}: {error}",
                UserWarning,
                stacklevel=3,
            )


def open_reader(path: str | os.PathLike[str], *, backend: str | None = None, region: str | int | None = None) -> Reader:
    """Open a slide with the reader for what it is.

    Parameters
    ----------
    path : local path, or a URL that fsspec knows; of a file, or of a folder that is one slide
    backend : name of a reader to decide it, see `msdask info --readers`; None asks all of them
    region : name or number of one of several images in the file; None chooses the finest, then the largest

    Returns
    -------
    reader : with metadata read, no pixel decoded

    Raises
    ------
    SpecError
        No reader of that name, or no such region.
    SlideError
        It is missing, empty, cut short, or of no format that is known; says what was found.
    MissingExtraError
        The one reader for it is not installed; says what to install.
    """
    known = backends()
    if backend is not None and backend not in known:
        raise SpecError(
            f"backend {backend!r}: expected one of {', '.join(map(repr, known))}, or None to choose by content"
        )
    with Place(path) as place:
        if backend is not None:
            if not known[backend].accepts(place):
                raise SlideError(
                    f"slide {place.path!r}: {_found(place)}, which backend {backend!r} does not read; leave backend out"
                )
            return known[backend].open(place, region)
        return _open_with_first(place, known.values(), region)


def _open_with_first(place: Place, candidates: Collection[Backend], region: str | int | None) -> Reader:
    """The first reader that accepts a place and reads it."""
    refusals: list[SlideError] = []
    for candidate in candidates:
        if not candidate.accepts(place):
            continue
        if refusals and not candidate.is_available:
            raise SlideError(f"{refusals[0]}, or have {candidate.name} read it: {candidate.remedy}") from refusals[0]
        try:
            return candidate.open(place, region)
        except UnsupportedSlideError as error:
            refusals.append(error)
    if refusals:
        rest = "".join(str(error).replace(f"slide {place.path!r}:", ";", 1) for error in refusals[1:])
        raise SlideError(f"{refusals[0]}{rest}") from refusals[-1]
    if place.is_folder:
        raise SlideError(
            f"slide {place.path!r}: is a directory with {place.described()}, which no reader takes for a slide; give "
            "the path of a slide file in it"
        )
    formats = ", ".join(name for candidate in candidates for name in candidate.formats)
    raise SlideError(
        f"slide {place.path!r}: {_found(place)}; expected {formats}, whatever the file's ending: convert it to one of "
        "these"
    )


_MAGIC = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file",
    b"GIF8": "a GIF",
    b"<": "an XML or HTML text",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a BigTIFF",
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
}


def _found(place: Place) -> str:
    """What a place holds, by its first bytes."""
    if place.is_folder:
        return "it is a directory"
    head = place.head
    if head[128:132] == b"DICM":
        return "it is a DICOM file"
    name = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    return f"it is {name}" if name else f"it begins with {head[:8]!r}, which is no image format known here"
