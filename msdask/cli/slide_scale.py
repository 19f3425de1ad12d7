"""`--mpp` and its kin: how large the pixels of slides are, said the same way in every command."""

# Annotations are values here, not text: cyclopts reads those of a class that inherits a group in another module.

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from msdask.cli.groups import SCALE
from msdask.cli.numbers import ABOVE_ZERO, MPP
from msdask.cli.terminal import err
from msdask.errors import MsdaskError, SpecError

if TYPE_CHECKING:
    from msdask.extraction.slide_table import SlideRow
    from msdask.inference.scale import ScaleEstimate
    from msdask.slides.slide import Slide

__all__ = ["Scale", "StatedScale"]

Mpp = float | Literal["estimate"] | None
_Given = Annotated[Mpp, MPP]
_WORTH_A_WORD = 0.05
"""Relative distance between the scale that is used and the one that the file states, above which that is said."""


@Parameter(name="*", group=SCALE)
@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the pixels of the slides are. A table's own column goes before it, and it before what files state."""

    mpp: _Given = None
    """um/px of level 0, whatever the file states; "estimate" asks the scale detector"""
    slide_magnification: Annotated[float | None, ABOVE_ZERO] = None
    """the same as a magnification, 10 / mpp"""
    missing_mpp: _Given = None
    """um/px of level 0 where the file states none; "estimate" asks the scale detector then"""

    def __post_init__(self) -> None:
        if self.mpp is not None and self.slide_magnification is not None:
            raise SpecError("--mpp and --slide-magnification say the same: give one of them")

    @property
    def is_given(self) -> bool:
        """Whether anything is said of the scale."""
        return (self.mpp, self.slide_magnification, self.missing_mpp) != (None, None, None)

    def rows(self, slides: Iterable["SlideRow"]) -> list["SlideRow"]:
        """The slides of a cohort, with the scale that is to be used; what was estimated is printed and noted."""
        rows = []
        for row in slides:
            try:
                rows.append(self._row(row))
            except MsdaskError as error:  # the run reports what is wrong with it, and the others go on
                if "estimate" in (self.mpp, self.missing_mpp):
                    err.print(f"{row.path}: its scale cannot be estimated: {error}", markup=False)
                rows.append(row)
        return rows

    def _row(self, row: "SlideRow") -> "SlideRow":
        if not self.is_given or row.mpp is not None or row.magnification is not None:
            return row
        mpp, said = self._used(row.path, row.slide_region)
        if said is None:
            return row if mpp is None else replace(row, mpp=mpp)
        # kept with the slide: whoever reads the store must be able to tell an estimate from a scale that was stated
        return replace(row, mpp=mpp, cohort={**row.cohort, "scale_estimate": said})

    def _used(self, path: str | Path, region: str | None) -> tuple[float | None, str | None]:
        """The um/px to use, None for what the file states; and what the scale detector said, where it was asked."""
        from msdask.slides.slide import Slide

        given: Mpp = self.mpp if self.slide_magnification is None else 10 / self.slide_magnification
        stated = Slide(path, region=region).mpp
        if given is None and stated is None:
            given = self.missing_mpp
        beside = f"; its file states {stated:g} um/px" if stated is not None else ""
        if given == "estimate":
            found = _estimate(path, region)
            err.print(f"{os.fspath(path)}: {_said(found)}{beside}", markup=False)
            return found.mpp, _said(found)
        if given is not None and stated is not None and abs(given / stated - 1) > _WORTH_A_WORD:
            err.print(f"warning: {os.fspath(path)}: {given:g} um/px is used, as was said{beside}", markup=False)
        return given, None


@Parameter(name="*", group=SCALE)
@dataclass(frozen=True, kw_only=True)
class StatedScale(Scale):
    """The same of a single slide, and which image of its file is meant."""

    region: str | None = None
    """which of several images in the file, by name or number from 0 on; `msdask info` lists them"""

    def open(self, path: str | Path, *, strict: bool = False) -> "Slide":
        """The slide, with the scale that is to be used."""
        from msdask.slides.slide import open_slide

        mpp = self._used(path, self.region)[0] if self.is_given else None
        return open_slide(path, mpp=mpp, strict=strict, region=self.region)


def _estimate(path: str | Path, region: str | None) -> "ScaleEstimate":
    from msdask.inference.scale import estimate_scale
    from msdask.slides.slide import Slide

    return estimate_scale(path) if region is None else estimate_scale(Slide(path, region=region))


def _said(found: "ScaleEstimate") -> str:
    spread = f"spread {found.spread:.0%} over {found.n_crops} crops" if found.n_crops > 1 else "a single crop"
    sure = f"{spread}, give or take {found.uncertainty:.0%}"
    return f"{found.magnification:.1f}x, {found.mpp:.3g} um/px by the scale detector ({sure})"
