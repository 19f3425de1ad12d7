"""Patch: one patch of a set with its pixels and its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Patch"]


@dataclass(frozen=True, eq=False, slots=True)
class Patch:
    """One patch of a patch set, or one tuple of patches at several magnifications; get it as ``patch_set[i]``.

    Attributes
    ----------
    image : (magnification, y, x, channel) uint8
    magnifications : nominal ones of the images, highest first
    slide_id, row : slide that it is from, and row in that slide's arrays
    x0, y0 : level-0 px of its origin at the highest magnification
    footprint : level-0 px of the side of the square that it covers there
    label : 0-based class, -1 none
    tissue : fraction of its footprint that is tissue
    keep : whether it is neither white nor of low contrast
    split : of its slide; "" none
    """

    image: NDArray[np.uint8]
    magnifications: tuple[float, ...]
    slide_id: str
    row: int
    x0: int
    y0: int
    footprint: float
    label: int
    tissue: float
    keep: bool
    split: str

    def __repr__(self) -> str:
        scales = ", ".join(f"{m:g}x" for m in self.magnifications)
        size = self.image.shape[1]
        return f"<Patch {self.row} of '{self.slide_id}' at ({self.x0}, {self.y0}): {size} px at {scales}>"

    def _repr_html_(self) -> str:
        from msdask.html import facts_html  # pictures are encoded only where they are shown

        facts = [
            ("slide", f"{self.slide_id}, row {self.row}"),
            ("x0, y0", f"{self.x0:,}, {self.y0:,} px of level 0, side {self.footprint:,.6g}"),
            ("scale", ", ".join(f"{m:g}x" for m in self.magnifications)),
            ("tissue", f"{self.tissue:.0%}"),
            ("label", "none" if self.label < 0 else str(self.label)),
            ("keep", "yes" if self.keep else "no"),
        ]
        return facts_html(f"{self.image.shape[1]} px patch", facts, np.concatenate(list(self.image), axis=1))
