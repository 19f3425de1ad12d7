"""What a mask format is: one file beside this one, which knows its files by their path and first bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from msdask.masks.outlines import Outlines
from msdask.storage.source import ByteSource

__all__ = ["Canvas", "MaskContent", "MaskFormat", "MaskKind"]

MaskKind = Literal["tissue", "labels"]
"""What a mask says of a pixel: whether it is tissue, or which class it is."""


@dataclass(frozen=True, slots=True)
class MaskContent:
    """What a mask file holds.

    Attributes
    ----------
    values : (y, x) bool or integers. Of a format that names its classes 0 = unlabeled, k + 1 = `classes[k]`; of all
        others as stored
    kind : what the file itself says that it carries; None where it does not say, as a PNG does not
    classes : names of the classes; empty where the file has values only
    outlines : what was drawn, of a format of outlines that keeps it: then label maps are drawn from it at any scale
    """

    values: NDArray[Any]
    kind: MaskKind | None = None
    classes: tuple[str, ...] = ()
    outlines: Outlines | None = None


@dataclass(frozen=True, slots=True)
class Canvas:
    """What outlines are drawn on.

    Attributes
    ----------
    slide_shape : (height, width) of level 0, px: what the outlines' coordinates are in
    shape : (height, width) of the mask, px
    """

    slide_shape: tuple[int, int]
    shape: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """(y, x) mask px per level-0 px."""
        return self.shape[0] / self.slide_shape[0], self.shape[1] / self.slide_shape[1]


class MaskFormat(Protocol):
    """One format of mask files.

    Attributes
    ----------
    name : as messages and lists show it
    priority : formats with a lower number are asked first, and their files are taken first from a folder of masks
    reason : why it has that priority
    places : where the mask of a slide may lie in a folder of masks, such as "{name}.png"; `{name}` is the slide's file
        name, with its ending and then without
    is_drawn : the file holds outlines, which can only be drawn for a slide, at any size
    """

    name: str
    priority: int
    reason: str
    places: tuple[str, ...]
    is_drawn: bool

    def recognizes(self, path: str, head: bytes) -> bool:
        """Whether a file is of this format, by its path or URL and its first KiB."""
        ...

    def read(self, source: ByteSource, canvas: Canvas | None) -> MaskContent:
        """Read a file of this format.

        Parameters
        ----------
        source : the open file
        canvas : what to draw on; never None where `is_drawn`. A format of pixels gives them as they are

        Raises
        ------
        MaskError
            The file is damaged, or holds what no mask can hold; names the file and what to do.
        """
        ...
