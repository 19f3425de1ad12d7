"""Other programs' classical rules for tissue, written anew after what they publish; none of their code is in here.

They are stand-ins for the thresholds and morphology at the heart of each, as we read their papers and manuals, and were
not checked against the programs. HistoQC's other modules (pen, bubbles, blur) are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def otsu_on_saturation(image: Image, mpp: float) -> Mask:
    """Saturation above Otsu's threshold, nothing else."""
    saturation = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1])
    _, mask = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return mask > 0


def histoqc(image: Image, mpp: float) -> Mask:
    """HistoQC's default light and dark rules (Janowczyk et al., 2019).

    Tissue is neither bright (gray level above 0.9 of white) nor dark (below 0.15); small objects go and small holes
    are filled (64 and 1,000 px at 1.25x).
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    mask = (gray < 0.9) & (gray > 0.15)
    scale = (8.0 / mpp) ** 2
    mask = _without_small(mask, 64 * scale)
    return ~_without_small(~mask, 1000 * scale)


def clam(image: Image, mpp: float) -> Mask:
    """CLAM's segmentation (Lu et al., 2021).

    HSV saturation, median blur of 7 px, threshold 8, closing of 4 px; outlines of areas, and holes in them, count from
    a multiple of a 512 px square at level 0 (100 and 16 of them, 0.25 um/px here; on our small scenes an outline counts
    from 2 % of the scene, or nothing would be left of most).
    """
    saturation = cv2.medianBlur(np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]), 7)
    closed = cv2.morphologyEx((saturation > 8).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8)) > 0
    square = (512 * 0.25 / mpp) ** 2
    mask = _without_small(closed, min(100 * square, 0.02 * closed.size))
    return ~_without_small(~mask, 16 * square)


def tiatoolbox(image: Image, mpp: float) -> Mask:
    """TIAToolbox's morphological masker (Pocock et al., 2022).

    Gray level below Otsu's threshold; objects smaller than the kernel go, then a dilation; the kernel is a disc of
    32 um.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    threshold, _ = cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    side = max(1, round(32 / mpp))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    mask = _without_small(gray < threshold, float(kernel.sum()))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def _without_small(mask: Mask, least: float) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return np.asarray(keep[labels])


PEERS: dict[str, Callable[[Image, float], Mask]] = {
    "Otsu on saturation": otsu_on_saturation,
    "HistoQC's rules": histoqc,
    "CLAM's rules": clam,
    "TIAToolbox's rules": tiatoolbox,
}
