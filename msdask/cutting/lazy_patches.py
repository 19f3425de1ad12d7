"""From a slide and a selection to lazy patches: one dask chunk is one block is one Zarr shard."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from msdask.computing import in_process
from msdask.cutting.cutter import Cutter, OnBadTile
from msdask.cutting.measures import tissue_mean
from msdask.errors import SpecError
from msdask.masks.label_plane import ArrayPlane, LabelPlane
from msdask.scale import Decode, ReadPlan, Source, footprint, magnification_to_mpp
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec

__all__ = ["block_rows", "mean_of_tissue", "patches", "planned", "read_plan", "read_plans"]

MAX_PATCHES_PER_BLOCK = 256
MAX_BLOCK_BYTES = 64 * 2**20
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
    labels: xr.DataArray | LabelPlane | None = None,
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
    labels : label mask, or a `LabelPlane`; given for segmentation, adds `label_map` (patch, magnification, y, x) uint8,
        the class at each px's center: 0 = unlabeled or outside the slide, k + 1 = class k
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
    if labels is None and data.attrs["spec"].get("label_maps"):
        raise SpecError(
            f"slide '{slide.path}': the selection's spec asks for label maps: give what they show (labels=)"
        )
    x0, y0 = data["x0"].values, data["y0"].values
    # One thing that all blocks share: it travels once to each worker, not in parts with every task.
    origins = delayed((x0, y0), name=f"origins-{tokenize(x0, y0)}", traverse=False)
    lengths = _block_lengths(len(x0), block_rows(len(x0), x0.shape[1], cutter.patch_size))
    image, filled = _lazy_images(slide, cutter, origins, lengths)
    dims = ("patch", "magnification", "y", "x", "channel")
    data["image"] = (dims, image)
    if filled is not None:
        data["filled"] = (dims[:2], filled)
    if labels is not None:
        data["label_map"] = (dims[:4], _lazy_label_maps(slide, cutter, labels, origins, lengths))
    if "tissue_mean" not in data.attrs:
        mean = delayed(mean_of_tissue)(
            slide.with_bad_tiles(on_bad_tile), data["mask"].values if "mask" in data else None
        )
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
    if slide.region is not None:
        facts["slide_region"] = str(slide.region)
    return Cutter(plans, footprints, spec.patch_size, spec.pad, on_bad_tile), selection.assign_attrs(facts)


class _Viewable(Protocol):
    """What has whole images: a slide, or its overview."""

    def at(self, *, mpp: float, allow_upsampling: bool = False) -> xr.DataArray: ...


def mean_of_tissue(slide: _Viewable, mask: NDArray[np.integer[Any]] | None) -> NDArray[np.float64]:
    """Mean of the slide's 1.25x image inside the mask: () float64, the `t` that decides the white threshold."""
    image = slide.at(mpp=THUMBNAIL_MPP, allow_upsampling=True).compute(scheduler=in_process()).to_numpy()
    inside = np.ones(image.shape[:2], bool) if mask is None else mask > 0
    return np.asarray(tissue_mean(image, inside))


def _lazy_label_maps(
    slide: Slide, cutter: Cutter, labels: xr.DataArray | LabelPlane, origins: Delayed, lengths: tuple[int, ...]
) -> da.Array:
    if isinstance(labels, xr.DataArray):
        classes = labels.attrs.get("classes", ())
        labels = ArrayPlane.of(labels.values, slide.shape, classes, what=f"label mask of slide '{slide.path}'")
    elif tuple(labels.shape) != tuple(slide.shape):
        raise SpecError(
            f"slide '{slide.path}' is {slide.shape[1]} x {slide.shape[0]} px, its labels are of one of "
            f"{labels.shape[1]} x {labels.shape[0]} px: give those of this slide"
        )
    cut = partial(_cut_maps, cutter)
    plane = delayed(labels, pure=True, traverse=False)
    shape = (len(cutter.plans), cutter.patch_size, cutter.patch_size)
    name = f"label-maps-{tokenize(cut, origins.key, plane.key)}"
    return _lazy_blocks(cut, origins, lengths, shape, name, plane=plane)


def _cut_maps(cutter: Cutter, x0: NDArray[np.int32], y0: NDArray[np.int32], plane: LabelPlane) -> NDArray[np.uint8]:
    return plane.cut(x0, y0, cutter.footprints, cutter.patch_size)


def _lazy_images(
    slide: Slide, cutter: Cutter, origins: Delayed, lengths: tuple[int, ...]
) -> tuple[da.Array, da.Array | None]:
    """`image`, and `filled` where bad tiles are filled."""
    shape = (len(cutter.plans), cutter.patch_size, cutter.patch_size, 3)
    token = tokenize(slide, cutter, origins.key)
    cut = partial(_cut, slide, cutter)
    if cutter.on_bad_tile == "raise":
        return _lazy_blocks(cut, origins, lengths, shape, f"cut-patches-{token}"), None
    # Filling has two results a block: a task of their own; the plain case is in one task with whatever follows.
    both = _lazy_blocks(partial(_cut_both, slide, cutter), origins, lengths, shape, f"cut-both-{token}")
    image = da.map_blocks(_first, both, dtype=np.uint8, meta=np.empty((0,) * 5, np.uint8), name=f"cut-patches-{token}")
    empty = np.empty((0, 0), np.float32)
    return image, da.blockwise(_second, "pm", both, "pmyxc", dtype=np.float32, meta=empty, name=f"filled-{token}")


def _lazy_blocks(
    cut: Callable[..., Any], origins: Delayed, lengths: tuple[int, ...], shape: tuple[int, ...], name: str, **more: Any
) -> da.Array:
    """``cut(x0, y0, **more)`` of each block of patches as one lazy array (patch, *shape) uint8."""
    return da.map_blocks(
        partial(_of_block, cut, lengths[0]),
        origins=origins,
        chunks=(lengths, *((n,) for n in shape)),
        dtype=np.uint8,
        meta=np.empty((0,) * (1 + len(shape)), np.uint8),
        name=name,
        **more,
    )


def _of_block(
    cut: Callable[..., Any], rows: int, origins: tuple[NDArray[np.int32], ...], block_id: tuple[int, ...], **more: Any
) -> Any:
    block = slice(block_id[0] * rows, (block_id[0] + 1) * rows)
    return cut(*(values[block] for values in origins), **more)


def _block_lengths(count: int, rows: int) -> tuple[int, ...]:
    full, rest = divmod(count, rows)
    return (rows,) * full + ((rest,) if rest or not full else ())


def _cut(slide: Slide, cutter: Cutter, x0: NDArray[np.int32], y0: NDArray[np.int32]) -> NDArray[np.uint8]:
    return cutter.cut(slide.reader, x0, y0)[0]


def _cut_both(slide: Slide, cutter: Cutter, x0: NDArray[np.int32], y0: NDArray[np.int32]) -> tuple[Any, Any]:
    return cutter.cut(slide.reader, x0, y0)


def _first(both: tuple[Any, Any]) -> Any:
    return both[0]


def _second(both: Any) -> Any:
    while isinstance(both, list):  # dask wraps the one block along each axis that is gone
        both = both[0]
    return both[1]
