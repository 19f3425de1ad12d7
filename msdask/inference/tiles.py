"""Tiles of a segmentation: where they lie on the slide's one lattice, and how large the views are that they need.

All px here are px of the model's target, the first of which lies in the slide's upper left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["Boxes", "Tiling", "Tissue", "cheapest_tiling", "mask_index", "tiling"]


_FEW = 16
"""Up to so many tiles are cut to their tissue closely. Each size that a network sees leaves something in the memory
that is kept for its layers, and holes between: of many tiles these come to more than the layers need."""
_MOST_PARTS = 8
"""Of a side that many tiles are cut to: a twentieth slower than by 64 px, in 1.6 to 1.8 GB instead of 2.2."""
_SHARE_OF_MANY = 0.5
"""Of the memory that one tile may take, where many of several sizes follow each other ..."""
_WIDE = 1200
"""... and views are wider than this, px: smaller ones would cost more px than the memory is worth."""


class TiledModel(Protocol):
    """What tiles must know of a model; see `msdask.models.SegmentationModel`."""

    depth: int
    filters: int
    ratios: tuple[int, ...]

    @property
    def is_valid(self) -> bool: ...
    @property
    def border(self) -> int: ...
    @property
    def lattice(self) -> int: ...
    def legal_size(self, at_least: int) -> int: ...
    def context_sizes(self, target_size: int) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Tiling:
    """Square tiles side by side, of each of which the part that has tissue is read as one view a magnification.

    Along one axis all of it is the same for a part of so many px; a rectangle has one of these for each axis.

    Attributes
    ----------
    tile : px a side of what is kept of a tile; tile (i, j) begins at px (i * tile, j * tile)
    sizes : px a side of the view at each magnification, in px of that magnification
    ratios : px of the target on a px of each magnification; 1 for the target itself
    crop : px of the output before the first that is kept
    margin : px of the target's view before the first of the output that does not feel the view's edge
    unit : px to a multiple of which a tile is cut to its tissue; 0: it is not cut
    """

    tile: int
    sizes: tuple[int, ...]
    ratios: tuple[int, ...]
    crop: int
    margin: int
    unit: int = 0

    def origins(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """First px of the views of tiles along one axis.

        Parameters
        ----------
        first : (n,) px of the map that is kept first of each

        Returns
        -------
        first : (n, magnifications) int64, px of each magnification
        """
        begin = np.asarray(first, np.int64)[:, None] - self.crop - self.margin
        center = begin + self.sizes[0] // 2
        sizes, ratios = np.asarray(self.sizes), np.asarray(self.ratios)
        return np.where(ratios == 1, begin, center // ratios - sizes // 2)


@dataclass(frozen=True)
class Boxes:
    """The parts of tiles that have tissue, tile by tile, row by row.

    Attributes
    ----------
    tile : (n, 2) int64, row and column of each one's tile
    first : (n, 2) int64, px of the map: its upper left corner
    side : (n, 2) int64, px: height and width
    """

    tile: NDArray[np.int64]
    first: NDArray[np.int64]
    side: NDArray[np.int64]


def tiling(model: TiledModel, tile: int) -> Tiling:
    """The smallest views that give tiles of some size, on the lattice that all sizes share.

    Poolings make a network equivariant to moves by 2^depth px of each of its branches only. So every view of a branch
    begins at the same px modulo 2^depth, whatever the tile's size (spec section 10). For the target that is a matter of
    the tile; a context lies around the view's middle, and half of a larger view may move it by half of the lattice:
    then less of the output is cropped on one side than on the other.

    Parameters
    ----------
    model : that is applied
    tile : px a side, a multiple of the model's lattice

    Raises
    ------
    SpecError
        It is no multiple; names those beside it.
    """
    lattice = model.lattice
    if tile < lattice or tile % lattice:
        below = max(lattice, tile // lattice * lattice)
        raise SpecError(
            f"tile={tile}: this model's tiles lie on a lattice of {lattice} px; take {below} or {below + lattice}"
        )
    # A model with same padding feels its tiles' edges as far as one with valid padding would have lost px there.
    border = model.border if model.is_valid else 14 * 2**model.depth
    size = model.legal_size(tile + border)
    while size - border - _crop(size - border, lattice, model.ratios) < tile:
        size = model.legal_size(size + 1)
    contexts = model.context_sizes(size)
    if not model.is_valid:
        contexts = tuple(model.legal_size(context + border) for context in contexts)
    crop = _crop(size - border, lattice, model.ratios)
    return Tiling(tile, (size, *contexts), (1, *model.ratios), crop, border // 2, _unit_of(model, tile))


def _unit_of(model: TiledModel, tile: int) -> int:
    """Px to a multiple of which tiles of so many px are cut to their tissue: about 64, or else the model's lattice."""
    step = _step(model)
    return step if tile % step == 0 else model.lattice


def _step(model: TiledModel) -> int:
    return model.lattice * max(1, 64 // model.lattice)


def _crop(output: int, lattice: int, ratios: tuple[int, ...]) -> int:
    """Px before the first that is kept: with contexts, a view's middle lies in the middle of a cell of the lattice."""
    return (output - lattice) // 2 % lattice if ratios else 0


def cheapest_tiling(
    model: TiledModel, tissue: Tissue, shape: tuple[int, int], *, largest: int, values: float, leaves_holes: bool
) -> Tiling:
    """The tiles with which the fewest px of a slide go through the network: large ones, but not beyond the tissue.

    Parameters
    ----------
    model : that is applied
    tissue : where there is some
    shape : (height, width) of the map, px
    largest : px a side of a tile, at most
    values : numbers that the network may hold at once for one tile, about
    leaves_holes : whether what layers of many sizes leave in memory stays there, as on a CPU; then many tiles are cut
        to few sizes

    Returns
    -------
    tiling : the smallest where none fits
    """
    step = _step(model)
    found = [tiling(model, side) for side in range(step, max(step, largest) + 1, step)]
    sizes = np.array([one.sizes for one in found], np.float64)  # of a side of k steps: row k - 1
    # Every second size wastes half a cell of the lattice, where contexts lie around the view's middle.
    waste = min(one.sizes[0] - one.tile for one in found)
    best, least = found[0], math.inf
    for one in found:
        # In its widest place a U-Net holds a block's input, its output and what waits for it: 6 times the filters.
        needed = 6 * model.filters * one.sizes[0] ** 2
        if one.sizes[0] - one.tile != waste or needed > values:
            continue
        boxes = tissue.boxes(shape, one.tile, step)
        if leaves_holes and len(boxes.tile) > _FEW:
            if one.sizes[0] > _WIDE and needed > _SHARE_OF_MANY * values:
                continue
            cells = one.tile // step
            parts = max(n for n in range(1, _MOST_PARTS + 1) if cells % n == 0)
            one = replace(one, unit=one.tile // parts)
            boxes = tissue.boxes(shape, one.tile, one.unit)
        steps = boxes.side // step - 1
        px = float((sizes[steps[:, 0]] * sizes[steps[:, 1]]).sum())
        if px < least:
            best, least = one, px
    return best


class Tissue:
    """Where tissue is, on a mask of any resolution.

    Parameters
    ----------
    mask : (y, x) bool, covering the whole slide
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        counted = np.ascontiguousarray(mask, dtype=np.bool_).view(np.uint8)
        self._counts: NDArray[np.int32] = np.asarray(cv2.integral(counted, sdepth=cv2.CV_32S), np.int32)
        self._cells: dict[tuple[tuple[int, int], int], NDArray[np.bool_]] = {}

    def tiles(self, shape: tuple[int, int], tile: int) -> NDArray[np.int64]:
        """Tiles of a map that lie over tissue: (n, 2) row and column of each, row by row.

        Parameters
        ----------
        shape : (height, width) of the map, px
        tile : px a side
        """
        edges = []
        for length, size in zip(shape, self.mask.shape, strict=True):
            first = np.arange(0, length, tile)
            ends = mask_index(np.stack([first, np.minimum(first + tile, length) - 1]), length, size)
            edges.append((ends[0], ends[1] + 1))
        (top, bottom), (left, right) = edges
        counts = self._counts
        inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
        return np.stack(np.nonzero(inside), 1).astype(np.int64)

    def boxes(self, shape: tuple[int, int], tile: int, unit: int) -> Boxes:
        """The part of each tile of a map in which there is tissue, in whole units.

        Parameters
        ----------
        shape : (height, width) of the map, px
        tile : px a side
        unit : px that divide a tile; 0: tiles are not cut
        """
        unit = unit or tile
        n = tile // unit
        rows, columns = (-(-length // tile) for length in shape)
        if (shape, unit) not in self._cells:  # the same for all sizes of tiles
            known = np.zeros([-(-length // unit) for length in shape], np.bool_)
            known[tuple(self.tiles(shape, unit).T)] = True
            self._cells[shape, unit] = known
        known = self._cells[shape, unit]
        cells = np.zeros((rows * n, columns * n), np.bool_)
        cells[: known.shape[0], : known.shape[1]] = known
        of_tiles = cells.reshape(rows, n, columns, n)
        # (rows, columns, n) each: which units of a tile's height, and of its width, have tissue.
        along = np.any(of_tiles, axis=3).swapaxes(1, 2), np.any(of_tiles, axis=1)
        at = np.stack(np.nonzero(np.any(along[0], axis=2)), 1).astype(np.int64)
        units = [axis[at[:, 0], at[:, 1]] for axis in along]
        begin = np.stack([axis.argmax(1) for axis in units], 1)
        end = np.stack([n - axis[:, ::-1].argmax(1) for axis in units], 1)
        return Boxes(at, at * tile + begin * unit, (end - begin) * unit)

    def px(self, shape: tuple[int, int]) -> int:
        """How many px of a map of some (height, width) lie over tissue."""
        rows, columns = (
            np.bincount(mask_index(np.arange(length), length, size), minlength=size)
            for length, size in zip(shape, self.mask.shape, strict=True)
        )
        return int(rows @ (self.mask @ columns))

    def under(self, shape: tuple[int, int], rows: range, columns: range) -> NDArray[np.bool_]:
        """Whether there is tissue under the middle of each px of a part of a map: (rows, columns) bool."""
        index = [
            mask_index(np.arange(px.start, px.stop), length, size)
            for px, length, size in zip((rows, columns), shape, self.mask.shape, strict=True)
        ]
        return self.mask[np.ix_(*index)]


def mask_index(px: NDArray[np.int64], length: int, size: int) -> NDArray[np.int64]:
    """The px of a mask of `size` px under the middle of each px of a map of `length` px, along one axis.

    >>> mask_index(np.arange(6), 6, 3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    # In whole numbers: (px + 1/2) / length * size, rounded down.
    return np.minimum((2 * np.asarray(px, np.int64) + 1) * size // (2 * length), size - 1)
