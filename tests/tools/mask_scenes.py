"""Generated scenes for tissue masks, each with its truth: stained tissue, and what is easily taken for it or lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWN", "KINDS", "MPP", "Scene", "drawn_mask", "iou", "make_scene", "tissue_on_glass"]

DRAWN: Final = Path(__file__).parents[1] / "fixtures" / "cmu-1-small-region-tissue.json"
"""Polygons around the tissue of CMU-1-Small-Region.svs, drawn by hand."""

MPP: Final = 8.0
"""um/px of a scene; it is drawn four times finer."""
_FINE: Final = 4
_SIZE: Final = (480, 640)

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_HAEMATOXYLIN: Final = np.array([0.65, 0.70, 0.29])
_EOSIN: Final = np.array([0.07, 0.99, 0.11])
_DAB: Final = np.array([0.27, 0.57, 0.78])
_PURPLE: Final = 0.35 * _HAEMATOXYLIN + 0.25 * _EOSIN
_PINK: Final = 0.06 * _HAEMATOXYLIN + 0.28 * _EOSIN


@dataclass(frozen=True, slots=True)
class Scene:
    """An image at `MPP`, and where tissue is in it."""

    kind: str
    variant: int
    image: Image
    truth: Mask


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max((a | b).sum(), 1))


class _Drawing:
    """Optical density that is laid over glass, drawn at the finer scale."""

    def __init__(self, seed: int, glass: tuple[int, int, int] = (243, 242, 240)) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = _SIZE[0] * _FINE, _SIZE[1] * _FINE
        self.glass = np.asarray(glass, np.float32)
        self.od = np.zeros((*self.shape, 3), np.float32)
        self.truth = np.zeros(self.shape, np.bool_)

    def texture(self, um: float) -> NDArray[np.float32]:
        """Smooth noise of mean 0 and deviation 1, with grains of about `um`."""
        cell = max(um / (MPP / _FINE), 1.0)
        size = max(4, round(self.shape[1] / cell)), max(4, round(self.shape[0] / cell))
        noise = self.rng.normal(0, 1, size[::-1]).astype(np.float32)
        return np.asarray(cv2.resize(noise, self.shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)

    def blob(self, x: float, y: float, width: float, height: float, rough: float = 0.12) -> Mask:
        """A piece with a wavy outline; center and size as shares of the scene."""
        v, u = np.ogrid[: self.shape[0], : self.shape[1]]
        radius = np.hypot((u / self.shape[1] - x) / (width / 2), (v / self.shape[0] - y) / (height / 2))
        return np.asarray(radius + rough * self.texture(300) < 1)

    def stain(self, where: Mask, od: NDArray[np.float64], *, cells: float = 0.3) -> None:
        """Tissue: its depth varies as cells do."""
        depth = np.clip(1 + cells * self.texture(12) + 0.15 * self.texture(120), 0.3, 2.5)
        self.od[where] = (depth[..., None] * od.astype(np.float32))[where]
        self.truth |= where

    def fat(self, where: Mask, *, cell_um: float, wall_um: float, od: NDArray[np.float64]) -> None:
        """Empty cells with stained walls; all of it is tissue."""
        step = cell_um / (MPP / _FINE)
        rows, columns = (np.arange(0, side + step, step) for side in self.shape)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        x[1::2] += step / 2
        y, x = (np.clip(a + self.rng.uniform(-0.2, 0.2, a.shape) * step, 0, None) for a in (y, x))
        seeds = np.ones(self.shape, np.uint8)
        inside = (y < self.shape[0]) & (x < self.shape[1])
        seeds[y[inside].astype(int), x[inside].astype(int)] = 0
        _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        walls = np.zeros(self.shape, np.uint8)
        walls[1:] |= labels[1:] != labels[:-1]
        walls[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        thick = max(1, round(wall_um / (MPP / _FINE)))
        walls = cv2.dilate(walls, np.ones((thick, thick), np.uint8)) if thick > 1 else walls
        self.od[where & (walls > 0)] = od
        self.od[where & (walls == 0)] = 0
        self.truth |= where

    def line(self, points: list[tuple[float, float]], um: float, od: tuple[float, float, float]) -> None:
        """A stroke that is no tissue and covers what it crosses."""
        ends = np.array([(x * self.shape[1], y * self.shape[0]) for x, y in points]).round().astype(np.int32)
        stroke = np.zeros(self.shape, np.uint8)
        cv2.polylines(stroke, [ends], False, 1, max(1, round(um / (MPP / _FINE))))
        where = stroke > 0
        self.od[where] = self.od[where] * 0.3 + np.asarray(od, np.float32)
        self.truth &= ~where

    def done(self) -> tuple[Image, Mask]:
        """The scene at `MPP`."""
        light = (self.glass + 1) * np.power(np.float32(10), -self.od) - 1
        light = cv2.GaussianBlur(light, (0, 0), 0.7)
        small = cv2.resize(light, _SIZE[::-1], interpolation=cv2.INTER_AREA)
        small += self.rng.normal(0, 0.8, small.shape)
        share = cv2.resize(self.truth.astype(np.float32), _SIZE[::-1], interpolation=cv2.INTER_AREA)
        return np.clip(small.round(), 0, 255).astype(np.uint8), np.asarray(share >= 0.5)


def _pale(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(10 + variant)
    drawing.stain(drawing.blob(0.3, 0.6, 0.45, 0.6), np.array([0.029, 0.042, 0.018]) * (1.6 if variant else 1.0))
    drawing.stain(drawing.blob(0.75, 0.35, 0.35, 0.5), 1.3 * _PURPLE)
    return drawing.done()


def _canvas(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(20 + variant, glass=(229, 227, 221) if variant == 0 else (214, 214, 212))
    drawing.stain(drawing.blob(0.3, 0.5, 0.2, 0.35), _PURPLE)
    drawing.stain(drawing.blob(0.72, 0.4, 0.12, 0.25), _PINK)
    image, truth = drawing.done()
    scanned = np.zeros(truth.shape, np.bool_)
    scanned[110:380, 110:290] = True
    scanned[90:300, 400:530] = True
    image[~scanned] = (255, 255, 255) if variant == 0 else (180, 180, 180)
    return image, truth & scanned


def _fat(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(30 + variant)
    cell, wall = ((52.0, 4.0), (80.0, 6.0))[variant]
    drawing.fat(drawing.blob(0.45, 0.5, 0.6, 0.7), cell_um=cell, wall_um=wall, od=1.5 * _PINK)
    drawing.stain(drawing.blob(0.62, 0.5, 0.2, 0.4), _PURPLE)
    return drawing.done()


def _pen(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(40 + variant)
    drawing.stain(drawing.blob(0.5, 0.5, 0.45, 0.5), _PINK if variant else _PURPLE)
    ink = ((0.9, 0.35, 0.15), (0.8, 0.25, 0.6))[variant]  # blue, green
    drawing.line([(0.1, 0.1), (0.15, 0.6), (0.12, 0.9)], 250, ink)
    drawing.line([(0.2, 0.92), (0.6, 0.9), (0.9, 0.6)], 200, ink)
    if variant:
        drawing.line([(0.55, 0.05), (0.6, 0.95)], 160, ink)
    return drawing.done()


def _dark_edge(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(50 + variant)
    drawing.stain(drawing.blob(0.5, 0.55, 0.5, 0.5), _PURPLE if variant else _PINK)
    edge = np.zeros(drawing.shape, np.bool_)
    edge[:150] = True
    edge[:, -110:] = variant == 0
    drawing.od[edge] = 1.4 if variant == 0 else 0.45
    drawing.truth &= ~edge
    return drawing.done()


def _ihc(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(60 + variant)
    piece = drawing.blob(0.5, 0.5, 0.6, 0.6)
    drawing.stain(piece, (0.14 if variant else 0.09) * _HAEMATOXYLIN)
    drawing.stain(piece & (drawing.texture(80) > (0.2 if variant else 1.0)), 0.5 * _DAB)
    return drawing.done()


def _faint(variant: int) -> tuple[Image, Mask]:
    drawing = _Drawing(70 + variant, glass=(247, 246, 246) if variant else (236, 232, 222))
    drawing.stain(drawing.blob(0.45, 0.5, 0.6, 0.6), 0.09 * _HAEMATOXYLIN if variant else 0.2 * _PINK)
    return drawing.done()


def _bubble(variant: int) -> tuple[Image, Mask]:
    """The gray rims of air bubbles, and the lines of a coverslip."""
    drawing = _Drawing(80 + variant)
    drawing.stain(drawing.blob(0.35, 0.5, 0.4, 0.5), _PINK if variant else _PURPLE)
    rim = np.zeros(drawing.shape, np.uint8)
    for x, y, radius in ((0.8, 0.3, 220), (0.72, 0.75, 120), (0.9, 0.6, 40)):
        cv2.circle(rim, (round(x * rim.shape[1]), round(y * rim.shape[0])), radius, 1, 14)
    cv2.line(rim, (0, 60), (rim.shape[1], 90), 1, 6 + 6 * variant)
    cv2.line(rim, (rim.shape[1] - 70, 0), (rim.shape[1] - 40, rim.shape[0]), 1, 8)
    drawing.od[(rim > 0) & ~drawing.truth] = (0.25, 0.27, 0.26)
    return drawing.done()


KINDS: Final[dict[str, Callable[[int], tuple[Image, Mask]]]] = {
    "pale beside strong": _pale,
    "canvas": _canvas,
    "fat": _fat,
    "pen": _pen,
    "dark edge": _dark_edge,
    "IHC": _ihc,
    "faint stain": _faint,
    "bubbles and coverslip": _bubble,
}
"""Each draws its scene in variant 0 or 1."""


def make_scene(kind: str, variant: int) -> Scene:
    """One of two scenes of a kind."""
    image, truth = KINDS[kind](variant)
    return Scene(kind, variant, image, truth)


def tissue_on_glass(pixels: Image, *, mpp: float, seed: int = 0) -> Scene:
    """Real tissue, in the shape of a wavy blob, on glass: a crop full of tissue is laid out with its mirrors."""
    tile = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    side = round(tile.shape[0] * mpp / (MPP / _FINE))
    tile = np.asarray(cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    drawing = _Drawing(90 + seed)
    repeats = -(-drawing.shape[0] // side), -(-drawing.shape[1] // side), 1
    laid = np.tile(tile, repeats)[: drawing.shape[0], : drawing.shape[1]].astype(np.float32)
    drawing.truth = drawing.blob(0.5, 0.5, 0.5, 0.5)
    od = np.maximum(np.log10(drawing.glass + 1) - np.log10(laid + 1), 0)
    drawing.od[drawing.truth] = od[drawing.truth]
    image, truth = drawing.done()
    return Scene("real tissue on glass", seed, image, truth)


def drawn_mask(slide_shape: tuple[int, int], mask_shape: tuple[int, int]) -> Mask:
    """The mask that was drawn by hand for CMU-1-Small-Region, at the size of a mask."""
    drawn = json.loads(DRAWN.read_text(encoding="utf-8"))
    canvas = np.zeros(slide_shape, np.uint8)
    cv2.fillPoly(canvas, [np.array(drawn["outline"], np.int32)], 255)
    cv2.fillPoly(canvas, [np.array(cavity, np.int32) for cavity in drawn["cavities"]], 0)
    return np.asarray(cv2.resize(canvas, mask_shape[::-1], interpolation=cv2.INTER_AREA) >= 128)
