"""What a generated section looks like: where its tissue is, which class, how strongly stained; and painting it.

The anatomy is a handful of smooth maps at the masks' resolution. A tile of the slide interpolates them, so that edges
are sharp at any scale, and fills them with texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdask.sample.texture import BANK, TissueTexture, blend, smooth_noise

__all__ = ["Anatomy", "Painter"]

_FAR = 1e6
_GLASS = (243, 243, 245)
_PEN = (24, 92, 120)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Maps of a section, each (mask height, mask width) float32 at the masks' resolution.

    Attributes
    ----------
    tissue : about the distance to the tissue's edge, mask px, positive inside
    class_distance : (classes, ...) about the distance by which each class is ahead of the others, mask px
    strength : of the staining, 0.7 to 1
    pen : distance to the pen line's edge, mask px, positive inside
    light : 1, less where the edge is dark
    """

    tissue: NDArray[np.float32]
    class_distance: NDArray[np.float32]
    strength: NDArray[np.float32]
    pen: NDArray[np.float32]
    light: NDArray[np.float32]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where there is tissue to be used: clear of the pen, not in the dark."""
        return (self.tissue > 0) & (self.pen < -0.75) & (self.light > 0.9)

    @property
    def classes(self) -> NDArray[np.int_]:
        """Index of the class that is ahead, also outside the tissue."""
        return np.argmax(self.class_distance, axis=0)

    @classmethod
    def make(
        cls,
        shape: tuple[int, int],
        *,
        classes: int,
        tissue_fraction: float,
        copies: bool,
        pen: bool,
        dark_edge: bool,
        seed: int,
    ) -> Anatomy:
        """Draw a section at random; see `msdask.sample.slides.make_slide` for the arguments."""
        rng = np.random.default_rng([seed, 0])
        height, width = shape
        part = (height, width // 2) if copies else shape
        tissue, ahead = _section(rng, part, classes, tissue_fraction, margin=1.12 if copies else 1.0)
        if copies:
            # The next cut of the same block lies a little lower and is a little smaller.
            drop = max(1, height // 40)
            second = _smaller(np.roll(tissue, drop, axis=0), by=0.12)
            second[:drop] = np.minimum(second[:drop], -8)  # what the roll brought back at the top
            odd = width - 2 * part[1]
            tissue, ahead = (
                np.concatenate([left, np.repeat(left[..., -1:], odd, axis=-1), right], axis=-1)
                for left, right in ((tissue, second), (ahead, np.roll(ahead, drop, axis=1)))
            )
            gap = min(max(12, width // 30), width // 4)  # half of it, mask px; "auto" looks at a strip of 20
            middle = slice(width // 2 - gap, width // 2 + gap)
            tissue[:, middle] = np.minimum(tissue[:, middle], -8)
        strength = 0.87 + 0.05 * smooth_noise(rng, shape, 0.06 * min(shape))
        y, x = np.mgrid[:height, :width].astype(np.float32)
        line = np.full(shape, -_FAR, np.float32)
        if pen:
            center = width * (0.955 + 0.012 * np.sin(9 * y / height) + 0.006 * np.sin(23 * y / height))
            across = 0.011 * width - np.abs(x - center)
            line = np.minimum(across, np.minimum(y - 0.12 * height, 0.7 * height - y))
        light = np.clip(0.25 + y / max(1.0, 0.025 * height), 0, 1) if dark_edge else np.ones(shape)
        return cls(
            tissue,
            ahead,
            np.clip(strength, 0.7, 1).astype(np.float32),
            line.astype(np.float32),
            light.astype(np.float32),
        )


def _section(
    rng: np.random.Generator, shape: tuple[int, int], classes: int, fraction: float, *, margin: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tissue and class distances of one section, glass around it, `margin` times as much of it at the sides."""
    side = min(shape)
    y, x = (np.abs(np.linspace(-1, 1, n, dtype=np.float32)) for n in shape)
    edge = (y[:, None] ** 3 + (margin * x[None, :]) ** 3) ** (1 / 3)
    form = smooth_noise(rng, shape, 0.16 * side) + 0.4 * smooth_noise(rng, shape, 0.05 * side)
    form += 0.12 * smooth_noise(rng, shape, max(1.0, 0.015 * side))
    form -= 1.6 * edge**2 + 14 * np.clip(edge - 0.84, 0, None)
    form = form - np.quantile(form, 1 - fraction) if 0 < fraction < 1 else np.full(shape, _FAR * (fraction - 0.5))
    fields = np.stack([smooth_noise(rng, shape, 0.07 * side) for _ in range(classes)])
    ahead = np.full(fields.shape, _FAR, np.float32)
    for k in range(classes if classes > 1 else 0):
        ahead[k] = _distance(fields[k] - np.delete(fields, k, axis=0).max(axis=0))
    return _distance(form), ahead


def _distance(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """A smooth field as px to its zero line, about: divided by its usual slope there."""
    if min(field.shape) < 2:
        return field.astype(np.float32)
    slope = np.hypot(*np.gradient(field))
    near = np.abs(field) <= np.quantile(np.abs(field), 0.2)
    return (field / max(float(slope[near].mean()), 1e-6)).astype(np.float32)


def _smaller(tissue: NDArray[np.float32], *, by: float) -> NDArray[np.float32]:
    """The same section with a share `by` of its tissue taken off along the edge."""
    inside = tissue[tissue > 0]
    return tissue - np.quantile(inside, by).astype(np.float32) if inside.size else tissue


class Painter:
    """Paints tiles of a section at level 0.

    Parameters
    ----------
    anatomy : what to paint
    shape : (height, width) of level 0, px
    mpp : um/px
    seed : which texture goes where
    """

    def __init__(self, anatomy: Anatomy, shape: tuple[int, int], *, mpp: float, seed: int) -> None:
        self._anatomy = anatomy
        self._has_pen = bool((anatomy.pen > -1).any())
        self._has_dark = bool((anatomy.light < 1).any())
        self._zoom = tuple(full / small for full, small in zip(shape, anatomy.tissue.shape, strict=True))
        self._pixel = float(np.mean(self._zoom))  # level-0 px per mask px
        self._texture = TissueTexture(shape, classes=len(anatomy.class_distance), mpp=mpp, seed=seed)
        rng = np.random.default_rng([seed, 2])
        grain = np.rint(rng.normal(0, 1.3, (BANK, BANK, 1)) + rng.normal(0, 0.5, (BANK, BANK, 3)))
        self._glass = np.tile((grain + _GLASS).astype(np.uint8), (2, 2, 1))
        self._grain = rng.integers(0, BANK, (64, 2))

    def tile(self, y: int, x: int, size: int) -> NDArray[np.uint8]:
        """The square at (x, y), level-0 px: (size, size, 3) uint8. Safe to call from several threads."""
        window = _Window(y, x, size, self._zoom, self._anatomy.tissue.shape)
        top, left = self._grain[(y // size * 7 + x // size * 3) % len(self._grain)]
        pixels = np.ascontiguousarray(self._glass[top : top + size, left : left + size])
        edge = window.of(self._anatomy.tissue) * self._pixel + 10 * self._texture.roughness(y, x, size)
        if edge.max() > -2:
            opacity = np.clip(edge / 4 + 0.5, 0, 1) * window.of(self._anatomy.strength)
            pixels = blend(pixels, self._stained(window, y, x, size), opacity)
        if self._has_pen:
            stroke = window.of(self._anatomy.pen) * self._pixel + 4 * self._texture.roughness(y, x, size, phase=3)
            ink = np.empty_like(pixels)
            ink[:] = _PEN
            pixels = blend(pixels, ink, np.clip(stroke / 16 + 0.5, 0, 1) * np.float32(0.88))
        if self._has_dark:
            pixels = blend(np.zeros_like(pixels), pixels, window.of(self._anatomy.light))
        return pixels

    def _stained(self, window: _Window, y: int, x: int, size: int) -> NDArray[np.uint8]:
        """Texture of the classes that occur in the square."""
        roughness = 16 * self._texture.roughness(y, x, size, phase=4)
        last = len(self._anatomy.class_distance) - 1
        pixels: NDArray[np.uint8] | None = None
        for index, distance in enumerate(self._anatomy.class_distance):
            margin = window.of(distance) * self._pixel + roughness
            if pixels is None and (index == last or margin.max() > -6):
                pixels = self._texture.tile(index, y, x, size)
            elif pixels is not None and margin.max() > -6:
                pixels = blend(pixels, self._texture.tile(index, y, x, size), margin / 12 + 0.5)
        assert pixels is not None
        return pixels


class _Window:
    """A square of level 0 as a place in the maps."""

    def __init__(self, y: int, x: int, size: int, zoom: tuple[float, ...], limits: tuple[int, ...]) -> None:
        self._rows, self._down = _weights(y, size, zoom[0], limits[0])
        self._columns, self._across = _weights(x, size, zoom[1], limits[1])

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """One map at the square's px, bilinear: (size, size) float32."""
        # einsum, because products this small spend several times as long in BLAS's threads when ours are busy.
        partly = np.einsum("yr,rc->yc", self._down, values[self._rows, self._columns])
        return np.einsum("yc,xc->yx", partly, self._across)


def _weights(start: int, size: int, zoom: float, limit: int) -> tuple[slice, NDArray[np.float32]]:
    """Rows of a map that `size` px from `start` lie between, and each px's weights on them: (size, rows) float32."""
    position = np.clip((np.arange(start, start + size) + 0.5) / zoom - 0.5, 0, limit - 1)
    below = np.minimum(position.astype(int), max(0, limit - 2))
    above = np.minimum(below + 1, limit - 1)
    first, last = int(below[0]), int(above[-1])
    weights = np.zeros((size, last - first + 1))
    line = np.arange(size)
    np.add.at(weights, (line, below - first), 1 - (position - below))
    np.add.at(weights, (line, above - first), position - below)
    return slice(first, last + 1), weights.astype(np.float32)
