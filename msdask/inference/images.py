"""What models take as an image: files and slides, and pixels in memory of any common kind."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image as Pillow

from msdask.errors import SpecError
from msdask.slides.slide import Slide

__all__ = ["Image", "is_pixels", "name_of", "opened", "path_of", "rgb"]

Image: TypeAlias = NDArray[np.uint8]

_EXPECTED = (
    "expected RGB pixels, (height, width, 3) or (3, height, width), as uint8 or as floats from 0 to 1: an array, a "
    "tensor or a PIL image"
)


def is_pixels(image: Any) -> bool:
    """Whether this is one image in memory: an array, a tensor or a PIL image; a batch of them is many."""
    if isinstance(image, (np.ndarray, xr.DataArray)) or _is_tensor(image):
        return bool(image.ndim != 4)
    return isinstance(image, Pillow.Image)


def opened(image: Any) -> Slide | Image:
    """A slide as it is, a file opened as one, pixels as RGB.

    Raises
    ------
    SlideError
        The file cannot be read.
    SpecError
        It is no image at all, or its pixels are not RGB.
    """
    if isinstance(image, Slide):
        return image
    if isinstance(image, (str, os.PathLike)):
        return Slide(image)
    return rgb(image)


def rgb(image: Any) -> Image:
    """Pixels in memory as (height, width, 3) uint8.

    PIL images of any mode are converted, with what is transparent on white; floats from 0 to 1 are rounded to 0 to 255.

    Raises
    ------
    SpecError
        Another shape, another type, or floats beyond 0 to 1 (such as normalized ones).
    """
    if isinstance(image, Pillow.Image):
        return _from_pillow(image)
    if _is_tensor(image):
        pixels = image.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    elif isinstance(image, (np.ndarray, xr.DataArray)):
        pixels = np.asarray(image)
    else:
        raise SpecError(f"an image of type {type(image).__name__}: expected a path, a Slide, or pixels; {_EXPECTED}")
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or (pixels.dtype != np.uint8 and pixels.dtype.kind != "f"):
        raise SpecError(f"image of shape {pixels.shape} and type {pixels.dtype}: {_EXPECTED}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # also where one is NaN
        raise SpecError(
            f"image of floats from {pixels.min():g} to {pixels.max():g}: {_EXPECTED}; undo a normalization, or divide "
            "0 to 255 by 255"
        )
    return np.rint(pixels * 255).astype(np.uint8)


def _from_pillow(image: Pillow.Image) -> Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise SpecError(f"PIL image of mode {image.mode}: {_EXPECTED}")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _is_tensor(image: Any) -> bool:
    """Whether this is a tensor of PyTorch, which need not be installed."""
    return type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach")


def path_of(image: Any) -> str:
    """Path of an image; "" for pixels in memory."""
    if isinstance(image, Slide):
        return image.path
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""


def name_of(image: Any) -> str:
    """What messages call an image."""
    path = path_of(image)
    return f"'{path}'" if path else "an image given as an array"
