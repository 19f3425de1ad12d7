"""Other scales than a patch has: drawn at random, cut from slides exactly or enlarged from the patch's middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["AnyScale", "MppRange", "Piece", "ScaleAugment", "ScaleRange", "ScaledCut", "enlarge_center"]

Batch = dict[str, torch.Tensor]

_SAME_SCALE = 1.06
"""Magnifications up to this factor apart are one nominal magnification: slides snap within 5 %."""


@dataclass(frozen=True, slots=True)
class ScaledCut:
    """An image to be cut from a slide at a magnification of its own.

    Attributes
    ----------
    row, column : of the patch that says where
    magnification : the true one
    point : (y, x) of a point of the patch, as shares of its side: the cut contains it and lies inside the slide; None:
        the cut has the patch's own center
    out : (height, width, 3) uint8, filled: the cut is a square of the longer side, of which the rest is left out
    """

    row: int
    column: int
    magnification: float
    point: tuple[float, float] | None
    out: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an image that is cut on its own.

    Attributes
    ----------
    rows, columns : its place in the image, px
    point : of the patch that it is cut around, see `ScaledCut`
    other : which patch, as a share of all those in question; None: the image's own
    anywhere : whether all patches are in question, or only those of the same slide
    """

    rows: slice
    columns: slice
    point: tuple[float, float]
    other: float | None = None
    anywhere: bool = False


class ScaleAugment:
    """Change the scale of patches, and their magnification with it (spec section 8).

    A patch at m, with n the next higher magnification of the list, becomes one at m' = u * n, u drawn from [m / n, 1].
    As an augmentation it enlarges the central S * m / m' px, as the original does; given to a dataset of virtual sets
    (``PatchDataset(..., scale=...)``) the patch is read from its slide at exactly m', with real pixels instead.
    Patches at the highest magnification of the list stay as they are.

    Parameters
    ----------
    magnifications : that patches have, such as the detector's 5, 8, 10, 15, 20, 30, 40
    p : share of the patches that are changed

    Examples
    --------
    >>> ScaleAugment([10, 15]).crop_size(224, 10, 12)
    186.66666666666666
    """

    def __init__(self, magnifications: Sequence[float], *, p: float = 0.5) -> None:
        self.magnifications = tuple(sorted(float(m) for m in magnifications))
        self.p = p
        if len(self.magnifications) < 2 or self.magnifications[0] <= 0:
            raise SpecError(f"magnifications={list(magnifications)}: expected at least two, above 0")
        if not 0 <= p <= 1:
            raise SpecError(f"p={p!r}: expected a share from 0 to 1")

    @staticmethod
    def crop_size(patch_size: int, magnification: float, drawn: float) -> float:
        """Side of the central crop that becomes the whole patch, px."""
        return patch_size * magnification / drawn

    def draw(
        self, magnifications: NDArray[np.floating[Any]], seed: int, *, limits: tuple[float, float] = (0.0, np.inf)
    ) -> NDArray[np.float32]:
        """Other magnifications for the images of one patch.

        Parameters
        ----------
        magnifications : (images,), the true ones
        seed : of the draw
        limits : the lowest at which a patch fits into its slide, and the slide's own, which is not gone beyond

        Returns
        -------
        drawn : (images,) float32
        """
        generator = np.random.default_rng([int(seed), 1])
        drawn = np.asarray(magnifications, np.float32).copy()
        for i, m in enumerate(drawn.tolist()):
            changes, u = generator.random() < self.p, generator.random()
            n = min((higher for higher in self.magnifications if higher > m * _SAME_SCALE), default=m)
            n = min(n, limits[1])
            if changes and n > m and m * _SAME_SCALE > self.magnifications[0]:
                drawn[i] = n * (m / n + u * (1 - m / n))
        return drawn

    def __call__(self, batch: Batch) -> Batch:
        """Enlarge the crops of a batch; gives a new one with new ``image``, ``magnification`` and ``label_map``."""
        pixels = batch["image"].movedim(-3, -1).numpy()
        before = batch["magnification"].numpy()
        seeds = batch["seed"] if "seed" in batch else batch["index"]
        after = np.stack([self.draw(m, int(s)) for m, s in zip(before, seeds, strict=True)])
        images = np.array(pixels, order="C")
        maps = batch["label_map"].numpy().copy() if "label_map" in batch else None
        for i, j in np.argwhere(after != before).tolist():
            share = float(before[i, j] / after[i, j])
            images[i, j] = enlarge_center(images[i, j], share)
            if maps is not None:
                maps[i, j] = enlarge_center(maps[i, j], share, interpolation=cv2.INTER_NEAREST)
        changed = {"image": torch.from_numpy(images).movedim(-1, -3), "magnification": torch.from_numpy(after)}
        return batch | changed | ({} if maps is None else {"label_map": torch.from_numpy(maps)})


class ScaleRange:
    """Any scale of a range, cut exactly from the slides: what a scale detector learns from few images with.

    Given to a dataset of virtual sets at one magnification (``PatchDataset(..., scale=ScaleRange(2.8, 60))``). A patch
    then says only about where: the image that comes of it is at a magnification drawn evenly in octaves, contains a
    random point of the patch, and lies inside the slide. Above the slide's own magnification it is enlarged.

    Parameters
    ----------
    lowest, highest : magnifications. Go beyond what is to be recognized: a network pulls the ends of the range that it
        learnt to the middle. Where a patch at the lowest does not fit into a slide, the range begins higher there
    emphasis : share of the draws that come from the upper two octaves alone, where errors count most
    mosaic : share of the images that are put together from four quarters at one scale, half of these from the same
        slide, half from any: what is coarse has few places in a small image, and is soon learnt by heart
    """

    def __init__(self, lowest: float, highest: float, *, emphasis: float = 0.0, mosaic: float = 0.0) -> None:
        if not 0 < lowest < highest:
            raise SpecError(f"scales from {lowest!r} to {highest!r}: expected the lowest and the highest, above 0")
        for name, share in (("emphasis", emphasis), ("mosaic", mosaic)):
            if not 0 <= share <= 1:
                raise SpecError(f"{name}={share!r}: expected a share from 0 to 1")
        self.lowest, self.highest, self.emphasis, self.mosaic = lowest, highest, emphasis, mosaic

    def check(self, slide_id: str, limits: tuple[float, float], patch_size: int) -> None:
        """Refuse a slide that a patch fits into at no scale of the range."""
        if limits[0] * 1.001 >= self.highest:
            raise SpecError(
                f"slide '{slide_id}' is too small for a patch of {patch_size} px: it fits at "
                f"{limits[0]:.3g}x and above, the range of scales ends at {self.highest:g}x"
            )

    def draw(
        self, magnifications: NDArray[np.floating[Any]], seed: int, *, limits: tuple[float, float] = (0.0, np.inf)
    ) -> NDArray[np.float32]:
        """Magnifications for the images of one patch; see `ScaleAugment.draw`."""
        generator = np.random.default_rng([int(seed), 1])
        upper = generator.random() < self.emphasis
        floor = max(self.lowest, 1.001 * limits[0], self.highest / 4 if upper else 0.0)
        drawn = np.exp2(generator.uniform(np.log2(min(floor, self.highest)), np.log2(self.highest)))
        return np.full(len(magnifications), drawn, np.float32)

    def pieces(self, size: int, seed: int) -> Iterator[Piece]:
        """What an image of `size` px is put together from: itself, or four quarters."""
        generator = np.random.default_rng([int(seed), 2])
        is_mosaic, anywhere = generator.random() < self.mosaic, generator.random() < 0.5
        points = generator.random((4, 3))
        whole, first, second = slice(0, size), slice(0, size // 2), slice(size // 2, size)
        if not is_mosaic:
            yield Piece(whole, whole, (float(points[0, 0]), float(points[0, 1])))
            return
        quarters = [(rows, columns) for rows in (first, second) for columns in (first, second)]
        for (rows, columns), (y, x, other) in zip(quarters, points.tolist(), strict=True):
            yield Piece(rows, columns, (y, x), other, anywhere)


class MppRange:
    """Any scale of a range for patches and tuples, around their own centers: what a classifier learns any scale with.

    Given to a dataset of virtual sets (``PatchDataset(..., scale=MppRange(0.25, 2.0))``). The scale of each sample's
    first image is drawn evenly in octaves and read from the slide at exactly that scale; a tuple's other images keep
    their ratios to it, so that contexts stay contexts. A draw depends on the sample's seed alone: on its number and the
    epoch. Nothing is enlarged: on a slide whose own px are coarser than `finest` the range begins with these.

    Parameters
    ----------
    finest, coarsest : um/px of the first image (of a tuple that of the highest magnification); equal ones are one scale

    Examples
    --------
    >>> MppRange(0.5, 0.5).draw(np.array([20.0, 5.0]), seed=3).tolist()
    [20.0, 5.0]
    >>> MppRange(1.0, 1.0).draw(np.array([20.0, 5.0]), seed=3).tolist()
    [10.0, 2.5]
    """

    def __init__(self, finest: float, coarsest: float) -> None:
        if not (0 < finest <= coarsest < np.inf):
            raise SpecError(f"mpp={(finest, coarsest)!r}: expected the finest and the coarsest um/px, such as 0.25 2.0")
        self.finest, self.coarsest = float(finest), float(coarsest)

    def limited(self, limits: tuple[float, float]) -> tuple[float, float]:
        """(finest, coarsest) um/px on a slide, of which `limits` are as for `ScaleAugment.draw`."""
        lowest, own = limits
        largest = 10.0 / lowest if lowest > 0 else np.inf
        return max(self.finest, 10.0 / own if np.isfinite(own) else 0.0), min(self.coarsest, largest)

    def check(self, slide_id: str, limits: tuple[float, float], patch_size: int) -> None:
        """Refuse a slide that has no scale of the range, or is coarser than the one scale that it is."""
        finest, coarsest = self.limited(limits)
        # One scale is measured: all slides must have it, within what counts as one nominal scale.
        if finest > coarsest * (_SAME_SCALE if self.finest == self.coarsest else 1.0):
            raise SpecError(
                f"slide '{slide_id}' has scales from {10 / limits[1]:.3g} um/px (its own) to {10 / limits[0]:.3g} (a "
                f"patch of {patch_size} px is as large as the slide); asked for {self.finest:g} to "
                f"{self.coarsest:g}: leave it out, or take a range that it has"
            )

    def draw(
        self, magnifications: NDArray[np.floating[Any]], seed: int, *, limits: tuple[float, float] = (0.0, np.inf)
    ) -> NDArray[np.float32]:
        """Magnifications for the images of one patch or tuple; see `ScaleAugment.draw`."""
        finest, coarsest = self.limited(limits)
        generator = np.random.default_rng([int(seed), 1])
        octave = generator.uniform(np.log2(min(finest, coarsest)), np.log2(coarsest))
        ratios = np.asarray(magnifications, np.float64) / float(magnifications[0])
        mpp = self.finest if self.finest == self.coarsest else np.exp2(octave)
        return np.asarray(10.0 / mpp * ratios, np.float32)


AnyScale: TypeAlias = ScaleAugment | MppRange | ScaleRange
"""What draws the scales of a dataset of virtual sets."""


def enlarge_center(
    image: NDArray[np.uint8], share: float, *, interpolation: int = cv2.INTER_LINEAR
) -> NDArray[np.uint8]:
    """The central `share` of an image's sides, fractions of px included, resized to the whole.

    Parameters
    ----------
    image : (S, S[, 3]) uint8
    share : above 0, up to 1
    """
    size = len(image)
    # Centers of px: what comes to px i of the result lies at (i + 0.5) * share from the crop's edge.
    offset = (size - size * share) / 2 + 0.5 * share - 0.5
    matrix = np.array([[share, 0, offset], [0, share, offset]])
    flags = interpolation | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return warped.astype(np.uint8, copy=False)
