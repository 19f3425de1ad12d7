"""Which of very many boxes touch which squares: a grid for every size of box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msdask.masks.outlines import runs

__all__ = ["BoxIndex"]

_CELL: Final = 128.0
"""Side of the finest grid's cells, level-0 px."""


@dataclass(frozen=True, eq=False, slots=True)
class BoxIndex:
    """Boxes in grids: each box is in the cell of its top left corner, in the finest grid whose cells are as large.

    So a box reaches into the next cell at most, whatever its size, and what touches a square is in few runs of cells.

    Attributes
    ----------
    boxes : (p, 4) float64, left, top, right, bottom
    order : (p,) int64, boxes by grid and cell
    cells : (p,) int64, cell of each box within its grid, in that order
    grids : for each grid that has boxes its cells' side, its number of columns, and where it begins and ends in `order`
    corner : (2,) float64, least left and top
    """

    boxes: NDArray[np.float64]
    order: NDArray[np.int64]
    cells: NDArray[np.int64]
    grids: tuple[tuple[float, int, int, int], ...]
    corner: NDArray[np.float64]

    @classmethod
    def of(cls, boxes: NDArray[np.float64]) -> BoxIndex:
        """The index of (p, 4) boxes: left, top, right, bottom."""
        if not len(boxes):
            nothing = np.zeros(0, np.int64)
            return cls(boxes, nothing, nothing, (), np.zeros(2))
        corner = boxes[:, :2].min(axis=0)
        size = np.maximum(boxes[:, 2:] - boxes[:, :2], _CELL).max(axis=1)
        grid = np.ceil(np.log2(size / _CELL)).astype(np.int64)
        # A logarithm that is rounded down would put a box into cells that are too small.
        grid += size > _CELL * 2.0**grid
        side = _CELL * 2.0**grid
        column, row = (np.floor((boxes[:, axis] - corner[axis]) / side).astype(np.int64) for axis in (0, 1))
        columns = np.zeros(int(grid.max()) + 1, np.int64)
        np.maximum.at(columns, grid, column + 1)
        cell = row * columns[grid] + column
        order = np.lexsort((cell, grid))
        edges = np.searchsorted(grid[order], np.arange(len(columns) + 1))
        grids = tuple(
            (_CELL * 2.0**k, int(columns[k]), int(edges[k]), int(edges[k + 1])) for k in np.unique(grid).tolist()
        )
        return cls(boxes, order, cell[order], grids, corner)

    def touching(self, squares: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a square and a box that have points in common.

        Parameters
        ----------
        squares : (q, 4) float64, left, top, right, bottom

        Returns
        -------
        square, box : (k,) int64, numbers of each pair, by square and then by box
        """
        found = [self._candidates(squares, *grid) for grid in self.grids]
        square = np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in found)])
        box = np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in found)])
        touches = (self.boxes[box, :2] <= squares[square, 2:]).all(axis=1)
        touches &= (self.boxes[box, 2:] >= squares[square, :2]).all(axis=1)
        square, box = square[touches], box[touches]
        order = np.lexsort((box, square))
        return square[order], box[order]

    def _candidates(
        self, squares: NDArray[np.float64], side: float, columns: int, begin: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        cells = self.cells[begin:end]
        rows = int(cells[-1]) // columns + 1
        low = np.floor((squares[:, :2] - self.corner) / side).astype(np.int64) - 1
        high = np.floor((squares[:, 2:] - self.corner) / side).astype(np.int64)
        left, right = np.clip(low[:, 0], 0, columns), np.clip(high[:, 0] + 1, 0, columns)
        top, bottom = np.clip(low[:, 1], 0, rows), np.clip(high[:, 1] + 1, 0, rows)
        bottom = np.where(right > left, np.maximum(bottom, top), top)
        square, row = np.repeat(np.arange(len(squares)), bottom - top), runs(top, bottom)
        first = np.searchsorted(cells, row * columns + left[square])
        last = np.searchsorted(cells, row * columns + right[square])
        return np.repeat(square, last - first), self.order[begin + runs(first, last)]
