"""Readers: one file a slide format behind one small protocol, chosen by content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from msdask.errors import SlideError, SpecError
from msdask.readers.base import LevelInfo, Reader, SlideMetadata
from msdask.storage.source import ByteSource, open_source

__all__ = ["BACKENDS", "Backend", "LevelInfo", "Reader", "SlideMetadata", "open_reader"]

_HEAD = 132
"""Bytes that decide the format: DICOM's magic is the last of them."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to read slides. Its module is imported when it is needed.

    Attributes
    ----------
    module : dotted name
    reader : the class in it, called with a ByteSource
    accepts : function in it, of a file's first bytes (132, or the whole file), that says whether this is its format
    """

    module: str
    reader: str
    accepts: str

    def open(self, source: ByteSource) -> Reader:
        """The reader of an open source, which it then owns."""
        return cast(Callable[[ByteSource], Reader], getattr(import_module(self.module), self.reader))(source)

    def matches(self, head: bytes) -> bool:
        """Whether a file that begins with `head` is of this backend's format."""
        return bool(getattr(import_module(self.module), self.accepts)(head))


BACKENDS: dict[str, Backend] = {
    "tiff": Backend("msdask.readers.tiff", "TiffReader", "is_tiff"),
    "image": Backend("msdask.readers.image", "ImageReader", "image_format"),
}
"""By name, in the order in which they are asked."""


def open_reader(path: str | os.PathLike[str], *, backend: str | None = None) -> Reader:
    """Open a slide file with the reader for its content.

    Parameters
    ----------
    path : local path, or a URL that fsspec knows
    backend : "tiff" or "image" to decide it; None looks at the first bytes

    Returns
    -------
    reader : with metadata read, no pixel decoded

    Raises
    ------
    SpecError
        No backend of that name.
    SlideError
        The file is missing, empty, cut short, or of no format that is known; says what was found.
    """
    if backend is not None and backend not in BACKENDS:
        raise SpecError(
            f"backend {backend!r}: expected one of {', '.join(map(repr, BACKENDS))}, or None to choose by content"
        )
    source = open_source(path)
    try:
        head = source.read(0, _HEAD)
    except OSError as error:
        source.close()
        raise SlideError(
            f"slide {source.path!r}: cannot be read ({error}); check the path and its permissions"
        ) from error
    if backend is not None:
        if not BACKENDS[backend].matches(head):
            source.close()
            raise SlideError(
                f"slide {source.path!r}: {_describe(head)}, which backend {backend!r} does not read; leave backend out"
            )
        return BACKENDS[backend].open(source)
    for candidate in BACKENDS.values():
        if candidate.matches(head):
            return candidate.open(source)
    source.close()
    raise SlideError(
        f"slide {source.path!r}: {_describe(head)}; expected a TIFF (SVS, NDPI, SCN, OME-TIFF ...), PNG, JPEG, BMP or "
        "WebP, whatever "
        "the file's ending: convert it to one of these"
    )


def _describe(head: bytes) -> str:
    known = {
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
    if head[128:132] == b"DICM":
        return "a DICOM file"
    name = next((name for magic, name in known.items() if head.startswith(magic)), None)
    return f"it is {name}" if name else f"it begins with {head[:8]!r}, which is no image format known here"
