"""Scanners that store the pictures of their camera as they were taken: neighbouring tiles show the same strip."""

from __future__ import annotations

import re
from typing import Any

import tifffile

from msdask.errors import SlideError
from msdask.readers.base import UnsupportedSlideError

__all__ = ["overlap", "refuse_overlaps"]

_TRESTLE = "MedScan"
"""Begins the Software tag of Trestle's scanners."""
_SOFTWARE, _XMP = 305, 700
_LENGTH = 1 << 20
_OVERLAP = re.compile(
    r"\b((?:tile[ _]?)?overlaps?[ _]?(?:xy?|y))\s*[=:>]\s*[\"']?\s*(-?[\d.]+(?:[\s,]+-?[\d.]+)*)", re.IGNORECASE
)
"""A key, attribute or element with numbers: `OverlapsXY= 32 32`, `OverlapX="48"`, `<TileOverlapY>16`. A bare "overlap"
is not among them: stitched pictures keep that of their acquisition."""


def overlap(tif: tifffile.TiffFile, page: Any) -> tuple[str, bool] | None:
    """What says that a file's tiles overlap, or None where nothing does.

    Looked at are the description and XMP of a page: a key or attribute named after overlaps with a number other than
    0; and what tells of scanners whose tiles do.

    Returns
    -------
    found : in words
    is_known : whether it is a scanner's format that OpenSlide puts together rightly
    """
    if tif.is_bif:
        return "a Ventana BIF", True
    tags = getattr(page, "tags", None)
    if tags is None:
        return None
    if str(tags.valueof(_SOFTWARE, "")).startswith(_TRESTLE):
        return "a Trestle TIFF", True
    for text in (str(getattr(page, "description", ""))[:_LENGTH], _xmp(tags)):
        if "<iScan" in text:
            return "a TIFF with Ventana's iScan metadata", True
        for name, numbers in _OVERLAP.findall(text) if "verlap" in text.lower() else ():
            if any(number.strip("0.-") for number in re.split(r"[\s,]+", numbers)):
                return f"a TIFF whose metadata says {name} = {numbers}", False
    return None


def refuse_overlaps(tif: tifffile.TiffFile, page: Any, path: str) -> None:
    """Refuse a page whose tiles overlap.

    Raises
    ------
    UnsupportedSlideError
        OpenSlide knows how to put them together.
    SlideError
        It does not, and would take them as they lie.
    """
    found = overlap(tif, page)
    if found is None:
        return
    words, is_known = found
    kind = UnsupportedSlideError if is_known else SlideError
    remedy = "open it with backend='openslide', or convert it" if is_known else "convert it"
    raise kind(
        f"slide {path!r}: {words}, whose tiles overlap: side by side they would show strips twice; expected tiles that "
        f"meet: {remedy} to a pyramidal TIFF or OME-TIFF"
    )


def _xmp(tags: Any) -> str:
    """The XMP of a page as text; empty where there is none, or too much of it to be looked at."""
    tag = tags.get(_XMP)
    if tag is None or tag.count > 16 * _LENGTH:
        return ""
    value = tag.value
    return bytes(value[:_LENGTH]).decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
