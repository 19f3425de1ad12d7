"""Into which parts a whole image is cut that several threads read."""

from __future__ import annotations

import math
from itertools import product

__all__ = ["Part", "tiled"]

Part = tuple[tuple[int, int], tuple[int, int]]
"""(first, last) row and (first, last) column of a part of an image, px; the last is not in it."""


def tiled(shape: tuple[int, int], tile: tuple[float, float], *, side: float) -> list[Part]:
    """Parts that cover an image, of whole tiles and of about ``side ** 2`` px, or of one tile where that is larger.

    Parameters
    ----------
    shape : (height, width) of the image, px
    tile : (height, width) of a stored tile in px of the image, which may be fractions; then parts are a px larger
    side : px of a part that is square

    Examples
    --------
    >>> tiled((80, 60), (20, 30), side=40)
    [((0, 40), (0, 30)), ((0, 40), (30, 60)), ((40, 80), (0, 30)), ((40, 80), (30, 60))]

    A strip is as wide as the image, so that fewer rows make a part:

    >>> tiled((80, 60), (10, 60), side=40)
    [((0, 20), (0, 60)), ((20, 40), (0, 60)), ((40, 60), (0, 60)), ((60, 80), (0, 60))]
    """
    width = math.ceil(max(1, round(side / tile[1])) * tile[1])
    rows = min(round(side / tile[0]), int(side**2 / (min(width, shape[1]) * tile[0])))
    height = math.ceil(max(1, rows) * tile[0])
    starts = (range(0, shape[0], height), range(0, shape[1], width))
    return [((top, min(top + height, shape[0])), (left, min(left + width, shape[1]))) for top, left in product(*starts)]
