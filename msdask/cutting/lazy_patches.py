"""From a slide and a selection to lazy patches: one dask chunk is one block is one Zarr shard."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter, OnBadTile
from msdask.cutting.label_maps import lazy_label_maps
from msdask.cutting.measures import tissue_mean
from msdask.errors import SpecError
from msdask.scale import Decode, ReadPlan, Source, footprint, magnification_to_mpp
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec

__all__ = ["block_rows", "mean_of_tissue", "patches", "planned", "read_plan", "read_plans"]

MAX_PATCHES_PER_BLOCK = 256
MAX_BLOCK_BYTES = 64 * 2**20
_Origins = tuple[NDArray[np.int32], NDArray[np.int32]]
"""x0, y0 (patch, magnification) of all patches."""
THUMBNAIL_MPP = 8.0
"""um/px of the image that a slide's tissue mean is taken from (1.25x)."""


def read_plans(slide: Slide, spec: ExtractionSpec) -> tuple[ReadPlan, ...]:
    """How each magnification of `spec` is read from `slide`, highest magnification first."""
    plans = []
    for magnification in spec.magnifications:
        try:
            plans.append(read_plan(slide, spec, magnification_to_mpp(magnification) / slide.mpp_used))
        except SpecError as error:
            raise SpecError(f"slide '{slide.path}' at {magnification:g}x: {error}") from None
    return tuple(plans)


def read_plan(slide: Slide, spec: ExtractionSpec, ratio: float) -> ReadPlan:
    """How a scale of `ratio` level-0 px per patch px, any number, is read from `slide`."""
    return slide.plan_read(
        ratio,
        patch_size=spec.patch_size,
        source=spec.source,
        decode=spec.decode,
        allow_upsampling=spec.allow_upsampling,
    )


def block_rows(patches: int, magnifications: int, patch_size: int) -> int:
    """Patches in a block (= a shard): at most 256 images and 64 MiB; a small set is cut into equal blocks.

    >>> block_rows(21609, 1, 224), block_rows(21609, 3, 224), block_rows(300, 1, 224)
    (255, 85, 150)
    """
    per_patch = magnifications * patch_size * patch_size * 3
    most = max(1, min(MAX_PATCHES_PER_BLOCK // magnifications, MAX_BLOCK_BYTES // per_patch))
    blocks = max(1, math.ceil(patches / most))
    return max(1, math.ceil(patches / blocks))


def patches(
    slide: Slide,
    selection: xr.Dataset,
    *,
    labels: xr.DataArray | None = None,
    source: Source | None = None,
    decode: Decode | None = None,
    pad: int | None = None,
    on_bad_tile: OnBadTile = "raise",
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
    source, decode, pad : override the selection's spec: read the "coarsest" level that is fine enough or the
        "finest"; let the JPEG decoder reduce ("scaled") or not ("exact"); value outside the slide
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
    cutter, data = planned(slide, selection, source=source, decode=decode, pad=pad, on_bad_tile=on_bad_tile)
    x0, y0 = data["x0"].values, data["y0"].values
    # One thing that all blocks share: it travels once to each worker, not in parts with every task.
    origins = delayed((x0, y0), name=f"origins-{tokenize(x0, y0)}", traverse=False)
    image, filled = _lazy_blocks(slide, cutter, origins, len(x0))
    dims = ("patch", "magnification", "y", "x", "channel")
    data["image"] = (dims, image)
    if filled is not None:
        data["filled"] = (dims[:2], filled)
    if labels is not None:
        data["label_map"] = (dims[:4], lazy_label_maps(slide.shape, cutter, labels, origins, image.chunks[0]))
    if "tissue_mean" not in data.attrs:
        mean = delayed(mean_of_tissue)(slide, data["mask"].values if "mask" in data else None, on_bad_tile)
        data["tissue_mean"] = ((), da.from_delayed(mean, shape=(), dtype=np.float64))
    return data


def planned(
    slide: Slide,
    selection: xr.Dataset,
    *,
    source: Source | None = None,
    decode: Decode | None = None,
    pad: int | None = None,
    on_bad_tile: OnBadTile = "raise",
) -> tuple[Cutter, xr.Dataset]:
    """How the patches of a selection are read, and the selection with that and the slide's facts in its attributes.

    Parameters and errors are those of `patches`.
    """
    given = {"source": source, "decode": decode, "pad": pad}
    overrides = {key: value for key, value in given.items() if value is not None}
    spec = ExtractionSpec.from_dict({**selection.attrs["spec"], **overrides})
    if tuple(selection.attrs["shape"]) != tuple(slide.shape):
        raise SpecError(
            f"slide '{slide.path}' is {slide.shape[1]} x {slide.shape[0]} px, the selection was made on one of "
            f"{selection.attrs['shape'][1]} x {selection.attrs['shape'][0]} px: select on this slide"
        )
    if abs(selection.attrs["mpp_used"] / slide.mpp_used - 1) > 1e-9:
        raise SpecError(
            f"slide '{slide.path}' has {slide.mpp_used:g} um/px, the selection was made at "
            f"{selection.attrs['mpp_used']:g} um/px: select on this slide, opened in this way"
        )
    plans = read_plans(slide, spec)
    footprints = tuple(
        footprint(spec.patch_size, target_mpp=magnification_to_mpp(m), slide_mpp=slide.mpp_used)
        for m in spec.magnifications
    )
    facts = {
        "spec": spec.to_dict(),
        "source": slide.path,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_quality": slide.quality,
        "reads": [plan.attrs() for plan in plans],
        "fingerprint": slide.fingerprint(),
    }
    return Cutter(plans, footprints, spec.patch_size, spec.pad, on_bad_tile), selection.assign_attrs(facts)


def mean_of_tissue(
    slide: Slide, mask: NDArray[np.integer[Any]] | None, on_bad_tile: OnBadTile = "raise"
) -> NDArray[np.float64]:
    """Mean of the slide's 1.25x image inside the mask: () float64, the `t` that decides the white threshold."""
    image = (
        slide.with_bad_tiles(on_bad_tile).at(mpp=THUMBNAIL_MPP, allow_upsampling=True).data.compute(scheduler="threads")
    )
    inside = np.ones(image.shape[:2], bool) if mask is None else mask > 0
    return np.asarray(tissue_mean(image, inside))


def _lazy_blocks(slide: Slide, cutter: Cutter, origins: Delayed, count: int) -> tuple[da.Array, da.Array | None]:
    """`image`, one chunk a block, and `filled` where bad tiles are filled."""
    magnifications, size = len(cutter.plans), cutter.patch_size
    rows = block_rows(count, magnifications, size)
    token = tokenize(slide, cutter, origins.key)
    shape = ((magnifications,), (size,), (size,), (3,))
    options: dict[str, Any] = {
        "chunks": (_block_lengths(count, rows), *shape),
        "dtype": np.uint8,
        "meta": np.empty((0,) * 5, np.uint8),
    }
    if cutter.on_bad_tile == "raise":
        cut = partial(_cut_image, slide, cutter, rows)
        return da.map_blocks(cut, origins=origins, name=f"cut-patches-{token}", **options), None
    # Filling has two results a block: a task of their own; the plain case is in one task with whatever follows.
    both = da.map_blocks(partial(_cut, slide, cutter, rows), origins=origins, name=f"cut-both-{token}", **options)
    empty = np.empty((0, 0), np.float32)
    filled = da.blockwise(_second, "pm", both, "pmyxc", dtype=np.float32, meta=empty, name=f"filled-{token}")
    return da.map_blocks(_first, both, name=f"cut-patches-{token}", **options), filled


def _block_lengths(count: int, rows: int) -> tuple[int, ...]:
    full, rest = divmod(count, rows)
    return (rows,) * full + ((rest,) if rest or not full else ())


def _cut(
    slide: Slide, cutter: Cutter, rows: int, origins: _Origins, block_id: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    block = slice(block_id[0] * rows, (block_id[0] + 1) * rows)
    return cutter.cut(slide.reader, *(values[block] for values in origins))


def _cut_image(
    slide: Slide, cutter: Cutter, rows: int, origins: _Origins, block_id: tuple[int, ...]
) -> NDArray[np.uint8]:
    return _cut(slide, cutter, rows, origins, block_id)[0]


def _first(both: tuple[Any, Any]) -> Any:
    return both[0]


def _second(both: Any) -> Any:
    while isinstance(both, list):  # dask wraps the one block along each axis that is gone
        both = both[0]
    return both[1]
