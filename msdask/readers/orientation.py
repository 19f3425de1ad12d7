"""Images whose first stored pixel is not their top left one (TIFF's Orientation): turned while they are read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.readers.base import PartTileError
from msdask.readers.rectangle import read_rectangle
from msdask.readers.tiff_page import TiffImage
from msdask.storage.source import ByteSource

__all__ = ["TurnedImage", "is_transposed", "orientation_of", "page_image", "turned"]

_TAG = 274
_FLIPS = {
    1: (False, False),
    2: (False, True),
    3: (True, True),
    4: (True, False),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
"""Whether rows, columns run backwards, after rows and columns have changed places for 5 to 8."""


def orientation_of(page: Any) -> int:
    """A page's orientation, 1 to 8; 1 where it says none, or nothing that the standard knows."""
    value = page.tags.valueof(_TAG)
    return value if isinstance(value, int) and value in _FLIPS else 1


def is_transposed(orientation: int) -> bool:
    """Whether stored rows are columns of the picture."""
    return orientation >= 5


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of (rows, columns, ...) as stored, the way it is meant to be seen.

    >>> turned(np.array([[1, 2, 3], [4, 5, 6]]), 6).tolist()
    [[4, 1], [5, 2], [6, 3]]
    """
    seen = pixels.swapaxes(0, 1) if is_transposed(orientation) else pixels
    backwards_y, backwards_x = _FLIPS[orientation]
    return seen[:: -1 if backwards_y else 1, :: -1 if backwards_x else 1]


def page_image(source: ByteSource, page: Any, name: str) -> TiffImage | TurnedImage:
    """The image of a page, turned where its tag says so; parameters and errors as of `TiffImage`."""
    image = TiffImage(source, page, name)
    orientation = orientation_of(page.keyframe)
    return image if orientation == 1 else TurnedImage(image, orientation)


class TurnedImage:
    """A `TiffImage` seen the way its orientation says, with tiles that begin at the top left of what is seen.

    Where the sides do not divide by the tile's, a tile is put together from up to four stored ones. The decoder's
    reductions are not offered. Attributes are those of `TiffImage`.
    """

    dct_scales: tuple[int, ...] = (1,)

    def __init__(self, image: TiffImage, orientation: int) -> None:
        self._image = image
        self._orientation = orientation
        self.shape, self.tile = image.shape, image.tile
        if is_transposed(orientation):
            self.shape, self.tile = self.shape[::-1], self.tile[::-1]
        self.grid = (-(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1]))
        self.empty_tiles = self._count_empty()

    def read(self, row: int, column: int, scale: int = 1, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """See `TiffImage.read`; edge tiles come cut."""
        rows, columns = self._stored(row, column)
        try:
            pixels = read_rectangle(lambda r, c: self._image.read(r, c), self._image.tile, rows, columns)
        except PartTileError as error:
            raise error.changed(partial(turned, orientation=self._orientation)) from error
        return np.ascontiguousarray(turned(pixels, self._orientation))

    def is_empty(self, row: int, column: int) -> bool:
        """See `TiffImage.is_empty`."""
        return any(self._image.is_empty(*tile) for tile in self._stored_tiles(row, column))

    def read_all(self) -> NDArray[np.uint8]:
        """See `TiffImage.read_all`."""
        return np.ascontiguousarray(turned(self._image.read_all(), self._orientation))

    def byte_ranges(self, row: int, column: int) -> list[tuple[int, int]]:
        """See `TiffImage.byte_ranges`."""
        return [part for tile in self._stored_tiles(row, column) for part in self._image.byte_ranges(*tile)]

    def segment_table(self) -> bytes:
        """See `TiffImage.segment_table`."""
        return self._image.segment_table()

    def _count_empty(self) -> int:
        if not self._image.empty_tiles:
            return 0
        return sum(self.is_empty(row, column) for row in range(self.grid[0]) for column in range(self.grid[1]))

    def _stored(self, row: int, column: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stored px [first, last) of rows and columns under a tile."""
        spans = []
        for index, tile, size, is_backwards in zip(
            (row, column), self.tile, self.shape, _FLIPS[self._orientation], strict=True
        ):
            first, last = index * tile, min((index + 1) * tile, size)
            spans.append((size - last, size - first) if is_backwards else (first, last))
        return (spans[1], spans[0]) if is_transposed(self._orientation) else (spans[0], spans[1])

    def _stored_tiles(self, row: int, column: int) -> list[tuple[int, int]]:
        spans = [
            range(first // side, -(-last // side))
            for (first, last), side in zip(self._stored(row, column), self._image.tile, strict=True)
        ]
        return [(r, c) for r in spans[0] for c in spans[1]]
