"""Where there is tissue on a slide: msdask's own mask, and how bright the tissue in it is.

Masks that another program made are read in `msdask.masks.files`.
"""

from __future__ import annotations

from typing import Final, Protocol

import cv2
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.computing import in_process, side_by_side
from msdask.errors import MaskError, SpecError
from msdask.masks.canvas import find_canvas
from msdask.masks.glass import classify_pixels, estimate_glass
from msdask.masks.planes import taken
from msdask.masks.shown import Mask
from msdask.spec import MAX_HOLE_UM2, MIN_AREA_UM2

__all__ = ["tissue_from_rgb", "tissue_mask"]

MAX_MASK_PIXELS: Final = 2**28

_SMOOTHING_UM: Final = 4.0
_CLOSING_UM: Final = 8.0
_OPENING_UM: Final = 8.0
_INK_MARGIN_UM: Final = 24.0
_MIN_INK_UM2: Final = 4_000.0
_MIN_ROUNDNESS: Final = 0.38
"""Share of a hole that its largest disc must cover for it to be round: fat cells 0.4 to 0.8, torn cavities 0.2 to 0.37.
"""
_NARROW_UM: Final = 32.0
"""A hole nowhere wider than this is a crack."""
_RAGGED: Final = 1 / 3
"""Ragged holes are filled up to this share of the area up to which round ones are."""
_BOX_PIXELS: Final = 2000
"""px that are measured in the time that a box takes by itself."""
_HOLES: Final = 64
"""Holes that a thread measures at once."""
_LARGEST_DISC: Final = 6
"""Radius in px up to which morphology with a disc is faster than distances; at 8 um/px discs have 1 to 3."""


class _MaskableSlide(Protocol):
    """What a tissue mask needs of a slide."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def mpp_used(self) -> float: ...
    def at(self, *, mpp: float) -> xr.DataArray: ...


def tissue_mask(
    slide: _MaskableSlide,
    *,
    mpp: float = 8.0,
    min_area_um2: float = MIN_AREA_UM2,
    max_hole_um2: float = MAX_HOLE_UM2,
) -> xr.DataArray:
    """Find the tissue of a slide; reads its pixels at `mpp` and computes, in this process.

    A notebook shows it as a picture, ``msdask.plots.mask(slide, mask)`` over its slide.

    Works on H&E and IHC on white, gray or slightly yellowish glass (see `tissue_from_rgb`).

    Parameters
    ----------
    slide : an open slide
    mpp : um/px of the mask; 8.0 is 1.25x. A slide that is coarser than this gets a mask as large as its level 0
    min_area_um2 : pieces of tissue smaller than this are dropped, um^2
    max_hole_um2 : holes in the tissue up to this size are filled, um^2

    Returns
    -------
    mask : (y, x) bool
        True = tissue. attrs: "source" ("msdask"), "mpp" (um/px of the mask), "slide_shape" ((height, width) of level
        0) and the parameters.

    Raises
    ------
    MissingScaleError
        The slide does not say how large its pixels are.
    SpecError
        A parameter makes no sense.
    MaskError
        The mask would have more than 2^28 px.

    Examples
    --------
    >>> import msdask as ms
    >>> slide = ms.open_slide("a.svs")  # doctest: +SKIP
    >>> ms.tissue_mask(slide).mean().item()  # doctest: +SKIP
    0.43
    """
    _check_parameters(mpp, min_area_um2, max_hole_um2)
    height, width = slide.shape
    slide_mpp = slide.mpp_used
    # A slide narrower than one mask px would have no mask at all at `mpp`.
    mask_mpp = max(slide_mpp, min(mpp, slide_mpp * min(height, width)))
    reduction = mask_mpp / slide_mpp
    if height * width / reduction**2 > MAX_MASK_PIXELS:
        raise MaskError(
            f"slide {slide.name!r}: a mask at {mask_mpp:g} um/px of its {width} x {height} px would have more than "
            f"{MAX_MASK_PIXELS} px; ask for a coarser one, such as mpp=8, and check the slide's mpp"
        )
    image = np.ascontiguousarray(slide.at(mpp=mask_mpp).compute(scheduler=in_process()).to_numpy(), dtype=np.uint8)
    tissue = tissue_from_rgb(image, mpp=mask_mpp, min_area_um2=min_area_um2, max_hole_um2=max_hole_um2)
    return Mask(
        tissue,
        dims=("y", "x"),
        name="tissue",
        attrs={
            "source": "msdask",
            "mpp": mask_mpp,
            "slide_shape": (height, width),
            "min_area_um2": min_area_um2,
            "max_hole_um2": max_hole_um2,
        },
    )


def tissue_from_rgb(
    image: NDArray[np.uint8],
    *,
    mpp: float,
    min_area_um2: float = MIN_AREA_UM2,
    max_hole_um2: float = MAX_HOLE_UM2,
) -> NDArray[np.bool_]:
    """Find the tissue in an image of a stained slide.

    The level of the glass is estimated from the image itself; a pixel is tissue where its optical density relative to
    that glass and its color exceed Otsu's threshold, kept within bounds so that an empty slide gives an empty mask and
    an image full of tissue a full one. Pen marks (blue, green, red, yellow, black), dark borders and gray shadows are
    left out. Then thin gaps are closed, thin threads and specks removed, and holes filled, except where there is ink.

    Parameters
    ----------
    image : (y, x, 3) uint8, RGB
    mpp : um/px of the image; made for about 8
    min_area_um2 : pieces smaller than this are dropped, um^2; at most 5 % of the image, so that small images keep
        theirs
    max_hole_um2 : holes up to this size are filled, um^2

    Returns
    -------
    tissue : (y, x) bool

    Raises
    ------
    SpecError
        `image` is not an RGB image of 8 bits, or a parameter makes no sense.
    """
    _check_parameters(mpp, min_area_um2, max_hole_um2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise SpecError(f"image of shape {image.shape} and type {image.dtype}: expected (y, x, 3) uint8, RGB")
    if image.size == 0:
        return np.zeros(image.shape[:2], np.bool_)
    sigma = _SMOOTHING_UM / mpp
    smooth = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8) if sigma >= 0.3 else image
    canvas = find_canvas(image)
    classes = classify_pixels(smooth, estimate_glass(smooth, mpp=mpp, canvas=canvas), mpp=mpp)
    ink = _whole_marks(classes.ink, classes.faint_ink, min_pixels=_MIN_INK_UM2 / mpp**2)
    ink = _morph(ink, cv2.MORPH_DILATE, _INK_MARGIN_UM / mpp)

    if canvas is not None:
        ink |= canvas
    tissue = (classes.stained | classes.pale) & ~ink
    closed = _morph(tissue, cv2.MORPH_CLOSE, _CLOSING_UM / mpp)
    # Holes before opening, which would take the thin walls between fat cells away.
    filled, cavities = _holes(closed, max_pixels=max_hole_um2 / mpp**2, max_width=_NARROW_UM / mpp)
    # A cavity is as large as it was before gaps were closed.
    cavities = _morph(cavities, cv2.MORPH_DILATE, _CLOSING_UM / mpp) & ~tissue
    whole = (closed | filled) & ~cavities & ~ink
    tissue = _morph(whole, cv2.MORPH_OPEN, _OPENING_UM / mpp) & ~ink
    # What opening cuts at a thin bridge is still one piece.
    largest_speck = min(min_area_um2 / mpp**2, 0.05 * tissue.size)
    return _with_enough(tissue, whole, min_pixels=largest_speck)


def _check_parameters(mpp: float, min_area_um2: float, max_hole_um2: float) -> None:
    if not (np.isfinite(mpp) and mpp > 0):
        raise SpecError(f"mpp={mpp!r}: expected a finite number of um/px above 0, such as 8.0")
    for name, value in (("min_area_um2", min_area_um2), ("max_hole_um2", max_hole_um2)):
        if not (np.isfinite(value) and value >= 0):
            raise SpecError(f"{name}={value!r}: expected a finite area in um^2, 0 or more")


def _morph(mask: NDArray[np.bool_], operation: int, radius: float) -> NDArray[np.bool_]:
    """Binary morphology with a disc of `radius` px; the edge replicates, so that tissue cut by it is not eroded."""
    r = round(radius)
    if r < 1 or not mask.any():
        return mask
    source = cv2.copyMakeBorder(mask.view(np.uint8), r, r, r, r, cv2.BORDER_REPLICATE)
    if r <= _LARGEST_DISC:
        y, x = np.ogrid[-r : r + 1, -r : r + 1]
        disc = (x * x + y * y <= (r + 0.5) ** 2).astype(np.uint8)
        result = cv2.morphologyEx(source, operation, disc).astype(np.bool_)
    else:
        # The complement's dilation is the mask's erosion.
        result = source.astype(np.bool_)
        result = ~_grow(~result, r) if operation == cv2.MORPH_OPEN else _grow(result, r)
        if operation == cv2.MORPH_CLOSE:
            result = ~_grow(~result, r)
        elif operation == cv2.MORPH_OPEN:
            result = _grow(result, r)
    return np.ascontiguousarray(result[r:-r, r:-r])


def _grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilation with a disc by the distance to the mask: its cost does not grow with the radius."""
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius + 0.5)


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """8-connected components: their numbers (0 = background), and (n, 5) left, top, width, height and area of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(labels, dtype=np.int32), np.asarray(stats, dtype=np.int32)


def _with_enough(mask: NDArray[np.bool_], pieces: NDArray[np.bool_], *, min_pixels: float) -> NDArray[np.bool_]:
    """The mask in those components of `pieces` that have at least `min_pixels` of it in them."""
    labels, stats = _components(pieces)
    # What pieces have beyond the mask is far less than what they share.
    beyond = _pixels_in(labels, pieces & ~mask, len(stats))
    keep = stats[:, cv2.CC_STAT_AREA] - beyond >= max(min_pixels, 1)
    keep[0] = False
    return mask & taken(keep, labels)


def _pixels_in(labels: NDArray[np.int32], mask: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """How many px of `mask` there are in each component: (count,)."""
    # three times faster than labels[mask]
    return np.bincount(labels.ravel().take(np.flatnonzero(mask)), minlength=count)


def _holes(
    mask: NDArray[np.bool_], *, max_pixels: float, max_width: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Holes that belong to the tissue around them, and those that are cavities; what reaches the edge is neither.

    A round hole belongs to it up to `max_pixels`, and so does a crack that is nowhere wider than `max_width` px; a
    ragged one up to a third of that.
    """
    free = (~mask).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(free, connectivity=4, ltype=cv2.CV_32S)
    left, top, width, height, area = (stats[:, column] for column in range(5))
    inner = (left > 0) & (top > 0) & (left + width < mask.shape[1]) & (top + height < mask.shape[0])
    inner[0] = False
    fill = inner & (area <= max_pixels)
    doubtful = np.flatnonzero(fill & (area > max_pixels * _RAGGED))
    if doubtful.size:
        radius = _radii(free, np.asarray(labels, np.int32), np.asarray(stats, np.int32), doubtful)
        is_crack = 2 * (radius - 0.5) <= max_width
        fill[doubtful] = is_crack | (np.pi * (radius - 0.5) ** 2 >= _MIN_ROUNDNESS * area[doubtful])
    found = taken(fill + 2 * (inner & ~fill).astype(np.uint8), np.asarray(labels, np.int32))
    return found == 1, found == 2


def _radii(
    free: NDArray[np.uint8], labels: NDArray[np.int32], stats: NDArray[np.int32], holes: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Largest distance to the mask in each of some holes: (hole,) float32.

    Parameters
    ----------
    free, labels, stats : what is not in the mask, its 4-connected components and their boxes and areas
    holes : numbers of components that do not reach the edge
    """
    radii = np.zeros(len(stats), np.float32)
    sides = stats[holes, cv2.CC_STAT_WIDTH : cv2.CC_STAT_HEIGHT + 1].astype(np.int64) + 2
    if sides.prod(axis=1).sum() + _BOX_PIXELS * holes.size > free.size:
        distance = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5)
        is_one = np.zeros(len(stats), np.bool_)
        is_one[holes] = True
        where = taken(is_one, labels)
        np.maximum.at(radii, labels[where], distance[where])
        return radii[holes]

    def measure(some: NDArray[np.intp]) -> None:
        for hole in some.tolist():
            left, top, width, height = stats[hole, :4].tolist()
            # The mask that a hole's px are nearest to is the one around it: a px more on each side shows it.
            box = slice(top - 1, top + height + 1), slice(left - 1, left + width + 1)
            distance = cv2.distanceTransform(np.ascontiguousarray(free[box]), cv2.DIST_L2, cv2.DIST_MASK_5)
            radii[hole] = np.asarray(distance)[labels[box] == hole].max()

    side_by_side(measure, [holes[first : first + _HOLES] for first in range(0, len(holes), _HOLES)])
    return radii[holes]


def _whole_marks(ink: NDArray[np.bool_], faint: NDArray[np.bool_], *, min_pixels: float) -> NDArray[np.bool_]:
    """The components of `faint` with at least `min_pixels` of `ink` in them: a pen stroke with its pale ends."""
    if not ink.any():
        return ink
    labels, stats = _components(faint)
    keep = _pixels_in(labels, ink, len(stats)) >= max(min_pixels, 1)
    keep[0] = False
    return taken(keep, labels)
