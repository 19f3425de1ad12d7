"""Colour augmentation as matrices: of stains in the space of optical density, of saturation and contrast in RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

__all__ = ["LOG", "jitter_hed", "jitter_rgb", "stain_matrix", "tone_matrix"]

_EPSILON = 1e-6
LOG = np.log(np.maximum(np.arange(256, dtype=np.float64) / 255, _EPSILON)).astype(np.float32)
"""Natural logarithm of each pixel value's share of white light."""
_TISSUE = 0.7 * 255
"""Value that a change of contrast leaves alone: about the mean of stained tissue."""


def stain_matrix(scale: NDArray[np.floating[Any]], shift: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """What changes the logarithm of RGB where stains change: (..., 3, 4) float32, the last column added.

    Parameters
    ----------
    scale, shift : (..., 3), see `jitter_hed`
    """
    # There by log(rgb) / log(eps) @ hed_from_rgb, back by log(eps) * stains @ rgb_from_hed: the unit cancels in the
    # factor and stays in the term.
    matrix = (hed_from_rgb * scale[..., None, :]) @ rgb_from_hed
    term = (shift @ rgb_from_hed) * np.log(_EPSILON)
    return np.concatenate([matrix.swapaxes(-1, -2), term[..., None]], axis=-1).astype(np.float32)


def tone_matrix(tone: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What changes RGB where saturation, contrast and brightness change: (..., 3, 4), the last column added.

    Parameters
    ----------
    tone : (..., 3), saturation, contrast and brightness, see `jitter_rgb`
    """
    saturation, contrast, brightness = np.moveaxis(tone, -1, 0)[..., None, None]
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) / 3)
    term = np.broadcast_to(_TISSUE * (1 - contrast) + 255 * brightness, (*matrix.shape[:-1], 1))
    return np.concatenate([matrix, term], axis=-1)


def jitter_hed(
    image: NDArray[np.uint8], scale: NDArray[np.floating[Any]], shift: NDArray[np.floating[Any]]
) -> NDArray[np.uint8]:
    """Scale and shift the stains of an image.

    scikit-image's `rgb2hed` and `hed2rgb` with a factor and a term between, as one matrix (Tellez et al. 2018).

    Parameters
    ----------
    image : (..., 3) uint8
    scale : (3,) factor of hematoxylin, eosin and the rest (DAB); 1 changes nothing
    shift : (3,) added to them, in scikit-image's units of concentration; 0 changes nothing

    Returns
    -------
    image : (..., 3) uint8
    """
    log = cv2.LUT(image.reshape(1, -1, 3), LOG)
    changed = cv2.exp(cv2.transform(log, stain_matrix(np.asarray(scale), np.asarray(shift))))
    return cv2.convertScaleAbs(changed, alpha=255).reshape(image.shape).astype(np.uint8, copy=False)


def jitter_rgb(
    image: NDArray[np.uint8], *, saturation: float = 1.0, contrast: float = 1.0, brightness: float = 0.0
) -> NDArray[np.uint8]:
    """Change saturation, contrast and brightness of an image.

    Parameters
    ----------
    image : (..., 3) uint8
    saturation : factor of each px's distance from its own gray, the mean of its channels; 0 is gray
    contrast : factor of the distance from 0.7, about the mean of stained tissue
    brightness : added, as a share of white

    Returns
    -------
    image : (..., 3) uint8
    """
    # `tone_matrix` of one patch, in plain numbers: twenty times faster
    off, term = contrast * ((1 - saturation) / 3), _TISSUE * (1 - contrast) + 255 * brightness
    own = contrast * (saturation + (1 - saturation) / 3)
    matrix = np.array([[own, off, off, term], [off, own, off, term], [off, off, own, term]])
    changed = cv2.transform(image.reshape(1, -1, 3), matrix)
    return np.asarray(changed, np.uint8).reshape(image.shape)
