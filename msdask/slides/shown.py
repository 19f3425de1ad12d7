"""What a notebook shows of a slide: its facts, and its picture where that is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SlideError, UnreachableError
from msdask.slides.html import facts_html
from msdask.slides.region import read_region

if TYPE_CHECKING:
    from msdask.slides.slide import Slide

__all__ = ["slide_html"]

_PIXELS = 4_000_000
"""Of a picture at most: more take too long for being looked at in passing."""


def slide_html(slide: Slide) -> str:
    """HTML of a slide."""
    return facts_html(slide.name, _shown_facts(slide), _small_picture(slide))


def _shown_facts(slide: Slide) -> list[tuple[str, str]]:
    """Size, scale, levels, format and warnings, for the repr."""
    height, width = slide.shape
    facts = [("size", f"{width:,} x {height:,} px")]
    if slide.mpp is None:
        facts.append(("scale", slide.scale.problem))
    else:
        used = slide.mpp_used
        snapped = f", planned as {used:g}" if used != slide.mpp else ""
        scale = f"{slide.mpp:g} µm/px{snapped} ({10 / used:g}x; {slide.mpp_source}, {slide.quality})"
        facts.append(("scale", scale))
        facts.append(("extent", f"{width * used / 1000:.2f} x {height * used / 1000:.2f} mm"))
    if slide.objective_power:
        facts.append(("objective", f"{slide.objective_power:g}x"))
    levels = ", ".join(f"{i.shape[1]:,} x {i.shape[0]:,} (1/{i.downsample:g})" for i in slide.level_infos)
    facts += [("levels", levels), ("format", f"{slide.format}, {slide.vendor}")]
    if slide.associated:
        facts.append(("associated", ", ".join(slide.associated)))
    return facts + [("warning", w) for w in slide.warnings]


def _small_picture(slide: Slide) -> NDArray[np.uint8] | None:
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
