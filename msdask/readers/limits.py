"""What a TIFF claims, checked before anything is parsed or allocated by it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException

from msdask.errors import MsdaskError, SlideError
from msdask.readers.tiff_page import PARSE_ERRORS
from msdask.readers.tiff_xml import Described, local_name
from msdask.storage.source import ByteSource, parser_file

__all__ = [
    "MAX_PLANES",
    "MAX_TEXT_BYTES",
    "MAX_XML_BYTES",
    "MAX_XML_TAGS",
    "LimitedFile",
    "checked_description",
    "limited_file",
]

MAX_XML_BYTES = 16 << 20
"""Scanners' XML is a few KiB, with pictures of label and glass in it a few MiB."""
MAX_TEXT_BYTES = 1 << 20
"""Of a description that is no XML."""
MAX_XML_TAGS = 100_000
"""Opening and closing tags of a description's XML."""
_MAX_ATTRIBUTES = 100_000
MAX_PLANES = 10_000
"""Planes that XML may claim beyond the images that the file has; slides have one, or a few of a stack."""

_ATTRIBUTE = re.compile(r"=\s*[\"']")
_MAX_TAG_BYTES = 64 << 20
_SMALL = 64 << 10


class LimitedFile(io.BufferedReader):
    """A file for a parser of directories and tags, which refuses to read more than any real one has.

    Attributes
    ----------
    refused : bytes of the first read that was refused; 0 where none was
    is_limited : set it to False when the tags are read, and pixels are to come
    """

    def __init__(self, raw: io.RawIOBase, buffer_size: int) -> None:
        super().__init__(raw, buffer_size)
        self.refused = 0
        self.is_limited = True
        self._left = _MAX_TAG_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self._check(size or 0)
        return super().read(size)

    def readinto(self, buffer: Any, /) -> int:
        """As of any file."""
        self._check(memoryview(buffer).nbytes)
        return super().readinto(buffer)

    def _check(self, size: int) -> None:
        if not self.is_limited or size < _SMALL:
            return
        self._left -= size
        if size > MAX_XML_BYTES or self._left < 0:
            self.refused = self.refused or size
            raise ValueError(f"a tag of {size} bytes")


@contextmanager
def limited_file(
    source: ByteSource, *, kind: str = "slide", error: type[MsdaskError] = SlideError
) -> Iterator[LimitedFile]:
    """The file for tifffile: as `parser_file`, but a tag beyond the limits is an error, whatever tifffile makes of it.

    Raises
    ------
    error
        A tag claims more than 16 MiB, or all large ones together more than 64 MiB.
    """
    with parser_file(source) as file:
        limited = LimitedFile(cast(io.RawIOBase, file.raw), 256 << 10 if source.reads_ahead else 16 << 10)
        try:
            yield limited
        except PARSE_ERRORS:
            if not limited.refused:
                raise
        if limited.refused:
            raise error(
                f"{kind} {source.path!r}: a tag of it, such as the description, claims {limited.refused} bytes; "
                f"expected at most {MAX_XML_BYTES}, and {_MAX_TAG_BYTES} of all: remove it, or save the image again"
            )


def checked_description(
    text: str, path: str, *, images: int, kind: str = "slide", error: type[MsdaskError] = SlideError
) -> Described:
    """A description, parsed if it is XML; refused where that would cost much, or it claims what the file has not.

    Parameters
    ----------
    text : of the first page
    path : of the file, for the message
    images : how many the file has
    kind, error : what it is called in the message, and what is raised

    Raises
    ------
    error
        It is too long, has too much XML, declares entities or external documents, or claims more planes than the file
        has images; says what was found, and how much is allowed.
    """
    found = Described(text)
    where = f"{kind} {path!r}: its description"
    if not found.is_xml:
        if len(text) > MAX_TEXT_BYTES:
            raise error(f"{where} is a text of {len(text)} characters; expected at most {MAX_TEXT_BYTES}: remove it")
        return found
    tags = text.count("<")
    if tags > MAX_XML_TAGS:
        raise error(f"{where} is XML of {tags} tags; expected at most {MAX_XML_TAGS}: remove it")
    attributes = text.count("=")
    if attributes > _MAX_ATTRIBUTES and (attributes := len(_ATTRIBUTE.findall(text))) > _MAX_ATTRIBUTES:
        raise error(f"{where} is XML of {attributes} attributes; expected at most {_MAX_ATTRIBUTES}: remove it")
    try:
        root = found.root
    except DefusedXmlException as why:
        raise error(f"{kind} {path!r}: its XML description declares entities ({why}); refused: remove it") from why
    planes = 0 if root is None else _claimed_planes(root)
    if planes > MAX_PLANES + images:
        raise error(
            f"{where} claims {planes} planes, the file has {images} images; expected one plane: remove the "
            "description, or export the plane wanted"
        )
    return found


def _claimed_planes(root: Element) -> int:
    """Planes that OME's or Leica's XML claims, of all its images together, however it is put; 0 of other XML."""
    total = 0
    for element in root.iter():
        name = local_name(element)
        if name == "Pixels":
            total += math.prod(_count(element, f"Size{axis}", 1) for axis in "ZCT")
        elif name == "TiffData":
            total += max(_count(element, key, 0) for key in ("PlaneCount", "NumPlanes"))
        elif name in ("pixels", "image"):
            total += _count(element, "sizeZ", 1)
        elif name == "dimension":
            total += (1 + _count(element, "c", 0)) * (1 + _count(element, "z", 0))
    return total


def _count(element: Element, key: str, default: int) -> int:
    try:
        return max(0, int(element.get(key, default)))
    except ValueError:
        return default
