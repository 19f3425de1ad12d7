"""A rectangle of a slide at any physical scale, at once."""

from __future__ import annotations

from typing import cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.computing import in_process
from msdask.errors import SpecError
from msdask.scale import magnification_to_mpp
from msdask.slides.region import WHITE

__all__ = ["ReadsParts"]


class ReadsParts:
    """The part of a `Slide` that reads rectangles of it."""

    @property
    def mpp_used(self) -> float:
        """See `Slide.mpp_used`."""
        raise NotImplementedError

    def at(
        self, *, magnification: float | None = None, mpp: float | None = None, allow_upsampling: bool = False
    ) -> xr.DataArray:
        """See `Slide.at`."""
        raise NotImplementedError

    def read_region(
        self,
        x: float,
        y: float,
        width: int,
        height: int,
        *,
        magnification: float | None = None,
        mpp: float | None = None,
    ) -> NDArray[np.uint8]:
        """A rectangle of the image that `Slide.at` gives, computed; what lies outside the slide is white.

        Parameters
        ----------
        x, y : its top left corner, level-0 px; the nearest px of that image is where it begins
        width, height : px at the scale that is asked for
        magnification, mpp : the scale, one of the two, in terms of `mpp_used`; neither: level 0

        Returns
        -------
        pixels : (height, width, 3) uint8

        Raises
        ------
        MissingScaleError
            The slide has no scale.
        SpecError
            An empty rectangle, both scales, or a finer one than the slide's.

        Examples
        --------
        >>> patch = store["grid-10x-224"][0]  # doctest: +SKIP
        >>> slide.read_region(patch.x0, patch.y0, 224, 224, magnification=10)  # doctest: +SKIP
        """
        if width < 1 or height < 1:
            raise SpecError(f"read_region: width={width}, height={height}: expected at least 1 px each")
        if magnification is None and mpp is None:
            mpp = self.mpp_used
        image = self.at(magnification=magnification, mpp=mpp)
        ratio = (magnification_to_mpp(magnification) if magnification is not None else cast(float, mpp)) / self.mpp_used
        left, top = round(x / ratio), round(y / ratio)
        rows, columns = image.sizes["y"], image.sizes["x"]
        first, last = (min(max(0, top), rows), min(max(0, top + height), rows))
        begin, end = (min(max(0, left), columns), min(max(0, left + width), columns))
        out = np.full((height, width, 3), WHITE, np.uint8)
        if first < last and begin < end:
            part = image[first:last, begin:end].data.compute(scheduler=in_process())
            out[first - top : last - top, begin - left : end - left] = part
        return out
