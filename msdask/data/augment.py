"""Augmentation of batches: one draw for a whole tuple and its label maps, the same for any number of workers."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from msdask.data.stain import jitter_hed
from msdask.errors import SpecError

if TYPE_CHECKING:
    import albumentations

__all__ = ["Augment", "ScaleAugment"]

Batch = dict[str, torch.Tensor]

_SAME_SCALE = 1.06
"""Magnifications up to this factor apart are one nominal magnification: slides snap within 5 %."""

_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def _random(batch: Batch, i: int, stream: int) -> np.random.Generator:
    """What is random about patch `i`: from its draw's seed, or its index where the loader gave none."""
    seed = batch["seed"] if "seed" in batch else batch["index"]
    return np.random.default_rng([int(seed[i]), stream])


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
        self, magnifications: NDArray[np.floating[Any]], seed: int, *, finest: float = np.inf
    ) -> NDArray[np.float32]:
        """Other magnifications for the images of one patch.

        Parameters
        ----------
        magnifications : (images,), the true ones
        seed : of the draw
        finest : the highest that there is (of the slide)

        Returns
        -------
        drawn : (images,) float32
        """
        generator = np.random.default_rng([int(seed), 1])
        drawn = np.asarray(magnifications, np.float32).copy()
        for i, m in enumerate(drawn.tolist()):
            changes, u = generator.random() < self.p, generator.random()
            n = min((higher for higher in self.magnifications if higher > m * _SAME_SCALE), default=m)
            n = min(n, finest)
            if changes and n > m and m * _SAME_SCALE > self.magnifications[0]:
                drawn[i] = n * (m / n + u * (1 - m / n))
        return drawn

    def __call__(self, batch: Batch) -> Batch:
        """Enlarge the crops of a batch; gives a new one with new ``image``, ``magnification`` and ``label_map``."""
        pixels = _pixels(batch["image"])
        before = batch["magnification"].numpy()
        seeds = batch["seed"] if "seed" in batch else batch["index"]
        after = np.stack([self.draw(m, int(s)) for m, s in zip(before, seeds, strict=True)])
        images = pixels.copy()
        maps = batch["label_map"].numpy().copy() if "label_map" in batch else None
        for i, j in np.argwhere(after != before).tolist():
            share = float(before[i, j] / after[i, j])
            images[i, j] = enlarge_center(pixels[i, j], share)
            if maps is not None:
                maps[i, j] = enlarge_center(maps[i, j], share, interpolation=cv2.INTER_NEAREST)
        changed = {"image": _images(images), "magnification": torch.from_numpy(after)}
        return batch | changed | ({} if maps is None else {"label_map": torch.from_numpy(maps)})


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


def turn(image: NDArray[np.uint8], out: NDArray[np.uint8], vertical: bool, horizontal: bool, quarters: int) -> None:
    """Mirror an image, then turn it counterclockwise, into `out`.

    Parameters
    ----------
    image, out : (S, S[, 3]) uint8
    vertical, horizontal : swap top and bottom, left and right
    quarters : quarter turns, 0 to 3
    """
    if vertical and horizontal:  # half a turn
        vertical, horizontal, quarters = False, False, (quarters + 2) % 4
    if vertical or horizontal:
        if quarters == 0:
            cv2.flip(image, 0 if vertical else 1, dst=out)
            return
        image = cv2.flip(image, 0 if vertical else 1).astype(np.uint8, copy=False)
    if quarters == 0:
        out[...] = image
    else:
        cv2.rotate(image, _TURNS[quarters], dst=out)


class Augment:
    """Random changes of patches that leave their class alone; from batch to batch, on the CPU, uint8 in and out.

    All images of a tuple and its label maps get the same flips and turns, and the same colours: branches must not
    disagree about what they see. The draw depends on the batch's ``seed`` alone (which the loader makes from seed,
    epoch and position), so the result is the same for any number of workers. The defaults are the original's.

    Parameters
    ----------
    flips : mirror, vertically and horizontally
    rotate : turn by a multiple of 90 degrees
    hsv : ranges of hue (of 180), saturation and value shifts, or None
    stain : "hed": scale and shift hematoxylin, eosin and residual (see `hed`); "he": albumentations' HEStain; None
    hed : standard width of the factor around 1, and of the shift around 0, for "hed"
    blur : largest sigma of a Gaussian blur, px; 0 for none. With `jpeg`, hides how sharp a scanner is
    jpeg : (lowest, highest) quality to encode and decode with, or None
    scale : change the magnification too, see `ScaleAugment`
    p : probability of each of them

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    def __init__(
        self,
        *,
        flips: bool = True,
        rotate: bool = True,
        hsv: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = ((-15, 8), (-30, 20), (-15, 15)),
        stain: Literal["hed", "he"] | None = None,
        hed: tuple[float, float] = (0.2, 0.01),
        blur: float = 0.0,
        jpeg: tuple[int, int] | None = None,
        scale: ScaleAugment | None = None,
        p: float = 0.5,
    ) -> None:
        if not 0 <= p <= 1:
            raise SpecError(f"p={p!r}: expected a probability from 0 to 1")
        if stain not in (None, "hed", "he"):
            raise SpecError(f"stain={stain!r}: expected 'hed', 'he' or None")
        if isinstance(blur, bool) or not isinstance(blur, (int, float)):
            raise SpecError(f"blur={blur!r}: expected the largest sigma in px, a number such as 1.5")
        if jpeg is not None and not (isinstance(jpeg, (tuple, list)) and len(jpeg) == 2):
            raise SpecError(f"jpeg={jpeg!r}: expected (lowest, highest) quality, such as (40, 95), or None")
        if blur < 0 or min(hed) < 0:
            raise SpecError(f"blur={blur!r}, hed={hed!r}: expected numbers not below 0")
        if jpeg is not None and not 1 <= jpeg[0] <= jpeg[1] <= 100:
            raise SpecError(f"jpeg={jpeg!r}: expected (lowest, highest) quality within 1 to 100")
        self.flips, self.rotate, self.hsv, self.stain, self.hed = flips, rotate, hsv, stain, hed
        self.blur, self.jpeg, self.scale, self.p = blur, jpeg, scale, p
        self._threads = threading.local()

    def __call__(self, batch: Batch) -> Batch:
        """The batch with new ``image``, and ``label_map`` and ``magnification`` where they change."""
        if self.scale is not None:
            batch = self.scale(batch)
        pixels = _pixels(batch["image"])
        out = np.empty_like(pixels)
        maps = batch["label_map"].numpy() if "label_map" in batch else None
        maps_out = None if maps is None else np.empty_like(maps)
        for i in range(len(pixels)):
            generator = _random(batch, i, 0)
            way = self._draw_way(generator)
            images = self._change_pixels(pixels[i], generator)
            for j in range(len(images)):
                turn(images[j], out[i, j], *way)
                if maps is not None and maps_out is not None:
                    turn(maps[i, j], maps_out[i, j], *way)
        changed = {"image": _images(out)} | ({} if maps_out is None else {"label_map": torch.from_numpy(maps_out)})
        return batch | changed

    def _draw_way(self, generator: np.random.Generator) -> tuple[bool, bool, int]:
        """(mirrored vertically, mirrored horizontally, quarter turns) for a tuple."""
        vertical, horizontal, turned = (generator.random(3) < self.p).tolist()
        quarters = int(generator.integers(4))
        return self.flips and vertical, self.flips and horizontal, quarters if self.rotate and turned else 0

    def _change_pixels(self, images: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        """Colours and sharpness of a tuple, (M, S, S, 3)."""
        if self.stain == "hed" and generator.random() < self.p:
            scale = 1 + generator.uniform(-self.hed[0], self.hed[0], 3)
            images = jitter_hed(images, scale, generator.uniform(-self.hed[1], self.hed[1], 3))
        colours, sharpness = self._pipelines(generator)
        if colours is not None:
            # Colours change px by px: the tuple goes through as one tall image.
            tall = images.reshape(-1, *images.shape[-2:])
            images = colours(image=tall)["image"].reshape(images.shape)
        if sharpness is not None:
            images = sharpness(images=images)["images"]
        return images

    def _pipelines(self, generator: np.random.Generator) -> list[albumentations.Compose | None]:
        """Pipelines of the calling thread, their random state set anew: they keep state, so threads share none."""
        found: list[albumentations.Compose | None] | None = getattr(self._threads, "pipelines", None)
        if found is None:
            found = self._threads.pipelines = self._make()
        state = random.Random(int(generator.integers(2**63))) if any(found) else None
        for pipeline in found:
            if pipeline is not None:
                # Not set_random_seed: it gives every transform the same stream, so that they all act or none does.
                pipeline.set_random_state(generator, state)
        return found

    def _make(self) -> list[albumentations.Compose | None]:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask a server for newer versions
        import albumentations as A

        p = self.p
        colours: list[Any] = []
        sharpness: list[Any] = []
        if self.stain == "he":
            colours.append(A.HEStain(method="random_preset", intensity_scale_range=(0.7, 1.3), p=p))
        if self.hsv is not None:
            hue, saturation, value = self.hsv
            colours.append(
                A.HueSaturationValue(hue_shift_limit=hue, sat_shift_limit=saturation, val_shift_limit=value, p=p)
            )
        if self.blur:
            sharpness.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, max(0.1, self.blur)), p=p))
        if self.jpeg is not None:
            sharpness.append(A.ImageCompression(quality_range=self.jpeg, p=p))
        return [A.Compose(steps) if steps else None for steps in (colours, sharpness)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._threads = threading.local()

    def __repr__(self) -> str:
        names = ("flips", "rotate", "hsv", "stain", "blur", "jpeg", "p")
        return f"Augment({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def _pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """(B, M, 3, S, S) tensor -> (B, M, S, S, 3) array; a view of what `PatchDataset` gives."""
    return np.ascontiguousarray(images.movedim(-3, -1).numpy())


def _images(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).movedim(-1, -3)
