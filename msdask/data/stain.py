"""Stain augmentation in the space of optical density: hematoxylin, eosin and residual are scaled and shifted."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

__all__ = ["jitter_hed"]

_EPSILON = 1e-6
_LOG = np.log(np.maximum(np.arange(256, dtype=np.float64) / 255, _EPSILON)).astype(np.float32)
"""Natural logarithm of each pixel value's share of white light."""


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
    # There by log(rgb) / log(eps) @ hed_from_rgb, back by log(eps) * stains @ rgb_from_hed: the unit cancels in the
    # factor and stays in the term.
    matrix = (hed_from_rgb * scale[None, :]) @ rgb_from_hed
    term = (shift @ rgb_from_hed) * np.log(_EPSILON)
    log = cv2.LUT(image.reshape(1, -1, 3), _LOG)
    affine = np.concatenate([matrix.T, term[:, None]], axis=1)
    changed = cv2.exp(cv2.transform(log, affine.astype(np.float32)))
    return cv2.convertScaleAbs(changed, alpha=255).reshape(image.shape).astype(np.uint8, copy=False)
