"""Label maps for segmentation: the label mask under each patch, cut by nearest neighbour, never interpolated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter
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
    cutter: Cutter,
    labels: xr.DataArray,
    origins: Delayed,
    lengths: tuple[int, ...],
) -> da.Array:
    """`label_maps` of a selection, in blocks of `lengths` patches.

    Parameters
    ----------
    origins : (x0, y0), each (patch, magnification) int32, of all patches
    """
    values = np.asarray(labels.values)
    if values.max(initial=0) > 255:
        raise MaskError(
            f"label mask '{labels.attrs.get('source', 'given')}': class {int(values.max()) - 1}; label maps hold at "
            "most 255 classes"
        )
    magnifications, size = len(cutter.footprints), cutter.patch_size
    cut = partial(label_maps, footprints=cutter.footprints, patch_size=size, slide_shape=slide_shape)
    return da.map_blocks(
        partial(_label_maps, cut, lengths[0]),
        origins=origins,
        labels=delayed(values.astype(np.uint8), pure=True),
        dtype=np.uint8,
        chunks=(lengths, (magnifications,), (size,), (size,)),
        meta=np.empty((0,) * 4, np.uint8),
    )


def _label_maps(
    cut: Callable[..., NDArray[np.uint8]],
    rows: int,
    origins: tuple[NDArray[np.int32], NDArray[np.int32]],
    labels: NDArray[np.uint8],
    block_id: tuple[int, ...],
) -> NDArray[np.uint8]:
    block = slice(block_id[0] * rows, (block_id[0] + 1) * rows)
    return cut(labels, *(values[block] for values in origins))
