"""What is measured on every patch's pixels, and the verdict `keep` that follows from it (spec section 6)."""

from __future__ import annotations

import math
import sys
import threading
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.cutting.quality import QUALITIES, qualities
from msdask.errors import StoreError

__all__ = [
    "EXACT_BELOW",
    "FIRST_MEASURES",
    "LOW_CONTRAST",
    "MEASURES",
    "column",
    "contrast",
    "count_labels",
    "is_same_measured",
    "keep",
    "measure",
    "measured_names",
    "tissue_mean",
    "white_threshold",
]

FIRST_MEASURES = ("brightness", "contrast", "filled")
"""Columns of the array `measured` in stores of earlier versions: a slide's document names its own, or has these."""
MEASURES = (*FIRST_MEASURES, *QUALITIES)
"""Columns of the stored array `measured`. It is only added to: what a slide has are the first of these."""

LOW_CONTRAST = 0.05
"""Contrast below this is low: scikit-image's default `fraction_threshold`."""

_GRAY = np.array([0.2125, 0.7154, 0.0721])
"""Weights of scikit-image's rgb2gray."""
_GRAY_OF_BYTES = np.array([[218, 732, 74]] * 3) / 1024
"""The same in the 10 bits that OpenCV computes bytes with; its fast path has three channels in and three out."""

EXACT_BELOW = 0.1
"""Contrast below this is computed exactly: twice the bound that decides."""
_ESTIMATES_DIFFER = 0.02
_AT_ONCE_BYTES = 4 * 2**20
"""Pixels looked at in one go: each call lets go of the interpreter's lock, and threads wait for each other there."""
_MOST_AT_ONCE = 255
"""Images that a byte can number."""
_LOW_BYTE = 0 if sys.byteorder == "little" else 1
_LOOKS = ((4, 0.05), (2, 0.03))
"""Of the rows one in so many is looked at, and a share of those px that is surely more than 1 % of all: a patch is
looked at once, and again where that leaves open on which side of `EXACT_BELOW` it is."""
_FEW_PX = 2**14
"""Patches smaller than this are looked at with every second row from the first."""


def column(measured: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """One of the `MEASURES` out of an array (..., measure); a view, so that it can be written to.

    Raises
    ------
    StoreError
        The array is of a store that was written before there was this measure.
    """
    place = MEASURES.index(name)
    if place >= measured.shape[-1]:
        raise StoreError(
            f"{name!r} was not measured when this was written, only {', '.join(MEASURES[: measured.shape[-1]])}: "
            "extract again with overwrite to have it"
        )
    return measured[..., place]


def measured_names(measured: NDArray[np.float32]) -> tuple[str, ...]:
    """Names of the columns that an array (..., measure) has."""
    return MEASURES[: measured.shape[-1]]


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
    count = int(np.count_nonzero(mask))
    if count == 0:
        return 255.0
    # OpenCV adds whole numbers, which its means give back exactly, ten times faster than numpy in a mask.
    means = cv2.mean(image, np.ascontiguousarray(mask).view(np.uint8))[: image.shape[2]]
    return sum(round(mean * count) for mean in means) / (count * len(means))


def white_threshold(tissue_mean: float) -> float:
    """Brightness above which a patch counts as white, from the mean of the slide's tissue.

    >>> white_threshold(150), white_threshold(170), white_threshold(220)
    (195.0, 200.0, 205.0)
    """
    if tissue_mean <= 155:
        return 195.0
    return 200.0 if tissue_mean <= 180 else 205.0


def measure(
    image: NDArray[np.uint8], filled: NDArray[np.float32] | None = None, *, measures: int = len(MEASURES)
) -> NDArray[np.float32]:
    """Measures of a block of patches.

    Parameters
    ----------
    image : (patch, magnification, y, x, 3) uint8
    filled : (patch, magnification), fraction of px that stand for an unreadable tile; None means 0
    measures : how many of `MEASURES`; fewer where a slide of an earlier version is gone on with or repaired

    Returns
    -------
    measured : (patch, magnification, measure) float32, in the order of `MEASURES`
        brightness: mean over pixels and channels, 0 to 255; contrast: see `contrast`; filled: as given; the others:
        see `msdask.cutting.quality.qualities`.
    """
    measured = np.zeros((*image.shape[:2], measures), np.float32)
    if not measured.size:
        return measured
    images = image.reshape(-1, *image.shape[2:])
    step = min(_MOST_AT_ONCE, max(1, _AT_ONCE_BYTES // images[0].size))
    some = [images[first : first + step] for first in range(0, len(images), step)]
    sums = np.concatenate([_sums(pixels) for pixels in some])
    contrasts = np.concatenate([_contrasts(pixels) for pixels in some])
    column(measured, "brightness")[...] = (sums / images[0].size).reshape(image.shape[:2])
    column(measured, "contrast")[...] = _on_its_side(contrasts).reshape(image.shape[:2])
    if filled is not None:
        column(measured, "filled")[...] = filled
    if measures > len(FIRST_MEASURES):
        found = np.concatenate([qualities(pixels) for pixels in some])
        measured[..., len(FIRST_MEASURES) :] = found.reshape(*image.shape[:2], -1)[
            ..., : measures - len(FIRST_MEASURES)
        ]
    return measured


def count_labels(maps: NDArray[np.uint8], labels: int) -> NDArray[np.uint32]:
    """How many px of each label the target's label maps have.

    Parameters
    ----------
    maps : (patch, magnification, y, x) uint8, the target (the highest magnification) first
    labels : how many there are, 0 = unlabeled among them

    Returns
    -------
    counts : (patch, label) uint32
    """
    counts = np.zeros((len(maps), labels), np.uint32)
    # Bands of rows keep what OpenCV counts in float32 exact: whole numbers up to 2 ** 24.
    band = max(1, _AT_ONCE_BYTES // max(1, maps.shape[3]))
    step = min(_MOST_AT_ONCE, max(1, _AT_ONCE_BYTES // max(1, math.prod(maps.shape[2:]))))
    for first, top in product(range(0, len(maps), step), range(0, maps.shape[2], band)):
        some = maps[first : first + step, 0, top : top + band]
        flat = np.ascontiguousarray(some).reshape(len(some), -1)
        numbers = np.repeat(np.arange(len(some), dtype=np.uint8)[:, None], flat.shape[1], axis=1)
        shape = [len(some), labels]
        found = cv2.calcHist([numbers, flat], [0, 1], None, shape, [0, shape[0], 0, labels])
        counts[first : first + len(some)] += np.asarray(found).reshape(shape).astype(np.uint32)
    return counts


def contrast(pixels: NDArray[np.uint8]) -> float:
    """Half the distance between the 1st and 99th percentile of gray in 0..1, as in scikit-image's is_low_contrast.

    It is that number wherever it may lie below `EXACT_BELOW`. Above, where no verdict is near, each percentile is
    interpolated in a histogram of whole gray levels of every fourth row, of small or pale patches of every second:
    within 0.008 on tissue of 224 px, and twenty times as fast.
    """
    return float(_contrasts(np.ascontiguousarray(pixels)[None])[0])


def _contrasts(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(image,) contrasts of at most 255 images (image, y, x, 3), C-contiguous."""
    values, left = np.zeros(len(images)), np.arange(len(images))
    for step, share in _LOOKS[images[0, ..., 0].size < _FEW_PX :]:
        some = images if len(left) == len(images) else images[left]
        values[left], bounds = _estimates(_histograms(some, step), share)
        left = left[bounds < EXACT_BELOW]
        if not len(left):
            return values
    for i in left.tolist():  # the rare ones near a verdict, one at a time
        values[i] = _exact_contrast(images[i])
    return values


def _sums(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(image,) sums over px and channels of (image, y, x, 3): row by row in 32 bits, several times as fast as NumPy."""
    count, height, width, channels = images.shape
    rows = cv2.reduce(images.reshape(count * height, width * channels), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(rows).reshape(count, height).sum(1, dtype=np.int64)


def _histograms(images: NDArray[np.uint8], step: int) -> NDArray[np.float32]:
    """(image, 256) float32: px of each gray level in one of `step` rows of at most 255 images (image, y, x, 3)."""
    count, height, width, channels = images.shape
    seen = -(-height // step)
    if height % step:  # rows of one image would be counted from another's
        rows = np.ascontiguousarray(images[:, ::step]).reshape(count * seen, width, channels)
    else:
        rows = images.reshape(count * height, width, channels)[::step]
    gray, numbered = _scratch_of(count, seen, width)
    cv2.transform(rows, _GRAY_OF_BYTES, dst=gray)
    # One axis of 16 bits, whose high byte is the number of the image: a third of the time of two axes of 8.
    cv2.mixChannels([gray], [numbered], [0, _LOW_BYTE])
    keys = numbered.view(np.uint16)[..., 0]
    counts = cv2.calcHist([keys], [0], None, [count * 256], [0, count * 256])
    return np.asarray(counts, np.float32).reshape(count, 256)


def _estimates(histograms: NDArray[np.float32], share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Contrast from histograms (image, 256) of some px, and a number that the exact contrast does not fall below.

    A `share` of some px that is more than 1 % of all px: so no fewer lie below that percentile of the some than below
    the 1st of all (with every second row and 3 % from sides of 6 px on). Two gray levels are taken off for rounding.
    """
    counts = np.zeros((len(histograms), 257))
    np.cumsum(histograms, axis=-1, dtype=np.float64, out=counts[:, 1:])
    total = counts[:, -1:]
    # Ranks in 1024ths stay what they are when whole numbers are added: an image's values are the same beside any other.
    at = np.rint((np.array([0.01, 0.99, share, 1 - share]) * (total - 1) + 0.5) * 1024) / 1024
    # One sorted row of all images, each beyond the one before: a single search.
    of_image = np.arange(len(counts))[:, None]
    beyond, flat = of_image * (total.max() + 1), counts.ravel()
    place = np.searchsorted((counts + beyond).ravel(), (at + beyond).ravel(), side="right").reshape(at.shape)
    below, above = flat[place - 1], flat[place]
    gray = place - of_image * counts.shape[1] - 1.5 + (at - below) / (above - below)
    values = (gray[:, 1] - gray[:, 0]) / 255 / 2
    bounds = (gray[:, 3] - gray[:, 2] - 2) / 255 / 2
    return values, bounds


def _exact_contrast(pixels: NDArray[np.uint8]) -> float:
    low, high = np.percentile(np.multiply(pixels, 1 / 255) @ _GRAY, [1, 99])
    return float(high - low) / 2


_scratch = threading.local()
_SHAPES_KEPT = 4


def _scratch_of(count: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Memory of this thread for gray (count * height, width, 3), used again, and for numbered gray (..., 2).

    The one byte of a numbered px is that of its image, the other is left to be filled in. Fresh memory costs more than
    what is written to it.
    """
    shape = (height, width)
    kept: dict[tuple[int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = _scratch.__dict__.setdefault("kept", {})
    held = kept.get(shape)
    if held is None or len(held[1]) < count * height:
        if held is None and len(kept) >= _SHAPES_KEPT:
            kept.clear()
        numbered = np.empty((count * height, width, 2), np.uint8)
        numbered[..., 1 - _LOW_BYTE] = np.repeat(np.arange(count, dtype=np.uint8), height)[:, None]
        held = kept[shape] = np.empty((count * height, width, 3), np.uint8), numbered
    return held[0][: count * height], held[1][: count * height]


def _on_its_side(contrast: NDArray[np.float64]) -> NDArray[np.float32]:
    """As float32, but never rounded up to the bound: the stored value must give the verdict of the exact one."""
    stored = contrast.astype(np.float32)
    below = np.nextafter(np.float32(LOW_CONTRAST), np.float32(0))
    return np.where(contrast >= LOW_CONTRAST, stored, np.minimum(stored, below))


def is_same_measured(found: NDArray[np.float32], stored: NDArray[np.float32]) -> bool:
    """Whether two arrays (..., measure) are of the same pixels: equal, but for estimates of contrast.

    How contrast is estimated where no verdict is near (see `contrast`) may be another version's.
    """
    place = MEASURES.index("contrast")
    ours, theirs = (np.delete(values, place, -1) for values in (found, stored))
    is_near = np.abs(found[..., place] - stored[..., place]) <= _ESTIMATES_DIFFER
    return bool(np.array_equal(ours, theirs) and is_near.all())


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
    brightness, contrast = (column(measured, name)[:, 0] for name in ("brightness", "contrast"))
    return (brightness <= white_threshold(tissue_mean)) & (contrast >= np.float32(LOW_CONTRAST))
