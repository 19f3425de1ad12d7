"""What a notebook shows of a slide: its facts, and its picture where that is cheap."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SlideError, UnreachableError
from msdask.html import facts_html
from msdask.readers.base import LevelInfo, Reader
from msdask.slides.region import read_region
from msdask.slides.stated_scale import SlideScale

__all__ = ["slide_html"]

_PIXELS = 4_000_000
"""Of a picture at most: more take too long for being looked at in passing."""


class Shown(Protocol):
    """What is shown of a slide, see `msdask.slides.slide.Slide`."""

    level_infos: tuple[LevelInfo, ...]
    format: str
    vendor: str
    objective_power: float | None
    scale: SlideScale

    @property
    def name(self) -> str: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def associated(self) -> tuple[str, ...]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def associated_image(self, name: str) -> NDArray[np.uint8]: ...


def slide_html(slide: Shown) -> str:
    """HTML of a slide."""
    return facts_html(slide.name, _shown_facts(slide), _small_picture(slide))


def _shown_facts(slide: Shown) -> list[tuple[str, str]]:
    """Size, scale, levels, format and warnings, for the repr."""
    height, width = slide.level_infos[0].shape
    facts = [("size", f"{width:,} x {height:,} px")]
    if slide.scale.mpp is None:
        facts.append(("scale", slide.scale.problem))
    else:
        used = slide.scale.require(slide.name)
        snapped = f", planned as {used:g}" if used != slide.scale.mpp else ""
        scale = f"{slide.scale.mpp:g} µm/px{snapped} ({10 / used:g}x; {slide.scale.stated_by}, {slide.scale.quality})"
        facts.append(("scale", scale))
        facts.append(("extent", f"{width * used / 1000:.2f} x {height * used / 1000:.2f} mm"))
    if slide.objective_power:
        facts.append(("objective", f"{slide.objective_power:g}x"))
    levels = ", ".join(f"{i.shape[1]:,} x {i.shape[0]:,} (1/{i.downsample:g})" for i in slide.level_infos)
    facts += [("levels", levels), ("format", f"{slide.format}, {slide.vendor}")]
    if slide.associated:
        facts.append(("associated", ", ".join(slide.associated)))
    return facts + [("warning", w) for w in slide.warnings]


def _small_picture(slide: Shown) -> NDArray[np.uint8] | None:
    """A picture for the repr, or None where that would decode more than a few million px."""
    coarsest = slide.level_infos[-1].shape
    try:
        if "thumbnail" in slide.associated:
            return slide.associated_image("thumbnail")
        if coarsest[0] * coarsest[1] > _PIXELS:
            return None
        return read_region(slide.reader, len(slide.level_infos) - 1, 1, (0, coarsest[0]), (0, coarsest[1]))
    except (SlideError, UnreachableError):  # a damaged or moved file still has facts to show
        return None
