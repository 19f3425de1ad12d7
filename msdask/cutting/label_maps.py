"""Label maps for segmentation: the label mask under each patch, cut by nearest neighbour, never interpolated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["label_maps"]


def label_maps(
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    *,
    labels: NDArray[np.integer[Any]],
    footprints: tuple[float, ...],
    patch_size: int,
    slide_shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """The label mask under each patch, nearest neighbour: the class under each patch px's center.

    Parameters
    ----------
    x0, y0 : (patch, magnification) int32, level-0 px
    labels : (height, width) integer, 0 unlabeled, k + 1 = class k
    footprints : level-0 px of a patch's side, for each magnification
    patch_size : px
    slide_shape : (height, width) of level 0, px

    Returns
    -------
    maps : (patch, magnification, y, x) uint8; 0 outside the slide
    """
    # Coordinates stay separable: (patch, magnification, px) along each axis, combined by one fancy index.
    centers = (np.arange(patch_size) + 0.5)[None, None, :] * (np.asarray(footprints) / patch_size)[None, :, None]
    y, y_ok = _mask_index(y0[:, :, None] + centers, slide_shape[0], labels.shape[0])
    x, x_ok = _mask_index(x0[:, :, None] + centers, slide_shape[1], labels.shape[1])
    maps = labels[y[:, :, :, None], x[:, :, None, :]].astype(np.uint8)
    return np.where(y_ok[:, :, :, None] & x_ok[:, :, None, :], maps, np.uint8(0))


def _mask_index(position: NDArray[np.float64], slide: int, mask: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    index = np.floor(position * (mask / slide)).astype(np.int64)
    return np.clip(index, 0, mask - 1), (position >= 0) & (position < slide)
