"""Formats of mask files, one file each behind one protocol (`base.MaskFormat`): which there are, and whose a file is.

Another package adds one by an entry point of the group `msdask.masks` that names its format; docs/masks.md shows how.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import entry_points

from msdask.errors import MaskError
from msdask.masks.formats.asap import Asap
from msdask.masks.formats.base import Canvas, MaskContent, MaskFormat, MaskKind
from msdask.masks.formats.geojson import GeoJson
from msdask.masks.formats.histoqc import HistoQC, HistoQCFolder
from msdask.masks.formats.imagescope import ImageScope
from msdask.masks.formats.raster import Raster
from msdask.storage.source import open_source

__all__ = ["Canvas", "MaskContent", "MaskFormat", "MaskKind", "mask_formats", "read_content"]

ENTRY_POINTS = "msdask.masks"
_HEAD = 1024
_DRAWN_AT = 32
"""Level-0 px per mask px of outlines whose size nobody gives: 8 um/px at 40x."""


@cache
def mask_formats() -> tuple[MaskFormat, ...]:
    """All formats, in the order in which they are asked: msdask's own, and those of installed packages.

    Warns
    -----
    UserWarning
        The format of another package cannot be loaded; it is left out.
    """
    formats: list[MaskFormat] = [HistoQC(), Asap(), ImageScope(), GeoJson(), Raster(), HistoQCFolder()]
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
            formats.append(found() if isinstance(found, type) else found)
        except Exception as error:
            warnings.warn(
                f"mask format '{point.name}' of {point.value} cannot be loaded: {error}", UserWarning, stacklevel=2
            )
    return tuple(sorted(formats, key=lambda f: f.priority))


def read_content(
    path: str, *, slide_shape: tuple[int, int] | None = None, shape: tuple[int, int] | None = None
) -> MaskContent:
    """Read a mask file of any format.

    Parameters
    ----------
    path : file or URL
    slide_shape : (height, width) of the slide's level 0, px; formats of outlines need it
    shape : (height, width) px at which outlines are drawn; None means 1/32 of the slide. Pixels come as they are

    Raises
    ------
    MaskError
        The file is missing, of no known format, damaged, or holds outlines and no slide is given.
    """
    source = open_source(path, kind="mask", error=MaskError)
    try:
        head = source.read(0, _HEAD)
        for form in mask_formats():
            if form.recognizes(path, head):
                break
        else:
            known = ", ".join(dict.fromkeys(f.name for f in mask_formats()))
            raise MaskError(f"mask {path!r}: begins with {head[:8]!r}; expected one of these formats: {known}")
        canvas = None
        if slide_shape is not None:
            height, width = (max(1, round(side / _DRAWN_AT)) for side in slide_shape)
            canvas = Canvas(slide_shape, shape or (height, width))
        elif form.is_drawn:
            raise MaskError(f"mask {path!r}: {form.name} holds outlines, which are drawn for a slide; pass slide=...")
        return form.read(source, canvas)
    except OSError as error:
        raise MaskError(f"mask {path!r}: cannot be read ({error}); check that it exists and may be read") from error
    finally:
        source.close()
