"""Whether most of a slide is dark, as fluorescence is and brightfield, whose glass is bright, is not."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["dark_share", "darkness_warning"]

DARK_BELOW = 64
"""Of 255, in the brightest channel. Dense nuclei in hematoxylin keep more than that in blue."""
MOSTLY = 0.6
_OVERVIEW_MPP = 8.0


class _Viewable(Protocol):
    """What has whole images: a slide, or its overview."""

    def at(self, *, mpp: float, allow_upsampling: bool = False) -> Any: ...


def dark_share(image: NDArray[np.uint8]) -> float:
    """Share of dark px in an image (y, x, 3) uint8 of a whole slide."""
    if not image.size:
        return 0.0
    is_dark = cv2.inRange(image, (0, 0, 0), (DARK_BELOW - 1,) * 3)  # all channels, and so the brightest
    return cv2.countNonZero(is_dark) / is_dark.size


def darkness_warning(slide: _Viewable) -> tuple[str, ...]:
    """A sentence where most of a slide is dark: of its image at 8 um/px, which is computed."""
    share = dark_share(np.asarray(slide.at(mpp=_OVERVIEW_MPP, allow_upsampling=True)))
    if share <= MOSTLY:
        return ()
    return (
        f"{share:.0%} of the slide is nearly black, where brightfield has bright glass: is it a fluorescence image? "
        "masks, measures and models of msdask are made for brightfield",
    )
