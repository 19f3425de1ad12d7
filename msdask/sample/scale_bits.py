"""A generated task whose ceilings are known: each magnification sees one bit of three, and no more.

Sites of 256 px at native 20x show three motifs around one center, each a checker or stripes: of 1 px in the central
64 px, of 2 px in the ring up to 128 px, of 8 px in the ring up to 256 px. Patches of 64 px at 20x, 10x and 5x around
the center cover just these. Motifs have zero mean over blocks of two by two of their cells, in whole numbers, and
levels are exact 2 x 2 means: at 10x the first motif is gone, at 5x the second one too.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SpecError
from msdask.sample.svs import SvsLayout, write_svs
from msdask.spec import ExtractionSpec
from msdask.storage.files import replacing

__all__ = ["BitsTask", "ScaleBits", "make_scale_bits"]

BitsTask = Literal["product", "xor"]

SITE = 256
PATCH = 64
MAGNIFICATIONS = (20.0, 10.0, 5.0)
_MOTIFS = ((1, 64), (2, 128), (8, 256))
"""Of each bit: side of a motif's cell, and of the square that it fills from the one before outwards, level-0 px."""
_MASK_STEP = 32
_COLOR, _SPREAD, _AMPLITUDE = (168, 118, 160), 10, (24, 40)


@dataclass(frozen=True)
class ScaleBits:
    """Slides of such a task, and the truth about them.

    Attributes
    ----------
    task : "product": the class is one of the 8 combinations; "xor": whether the bits at 20x and at 5x differ
    table : CSV of the slides with mask, split and patient, for `msdask.extract`
    classes : how many
    side : sites along a slide's side
    bits : slide id -> (side, side, 3) bool: those that 20x, 10x and 5x show
    """

    task: BitsTask
    table: Path
    classes: int
    side: int
    bits: Mapping[str, NDArray[np.bool_]] = field(repr=False)

    @property
    def values(self) -> list[int]:
        """Mask values in the order of the classes, for `extract(values=)`."""
        return list(range(1, self.classes + 1))

    @property
    def ceilings(self) -> dict[int, float]:
        """Highest balanced accuracy, on the valid and test slides, by the number of magnifications: more is a leak.

        Exact for "product". For "xor" any magnification or pair but 20x with 5x stays at 0.5; a sum over magnifications
        stays at 0.75 or below.
        """
        return {1: 0.25, 2: 0.5, 3: 1.0} if self.task == "product" else {1: 0.5, 2: 1.0, 3: 1.0}

    def label(self, slide_id: str) -> NDArray[np.int64]:
        """Class of each site of a slide: (side, side)."""
        return _label(self.bits[slide_id], self.task)

    def tuples(self) -> ExtractionSpec:
        """Tuples around the centers of the sites."""
        return ExtractionSpec("centroids", MAGNIFICATIONS, PATCH, stride=SITE, roi=self._roi(0))

    def grids(self) -> list[ExtractionSpec]:
        """Grids with one patch a site, which are linked one to one."""
        return [
            ExtractionSpec("grid", (m,), PATCH, stride=int(SITE * m / MAGNIFICATIONS[0]), roi=self._roi(i))
            for i, m in enumerate(MAGNIFICATIONS)
        ]

    def _roi(self, motif: int) -> tuple[float, float, float, float]:
        start = (SITE - _MOTIFS[motif][1]) // 2
        length = self.side * SITE - start
        return (start, start, length, length)


def make_scale_bits(
    folder: str | os.PathLike[str],
    task: BitsTask = "product",
    *,
    slides: tuple[int, int, int] = (4, 1, 2),
    side: int = 16,
    seed: int = 0,
) -> ScaleBits:
    """Write slides, label masks and their table.

    Sites for training are drawn each on its own. Those for validation and test come in groups that share every draw but
    the bits, of which each combination occurs once: 8 sites for "product", 4 for "xor" (the bit at 10x is shared, too).
    A model that does not see a bit says the same of two sites that differ in it, so the ceilings are exact.

    Parameters
    ----------
    folder : for slides, masks and slides.csv
    task : what the class is
    slides : for training, validation and test
    side : sites along a slide's side, even and at least 4
    seed : decides everything that is random

    Raises
    ------
    SpecError
        An argument makes no sense.
    """
    if task not in get_args(BitsTask):
        raise SpecError(f"task={task!r}: expected one of {', '.join(get_args(BitsTask))}")
    if side < 4 or side % 4:
        raise SpecError(f"side={side!r}: expected a multiple of 4")
    if len(slides) != 3 or min(slides) < 0 or not slides[0]:
        raise SpecError(f"slides={slides!r}: expected how many for training (1 or more), validation and test")
    folder = Path(folder)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    bits: dict[str, NDArray[np.bool_]] = {}
    rows = [("path", "mask", "split", "patient")]
    for split, count in zip(("train", "valid", "test"), slides, strict=True):
        for number in range(count):
            name = f"{split}-{number}.svs"
            rng = np.random.default_rng([seed, len(rows)])
            sites = _Sites.drawn(side, rng, None if split == "train" else task)
            write_svs(
                folder / name,
                sites.render,
                shape=(side * SITE, side * SITE),
                mpp=0.5,
                layout=SvsLayout(levels=(1, 2, 4), tile=SITE, compression="deflate"),
                associated=False,
                threads=1,
            )
            bits[name] = sites.bits
            mask = (_label(sites.bits, task) + 1).astype(np.uint8)
            mask = np.kron(mask, np.ones((SITE // _MASK_STEP,) * 2, np.uint8))
            with replacing(folder / "masks" / f"{name}.png", what="mask") as part:
                Image.fromarray(mask).save(part, format="png")
            rows.append((name, f"masks/{name}.png", split, name))
    with replacing(folder / "slides.csv", what="table") as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return ScaleBits(task, folder / "slides.csv", 8 if task == "product" else 2, side, bits)


def _label(bits: NDArray[np.bool_], task: BitsTask) -> NDArray[np.int64]:
    a, b, c = np.moveaxis(bits.astype(np.int64), -1, 0)
    return 4 * a + 2 * b + c if task == "product" else a ^ c


@dataclass(frozen=True)
class _Sites:
    """What is drawn of the sites of a slide, each (side, side, ...)."""

    bits: NDArray[np.bool_]
    vertical: NDArray[np.bool_]
    sign: NDArray[np.int64]
    color: NDArray[np.int64]
    amplitude: NDArray[np.int64]

    @classmethod
    def drawn(cls, side: int, rng: np.random.Generator, grouped: BitsTask | None) -> _Sites:
        """Sites one by one, or in groups that share all but the bits that the task needs."""
        combinations = {None: 1, "product": 8, "xor": 4}[grouped]
        groups = side * side // combinations

        def spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(values, combinations, axis=0).reshape(side, side, *values.shape[1:])

        bits = spread(rng.integers(0, 2, (groups, 3))).astype(bool)
        if grouped is not None:
            seen = [0, 1, 2] if grouped == "product" else [0, 2]
            number = np.tile(np.arange(combinations), groups).reshape(side, side)
            for place, bit in enumerate(seen):
                bits[..., bit] = number >> place & 1
        return cls(
            bits,
            spread(rng.integers(0, 2, (groups, 3))).astype(bool),
            spread(1 - 2 * rng.integers(0, 2, (groups, 3))),
            spread(np.asarray(_COLOR) + rng.integers(-_SPREAD, _SPREAD + 1, (groups, 3))),
            spread(rng.integers(_AMPLITUDE[0], _AMPLITUDE[1] + 1, groups)),
        )

    def render(self, y: int, x: int, side: int) -> NDArray[np.uint8]:
        """One site: see `msdask.sample.svs.Render`; tiles are sites."""
        at = y // SITE, x // SITE
        values = np.zeros((SITE, SITE), np.int64)
        for motif in (2, 1, 0):  # from the outside inwards
            cell, square = _MOTIFS[motif]
            wave = 1 - 2 * (np.arange(square) // cell % 2)
            checker = np.outer(wave, wave)
            stripes = np.broadcast_to(wave if self.vertical[at][motif] else wave[:, None], (square, square))
            start = (SITE - square) // 2
            drawn = checker if self.bits[at][motif] else stripes
            values[start : start + square, start : start + square] = self.sign[at][motif] * drawn
        return (self.color[at] + self.amplitude[at] * values[..., None]).astype(np.uint8)
