"""Crops at exact random scales: what the scale detector learns from when the images themselves are at hand."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from msdask.data.appearance import Appearance
from msdask.errors import SpecError
from msdask.masks.tissue import stained_share
from msdask.scale import SCALE_CLASSES

__all__ = ["ScaleCrops", "ScaleImage", "ScaleLattice", "read_crop"]

_PREFETCH = 3
_TRIES = 8
_REDUCTIONS = 3
"""Exact halvings of an image that are kept, so that a coarse crop need not read all of its pixels."""


@dataclass(frozen=True, eq=False)
class ScaleImage:
    """An image of known scale, with its halvings.

    Attributes
    ----------
    levels : (H, W, 3) uint8 each, every one the 2 x 2 mean of the one before
    magnification : of the first
    """

    levels: tuple[NDArray[np.uint8], ...]
    magnification: float

    @classmethod
    def of(cls, image: NDArray[np.uint8], magnification: float) -> ScaleImage:
        """From an RGB image."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise SpecError(f"image of shape {image.shape} and type {image.dtype}: expected (y, x, 3) uint8, RGB")
        levels = [np.ascontiguousarray(image)]
        for _ in range(_REDUCTIONS):
            height, width = (n // 2 * 2 for n in levels[-1].shape[:2])
            if min(height, width) < 64:
                break
            smaller = cv2.resize(levels[-1][:height, :width], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(smaller, dtype=np.uint8))
        return cls(tuple(levels), magnification)

    def extent(self, magnification: float) -> tuple[float, float]:
        """(height, width) of the image at a magnification, px."""
        height, width = self.levels[0].shape[:2]
        return height * magnification / self.magnification, width * magnification / self.magnification


def read_crop(image: ScaleImage, y: float, x: float, *, magnification: float, size: int) -> NDArray[np.uint8]:
    """A crop at any magnification: the area mean of the coarsest halving that is fine enough, enlarged above native.

    Parameters
    ----------
    y, x : origin as a share of what is free, 0 to 1: 1 is flush with the lower or right edge
    magnification : of the crop
    size : px a side

    Returns
    -------
    crop : (size, size, 3) uint8
    """
    ratio = image.magnification / magnification
    level = 0
    while level + 1 < len(image.levels) and ratio >= 2:
        ratio /= 2
        level += 1
    pixels = image.levels[level]
    side = round(size * ratio)
    if side > min(pixels.shape[:2]):
        raise SpecError(
            f"a crop of {size} px at {magnification:.3g}x does not fit an image of {image.levels[0].shape[1]} x "
            f"{image.levels[0].shape[0]} px at {image.magnification:g}x"
        )
    top, left = (round(share * (n - side)) for share, n in zip((y, x), pixels.shape[:2], strict=True))
    cut = pixels[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(cut)
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(cut, (size, size), interpolation=how), dtype=np.uint8)


class ScaleCrops:
    """A loader of crops at random exact magnifications; batches as from `msdask.data.loader`.

    Every batch is a function of (seed, epoch, its number): a run can be resumed in the middle of an epoch.

    Parameters
    ----------
    images : each is drawn equally often
    size : px a side of the crops
    magnifications : smallest and largest, drawn evenly in octaves. Go beyond what is to be recognized: a network pulls
        the ends of the range that it learnt to the middle. Above an image's own magnification crops are enlarged
    emphasis : share of the draws that come from the upper two octaves alone, where errors count most
    batch_size, batches : crops a batch, batches an epoch
    mosaic : share of the crops that are put together from four quarters at one scale, from other places of the image
        or from other images: what is coarse has few places in an image of 1000 px, and is soon learnt by heart
    min_tissue : least share of px in a crop that are no glass (some channel below 200); a crop with less is drawn
        again, a few times
    appearance : changes of stain, color and sharpness; None for none
    seed : decides everything
    """

    def __init__(
        self,
        images: Sequence[ScaleImage],
        *,
        size: int = 64,
        magnifications: tuple[float, float] = (2.8, 60.0),
        emphasis: float = 0.3,
        batch_size: int = 192,
        batches: int = 100,
        mosaic: float = 0.5,
        min_tissue: float = 0.0,
        appearance: Appearance | None = None,
        seed: int = 0,
    ) -> None:
        low, high = magnifications
        if not images:
            raise SpecError("ScaleCrops: no images given")
        if not 0 < low < high:
            raise SpecError(f"magnifications={magnifications!r}: expected the smallest and the largest, above 0")
        if batch_size < 1 or batches < 1:
            raise SpecError(f"batch_size={batch_size}, batches={batches}: expected whole numbers of at least 1")
        for image in images:
            least = max(low, size / min(image.levels[0].shape[:2]) * image.magnification)
            if least >= high:
                raise SpecError(f"an image at {image.magnification:g}x is too small for crops of {size} px")
        self.images = tuple(images)
        self.size = size
        self.magnifications = (low, high)
        self.emphasis = emphasis
        self.batch_size = batch_size
        self.batches = batches
        self.mosaic = mosaic
        self.min_tissue = min_tissue
        self.appearance = appearance
        self.seed = seed
        self._epoch = 0
        self._next = 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: its draws are its own."""
        if epoch != self._epoch:
            self._epoch, self._next = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self._epoch, "batch": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._epoch, self._next = int(state["epoch"]), int(state["batch"]) % self.batches

    def batch(self, epoch: int, number: int) -> dict[str, torch.Tensor]:
        """One batch: "image" (B, 1, 3, S, S) uint8, "magnification" (B, 1), "slide" (B,)."""
        rng = np.random.default_rng([self.seed, epoch, number])
        count = len(self.images)
        which = np.concatenate([rng.permutation(count) for _ in range(-(-self.batch_size // count))])
        which = which[: self.batch_size]
        low, high = np.log2(self.magnifications)
        crops = np.empty((self.batch_size, self.size, self.size, 3), np.uint8)
        truth = np.empty(self.batch_size, np.float32)
        for i, k in enumerate(which.tolist()):
            image = self.images[k]
            fits = np.log2(1.001 * self.size / min(image.levels[0].shape[:2]) * image.magnification)
            floor = max(low, fits, high - 2 if rng.random() < self.emphasis else low)
            magnification = float(np.exp2(rng.uniform(floor, high)))
            if rng.random() < self.mosaic:
                crop = self._mosaic(k, magnification, rng)
            else:
                crop = self._draw(image, magnification, self.size, rng)
            turn = int(rng.integers(8))
            crop = np.rot90(crop, turn % 4)
            crop = crop[:, ::-1] if turn > 3 else crop
            if self.appearance is not None:
                crop = self.appearance.sharpness(np.ascontiguousarray(crop), rng)
            crops[i], truth[i] = crop, magnification
        pixels = torch.from_numpy(crops)
        if self.appearance is not None:
            pixels = self.appearance.color(pixels, int(rng.integers(2**63)))
        return _batch(pixels, truth, which)

    def _draw(self, image: ScaleImage, magnification: float, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A crop from anywhere in the image where there is tissue."""
        for _ in range(_TRIES):
            crop = read_crop(image, rng.random(), rng.random(), magnification=magnification, size=size)
            if self.min_tissue <= 0 or stained_share(crop) >= self.min_tissue:
                break
        return crop

    def _mosaic(self, first: int, magnification: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Four quarters: half of the mosaics are of one image, half of any that are large enough."""
        half = self.size // 2
        crop = np.empty((self.size, self.size, 3), np.uint8)
        is_mixed = rng.random() < 0.5
        for y, x in ((0, 0), (0, half), (half, 0), (half, half)):
            side = self.size - half if x or y else half
            image = self.images[int(rng.integers(len(self.images))) if is_mixed else first]
            if min(image.extent(magnification)) < side + 1:
                image = self.images[first]
            part = self._draw(image, magnification, side, rng)
            target = crop[y : y + side, x : x + side]
            target[...] = part[: target.shape[0], : target.shape[1]]
        return crop

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The rest of the epoch, made a few batches ahead by a thread."""
        epoch, first = self._epoch, self._next
        ready: queue.Queue[Any] = queue.Queue(_PREFETCH)
        stop = threading.Event()

        def put(item: Any) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for number in range(first, self.batches):
                    if stop.is_set():
                        return
                    put(self.batch(epoch, number))
            except BaseException as error:
                put(error)

        threading.Thread(target=work, name="msdask-scale-crops", daemon=True).start()
        try:
            for number in range(first, self.batches):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                self._epoch, self._next = (epoch, number + 1) if number + 1 < self.batches else (epoch + 1, 0)
                yield item
        finally:
            stop.set()


class ScaleLattice:
    """Crops to measure a detector with: at each nominal magnification, `side` x `side` even positions of each image.

    Parameters
    ----------
    images : those too small or too coarse for a magnification lack it
    magnifications : nominal ones
    size : px a side
    side : positions a side; they overlap where the image is small
    batch_size : crops a batch
    """

    def __init__(
        self,
        images: Sequence[ScaleImage],
        *,
        magnifications: Sequence[float] = SCALE_CLASSES,
        size: int = 96,
        side: int = 4,
        batch_size: int = 128,
    ) -> None:
        self.images = tuple(images)
        self.magnifications = tuple(magnifications)
        self.size = size
        self.side = side
        self.batch_size = batch_size
        self.crops, self.truth, self.image_of = self._cut()

    def _cut(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        crops, truth, image_of = [], [], []
        shares = np.linspace(0, 1, self.side) if self.side > 1 else np.array([0.5])
        for number, image in enumerate(self.images):
            for magnification in self.magnifications:
                if magnification > image.magnification * 1.05 or min(image.extent(magnification)) < self.size:
                    continue
                for y in shares:
                    for x in shares:
                        crops.append(read_crop(image, y, x, magnification=magnification, size=self.size))
                        truth.append(magnification)
                        image_of.append(number)
        if not crops:
            raise SpecError(f"ScaleLattice: no crop of {self.size} px fits any of {len(self.images)} images")
        return np.stack(crops), np.array(truth, np.float32), np.array(image_of, np.int64)

    def __len__(self) -> int:
        return -(-len(self.crops) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(0, len(self.crops), self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield _batch(torch.from_numpy(self.crops[rows]), self.truth[rows], self.image_of[rows])


def _batch(pixels: torch.Tensor, truth: NDArray[np.float32], image_of: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    return {
        "image": pixels.permute(0, 3, 1, 2).unsqueeze(1),
        "magnification": torch.from_numpy(truth).unsqueeze(1),
        "slide": torch.from_numpy(np.asarray(image_of, np.int64)),
    }
