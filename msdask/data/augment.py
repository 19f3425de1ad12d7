"""Augmentation of batches: one draw for a whole tuple and its label maps, the same for any number of workers."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from msdask.data.draws import DRAW, as_tensor, noise_field, noise_table
from msdask.data.scales import Batch, ScaleAugment
from msdask.data.stain import jitter_hed, jitter_rgb
from msdask.errors import SpecError

__all__ = ["Augment", "turn"]

Ranges = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_CHANGES = ("flips", "rotate", "hsv", "stain", "saturation", "contrast", "noise", "blur", "sharpen", "jpeg")
"""What happens to a share of the patches each; in the order of their draws, which is never changed."""


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


_NO_STAIN = [[0.0] * 3] * 2
_NO_TONE = (0.0, 0.0, 0.0)
_NO_SHIFT = [0.0] * 3


class Augment:
    """Random changes of patches that leave their class alone; from batch to batch, on the CPU, uint8 in and out.

    All images of a tuple and its label maps get the same flips and turns, and the same colours: branches must not
    disagree about what they see. The draw depends on the batch's ``seed`` alone (which the loader makes from seed,
    epoch and position), so the result is the same for any number of workers. The defaults are the original's;
    `Augment.strong` is for few images.

    Parameters
    ----------
    flips : mirror, vertically and horizontally
    rotate : turn by a multiple of 90 degrees
    hsv : ranges of hue (of 180), saturation and value shifts, or None
    stain : "hed": scale and shift hematoxylin, eosin and residual (see `hed`); "he": albumentations' HEStain; None
    hed : largest change of the factor around 1, and of the shift around 0, for "hed"
    saturation : (lowest, highest) factor of the saturation, or None
    contrast, brightness : largest change of the factor around 1, and of the value as a share of white; 0 for none
    noise : largest standard deviation, as a share of white; 0 for none
    blur : largest sigma of a Gaussian blur, px; 0 for none. With `jpeg`, hides how sharp a scanner is
    sharpen : largest gain of what a blur takes away; 0 for none
    jpeg : (lowest, highest) quality to encode and decode with, or None
    scale : change the magnification too, see `ScaleAugment`
    p : share of the patches that each change is made to; or shares by name (flips, rotate, hsv, stain, saturation,
        contrast for contrast and brightness, noise, blur, sharpen, jpeg), 0.5 where a name is not given

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
        hsv: Ranges | None = ((-15, 8), (-30, 20), (-15, 15)),
        stain: Literal["hed", "he"] | None = None,
        hed: tuple[float, float] = (0.2, 0.01),
        saturation: tuple[float, float] | None = None,
        contrast: float = 0.0,
        brightness: float = 0.0,
        noise: float = 0.0,
        blur: float = 0.0,
        sharpen: float = 0.0,
        jpeg: tuple[int, int] | None = None,
        scale: ScaleAugment | None = None,
        p: float | Mapping[str, float] = 0.5,
    ) -> None:
        shares = dict(p) if isinstance(p, Mapping) else dict.fromkeys(_CHANGES, p)
        if unknown := sorted(set(shares) - set(_CHANGES)):
            raise SpecError(f"p={p!r}: no change is named {', '.join(unknown)}; expected {', '.join(_CHANGES)}")
        if not all(0 <= share <= 1 for share in shares.values()):
            raise SpecError(f"p={p!r}: expected shares from 0 to 1")
        if stain not in (None, "hed", "he"):
            raise SpecError(f"stain={stain!r}: expected 'hed', 'he' or None")
        for name, value, unit in (
            ("blur", blur, "the largest sigma in px, such as 1.5"),
            ("sharpen", sharpen, "the largest gain, such as 1.2"),
            ("contrast", contrast, "the largest change, such as 0.2"),
            ("brightness", brightness, "the largest change, such as 0.1"),
            ("noise", noise, "the largest standard deviation, such as 0.03"),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise SpecError(f"{name}={value!r}: expected {unit}, not below 0")
        if min(hed) < 0:
            raise SpecError(f"hed={hed!r}: expected numbers not below 0")
        if saturation is not None and not (len(saturation) == 2 and 0 <= saturation[0] <= saturation[1]):
            raise SpecError(f"saturation={saturation!r}: expected (lowest, highest) factor, not below 0, or None")
        if jpeg is not None and not (
            isinstance(jpeg, (tuple, list)) and len(jpeg) == 2 and 1 <= jpeg[0] <= jpeg[1] <= 100
        ):
            raise SpecError(f"jpeg={jpeg!r}: expected (lowest, highest) quality within 1 to 100, or None")
        self.flips, self.rotate, self.hsv, self.stain, self.hed = flips, rotate, hsv, stain, hed
        self.saturation, self.contrast, self.brightness, self.noise = saturation, contrast, brightness, noise
        self.blur, self.sharpen, self.jpeg, self.scale, self.p = blur, sharpen, jpeg, scale, p
        self._shares = np.array([shares.get(name, 0.5) for name in _CHANGES])
        self._threads = threading.local()

    @classmethod
    def strong(cls, *, scale: ScaleAugment | None = None) -> Augment:
        """For few images, as the released scale detectors had: colours change much, sharpness rarely.

        How sharp tissue is at 40x is optics, and says something of the scale; a model that rests on it would fail on
        another scanner, so a fifth of the patches lose it.
        """
        return cls(
            hsv=None,
            stain="hed",
            hed=(0.35, 0.0043),
            saturation=(0.0, 1.2),
            contrast=0.2,
            brightness=0.1,
            blur=1.1,
            sharpen=1.2,
            jpeg=(30, 95),
            scale=scale,
            p={"stain": 1.0, "contrast": 1.0, "blur": 0.13, "sharpen": 0.07, "jpeg": 0.2},
        )

    @classmethod
    def named(cls, name: str) -> Augment | None:
        """By the names that command line and experiments know.

        Parameters
        ----------
        name : "original" (the default), "strong" or "none"; for segmentation "hed" (flips, turns and stain) and
            "spatial" (flips and turns)
        """
        if name in ("hed", "spatial"):
            return cls(hsv=None, stain="hed" if name == "hed" else None)
        return {"original": cls(), "strong": cls.strong(), "none": None}[name]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with new ``image``, and ``label_map`` and ``magnification`` where they change."""
        if self.scale is not None:
            batch = self.scale(batch)
        draws, seeds = self._draw(batch)
        return self._apply(batch, draws, seeds, np.arange(len(draws)))

    def begin(self, batch: Batch) -> Batch:
        """The part of a change that is made here where a device makes the rest of it, see `msdask.data.device`.

        Scales are changed, every patch is drawn for, and the patches whose draw has something that only the CPU can do
        (JPEG, HEStain) are changed entirely. What is left to do is the batch's column ``draw``.
        """
        if self.scale is not None:
            batch = self.scale(batch)
        draws, seeds = self._draw(batch)
        own = np.flatnonzero((draws["jpeg"] > 0) | (draws["stains"] & (self.stain == "he")))
        if own.size:
            batch = self._apply(batch, draws, seeds, own)
            draws[own] = np.zeros((), DRAW)
        return batch | {"draw": as_tensor(draws)}

    def _draw(self, batch: Batch) -> tuple[NDArray[Any], list[int]]:
        """What is drawn for each patch, and the seeds."""
        seeds = (batch["seed"] if "seed" in batch else batch["index"]).tolist()
        return np.array([self._draw_one(np.random.default_rng([seed, 0])) for seed in seeds], DRAW), seeds

    def _draw_one(self, generator: np.random.Generator) -> tuple[Any, ...]:
        """A draw, field by field. The order of what is taken from the generator is never changed."""
        uniform = generator.uniform
        vertical, horizontal = (generator.random(2) < self._shares[0]).tolist()
        quarters = int(generator.integers(4))
        does = dict(zip(_CHANGES, (generator.random(len(_CHANGES)) < self._shares).tolist(), strict=True))
        stains, stain = self.stain is not None and does["stain"], _NO_STAIN
        if stains and self.stain == "hed":
            (factor, term) = self.hed
            stain = [[1 + x for x in uniform(-factor, factor, 3).tolist()], uniform(-term, term, 3).tolist()]
        saturates = self.saturation is not None and does["saturation"]
        contrasts = (self.contrast > 0 or self.brightness > 0) and does["contrast"]
        tone = _NO_TONE
        if saturates or contrasts:
            saturation = uniform(*self.saturation) if saturates and self.saturation is not None else 1.0
            contrast = 1 + uniform(-self.contrast, self.contrast) if contrasts else 1.0
            tone = (saturation, contrast, uniform(-self.brightness, self.brightness) if contrasts else 0.0)
        shifts = self.hsv is not None and does["hsv"]
        hsv = [uniform(*limits) for limits in self.hsv] if shifts and self.hsv is not None else _NO_SHIFT
        noise, place = 0.0, 0
        if self.noise > 0 and does["noise"]:
            noise, place = 255 * uniform(0, self.noise), int(generator.integers(len(noise_table())))
        blur = uniform(min(0.1, self.blur), self.blur) if self.blur > 0 and does["blur"] else 0.0
        sharpen = (0.0, 0.0)
        if self.sharpen > 0 and does["sharpen"]:
            sharpen = (uniform(0.6, 1.2), uniform(0, self.sharpen))
        quality, halves_colour = 0, False
        if self.jpeg is not None and does["jpeg"]:
            quality = int(generator.integers(self.jpeg[0], self.jpeg[1] + 1))
            halves_colour = bool(generator.random() < 0.5)
        return (
            *(self.flips and vertical, self.flips and horizontal, quarters if self.rotate and does["rotate"] else 0),
            *(stains, stain, saturates or contrasts, tone, shifts, hsv, noise, place, blur, sharpen),
            *(quality, halves_colour),
        )

    def _apply(self, batch: Batch, draws: NDArray[Any], seeds: list[int], places: NDArray[np.intp]) -> Batch:
        """The batch with its patches at some places changed."""
        pixels = np.ascontiguousarray(batch["image"].movedim(-3, -1).numpy())
        maps = batch["label_map"].numpy() if "label_map" in batch else None
        # Where some patches are left as they are, they must be there already.
        make = np.empty_like if len(places) == len(draws) else np.array
        out, maps_out = make(pixels), None if maps is None else make(maps)
        for i in places.tolist():
            draw = draws[i]
            way = (bool(draw["vertical"]), bool(draw["horizontal"]), int(draw["quarters"]))
            images = self._sharpness(self._colours(pixels[i], draw, seeds[i]), draw)
            for j in range(len(images)):
                turn(images[j], out[i, j], *way)
                if maps is not None and maps_out is not None:
                    turn(maps[i, j], maps_out[i, j], *way)
        changed = {"image": torch.from_numpy(out).movedim(-1, -3)}
        return batch | changed | ({} if maps_out is None else {"label_map": torch.from_numpy(maps_out)})

    def _colours(self, images: NDArray[np.uint8], draw: Any, seed: int) -> NDArray[np.uint8]:
        """What changes px by px, for a tuple (M, S, S, 3)."""
        if draw["stains"]:
            images = self._he_stain(images, seed) if self.stain == "he" else jitter_hed(images, *draw["stain"])
        if draw["tones"]:
            saturation, contrast, brightness = draw["tone"].tolist()
            images = jitter_rgb(images, saturation=saturation, contrast=contrast, brightness=brightness)
        if draw["shifts"]:
            images = _shift_hsv(images, draw["hsv"].tolist())
        if draw["noise"] > 0:
            field = noise_field(int(draw["noise_place"]), images.size).reshape(images.shape)
            images = np.clip(np.rint(images + np.float32(draw["noise"]) * field), 0, 255).astype(np.uint8)
        return images

    @staticmethod
    def _sharpness(images: NDArray[np.uint8], draw: Any) -> NDArray[np.uint8]:
        """What changes px by their neighbours, for a tuple (M, S, S, 3)."""
        if (sigma := float(draw["blur"])) > 0:
            images = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images]).astype(np.uint8, copy=False)
        sigma, gain = draw["sharpen"].tolist()
        if sigma > 0:
            soft = [cv2.GaussianBlur(image, (0, 0), sigma) for image in images]
            images = np.stack([cv2.addWeighted(a, 1 + gain, b, -gain, 0) for a, b in zip(images, soft, strict=True)])
        if (quality := int(draw["jpeg"])) > 0:
            colours = "420" if draw["halves_colour"] else "444"
            encoded = [
                simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling=colours)
                for image in images
            ]
            images = np.stack([simplejpeg.decode_jpeg(data) for data in encoded])
        return images

    def _he_stain(self, images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Albumentations' HEStain. It keeps random state, so every thread has one of its own."""
        stain = getattr(self._threads, "stain", None)
        if stain is None:
            os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask a server for newer versions
            import albumentations as A

            stain = A.HEStain(method="random_preset", intensity_scale_range=(0.7, 1.3), p=1.0)
            self._threads.stain = stain
        generator = np.random.default_rng([seed, 3])
        stain.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        changed = stain(image=images.reshape(-1, *images.shape[-2:]))["image"]
        return np.asarray(changed, np.uint8).reshape(images.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._threads = threading.local()

    def __repr__(self) -> str:
        said = {name: getattr(self, name) for name in (*_CHANGES, "hed", "brightness", "p")}
        return f"Augment({', '.join(f'{name}={value!r}' for name, value in said.items())})"


def _shift_hsv(images: NDArray[np.uint8], shifts: list[float]) -> NDArray[np.uint8]:
    """Move hue (of 180, round the circle), saturation and value, for images (M, S, S, 3)."""
    values = np.arange(256, dtype=np.float64)
    hue, saturation, value = shifts
    moved = (np.mod(values + hue, 180), np.clip(values + saturation, 0, 255), np.clip(values + value, 0, 255))
    table = np.stack(moved, axis=-1).astype(np.uint8)[:, None]
    hsv = cv2.cvtColor(images.reshape(-1, *images.shape[-2:]), cv2.COLOR_RGB2HSV)
    changed = cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)
    return np.asarray(changed, np.uint8).reshape(images.shape)
