"""Tiles of a segmentation: where they lie on the slide's one lattice, and how large the views are that they need.

All px here are px of the model's target, the first of which lies in the slide's upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["Tiling", "Tissue", "cheapest_tiling", "mask_index", "tiling"]


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
    """Square tiles side by side, each read as one view a magnification.

    Attributes
    ----------
    tile : px a side of what is kept of a tile; tile (i, j) begins at px (i * tile, j * tile)
    sizes : px a side of the view at each magnification, in px of that magnification
    ratios : px of the target on a px of each magnification; 1 for the target itself
    crop : px of the output before the first that is kept
    margin : px of the target's view before the first of the output that does not feel the view's edge
    """

    tile: int
    sizes: tuple[int, ...]
    ratios: tuple[int, ...]
    crop: int
    margin: int

    def origins(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """First px of the views of tiles along one axis.

        Parameters
        ----------
        index : (n,) numbers of the tiles along the axis

        Returns
        -------
        first : (n, magnifications) int64, px of each magnification
        """
        begin = np.asarray(index, np.int64)[:, None] * self.tile - self.crop - self.margin
        center = begin + self.sizes[0] // 2
        sizes, ratios = np.asarray(self.sizes), np.asarray(self.ratios)
        return np.where(ratios == 1, begin, center // ratios - sizes // 2)


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
    return Tiling(tile, (size, *contexts), (1, *model.ratios), crop, border // 2)


def _crop(output: int, lattice: int, ratios: tuple[int, ...]) -> int:
    """Px before the first that is kept: with contexts, a view's middle lies in the middle of a cell of the lattice."""
    return (output - lattice) // 2 % lattice if ratios else 0


def cheapest_tiling(
    model: TiledModel, tissue: Tissue, shape: tuple[int, int], *, largest: int, values: float
) -> Tiling:
    """The tiles with which the fewest px of a slide go through the network: large ones, but not beyond the tissue.

    Parameters
    ----------
    model : that is applied
    tissue : where there is some
    shape : (height, width) of the map, px
    largest : px a side of a tile, at most
    values : numbers that the network may hold at once for one tile, about

    Returns
    -------
    tiling : the smallest where none fits
    """
    lattice = model.lattice
    sides = range(lattice, max(lattice, largest) + 1, lattice * max(1, 64 // lattice))
    found = [tiling(model, side) for side in sides]
    # Every second size wastes half a cell of the lattice, where contexts lie around the view's middle.
    waste = min(one.sizes[0] - one.tile for one in found)
    found = [one for one in found if one.sizes[0] - one.tile == waste]
    # In its widest place a U-Net holds a block's input, its output and what waits for it: 6 times the filters.
    fitting = [one for one in found if 6 * model.filters * one.sizes[0] ** 2 <= values] or found[:1]
    return min(fitting, key=lambda one: len(tissue.tiles(shape, one.tile)) * sum(size**2 for size in one.sizes))


class Tissue:
    """Where tissue is, on a mask of any resolution.

    Parameters
    ----------
    mask : (y, x) bool, covering the whole slide
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self._counts = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        np.cumsum(np.cumsum(mask, 0, dtype=np.int64), 1, out=self._counts[1:, 1:])

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
