"""Tiles that were never stored (0 bytes in the file's table): what stands for them, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from msdask.readers.base import LevelInfo
from msdask.readers.orientation import TurnedImage
from msdask.readers.rectangle import from_finer
from msdask.readers.tiff_page import TiffImage

__all__ = ["empty_tile", "said_of_empty_tiles"]


def empty_tile(
    levels: Sequence[LevelInfo], level: int, row: int, column: int, finer: Callable[[int, int], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """What stands for a tile that was never stored: white at level 0, else the area mean of the next finer level.

    Parameters
    ----------
    levels : of the slide
    finer : gives the tile of a (row, column) of the next finer level; not asked at level 0

    Returns
    -------
    pixels : (height, width, 3) uint8
    """
    if level == 0:
        return np.full((*levels[0].tile, 3), 255, np.uint8)
    return from_finer(finer, levels[level - 1], levels[level], row, column)


def said_of_empty_tiles(
    images: Sequence[TiffImage | TurnedImage], *, leaves_out_glass: bool
) -> tuple[list[str], dict[str, str]]:
    """Warnings and properties about the tiles of levels that were never stored.

    Parameters
    ----------
    images : the levels, the finest first
    leaves_out_glass : whether the scanner stores no tiles of glass
    """
    found = {
        level: f"{image.empty_tiles} of {image.grid[0] * image.grid[1]}"
        for level, image in enumerate(images)
        if image.empty_tiles
    }
    fate = "are white: this scanner leaves out glass" if leaves_out_glass else "are bad tiles (on_bad_tile)"
    warnings = [
        f"{count} tiles of level {level} have no bytes in the file; they "
        + (f"are filled from level {level - 1}" if level else fate)
        for level, count in found.items()
    ]
    return warnings, {f"empty tiles of level {level}": count for level, count in found.items()}
