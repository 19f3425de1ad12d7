"""What formats of outlines share: they are drawn on a canvas, later ones over earlier ones, each with its class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.formats.base import Canvas, MaskContent
from msdask.masks.outline_checks import check_inside, check_outlines
from msdask.masks.outline_drawing import Canvases, draw_outlines
from msdask.masks.outlines import Outlines
from msdask.storage.source import ByteSource

__all__ = ["MAX_CANVAS_PIXELS", "UNCLASSIFIED", "OutlineFormat", "Ring", "gathered", "warn_of_left_out"]

MAX_CANVAS_PIXELS: Final = 1 << 28
UNCLASSIFIED: Final = "unclassified"
"""Class of an outline that has none."""
_MAX_CLASSES: Final = 65_535

Ring = Sequence[tuple[float, float]]


class OutlineFormat:
    """A format whose files hold outlines: one of them has `recognizes` and `read_outlines` besides its facts."""

    is_drawn = True

    def read_outlines(self, source: ByteSource, slide_shape: tuple[int, int]) -> Outlines:
        """All outlines of a file, in the file's order, checked.

        Parameters
        ----------
        source : the open file
        slide_shape : (height, width) of the slide's level 0, px: what the outlines must lie in

        Raises
        ------
        MaskError
            The file is damaged or too large, or an outline cannot be what it should be.
        """
        raise NotImplementedError

    def read(self, source: ByteSource, canvas: Canvas | None) -> MaskContent:
        """The outlines, drawn; a px has the class of the last one that its center lies in."""
        if canvas is None:
            raise MaskError(f"mask {source.path!r}: holds outlines, which are drawn for a slide; pass slide=...")
        height, width = canvas.shape
        if height * width > MAX_CANVAS_PIXELS:
            raise MaskError(
                f"mask {source.path!r}: {width} x {height} px to draw it at; expected at most {MAX_CANVAS_PIXELS} px: "
                "ask for a coarser mask, 1.25x is usual"
            )
        outlines = self.read_outlines(source, canvas.slide_shape)
        if len(outlines.classes) > _MAX_CLASSES:
            raise MaskError(
                f"mask {source.path!r}: {len(outlines.classes)} classes; expected at most {_MAX_CLASSES}: were names "
                "of single outlines taken for classes?"
            )
        return MaskContent(_drawn(outlines, canvas), kind="labels", classes=outlines.classes, outlines=outlines)


def gathered(
    rings: Sequence[Sequence[Ring]], names: Sequence[str], path: str, slide_shape: tuple[int, int]
) -> Outlines:
    """Outlines from lists of corners, checked.

    Parameters
    ----------
    rings : for each polygon its rings, the outer one first; a last corner that is the first one again is left out
    names : class of each polygon
    path, slide_shape : see `OutlineFormat.read_outlines`
    """
    open_rings = [
        [ring[:-1] if len(ring) > 1 and tuple(ring[0]) == tuple(ring[-1]) else ring for ring in polygon]
        for polygon in rings
    ]
    classes = tuple(dict.fromkeys(names))
    number = {name: k for k, name in enumerate(classes)}
    flat = [ring for polygon in open_rings for ring in polygon]
    outlines = Outlines(
        np.array([corner for ring in flat for corner in ring], np.float64).reshape(-1, 2),
        np.cumsum([0, *map(len, flat)], dtype=np.int64),
        np.cumsum([0, *map(len, open_rings)], dtype=np.int64),
        np.array([number[name] for name in names], np.int32),
        classes,
    )
    check_outlines(outlines, path)
    check_inside(outlines.boxes, np.diff(outlines.corners), path, slide_shape)
    return outlines


def warn_of_left_out(left_out: Counter[str], path: str) -> None:
    """Say which parts of a file have no area, and are not in the mask."""
    if left_out:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
        warnings.warn(
            f"mask {path!r}: left out what has no area: {counts}; draw polygons around what should be labeled",
            UserWarning,
            stacklevel=2,
        )


def _drawn(outlines: Outlines, canvas: Canvas) -> NDArray[np.unsignedinteger[Any]]:
    count = len(outlines)
    y_scale, x_scale = canvas.scale
    canvases = Canvases(np.zeros((1, 2)), np.array([[1 / x_scale, 1 / y_scale]]), canvas.shape)
    values: NDArray[np.unsignedinteger[Any]] = np.asarray(
        outlines.class_of + 1, dtype=np.uint8 if len(outlines.classes) < 256 else np.uint16
    )
    everywhere = np.zeros(count, np.int64)
    return draw_outlines(outlines.oriented(), values, canvases, polygon=np.arange(count), canvas=everywhere)[0]
