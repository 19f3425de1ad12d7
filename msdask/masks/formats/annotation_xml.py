"""XML of annotation programs, read element by element: nothing of it is kept but what the caller takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from msdask.errors import MaskError
from msdask.readers.tiff_xml import local_name
from msdask.storage.source import ByteSource, parser_file

__all__ = ["MAX_ANNOTATION_BYTES", "elements", "number_of", "root_name"]

MAX_ANNOTATION_BYTES: Final = 512 << 20
"""Some five million corners; what has more comes from a program, not from a hand, and GeoJSON holds it better."""


def root_name(head: bytes) -> str:
    """Name of the first element that a file's first bytes show; "" where they show none."""
    text = head.decode("utf-8-sig", errors="replace")
    for piece in text.split("<")[1:]:
        if piece[:1] not in ("?", "!"):
            return piece.replace(">", " ").replace("/", " ").split(maxsplit=1)[0] if piece.strip("/> \t\r\n") else ""
    return ""


def elements(source: ByteSource) -> Iterator[tuple[str, str, Element]]:
    """Each element's beginning and end: ("start" or "end", its name, it).

    Raises
    ------
    MaskError
        The file is larger than 512 MiB, no XML or not all of it, or it declares entities.
    """
    if source.size > MAX_ANNOTATION_BYTES:
        raise MaskError(
            f"mask {source.path!r}: {source.size} bytes of XML; expected at most {MAX_ANNOTATION_BYTES}: split it, or "
            "export it as GeoJSON"
        )
    with parser_file(source) as file:
        try:
            for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
                yield event, local_name(element), element
        except DefusedXmlException as why:
            raise MaskError(
                f"mask {source.path!r}: its XML declares entities or a document type ({why}); refused: save it again "
                "without"
            ) from why
        except ParseError as why:
            raise MaskError(
                f"mask {source.path!r}: is no whole XML file ({why}); expected annotations: save or copy it again"
            ) from why


def number_of(element: Element, key: str, path: str) -> float:
    """A number in an attribute.

    Raises
    ------
    MaskError
        There is none; says what was found.
    """
    text = element.get(key, "")
    try:
        return float(text.replace(",", "."))  # some computers write numbers as their country does
    except ValueError as why:
        raise MaskError(
            f"mask {path!r}: {key}={text!r} of a {local_name(element)}; expected a number, level-0 px"
        ) from why
