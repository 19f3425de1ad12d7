"""Whether a crop shows tissue, as far as pixels of unknown scale can tell: it is stained, and it has structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["CropLooks", "look_at"]

# Measured on 840 crops of 96 px of MoNuSeg and CMU-1-Small-Region at 5x to 60x, and on an image of
# immunohistochemistry: the least (or most) that tissue has is given with each bound.
_STAINED_BELOW: Final = 200
"""Glass has no channel below this; a rough rule, for crops that are too small for a mask of their own."""
_LEAST_STAINED: Final = 0.02
"""Share of px that are no glass; below it a crop is glass."""
_LEAST_COLOR: Final = 12.0
"""Mean distance of the largest from the smallest channel, in stained px; tissue 20 and more, grays 0, stars 8."""
_MOST_GREEN: Final = 8.0
"""How far green may lie above the mean of red and blue in stained px; tissue at most 1, as common stains absorb it."""
_LEAST_CONTRAST: Final = 4.0
"""Standard deviation of the brightness around its mean over some 16 px; tissue 9 and more, gradients 1."""
_LEAST_SMOOTH: Final = 0.25
"""Correlation of a px with the next one; tissue 0.4 and more, noise 0."""
_SURROUNDINGS: Final = 8.0
"""Standard deviation, px, of the window that the brightness is compared with."""
_LEAST_NUCLEAR: Final = 0.1
"""Share of the image's stained px that are pink, purple or blue; tissue 0.2 and more, photos of brown things 0.05."""


@dataclass(frozen=True)
class CropLooks:
    """What crops look like.

    Attributes
    ----------
    found : what each crop is, "tissue" or why it is none
    """

    found: tuple[str, ...]

    @property
    def is_tissue(self) -> NDArray[np.bool_]:
        """Which crops show tissue: (n,)."""
        return np.array([what == "tissue" for what in self.found], bool)

    def __str__(self) -> str:
        """What there is, the most frequent first: "30 glass, 6 without structure"."""
        counts = {what: self.found.count(what) for what in dict.fromkeys(self.found)}
        return ", ".join(f"{n} {what}" for what, n in sorted(counts.items(), key=lambda item: -item[1]))


def look_at(crops: NDArray[np.uint8]) -> CropLooks:
    """Tell crops of one image that show tissue from glass, flat areas, noise, and what no stain colors.

    Parameters
    ----------
    crops : (n, y, x, 3) uint8, RGB
    """
    found = [_look(crop) for crop in crops]
    is_tissue = [what == "tissue" for what in found]
    if any(is_tissue) and _nuclear_share(crops[is_tissue]) < _LEAST_NUCLEAR:
        found = ["without the pink, purple or blue of a stain" if what == "tissue" else what for what in found]
    return CropLooks(tuple(found))


def _look(crop: NDArray[np.uint8]) -> str:
    stained = crop.min(-1) < _STAINED_BELOW
    if stained.mean() < _LEAST_STAINED:
        return "glass"
    brightness = crop.mean(-1, dtype=np.float32)
    detail = brightness - cv2.GaussianBlur(brightness, (0, 0), _SURROUNDINGS)
    if detail.std() < _LEAST_CONTRAST:
        return "without structure"
    if _smoothness(detail) < _LEAST_SMOOTH:
        return "noise"
    r, g, b = crop[stained].astype(np.float32).T
    if (crop[stained].max(-1) - crop[stained].min(-1)).mean() < _LEAST_COLOR:
        return "without color"
    return "greener than any stain" if (g - (r + b) / 2).mean() > _MOST_GREEN else "tissue"


def _smoothness(detail: NDArray[np.floating]) -> float:
    """Correlation of a px with its right and its lower neighbour, the lower of the two."""
    centered = detail - detail.mean()
    pairs = ((centered[:, 1:], centered[:, :-1]), (centered[1:], centered[:-1]))
    return float(min((one * other).mean() for one, other in pairs) / centered.var())


def _nuclear_share(crops: NDArray[np.uint8]) -> float:
    """Share of stained px in which green is the least: what haematoxylin and eosin, in any mixture, look like."""
    stained = crops[crops.min(-1) < _STAINED_BELOW].astype(np.int16)
    return float((stained[:, 1] <= np.minimum(stained[:, 0], stained[:, 2]) + 8).mean())
