"""What is measured on every patch's pixels, and the verdict `keep` that follows from it (spec section 6)."""

from __future__ import annotations

import threading

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXACT_BELOW",
    "LOW_CONTRAST",
    "MEASURES",
    "Gauge",
    "contrast",
    "keep",
    "measure",
    "tissue_mean",
    "white_threshold",
]

MEASURES = ("brightness", "contrast", "filled")
"""Columns of the stored array `measured`."""

LOW_CONTRAST = 0.05
"""Contrast below this is low: scikit-image's default `fraction_threshold`."""

_GRAY = np.array([[0.2125, 0.7154, 0.0721]])
"""Weights of scikit-image's rgb2gray."""

EXACT_BELOW = 0.1
"""Contrast below this is computed exactly: twice the bound that decides."""
_AT_ONCE = 4
"""Images looked at in one go: still in the processor's cache, and threads meet less often at the interpreter's lock."""
_QUANTILES = np.array([0.01, 0.99, 0.03, 0.97])
"""What contrast is made of, and the bounds of it that half the px give."""


def tissue_mean(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean gray value `t` of the tissue in the 1.25x image (spec section 6): over the mask's px and all channels.

    Parameters
    ----------
    image : (y, x, 3) uint8, RGB
    mask : (y, x) bool
        Of any size; it covers the same area as the image.

    Returns
    -------
    t : gray value, 0 to 255
        255, the brightest, where the mask is empty.
    """
    mask = np.asarray(mask, dtype=np.bool_)
    if mask.shape != image.shape[:2]:
        size = image.shape[1], image.shape[0]
        mask = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    count = int(mask.sum())
    if count == 0:
        return 255.0
    sums = [int(image[..., channel].sum(where=mask, dtype=np.int64)) for channel in range(image.shape[2])]
    return sum(sums) / (count * len(sums))


def white_threshold(tissue_mean: float) -> float:
    """Brightness above which a patch counts as white, from the mean of the slide's tissue.

    >>> white_threshold(150), white_threshold(170), white_threshold(220)
    (195.0, 200.0, 205.0)
    """
    if tissue_mean <= 155:
        return 195.0
    return 200.0 if tissue_mean <= 180 else 205.0


def measure(image: NDArray[np.uint8], filled: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Measures of a block of patches.

    Parameters
    ----------
    image : (patch, magnification, y, x, 3) uint8
    filled : (patch, magnification), fraction of px that stand for an unreadable tile; None means 0

    Returns
    -------
    measured : (patch, magnification, measure) float32, in the order of `MEASURES`
        brightness: mean over pixels and channels, 0 to 255; contrast: see `contrast`; filled: as given.
    """
    gauge = Gauge(image)
    for _ in image:
        gauge.add()
    return gauge.measured(filled)


class Gauge:
    """`measure` patch by patch, for whoever has each of them in the processor's cache already.

    Parameters
    ----------
    image : (patch, magnification, y, x, 3) uint8; may be filled after the gauge is made
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._image = image
        self._sums = np.zeros(image.shape[:2])
        self._histograms = np.zeros((*image.shape[:2], 256), np.float32)
        self._added = self._seen = 0

    def __len__(self) -> int:
        """Patches, whether added or not."""
        return len(self._image)

    def add(self) -> None:
        """The next patch is there, at all magnifications."""
        for m, pixels in enumerate(self._image[self._added]):
            self._sums[self._added, m] = cv2.norm(pixels, cv2.NORM_L1)  # several times as fast as NumPy's sum
        self._added += 1
        if (self._added - self._seen) * self._image.shape[1] >= _AT_ONCE:
            self._look()

    def _look(self) -> None:
        """Histograms of the patches that were added since the last look."""
        some = slice(self._seen, self._added)
        if some.start < some.stop:
            self._histograms[some] = _histograms(self._image[some])
            self._seen = self._added

    def measured(self, filled: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The measures, when every patch was added."""
        self._look()
        image = self._image
        measured = np.zeros((*image.shape[:2], len(MEASURES)), np.float32)
        if not measured.size:
            return measured
        values, bounds = _estimates(self._histograms)
        # the rare ones near a verdict, one at a time
        for i, m in np.argwhere(bounds < EXACT_BELOW).tolist():
            values[i, m] = _exact_contrast(image[i, m])
        measured[..., 0] = self._sums / image[0, 0].size
        measured[..., 1] = _on_its_side(values)
        if filled is not None:
            measured[..., 2] = filled
        return measured


def contrast(pixels: NDArray[np.uint8]) -> float:
    """Half the distance between the 1st and 99th percentile of gray in 0..1, as in scikit-image's is_low_contrast.

    It is that number wherever it may lie below `EXACT_BELOW`. Above, where no verdict is near, each percentile is
    interpolated in a histogram of whole gray levels of every second row: within 0.003 on tissue of 224 px, and several
    times as fast.
    """
    values, bounds = _estimates(_histograms(pixels[None])[0])
    return float(values) if bounds >= EXACT_BELOW else _exact_contrast(pixels)


def _histograms(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(..., 256) float32: px of each whole gray level in every second row of images (..., y, x, 3)."""
    half = _as_float(pixels[..., ::2, :, :])
    gray = cv2.convertScaleAbs(cv2.transform(half.reshape(-1, *half.shape[-2:]), _GRAY))
    images = gray.reshape(-1, *half.shape[-3:-1])
    # a column in older versions of OpenCV
    counts = [cv2.calcHist([image], [0], None, [256], [0, 256]).reshape(256) for image in images]
    return np.stack(counts).reshape(*pixels.shape[:-3], 256)


def _estimates(histograms: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Contrast from histograms (..., 256) of half the px, and a number that the exact contrast does not fall below.

    3 % of half the px are more than 1 % of all: from sides of 6 px on the 3rd percentile of the half is no lower than
    the 1st of the whole.
    Two gray levels are taken off for rounding.
    """
    counts = np.zeros((*histograms.shape[:-1], 257))
    np.cumsum(histograms, axis=-1, dtype=np.float64, out=counts[..., 1:])
    at = _QUANTILES * (counts[..., -1:] - 1) + 0.5
    level = (counts[..., None, :] <= at[..., None]).sum(-1) - 1
    below, above = (np.take_along_axis(counts, level + step, -1) for step in (0, 1))
    gray = level - 0.5 + (at - below) / (above - below)
    values = (gray[..., 1] - gray[..., 0]) / 255 / 2
    bounds = (gray[..., 3] - gray[..., 2] - 2) / 255 / 2
    return values, bounds


def _exact_contrast(pixels: NDArray[np.uint8]) -> float:
    low, high = np.percentile(np.multiply(pixels, 1 / 255) @ _GRAY[0], [1, 99])
    return float(high - low) / 2


_scratch = threading.local()


def _as_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The pixels as float32, in memory of this thread that is used again: fresh memory costs more than converting."""
    held: NDArray[np.float32] | None = getattr(_scratch, "pixels", None)
    if held is None or held.size < pixels.size:
        held = _scratch.pixels = np.empty(pixels.size, np.float32)
    out = held[: pixels.size].reshape(pixels.shape)
    np.copyto(out, pixels)
    return out


def _on_its_side(contrast: NDArray[np.float64]) -> NDArray[np.float32]:
    """As float32, but never rounded up to the bound: the stored value must give the verdict of the exact one."""
    stored = contrast.astype(np.float32)
    below = np.nextafter(np.float32(LOW_CONTRAST), np.float32(0))
    return np.where(contrast >= LOW_CONTRAST, stored, np.minimum(stored, below))


def keep(measured: NDArray[np.float32], tissue_mean: float) -> NDArray[np.bool_]:
    """Verdict on each patch: neither white nor of low contrast. A tuple's is its centroid's.

    Parameters
    ----------
    measured : (patch, magnification, measure) float32, highest magnification first
    tissue_mean : of the slide

    Returns
    -------
    keep : (patch,) bool
    """
    brightness, contrast = measured[:, 0, 0], measured[:, 0, 1]
    return (brightness <= white_threshold(tissue_mean)) & (contrast >= np.float32(LOW_CONTRAST))
