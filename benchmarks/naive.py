"""The rules once more, as slow obvious loops: what msdask's selections and pixels are compared with.

Nothing here imports msdask. Rules: a grid's positions, the exact tissue fraction of a footprint, the exact area mean of
the stored level that a patch is read from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import tifffile
from numpy.typing import NDArray

__all__ = ["LevelPixels", "area_mean", "grid_origins", "psnr", "selected_origins", "tissue_fraction"]


def round_half_away(value: float) -> int:
    """Nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def grid_origins(shape: tuple[int, int], *, step: float, side: float) -> Iterator[tuple[float, float]]:
    """Planned origins (x, y) in level-0 px of every footprint that lies inside the slide, row by row."""
    height, width = shape
    row = 0
    while row * step + side <= height + 1e-6:
        column = 0
        while column * step + side <= width + 1e-6:
            yield column * step, row * step
            column += 1
        row += 1


def tissue_fraction(mask: list[list[bool]], x: float, y: float, side: float, shape: tuple[int, int]) -> float:
    """Mean of the mask over a footprint: every mask px it touches, weighted by the part of it that it covers.

    Parameters
    ----------
    mask : rows of a tissue mask that covers the whole slide
    x, y, side : level-0 px
    shape : (height, width) of the slide, level-0 px
    """
    rows, columns = len(mask), len(mask[0])
    top, bottom = y * rows / shape[0], (y + side) * rows / shape[0]
    left, right = x * columns / shape[1], (x + side) * columns / shape[1]
    covered = 0.0
    for row in range(max(0, math.floor(top)), min(rows, math.ceil(bottom))):
        height = min(row + 1, bottom) - max(row, top)
        for column in range(max(0, math.floor(left)), min(columns, math.ceil(right))):
            if mask[row][column]:
                covered += height * (min(column + 1, right) - max(column, left))
    return covered / ((bottom - top) * (right - left))


def selected_origins(
    mask: NDArray[np.bool_],
    shape: tuple[int, int],
    *,
    mpp_used: float,
    magnification: float,
    patch_size: int,
    min_tissue: float,
) -> set[tuple[int, int]]:
    """Stored origins (x, y) of the grid patches with enough tissue, stride = patch size, region = whole slide."""
    side = patch_size * (10.0 / magnification) / mpp_used
    rows = mask.astype(bool).tolist()
    return {
        (round_half_away(x), round_half_away(y))
        for x, y in grid_origins(shape, step=side, side=side)
        if tissue_fraction(rows, x, y, side, shape) >= min_tissue
    }


class LevelPixels:
    """Rectangles of one level of a tiled TIFF (one page a level), every tile decoded in full by tifffile."""

    def __init__(self, path: str, level: int) -> None:
        self._file = tifffile.TiffFile(path)
        tiled = [page for page in self._file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        self._page = tiled[level]
        self.shape: tuple[int, int] = (self._page.imagelength, self._page.imagewidth)

    def read(self, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
        """Pixels [top, bottom) x [left, right), which must lie inside the level."""
        page = self._page
        height, width = page.tilelength, page.tilewidth
        across = -(-page.imagewidth // width)
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                index = row * across + column
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(page.databytecounts[index])
                tile = np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0])[0]
                y0, x0 = row * height, column * width
                for y in range(max(top, y0), min(bottom, y0 + height)):
                    x_from, x_to = max(left, x0), min(right, x0 + width)
                    out[y - top, x_from - left : x_to - left] = tile[y - y0, x_from - x0 : x_to - x0]
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _weights(start: float, px: float, count: int, length: int) -> NDArray[np.float64]:
    """(count, length): which part of each source px each target px averages, along one axis."""
    weights = np.zeros((count, length))
    for target in range(count):
        lower, upper = start + target * px, start + (target + 1) * px
        for source in range(math.floor(lower), min(length, math.ceil(upper))):
            weights[target, source] = (min(source + 1, upper) - max(source, lower)) / px
    return weights


def area_mean(
    level: LevelPixels, x0: int, y0: int, *, step: float, dct_scale: int, ratio: float, patch_size: int
) -> NDArray[np.float64] | None:
    """Exact area mean of the level's px under each px of a patch.

    Parameters
    ----------
    level : the stored level that msdask reads
    x0, y0 : stored origin, level-0 px
    step : level-0 px per px that is read (downsample * dct_scale)
    dct_scale : reduction that the JPEG decoder gave
    ratio : read px per patch px

    Returns
    -------
    mean : (y, x, 3) float64, or None if the patch leaves the level
    """
    px = ratio * dct_scale
    left, top = round_half_away(x0 / step) * dct_scale, round_half_away(y0 / step) * dct_scale
    side = math.ceil(patch_size * px - 1e-9)
    if left < 0 or top < 0 or left + side > level.shape[1] or top + side > level.shape[0]:
        return None
    source = level.read(top, left, top + side, left + side).astype(np.float64)
    weights = _weights(0.0, px, patch_size, side)
    return np.einsum("ij,jkc,lk->ilc", weights, source, weights, optimize=True)


def psnr(patch: NDArray[np.uint8], reference: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB; infinite where they are equal."""
    error = float(np.mean((patch - reference) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
