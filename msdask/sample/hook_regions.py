"""A generated task of segmentation whose ceilings are known: half of each class is seen in fine px, half from afar.

Regions of 512 px at native 20x. Their middle, 384 px, is made of blocks of 32 px with a motif of 1 px, a checker or
stripes, drawn anew for each block: A. Around it, up to 512 px, is a motif of 8 px, one a region: c. A class is A x c,
and only the middle 128 px of a region are labeled. A 20x U-Net sees at most 186 px far from the middle, where c does
not reach; levels are exact 2 x 2 means, in which A is gone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SpecError
from msdask.sample.svs import SvsLayout, write_svs
from msdask.storage.files import replacing

__all__ = ["TWINS", "HookRegions", "make_hook_regions"]

REGION, MIDDLE, LABELED, BLOCK = 512, 384, 128, 32
_TILE = 256
_RING_CELL = 8
_COLOR, _SPREAD, _AMPLITUDE = (168, 118, 160), 10, (24, 40)
TWINS = ("", "-c", "-a", "-ac")
"""Ends of the names of a test slide and its twins: in these every c, every A or both are the other way round."""


@dataclass(frozen=True)
class HookRegions:
    """Slides of the task, and the truth about them.

    Attributes
    ----------
    table : CSV of the slides with mask, split and patient; a test slide's twins are one patient
    side : regions along a slide's side
    fine, ring : slide id -> A of each block (side, side, 12, 12) and c of each region (side, side), bool
    """

    table: Path
    side: int
    fine: Mapping[str, NDArray[np.bool_]] = field(repr=False)
    ring: Mapping[str, NDArray[np.bool_]] = field(repr=False)

    classes = ("stripes, stripes", "stripes, checker", "checker, stripes", "checker, checker")
    """2 A + c."""
    values = (1, 2, 3, 4)
    """Mask values in the order of the classes."""

    def roi(self, patch_size: int) -> tuple[float, float, float, float]:
        """Region of interest in which 20x patches, `REGION` px apart, lie in the middle of the regions: x, y, w, h."""
        start = (REGION - patch_size) // 2
        length = self.side * REGION - start
        return (start, start, length, length)

    def labels(self, slide_id: str) -> NDArray[np.uint8]:
        """Label mask, a px a block: 0 where nothing is labeled, else class + 1."""
        return _label_mask(self.fine[slide_id], self.ring[slide_id])


def make_hook_regions(
    folder: str | os.PathLike[str], *, slides: tuple[int, int, int] = (4, 1, 1), side: int = 8, seed: int = 0
) -> HookRegions:
    """Write slides, label masks and their table.

    A test slide comes with three twins that share every draw but A, c or both: a model that does not see one of the
    two says the same of two twins, so that half of the px at most are right, exactly.

    Parameters
    ----------
    folder : for slides, masks and slides.csv
    slides : for training and validation, and groups of four for testing
    side : regions along a slide's side
    seed : decides everything that is random

    Raises
    ------
    SpecError
        An argument makes no sense.
    """
    if side < 1:
        raise SpecError(f"side={side!r}: expected 1 region or more along a slide's side")
    if len(slides) != 3 or min(slides) < 0 or not sum(slides):
        raise SpecError(f"slides={slides!r}: expected how many for training, validation and test")
    folder = Path(folder)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    fine: dict[str, NDArray[np.bool_]] = {}
    ring: dict[str, NDArray[np.bool_]] = {}
    rows = [("path", "mask", "mpp", "split", "patient")]
    for part, split in enumerate(("train", "valid", "test")):
        for number in range(slides[part]):
            drawn = _Regions.drawn(side, np.random.default_rng([seed, part, number]))
            for twin in TWINS if split == "test" else ("",):
                name = f"{split}-{number}{twin}.svs"
                regions = replace(drawn, fine=drawn.fine ^ ("a" in twin), ring=drawn.ring ^ ("c" in twin))
                write_svs(
                    folder / name,
                    regions.render,
                    shape=(side * REGION, side * REGION),
                    mpp=0.5,
                    layout=SvsLayout(levels=(1, 2, 4, 8, 16), tile=_TILE, compression="deflate"),
                    associated=False,
                    threads=1,
                )
                fine[name], ring[name] = regions.fine, regions.ring
                with replacing(folder / "masks" / f"{name}.png", what="mask") as file:
                    Image.fromarray(_label_mask(regions.fine, regions.ring)).save(file, format="png")
                rows.append((name, f"masks/{name}.png", "0.5", split, f"{split}-{number}"))
    with replacing(folder / "slides.csv", what="table") as file, open(file, "w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(rows)
    return HookRegions(folder / "slides.csv", side, fine, ring)


def _label_mask(fine: NDArray[np.bool_], ring: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A px a block of 32 px; only the middle of a region has labels."""
    side, blocks = len(ring), REGION // BLOCK
    inner = LABELED // BLOCK
    skipped, start = (fine.shape[-1] - inner) // 2, (blocks - inner) // 2
    values = 1 + 2 * fine[..., skipped : skipped + inner, skipped : skipped + inner] + ring[..., None, None]
    mask = np.zeros((side, side, blocks, blocks), np.uint8)
    mask[..., start : start + inner, start : start + inner] = values
    return mask.transpose(0, 2, 1, 3).reshape(side * blocks, side * blocks)


@dataclass(frozen=True)
class _Regions:
    """What is drawn of the regions of a slide, each (side, side, ...)."""

    fine: NDArray[np.bool_]
    ring: NDArray[np.bool_]
    fine_vertical: NDArray[np.bool_]
    fine_sign: NDArray[np.int64]
    ring_vertical: NDArray[np.bool_]
    ring_sign: NDArray[np.int64]
    color: NDArray[np.int64]
    amplitude: NDArray[np.int64]

    @classmethod
    def drawn(cls, side: int, rng: np.random.Generator) -> _Regions:
        """All regions of a slide."""
        regions, blocks = (side, side), (side, side, MIDDLE // BLOCK, MIDDLE // BLOCK)

        def bits(shape: tuple[int, ...]) -> NDArray[np.bool_]:
            return rng.integers(0, 2, shape).astype(bool)

        return cls(
            bits(blocks),
            bits(regions),
            bits(blocks),
            1 - 2 * rng.integers(0, 2, blocks),
            bits(regions),
            1 - 2 * rng.integers(0, 2, regions),
            np.asarray(_COLOR) + rng.integers(-_SPREAD, _SPREAD + 1, (*regions, 3)),
            rng.integers(_AMPLITUDE[0], _AMPLITUDE[1] + 1, regions),
        )

    def render(self, y: int, x: int, side: int) -> NDArray[np.uint8]:
        """A tile, a quarter of a region: see `msdask.sample.svs.Render`."""
        at = y // REGION, x // REGION
        ring = _motif(REGION, _RING_CELL, self.ring[at], self.ring_vertical[at]) * self.ring_sign[at]
        blocks = np.empty((MIDDLE, MIDDLE), np.int64)
        grid = blocks.reshape(MIDDLE // BLOCK, BLOCK, MIDDLE // BLOCK, BLOCK).transpose(0, 2, 1, 3)
        checker, upright, level = (_motif(BLOCK, 1, *kind) for kind in ((True, False), (False, True), (False, False)))
        stripes = np.where(self.fine_vertical[at][..., None, None], upright, level)
        grid[...] = np.where(self.fine[at][..., None, None], checker, stripes) * self.fine_sign[at][..., None, None]
        start = (REGION - MIDDLE) // 2
        ring[start : start + MIDDLE, start : start + MIDDLE] = blocks
        top, left = y % REGION, x % REGION
        values = ring[top : top + side, left : left + side]
        return (self.color[at] + self.amplitude[at] * values[..., None]).astype(np.uint8)


def _motif(side: int, cell: int, is_checker: bool, is_vertical: bool) -> NDArray[np.int64]:
    """A checker or stripes of cells of `cell` px, +1 and -1 in equal parts."""
    wave = 1 - 2 * (np.arange(side) // cell % 2)
    if is_checker:
        return np.outer(wave, wave)
    return np.broadcast_to(wave if is_vertical else wave[:, None], (side, side)).copy()
