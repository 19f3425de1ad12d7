"""Which patches to take from a slide: the table of grid and multi-center (centroid) selections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from msdask.errors import MissingScaleError, SlideError, SpecError
from msdask.scale import footprint, magnification_to_mpp, plan_read
from msdask.selection.coverage import FRACTION_SLACK, SummedArea, mask_values
from msdask.selection.majority import NO_LABEL, majority_labels
from msdask.selection.positions import Lattice, morton_order, region_of_interest, round_coordinates
from msdask.spec import ExtractionSpec, Roi, format_magnification

__all__ = ["HasGeometry", "centroids", "grid", "morton_order", "select"]

Mask = xr.DataArray | NDArray[np.generic]

MAX_CANDIDATES = 2**31 - 1
"""Rows of a table are counted in int32 (parents)."""

_TUPLE = ("patch", "magnification")
_BLOCK = 1 << 20
"""Candidates looked at together; what is kept of them is all that stays in memory."""


class HasGeometry(Protocol):
    """What a selection needs to know of a slide; no pixel is read."""

    @property
    def name(self) -> str:
        """File name."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0, px."""

    @property
    def mpp_used(self) -> float | None:
        """um/px that everything is planned with."""

    @property
    def tolerance(self) -> float:
        """Relative distance at which `mpp_used` was snapped to a nominal value; becomes part of the spec."""


def grid(
    slide: HasGeometry,
    mask: Mask | None = None,
    *,
    magnification: float,
    patch_size: int = 224,
    stride: int | None = None,
    overlap: float | None = None,
    min_tissue: float = 0.7,
    labels: Mask | None = None,
    min_label: float = 0.7,
    unlabeled: Literal["drop", "keep"] = "drop",
    roi: Roi = "whole",
    inside: bool = True,
    start: tuple[float, float] | None = None,
    allow_upsampling: bool = False,
) -> xr.Dataset:
    """Patches on a regular grid at one magnification (the paper's dense grid; spec section 3).

    Parameters
    ----------
    slide : a `Slide`, or anything with its name, shape and mpp_used
    mask : (y, x) bool or integers (not 0 = tissue), any resolution, covering the whole slide
        None: everything is tissue, or with `labels` everything labelled.
    magnification : 20 for 0.5 um/px
    patch_size : px at that magnification
    stride : px at that magnification between origins; None means `patch_size`
    overlap : instead of `stride`, the share of a patch's side that neighbours have in common, see `ExtractionSpec`
    min_tissue : least fraction of tissue in a footprint
    labels : (y, x) integers, 0 = unlabeled, k + 1 = class k, any resolution, covering the whole slide
    min_label : least fraction of a class in a footprint for it to be the label
    unlabeled : with `labels`, "drop" patches without a label or "keep" them with label -1
    roi : "whole", "auto" or (x, y, width, height) in level-0 px, see `msdask.selection.positions.region_of_interest`
    inside : footprints lie inside the region; False keeps those that only start in it
    start : (x, y) of the first position, level-0 px; the region's origin if None
    allow_upsampling : accept a magnification above the slide's own

    Returns
    -------
    table : see `select`

    Raises
    ------
    SpecError, MaskError, MissingScaleError
        As `select`.
    """
    spec = ExtractionSpec(
        mode="grid",
        magnifications=(magnification,),
        patch_size=patch_size,
        stride=stride,
        overlap=overlap,
        min_tissue=min_tissue,
        min_label=min_label,
        unlabeled=unlabeled,
        roi=roi,
        inside=inside,
        allow_upsampling=allow_upsampling,
        tolerance=slide.tolerance,
    )
    return select(slide, spec, mask=mask, labels=labels, start=start)


def centroids(
    slide: HasGeometry,
    mask: Mask | None = None,
    *,
    magnifications: Sequence[float],
    patch_size: int = 224,
    stride: int | None = None,
    overlap: float | None = None,
    min_tissue: float = 0.7,
    labels: Mask | None = None,
    min_label: float = 0.7,
    unlabeled: Literal["drop", "keep"] = "drop",
    roi: Roi = "whole",
    inside: bool = True,
    start: tuple[float, float] | None = None,
    allow_upsampling: bool = False,
) -> xr.Dataset:
    """Tuples of concentric patches at several magnifications (the paper's multi-center; spec section 4).

    The patches of the highest magnification lie on a grid and alone decide on tissue and label; the others are their
    context, and may leave the region and the slide.

    Parameters
    ----------
    magnifications : such as [20, 10, 5], in any order
    slide, mask, patch_size, stride, overlap, min_tissue, labels, min_label, unlabeled, roi, inside, start
        As for `grid`; `stride`, `overlap` and `start` are those of the highest magnification.
    allow_upsampling : accept a magnification above the slide's own

    Returns
    -------
    table : see `select`

    Raises
    ------
    SpecError, MaskError, MissingScaleError
        As `select`.
    """
    spec = ExtractionSpec(
        mode="centroids",
        magnifications=tuple(magnifications),
        patch_size=patch_size,
        stride=stride,
        overlap=overlap,
        min_tissue=min_tissue,
        min_label=min_label,
        unlabeled=unlabeled,
        roi=roi,
        inside=inside,
        allow_upsampling=allow_upsampling,
        tolerance=slide.tolerance,
    )
    return select(slide, spec, mask=mask, labels=labels, start=start)


def select(
    slide: HasGeometry,
    spec: ExtractionSpec,
    *,
    mask: Mask | None = None,
    labels: Mask | None = None,
    start: tuple[float, float] | None = None,
) -> xr.Dataset:
    """Patches of one slide that a spec asks for, in Morton order of their grid positions.

    Parameters
    ----------
    slide, mask, labels, start
        As for `grid`.
    spec : what to take

    Returns
    -------
    table : Dataset with dims (patch, magnification)
        Coordinate magnification float64, highest first. x0, y0 int32 (patch, magnification): origins in level-0 px,
        rounded once. mask uint8 (mask_y, mask_x): the mask that decided, if one was given. tissue float32 (patch,).
        label int16 and label_fraction float32 (patch, magnification): 0-based
        class, -1 = none, and the fraction of the footprint that it covers (0 where there is none).
        Attributes, all plain JSON values: slide_id, spec, shape (height, width), mpp_used, start (x, y) of the first
        grid position, step and footprint (one a magnification) in level-0 px, candidates (grid positions before the
        tissue and label rules), grid_shape (rows, columns), region (x, y, width, height).

    Raises
    ------
    SpecError
        A magnification above the slide's own, a region outside the slide, more positions than a table can hold.
    MaskError
        A mask that does not fit the slide, or holds impossible values.
    MissingScaleError
        The slide has no resolution.
    """
    shape = _slide_shape(slide)
    mpp_used = _mpp_used(slide)
    _refuse_upsampling(slide, spec, mpp_used)
    targets = [magnification_to_mpp(m) for m in spec.magnifications]
    sides = [footprint(spec.patch_size, target_mpp=mpp, slide_mpp=mpp_used) for mpp in targets]
    step = footprint(spec.stride or spec.patch_size, target_mpp=targets[0], slide_mpp=mpp_used)
    tissue, classes = _decide(slide, shape, mask, labels)

    is_masked = mask is not None or labels is not None
    region = region_of_interest(spec.roi, shape, tissue if is_masked else None, where=f"slide {slide.name!r}")
    lattice = Lattice.within(region, step=step, side=sides[0], start=start, inside=spec.inside)
    if lattice.size > MAX_CANDIDATES:
        raise SpecError(
            f"slide {slide.name!r}: {lattice.size:,} grid positions, expected at most {MAX_CANDIDATES:,}; "
            f"use a larger stride than {spec.stride} px"
        )
    column, row, fraction = _tissue_positions(lattice, tissue, sides[0], shape, spec.min_tissue)
    order = morton_order(column, row)
    x, y = (_origins(axis[order], sides) for axis in (lattice.x[column], lattice.y[row]))
    label, share = _labels_of(spec, classes, x, y, sides, shape)
    variables: dict[str, Any] = {
        "x0": (_TUPLE, round_coordinates(x)),
        "y0": (_TUPLE, round_coordinates(y)),
        "tissue": ("patch", fraction[order].astype(np.float32)),
        "label": (_TUPLE, label),
        "label_fraction": (_TUPLE, share),
    }
    attrs = {
        "slide_id": slide.name,
        "spec": spec.to_dict(),
        "shape": list(shape),
        "mpp_used": mpp_used,
        "start": list(lattice.start),
        "step": step,
        "footprint": sides,
        "candidates": lattice.size,
        "grid_shape": list(lattice.shape),
        "region": list(region),
    }
    if is_masked:
        kept, known = _stored_mask(labels if labels is not None else mask, tissue if classes is None else classes)
        variables["mask"] = (("mask_y", "mask_x"), kept, known)
        if "classes" in known:
            attrs["classes"] = known["classes"]
    # All at once: each variable that is added later costs xarray as much as all of them.
    magnifications = np.array(spec.magnifications, dtype=np.float64)
    selected = xr.Dataset(variables, coords={"magnification": magnifications}, attrs=attrs)
    if classes is not None and spec.unlabeled == "drop":
        selected = selected.isel(patch=np.flatnonzero(label[:, 0] != NO_LABEL))
    return selected


def _decide(
    slide: HasGeometry, shape: tuple[int, int], mask: Mask | None, labels: Mask | None
) -> tuple[NDArray[np.bool_], NDArray[np.generic] | None]:
    """(what counts as tissue, the classes or None), checked against the slide."""
    classes = None if labels is None else mask_values(labels, shape, what=f"slide {slide.name!r}, label mask")
    if mask is not None:
        return mask_values(mask, shape, what=f"slide {slide.name!r}, tissue mask") != 0, classes
    # One px of tissue the size of the slide: what leaves the slide is background all the same.
    return np.ones((1, 1), dtype=np.bool_) if classes is None else classes != 0, classes


def _labels_of(
    spec: ExtractionSpec,
    classes: NDArray[np.generic] | None,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    sides: Sequence[float],
    shape: tuple[int, int],
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """(label, label_fraction) of each patch, by its unrounded origins (n, m)."""
    if classes is None:
        return np.full(x.shape, NO_LABEL, dtype=np.int16), np.zeros(x.shape, dtype=np.float32)
    return majority_labels(classes, x, y, sides, shape, min_label=spec.min_label)


def _stored_mask(given: Mask | None, values: NDArray[np.generic]) -> tuple[NDArray[np.generic], dict[str, Any]]:
    """The mask that decided, as it is kept with the patches: unsigned integers, and what is known of it."""
    known = given.attrs if isinstance(given, xr.DataArray) else {}
    attrs = {key: known[key] for key in ("source", "mpp") if key in known}
    if "classes" in known:
        attrs["classes"] = [str(name) for name in known["classes"]]
    kept = values.astype(np.uint8) if values.max(initial=0) <= np.iinfo(np.uint8).max else values.astype(np.uint16)
    return kept, attrs


def _slide_shape(slide: HasGeometry) -> tuple[int, int]:
    height, width = (int(size) for size in slide.shape)
    if min(height, width) < 1 or max(height, width) > np.iinfo(np.int32).max:
        raise SlideError(
            f"slide {slide.name!r}: level 0 of {width} x {height} px, expected sides from 1 to 2**31 - 1 px"
        )
    return height, width


def _mpp_used(slide: HasGeometry) -> float:
    if slide.mpp_used is None:
        raise MissingScaleError(
            f"slide {slide.name!r}: no resolution in the file; pass mpp=... or magnification=... when opening it, or "
            "estimate it with msdask.estimate_scale(slide)"
        )
    return float(slide.mpp_used)


def _refuse_upsampling(slide: HasGeometry, spec: ExtractionSpec, mpp_used: float) -> None:
    """Raise for a magnification that the slide's own pixels cannot give, by the rule that reading goes by."""
    for magnification in spec.magnifications:
        ratio = magnification_to_mpp(magnification) / mpp_used
        try:
            plan_read(
                ratio,
                downsamples=(1.0,),
                dct_scales=((1,),),
                patch_size=spec.patch_size,
                allow_upsampling=spec.allow_upsampling,
            )
        except SpecError as error:
            raise SpecError(
                f"slide {slide.name!r} has {mpp_used:g} um/px ({format_magnification(10 / mpp_used)}), coarser than "
                f"the {10 / magnification:g} um/px of {format_magnification(magnification)}; ask for at most "
                f"{format_magnification(10 / mpp_used)}, or pass allow_upsampling=True to enlarge its pixels"
            ) from error


def _tissue_positions(
    lattice: Lattice, tissue: NDArray[np.bool_], side: float, shape: tuple[int, int], min_tissue: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Column, row and tissue fraction of the positions with enough tissue, row by row."""
    table = SummedArea(tissue)
    kept: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = [(np.empty(0, np.int64), np.empty(0, np.float64))]
    for first in range(0, lattice.size, _BLOCK):
        index = np.arange(first, min(first + _BLOCK, lattice.size), dtype=np.int64)
        row, column = np.divmod(index, lattice.x.size)
        fraction = table.fractions(lattice.x[column], lattice.y[row], side, shape)
        enough = fraction + FRACTION_SLACK >= min_tissue
        kept.append((index[enough], fraction[enough]))
    index = np.concatenate([block[0] for block in kept])
    row, column = np.divmod(index, max(lattice.x.size, 1))
    return column, row, np.concatenate([block[1] for block in kept])


def _origins(position: ArrayLike, sides: Sequence[float]) -> NDArray[np.float64]:
    """Unrounded origins of the tuples along one axis: (n,) positions of the centroids -> (n, m)."""
    position = np.asarray(position, dtype=np.float64)
    center = position + sides[0] / 2
    # The centroid's own origin is where the grid put it, not what is left of it after a detour over the center.
    return np.stack([position, *(center - side / 2 for side in sides[1:])], axis=-1)
