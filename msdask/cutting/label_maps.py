"""Label maps for segmentation: the label mask under each patch, cut by nearest neighbour, never interpolated."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from msdask.cutting.block_reader import PatchReader
from msdask.errors import MaskError

__all__ = ["label_maps", "lazy_label_maps"]


def label_maps(
    labels: NDArray[np.integer[Any]],
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    *,
    footprints: tuple[float, ...],
    patch_size: int,
    slide_shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """The label mask under each patch, nearest neighbour: the class under each patch px's center.

    Parameters
    ----------
    labels : (height, width) integer, 0 unlabeled, k + 1 = class k
    x0, y0 : (patch, magnification) int32, level-0 px
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


def lazy_label_maps(
    slide_shape: tuple[int, int],
    reader: PatchReader,
    labels: xr.DataArray,
    selection: xr.Dataset,
    lengths: tuple[int, ...],
) -> da.Array:
    """`label_maps` of a selection, in blocks of `lengths` patches."""
    values = np.asarray(labels.values)
    if values.max(initial=0) > 255:
        raise MaskError(
            f"label mask of slide '{selection.attrs['slide_id']}': class {int(values.max()) - 1}; label maps "
            "hold at most "
            "255 classes"
        )
    magnifications, size = len(reader.footprints), reader.patch_size
    x0, y0 = (da.from_array(selection[v].values, chunks=(lengths, magnifications)) for v in ("x0", "y0"))
    mask = delayed(values.astype(np.uint8))
    cut = partial(label_maps, footprints=reader.footprints, patch_size=size, slide_shape=slide_shape)

    def block(x: NDArray[np.int32], y: NDArray[np.int32], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return cut(values, x, y)

    return da.map_blocks(
        block, x0, y0, mask, dtype=np.uint8, new_axis=(2, 3), chunks=(lengths, (magnifications,), (size,), (size,))
    )
