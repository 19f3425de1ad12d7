"""Endless tissue-like texture, made from the histology image that scikit-image ships.

Two steps, each of which lays pieces side by side with irregular, feathered seams: small pieces of the image become one
periodic texture per tissue class (once a process), and large pieces of that, turned and mirrored, cover a slide. A
pixel is a function of its position and the seed alone, so tiles can be made in any order and on any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import hed_from_rgb

__all__ = ["CLASS_NAMES", "SOURCE_MPP", "TissueTexture", "blend", "smooth_noise"]

SOURCE_MPP = 0.25
"""um/px that the image is taken for: its nuclei then measure 6 to 8 um."""

BANK = 1024
"""Side of the periodic textures, px."""

PIECE = 640
"""Spacing of the pieces that cover a slide, px."""

_HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.12, 0.90, 0.42], np.float32)
_GLASS = 244.0


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one tissue class is made of the image: which parts, how strongly stained, how closely spaced."""

    name: str
    likes_brown: bool  # pieces from the stained epithelium, else from the stroma between
    hematoxylin: float
    eosin: float
    ground: float  # eosin wherever there is tissue, optical density
    spacing: float  # cells' size relative to the image's


_RECIPES = (
    _Recipe("epithelium", True, 1.45, 0.36, 0.06, 1.0),
    _Recipe("stroma", False, 1.20, 0.45, 0.13, 1.15),
    _Recipe("dense", True, 2.20, 0.10, 0.05, 0.55),
    _Recipe("muscle", True, 0.60, 0.60, 0.10, 1.5),
    _Recipe("pale", False, 0.80, 0.20, 0.02, 0.8),
)

CLASS_NAMES = tuple(recipe.name for recipe in _RECIPES)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float, *, periodic: bool = False
) -> NDArray[np.float32]:
    """Gaussian noise with features of about `sigma` px, mean 0 and standard deviation 1: float32 of `shape`."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap" if periodic else "reflect")
    noise -= noise.mean()
    spread = float(noise.std())
    return (noise / spread if spread > 0 else noise).astype(np.float32)


@lru_cache(maxsize=1)
def _stains() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hematoxylin and DAB of the image as amounts, each (512, 512) float32, from Ruifrok's deconvolution."""
    image = skimage.data.immunohistochemistry()
    density = -np.log10(np.maximum(image, 1).astype(np.float64) / _GLASS)
    amounts = np.maximum(density, 0) @ hed_from_rgb
    return np.maximum(amounts[..., 0], 0).astype(np.float32), np.maximum(amounts[..., 2], 0).astype(np.float32)


def _bank(recipe: _Recipe, *, mpp: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Periodic texture of one class: (BANK, BANK, 3) uint8 at `mpp`."""
    hematoxylin, dab = _stains()
    scale = recipe.spacing * SOURCE_MPP / mpp
    # What a piece is chosen by, at the image's own scale: how brown, and neither glass nor lumen.
    brown, full = (ndimage.gaussian_filter(amount, 20) for amount in (dab, hematoxylin + dab))
    liked = brown > np.quantile(brown, 0.55) if recipe.likes_brown else brown < np.quantile(brown, 0.4)
    rows, columns = np.nonzero(liked & (full > np.quantile(full, 0.2)))
    present = np.clip(ndimage.gaussian_filter(hematoxylin + dab, 3) / 0.06, 0, 1)
    stains = np.stack([hematoxylin * recipe.hematoxylin, dab * recipe.eosin + recipe.ground * present], axis=-1)
    spacing = max(24.0, 88.0 * scale)
    count = max(2, round(BANK / spacing))
    reach = int(1.05 * BANK / count)  # centers of neighbours are at most 1.6 spacings apart
    seams = np.tile(smooth_noise(rng, (BANK, BANK), 8, periodic=True), (2, 2))
    best = np.full((BANK, BANK), np.inf, np.float32)
    bank = np.zeros((BANK, BANK, 2), np.float32)
    y, x = np.mgrid[-reach:reach, -reach:reach].astype(np.float32)
    cone = np.hypot(y, x)
    for j, i in np.ndindex(count, count):
        center = ((np.array([j, i]) + rng.uniform(0.2, 0.8, 2)) * BANK / count).astype(int)
        pick = rng.integers(len(rows))
        turn = cv2.getRotationMatrix2D((0.0, 0.0), rng.uniform(0, 360), 1.0)[:, :2] / scale
        turn[0] *= rng.choice((-1.0, 1.0))
        middle = np.array([columns[pick], rows[pick]], np.float64)
        matrix = np.hstack([turn, (middle - turn @ (reach, reach))[:, None]])
        piece = cv2.warpAffine(
            stains,
            matrix,
            (2 * reach, 2 * reach),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        where = np.ix_(*((np.arange(-reach, reach) + c) % BANK for c in center))
        # The nearest center wins a pixel, in a metric that noise roughens; close calls are blended.
        top, left = rng.integers(0, BANK, 2)
        distance = cone + 10 * seams[top : top + 2 * reach, left : left + 2 * reach]
        weight = np.clip((best[where] - distance) / 6 + 0.5, 0, 1)[..., None]
        bank[where] += weight * (piece - bank[where])
        best[where] = np.minimum(best[where], distance)
    density = bank[..., :1] * _HEMATOXYLIN + bank[..., 1:] * _EOSIN
    return np.rint(_GLASS * 10**-density).astype(np.uint8)


@lru_cache(maxsize=4)
def _banks(classes: int, mpp: float) -> tuple[tuple[NDArray[np.uint8], ...], NDArray[np.float32]]:
    """The classes' textures and a roughness for seams and edges, periodic, repeated once to the right and below."""
    rng = np.random.default_rng(20210729)
    banks = tuple(np.tile(_bank(recipe, mpp=mpp, rng=rng), (2, 2, 1)) for recipe in _RECIPES[:classes])
    rough = smooth_noise(rng, (BANK, BANK), 5, periodic=True) + 2 * smooth_noise(rng, (BANK, BANK), 24, periodic=True)
    return banks, np.tile(rough / np.float32(rough.std()), (2, 2))


class TissueTexture:
    """Texture of several tissue classes over a slide.

    Parameters
    ----------
    shape : (height, width), px
    classes : number of classes, at most ``len(CLASS_NAMES)``
    mpp : um/px, which decides how large the cells are
    seed : which pieces go where
    """

    def __init__(self, shape: tuple[int, int], *, classes: int, mpp: float, seed: int) -> None:
        self._banks, self._rough = _banks(classes, mpp)
        rows, columns = (side // PIECE + 4 for side in shape)
        rng = np.random.default_rng([seed, 1])
        self._offsets = rng.integers(0, BANK, (rows, columns, 2))
        self._turns = rng.integers(0, 8, (rows, columns))

    def roughness(self, y: int, x: int, size: int, *, phase: int = 0) -> NDArray[np.float32]:
        """Noise of mean 0 and standard deviation 1 for ragged edges: (size, size) float32; `phase` picks another."""
        top, left = (y + 397 * phase) % BANK, (x + 631 * phase) % BANK
        return self._rough[top : top + size, left : left + size]

    def tile(self, index: int, y: int, x: int, size: int) -> NDArray[np.uint8]:
        """Texture of class `index` in the square at level-0 px (x, y): (size, size, 3) uint8, `size` at most `BANK`."""
        # Positions in units of pieces: a seam runs wherever one of them crosses a whole number.
        line = (np.arange(size, dtype=np.float32) + 0.5) / PIECE
        along_y = y / PIECE + line[:, None] + 0.11 * self.roughness(y, x, size, phase=1)
        along_x = x / PIECE + line[None, :] + 0.11 * self.roughness(y, x, size, phase=2)
        rows, columns = (
            np.clip(np.arange(math.floor(a.min()), math.floor(a.max()) + 1), -1, limit - 2)
            for a, limit in zip((along_y, along_x), self._turns.shape, strict=True)
        )
        bands = [_laid([self._piece(index, j, i, y, x, size) for i in columns], columns, along_x) for j in rows]
        return _laid(bands, rows, along_y)

    def _piece(self, index: int, row: int, column: int, y: int, x: int, size: int) -> NDArray[np.uint8]:
        """The part of one piece that lies in a square, as if it covered all of it."""
        bank = self._banks[index]
        turn = self._turns[row + 1, column + 1]
        if turn & 1:
            bank = bank[::-1]
        if turn & 2:
            bank = bank[:, ::-1]
        if turn & 4:
            bank = bank.swapaxes(0, 1)
        top, left = (self._offsets[row + 1, column + 1] + (y, x)) % BANK
        return np.ascontiguousarray(bank[top : top + size, left : left + size])


def _laid(
    pieces: list[NDArray[np.uint8]], starts: NDArray[np.int_], position: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Pieces side by side: each begins where `position` passes its start, feathered over 8 px."""
    result = pieces[0]
    for piece, start in zip(pieces[1:], starts[1:], strict=True):
        result = blend(result, piece, (position - np.float32(start)) * np.float32(PIECE / 8) + np.float32(0.5))
    return result


def blend(below: NDArray[np.uint8], above: NDArray[np.uint8], weight: NDArray[np.floating]) -> NDArray[np.uint8]:
    """`above` over `below` where `weight`, cut to 0..1, is above 0."""
    weight = np.clip(weight, 0, 1).astype(np.float32, copy=False)
    return cv2.blendLinear(above, below, weight, 1 - weight)  # type: ignore[return-value]
