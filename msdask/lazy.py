"""From a slide and a selection to lazy patches: one dask chunk is one block is one Zarr shard."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from msdask.blocks import OnBadTile, PatchReader
from msdask.errors import MaskError, SpecError
from msdask.measure import tissue_mean
from msdask.scale import ReadPlan, footprint, magnification_to_mpp, plan_read
from msdask.slide import Slide
from msdask.spec import ExtractionSpec

__all__ = ["block_rows", "label_maps", "patches", "read_plans"]

MAX_PATCHES_PER_BLOCK = 256
MAX_BLOCK_BYTES = 64 * 2**20


def read_plans(slide: Slide, spec: ExtractionSpec) -> tuple[ReadPlan, ...]:
    """How each magnification of `spec` is read from `slide`, highest magnification first."""
    infos = slide.level_infos
    plans = []
    for magnification in spec.magnifications:
        try:
            plan = plan_read(
                magnification_to_mpp(magnification) / slide.mpp_used,
                downsamples=[i.downsample for i in infos],
                dct_scales=[i.dct_scales for i in infos],
                patch_size=spec.patch_size,
                source=spec.source,
                decode=spec.decode,
                allow_upsampling=spec.allow_upsampling,
            )
        except SpecError as error:
            raise SpecError(f"slide '{slide.path}' at {magnification:g}x: {error}") from None
        plans.append(plan)
    return tuple(plans)


def block_rows(patches: int, magnifications: int, patch_size: int) -> int:
    """Patches in a block (= a shard): at most 256 images and 64 MiB; a small set is cut into equal blocks.

    >>> block_rows(21609, 1, 224), block_rows(21609, 3, 224), block_rows(300, 1, 224)
    (256, 85, 150)
    """
    per_patch = magnifications * patch_size * patch_size * 3
    most = max(1, min(MAX_PATCHES_PER_BLOCK // magnifications, MAX_BLOCK_BYTES // per_patch))
    blocks = max(1, math.ceil(patches / most))
    return max(1, math.ceil(patches / blocks))


def patches(
    slide: Slide, selection: xr.Dataset, *, labels: xr.DataArray | None = None, on_bad_tile: OnBadTile = "raise"
) -> xr.Dataset:
    """Lazy pixels of a selection.

    A patch's pixels are a function of its (x0, y0) and of how its magnification is read (`read_plans`) alone, whatever
    block it stands in.

    Parameters
    ----------
    slide : that the selection was made on
    selection : table from `grid` or `centroids`
    labels : label mask; given for segmentation, adds `label_map` (patch, magnification, y, x) uint8, cut from it by
        nearest neighbour
    on_bad_tile : "raise" a TileError that names the tile, or "fill" it white; then `filled` (patch, magnification) is
        the fraction of each patch that was

    Returns
    -------
    patches : Dataset
        `image` (patch, magnification, y, x, channel) uint8 and the selection's own variables. Chunks are blocks.

    Raises
    ------
    SpecError
        The selection was made on another slide, or asks for more than the slide has.
    """
    spec = ExtractionSpec.from_dict(selection.attrs["spec"])
    if tuple(selection.attrs["shape"]) != tuple(slide.shape):
        raise SpecError(
            f"slide '{slide.path}' is {slide.shape[1]} x {slide.shape[0]} px, the selection was made on one of "
            f"{selection.attrs['shape'][1]} x {selection.attrs['shape'][0]} px: select on this slide"
        )
    plans = read_plans(slide, spec)
    footprints = tuple(
        footprint(spec.patch_size, target_mpp=magnification_to_mpp(m), slide_mpp=slide.mpp_used)
        for m in spec.magnifications
    )
    reader = PatchReader(plans, footprints, spec.patch_size, spec.pad, on_bad_tile)
    image, filled = _lazy_blocks(slide, reader, selection["x0"].values, selection["y0"].values)
    dims = ("patch", "magnification", "y", "x", "channel")
    data = selection.assign(image=(dims, image))
    if filled is not None:
        data["filled"] = (dims[:2], filled)
    if labels is not None:
        data["label_map"] = (dims[:4], _lazy_label_maps(slide, spec, labels, selection, image.chunks[0], footprints))
    if "tissue_mean" not in data.attrs:
        data["tissue_mean"] = ((), _lazy_tissue_mean(slide, selection))
    data.attrs |= {
        "source": slide.path,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_quality": slide.quality,
        "reads": [plan.attrs() for plan in plans],
        "fingerprint": slide.fingerprint(),
    }
    return data


def _lazy_blocks(
    slide: Slide, reader: PatchReader, x0: NDArray[np.int32], y0: NDArray[np.int32]
) -> tuple[da.Array, da.Array | None]:
    count, magnifications = x0.shape
    size = reader.patch_size
    rows = block_rows(count, magnifications, size)
    lengths = _block_lengths(count, rows)
    token = tokenize(slide, reader, x0, y0)
    name = f"read-patches-{token}"
    chunks = (lengths, (magnifications,), (size,), (size,), (3,))
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    blocks = [slice(a, b) for a, b in pairwise(starts)]
    if reader.on_bad_tile == "raise":
        graph: dict[Any, Any] = {
            (name, i, 0, 0, 0, 0): (_read_image, slide, reader, x0[b], y0[b]) for i, b in enumerate(blocks)
        }
        layer = HighLevelGraph.from_collections(name, graph)
        return da.Array(layer, name, chunks, dtype=np.uint8), None
    # Filling has two results a block; the plain case stays one task a block.
    both, fill_name = f"read-both-{token}", f"filled-{token}"
    read: dict[Any, Any] = {(both, i): (_read_both, slide, reader, x0[b], y0[b]) for i, b in enumerate(blocks)}
    image: dict[Any, Any] = {(name, i, 0, 0, 0, 0): (_first, (both, i)) for i in range(len(blocks))}
    filled: dict[Any, Any] = {(fill_name, i, 0): (_second, (both, i)) for i in range(len(blocks))}
    layers = HighLevelGraph(
        {both: read, name: image, fill_name: filled}, {both: set(), name: {both}, fill_name: {both}}
    )
    return (
        da.Array(layers, name, chunks, dtype=np.uint8),
        da.Array(layers, fill_name, chunks[:2], dtype=np.float32),
    )


def _block_lengths(count: int, rows: int) -> tuple[int, ...]:
    full, rest = divmod(count, rows)
    return (rows,) * full + ((rest,) if rest or not full else ())


def _read_both(
    slide: Slide, reader: PatchReader, x0: NDArray[np.int32], y0: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return reader.read(slide.reader, x0, y0)


def _read_image(slide: Slide, reader: PatchReader, x0: NDArray[np.int32], y0: NDArray[np.int32]) -> NDArray[np.uint8]:
    return reader.read(slide.reader, x0, y0)[0]


def _first(both: tuple[Any, Any]) -> Any:
    return both[0]


def _second(both: tuple[Any, Any]) -> Any:
    return both[1]


def _lazy_tissue_mean(slide: Slide, selection: xr.Dataset) -> da.Array:
    """Mean of the slide's 1.25x image inside the mask, which decides the white threshold (spec section 6)."""
    mask = selection["mask"].values if "mask" in selection else None
    thumbnail = slide.at(mpp=selection.attrs["spec"]["mask_mpp"], allow_upsampling=True).data
    mean = delayed(partial(_mean_inside, mask))(thumbnail)
    return da.from_delayed(mean, shape=(), dtype=np.float64)


def _mean_inside(mask: NDArray[np.uint8] | None, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    if mask is None:
        inside = np.ones(image.shape[:2], bool)
    else:
        inside = cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.asarray(tissue_mean(image, inside))


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


def _lazy_label_maps(
    slide: Slide,
    spec: ExtractionSpec,
    labels: xr.DataArray,
    selection: xr.Dataset,
    lengths: tuple[int, ...],
    footprints: tuple[float, ...],
) -> da.Array:
    values = np.asarray(labels.values)
    if values.max(initial=0) > 255:
        raise MaskError(
            f"label mask of slide '{slide.path}': class {int(values.max()) - 1}; label maps hold at most 255 classes"
        )
    magnifications, size = len(footprints), spec.patch_size
    x0, y0 = (da.from_array(selection[v].values, chunks=(lengths, magnifications)) for v in ("x0", "y0"))
    mask = delayed(values.astype(np.uint8))
    cut = partial(label_maps, footprints=footprints, patch_size=size, slide_shape=slide.shape)

    def block(x: NDArray[np.int32], y: NDArray[np.int32], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return cut(values, x, y)

    return da.map_blocks(
        block, x0, y0, mask, dtype=np.uint8, new_axis=(2, 3), chunks=(lengths, (magnifications,), (size,), (size,))
    )
