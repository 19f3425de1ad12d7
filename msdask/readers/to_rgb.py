"""Pixels of any stored type to RGB uint8, by documented rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["by_rows", "from_palette", "from_ycbcr", "gray_to_rgb", "over_background", "shrink", "to_uint8"]


_PIXELS_AT_ONCE = 1 << 18


def by_rows(convert: Callable[[NDArray[Any]], NDArray[np.uint8]], pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """A conversion of (height, width, samples) to (height, width, 3), in parts: on its way a pixel may take 30 bytes.

    Parameters
    ----------
    convert : gives each pixel its colour by itself
    """
    height, width = pixels.shape[:2]
    if height * width <= _PIXELS_AT_ONCE:
        return np.ascontiguousarray(convert(pixels))
    colors = np.empty((height, width, 3), np.uint8)
    step = max(1, _PIXELS_AT_ONCE // width)
    for first in range(0, height, step):
        colors[first : first + step] = convert(pixels[first : first + step])
    return colors


def to_uint8(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Stored samples to 8 bits: bool to 0 and 255, 16 bits to value / 257 rounded, 8 bits as they are.

    >>> to_uint8(np.array([0, 128, 129, 257, 65535], np.uint16)).tolist()
    [0, 0, 1, 1, 255]
    """
    if pixels.dtype == np.bool_:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise TypeError(f"expected bool, uint8 or uint16 samples, got {pixels.dtype}")
    return pixels.astype(np.uint8, copy=False)


def gray_to_rgb(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width) gray to (height, width, 3)."""
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def over_background(
    color: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    background: int | tuple[int, int, int] = 255,
    *,
    premultiplied: bool = False,
) -> NDArray[np.uint8]:
    """Composite on white, or another colour: transparent pixels of a slide are glass, not black.

    Parameters
    ----------
    color : (height, width, channels)
    alpha : (height, width), 255 = opaque
    background : of every channel, or of each
    premultiplied : whether `color` was multiplied by alpha already (TIFF's associated alpha)
    """
    opacity = alpha[:, :, np.newaxis].astype(np.uint32)
    light = color.astype(np.uint32)
    if not premultiplied:
        light = (light * opacity + 127) // 255
    light += ((255 - opacity) * np.asarray(background, np.uint32) + 127) // 255
    composited: NDArray[np.uint8] = np.minimum(light, 255).astype(np.uint8)
    return composited


def from_palette(indices: NDArray[np.integer], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width) indices through an (n, 3) palette; indices beyond it give black, as image viewers do."""
    table = np.zeros((1 << (8 * indices.dtype.itemsize), 3), np.uint8)
    table[: len(palette)] = palette[: len(table)]
    colors: NDArray[np.uint8] = table[indices]
    return colors


def from_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width, 3) full-range YCbCr of BT.601, as in JPEG, to RGB.

    >>> from_ycbcr(np.array([[[81, 90, 240], [200, 128, 128]]], np.uint8)).tolist()
    [[[238, 14, 14], [200, 200, 200]]]
    """
    chroma = np.arange(256) - 128
    luma, blue, red = (pixels[:, :, i] for i in range(3))
    light = luma.astype(np.int32)
    shifts = np.rint(1.402 * chroma).astype(np.int32), np.rint(1.772 * chroma).astype(np.int32)
    green = np.rint((-0.344136 * chroma)[blue] + (-0.714136 * chroma)[red]).astype(np.int32)
    return (
        np.stack([light + shifts[0][red], light + green, light + shifts[1][blue]], axis=2).clip(0, 255).astype(np.uint8)
    )


def shrink(pixels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Area mean of (height, width, channels) by an integer factor; both sides must divide by it."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // scale, scale, width // scale, scale, channels)
    total = blocks.sum(axis=(1, 3), dtype=np.uint32)
    area = scale * scale
    mean: NDArray[np.uint8] = ((total + area // 2) // area).astype(np.uint8)
    return mean
