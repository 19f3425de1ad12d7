"""How the samples of a TIFF page become RGB uint8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SlideError
from msdask.readers.jpeg2000 import J2K_COMPRESSIONS
from msdask.readers.to_rgb import from_palette, gray_to_rgb, over_background, to_uint8

__all__ = ["JPEG_COMPRESSIONS", "conversion"]

JPEG_COMPRESSIONS = {6, 7, 34892, 33007}
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_PACKED = (1, 2, 4)
"""Bits of samples that share a byte: gray or palette, of one channel only."""


def conversion(key: Any, where: str) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """How a page's samples become RGB.

    Parameters
    ----------
    key : tifffile's page
    where : slide and page, for messages

    Returns
    -------
    convert : (height, width, samples) of the page's type to (height, width, 3) uint8

    Raises
    ------
    SlideError
        They are of a kind that has no conversion.
    """
    photometric, samples, bits = int(key.photometric), int(key.samplesperpixel), key.bitspersample
    allowed = {*_PACKED, 8, 16} if samples == 1 and photometric in (_MINISWHITE, _MINISBLACK, _PALETTE) else {8, 16}
    if isinstance(bits, tuple) or bits not in allowed or key.dtype.kind not in "ub":
        raise SlideError(
            f"{where} has {key.dtype} samples of {bits} bits; expected 8 or 16 bits unsigned: convert it to 8-bit RGB"
        )
    alpha = int(key.extrasamples[0]) if key.extrasamples and len(key.extrasamples) == 1 else 0
    if photometric == _PALETTE and samples == 1:
        if key.colormap is None:
            raise SlideError(f"{where} is a palette image without a colour map; convert it to 8-bit RGB")
        # 16-bit entries are 257 or 256 times the 8-bit value, depending on the writer: the high byte serves both
        return partial(_palette_rgb, palette=(key.colormap >> 8).astype(np.uint8).T)
    if photometric in (_MINISWHITE, _MINISBLACK) and (samples == 1 or (samples == 2 and alpha in (1, 2))):
        premultiplied = alpha == 1 if samples == 2 else None
        brightest = (1 << bits) - 1 if bits in _PACKED else None
        return partial(_gray_rgb, is_inverted=photometric == 0, premultiplied=premultiplied, brightest=brightest)
    is_decoded = int(key.compression) in JPEG_COMPRESSIONS or int(key.compression) in J2K_COMPRESSIONS
    is_color = photometric == _RGB or (photometric == _YCBCR and is_decoded and key.planarconfig != 2)
    if is_color and samples in (3, 4):
        return partial(_color_rgb, alpha=alpha if samples == 4 else 0)
    raise SlideError(
        f"{where} has {samples} channel(s) of photometric interpretation {photometric}; expected RGB, YCbCr JPEG, gray "
        "or palette: convert it to 8-bit RGB"
    )


def _palette_rgb(pixels: NDArray[Any], *, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    indices = pixels[:, :, 0]
    return from_palette(indices.view(np.uint8) if indices.dtype == np.bool_ else indices, palette)


def _gray_rgb(
    pixels: NDArray[Any], *, is_inverted: bool, premultiplied: bool | None, brightest: int | None
) -> NDArray[np.uint8]:
    """`brightest` is the largest value of samples that fill no byte: it becomes 255."""
    samples = to_uint8(pixels)
    if brightest is not None and pixels.dtype != np.bool_:
        samples = samples * np.uint8(255 // brightest)
    gray = samples[:, :, :1]
    if is_inverted:
        gray = 255 - gray
    if premultiplied is not None:
        gray = over_background(gray, samples[:, :, 1], premultiplied=premultiplied)
    return gray_to_rgb(gray[:, :, 0])


def _color_rgb(pixels: NDArray[Any], *, alpha: int) -> NDArray[np.uint8]:
    """`alpha` is TIFF's ExtraSamples: 1 associated, 2 unassociated; 0 has no stated meaning and is left out."""
    samples = to_uint8(pixels)
    if alpha in (1, 2):
        return over_background(samples[:, :, :3], samples[:, :, 3], premultiplied=alpha == 1)
    return samples[:, :, :3]
