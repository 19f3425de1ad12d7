"""A rectangle of a stored level, put together from its tiles."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msdask.errors import TileError
from msdask.readers.base import PartTileError, Reader, ReadsAhead

__all__ = ["WHITE", "OnBadTile", "read_region"]

OnBadTile = Literal["raise", "fill"]

WHITE = 255


def read_region(
    reader: Reader,
    level: int,
    scale: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    on_bad_tile: OnBadTile = "raise",
    unread: set[tuple[int, int, int]] | None = None,
) -> NDArray[np.uint8]:
    """A rectangle of a level that is decoded at 1 / scale, px [first, last) within it; bad tiles raise or are white.

    `unread` gets the (level, row, column) of those that are white.

    Returns
    -------
    pixels : (height, width, 3) uint8

    Raises
    ------
    TileError
        A tile under it cannot be read, and `on_bad_tile` is "raise".
    """
    info = reader.levels[level]
    tile_height, tile_width = info.tile[0] // scale, info.tile[1] // scale
    (y0, y1), (x0, x1) = rows, columns
    out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    if getattr(reader, "reads_ahead", False) and isinstance(reader, ReadsAhead):
        tile_rows = range(y0 // tile_height, -(-y1 // tile_height))
        reader.prefetch(level, [(r, c) for r in tile_rows for c in range(x0 // tile_width, -(-x1 // tile_width))])
    for r in range(y0 // tile_height, -(-y1 // tile_height)):
        top = r * tile_height
        y_from, y_to = max(y0, top), min(y1, top + tile_height)
        for c in range(x0 // tile_width, -(-x1 // tile_width)):
            left = c * tile_width
            x_from, x_to = max(x0, left), min(x1, left + tile_width)
            try:
                tile = reader.read_tile(level, r, c, scale)
            except TileError as error:
                if on_bad_tile == "raise":
                    raise
                if unread is not None:
                    unread.add((level, r, c))
                if not isinstance(error, PartTileError):
                    out[y_from - y0 : y_to - y0, x_from - x0 : x_to - x0] = WHITE
                    continue
                tile = error.pixels
            out[y_from - y0 : y_to - y0, x_from - x0 : x_to - x0] = tile[
                y_from - top : y_to - top, x_from - left : x_to - left
            ]
    return out
