"""A slide's whole image at a coarse scale, read once for all that look at it."""

from __future__ import annotations

import xarray as xr

from msdask.slides.slide import Slide

__all__ = ["Overview"]


class Overview:
    """Whole images of a slide, each computed once and kept as long as this object.

    A slide's mask is found in the image in which, inside the mask, the mean that decides `keep` is taken.

    Parameters
    ----------
    slide : an open slide
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._images: dict[float, xr.DataArray] = {}

    @property
    def path(self) -> str:
        """Of the slide."""
        return self._slide.path

    @property
    def name(self) -> str:
        """Of the slide."""
        return self._slide.name

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0, px."""
        return self._slide.shape

    @property
    def mpp_used(self) -> float:
        """um/px of level 0."""
        return self._slide.mpp_used

    def at(self, *, mpp: float, allow_upsampling: bool = False) -> xr.DataArray:
        """The px that `Slide.at` gives, computed, without coordinates; parameters and errors are its."""
        scale = max(mpp, self.mpp_used) if allow_upsampling else mpp
        if scale not in self._images:
            self._images[scale] = self._slide.read_at(mpp=mpp, allow_upsampling=allow_upsampling)
        return self._images[scale]
