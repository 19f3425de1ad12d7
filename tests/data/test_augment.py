"""Augmentation: one draw for a tuple, labels that follow, the same result wherever it runs."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_laplace
from skimage import data
from skimage.color import hed2rgb, hed_from_rgb, rgb2hed

from msdask.data.augment import Augment, turn
from msdask.data.scales import ScaleAugment
from msdask.data.stain import jitter_hed, jitter_rgb
from msdask.errors import SpecError

NOTHING: dict[str, Any] = {"flips": False, "rotate": False, "hsv": None}


def tissue(count: int, magnifications: int = 1, size: int = 48) -> np.ndarray:
    image = data.immunohistochemistry()
    corners = np.random.default_rng(0).integers(0, 512 - size, (count * magnifications, 2))
    crops = [image[y : y + size, x : x + size] for y, x in corners]
    return np.stack(crops).reshape(count, magnifications, size, size, 3)


def batch_of(pixels: np.ndarray, magnification: float = 10.0, **more: np.ndarray) -> dict[str, torch.Tensor]:
    count, images = pixels.shape[:2]
    columns: dict[str, np.ndarray] = {
        "magnification": np.full((count, images), magnification, np.float32),
        "label": np.arange(count) % 3,
        "index": np.arange(count),
        "seed": np.arange(count) + 1000,
        **more,
    }
    return {"image": torch.from_numpy(pixels).movedim(-1, -3)} | {k: torch.from_numpy(v) for k, v in columns.items()}


def pixels_of(batch: dict[str, torch.Tensor]) -> np.ndarray:
    return batch["image"].movedim(-3, -1).numpy()


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vertical", "horizontal", "quarters"), list(product([False, True], [False, True], range(4))))
def test_turns_equal_numpys(vertical: bool, horizontal: bool, quarters: int) -> None:
    image = tissue(1)[0, 0]
    for values in (image, np.ascontiguousarray(image[..., 0])):
        expected = values[::-1] if vertical else values
        expected = expected[:, ::-1] if horizontal else expected
        out = np.zeros_like(values)
        turn(values, out, vertical, horizontal, quarters)
        np.testing.assert_array_equal(out, np.rot90(expected, quarters))


def test_a_tuple_and_its_label_maps_are_turned_alike() -> None:
    count, size = 64, 16
    maps = np.random.default_rng(1).integers(0, 5, (count, 3, size, size), dtype=np.uint8)
    pixels = np.repeat(maps[..., None], 3, axis=-1) * 40
    batch = Augment(hsv=None)(batch_of(pixels, label_map=maps))
    turned = pixels_of(batch)
    np.testing.assert_array_equal(turned[..., 0], batch["label_map"].numpy() * 40)
    ways = [(v, h, k) for v, h, k in product([False, True], [False, True], range(4))]
    seen = set()
    for i in range(count):
        fitting = [
            way for way in ways if all((_turned(maps[i, j], *way) * 40 == turned[i, j, ..., 0]).all() for j in range(3))
        ]
        assert fitting
        seen.add(fitting[0])
    assert len(seen) == 8  # all orientations of a square


def _turned(image: np.ndarray, vertical: bool, horizontal: bool, quarters: int) -> np.ndarray:
    flipped = image[::-1] if vertical else image
    return np.rot90(flipped[:, ::-1] if horizontal else flipped, quarters)


def test_flips_are_drawn_independently() -> None:
    mark = np.zeros((4000, 1, 2, 2, 3), np.uint8)
    mark[:, :, 0, 0] = 255
    out = pixels_of(Augment(rotate=False, hsv=None)(batch_of(mark)))[:, 0, :, :, 0] > 0
    shares = out.mean(axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


# --- colour -----------------------------------------------------------------------------------------------------------


def test_a_tuple_gets_one_colour_change() -> None:
    one = tissue(12)
    out = pixels_of(Augment(flips=False, rotate=False, stain="hed", hed=(0.3, 0.02))(batch_of(one.repeat(3, axis=1))))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    np.testing.assert_array_equal(out[:, 0], out[:, 2])
    assert (out[:, :1] != one).any(axis=(1, 2, 3, 4)).sum() > 0


def test_hue_saturation_and_value_move_within_the_originals_ranges() -> None:
    import cv2

    colour = np.full((400, 1, 4, 4, 3), (200, 100, 150), np.uint8)
    out = pixels_of(Augment(flips=False, rotate=False)(batch_of(colour)))[:, 0, 0, 0]
    before = cv2.cvtColor(colour[0, 0, :1, :1], cv2.COLOR_RGB2HSV)[0, 0].astype(int)
    after = cv2.cvtColor(out[None], cv2.COLOR_RGB2HSV)[0].astype(int)
    shift = after - before
    assert 0.4 < (shift == 0).all(axis=1).mean() < 0.6
    for channel, (low, high) in enumerate([(-15, 8), (-30, 20), (-15, 15)]):
        assert shift[:, channel].min() >= low - 2
        assert shift[:, channel].max() <= high + 2
        assert shift[:, channel].min() < low / 2
        assert shift[:, channel].max() > high / 2


def test_hed_jitter_equals_scikit_images_way_there_and_back() -> None:
    image = tissue(1, size=64)[0, 0]
    scale, shift = np.array([1.2, 0.9, 1.0]), np.array([0.01, -0.005, 0.0])
    logs = np.log(np.maximum(image / 255, 1e-6)) / np.log(1e-6)
    stains = logs @ hed_from_rgb  # as rgb2hed, which then cuts off what is below 0
    np.testing.assert_allclose(np.maximum(stains, 0), rgb2hed(image), atol=1e-9)
    expected = np.clip(hed2rgb(stains * scale + shift) * 255, 0, 255)
    assert np.abs(jitter_hed(image, scale, shift).astype(float) - expected).max() < 0.51 + 0.01


def test_hed_jitter_of_nothing_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(jitter_hed(image, np.ones(3), np.zeros(3)), image)


@pytest.mark.parametrize("saturation", [0.0, 0.7])
def test_saturation_contrast_and_brightness_equal_their_definitions(saturation: float) -> None:
    image = tissue(1, size=64)[0, 0]
    x = image / 255
    gray = x.mean(axis=-1, keepdims=True)
    expected = ((gray + (x - gray) * saturation) - 0.7) * 1.15 + 0.7 - 0.05
    found = jitter_rgb(image, saturation=saturation, contrast=1.15, brightness=-0.05)
    assert np.abs(found - np.clip(expected, 0, 1) * 255).max() < 1  # in fixed-point numbers
    np.testing.assert_array_equal(jitter_rgb(image), image)


@pytest.mark.parametrize(
    "options",
    [
        {"blur": 1.5},
        {"jpeg": (20, 60)},
        {"stain": "hed"},
        {"stain": "he"},
        {"saturation": (0.0, 0.5)},
        {"contrast": 0.3},
        {"brightness": 0.2},
        {"noise": 0.1},
        {"sharpen": 2.0},
    ],
)
def test_each_change_is_made_to_its_share_of_patches(options: dict[str, Any]) -> None:
    before = tissue(60)
    after = pixels_of(Augment(**NOTHING, **options)(batch_of(before)))
    changed = (after != before).any(axis=(1, 2, 3, 4)).mean()
    assert 0.2 < changed < 0.8
    np.testing.assert_array_equal(pixels_of(Augment(**NOTHING, **options, p=0)(batch_of(before))), before)


def test_blur_takes_sharpness_away() -> None:
    before = tissue(30)
    after = pixels_of(Augment(**NOTHING, blur=2.0, p=1)(batch_of(before)))

    def sharpness(images: np.ndarray) -> np.ndarray:
        return np.array([gaussian_laplace(i[0].mean(axis=-1), 1).std() for i in images])

    assert (sharpness(after) < sharpness(before)).mean() > 0.9


def test_sharpening_gives_sharpness() -> None:
    before = tissue(30)
    after = pixels_of(Augment(**NOTHING, sharpen=2.0, p=1)(batch_of(before)))
    contrasts = [np.array([gaussian_laplace(i[0].mean(axis=-1), 1).std() for i in x]) for x in (before, after)]
    assert (contrasts[1] > contrasts[0]).mean() > 0.9


def test_shares_by_name_leave_the_other_changes_at_a_half() -> None:
    before = tissue(200, size=16)
    alone = pixels_of(Augment(**NOTHING, contrast=0.3, brightness=0.2, p={"contrast": 0.1})(batch_of(before)))
    assert 0.02 < (alone != before).any(axis=(1, 2, 3, 4)).mean() < 0.2
    both = pixels_of(Augment(**NOTHING, contrast=0.3, brightness=0.2, p={"blur": 0.1})(batch_of(before)))
    assert 0.35 < (both != before).any(axis=(1, 2, 3, 4)).mean() < 0.65


def test_what_one_change_draws_does_not_depend_on_whether_the_others_are_on() -> None:
    batch = batch_of(tissue(40))
    plain = pixels_of(Augment(hsv=None)(batch))
    with_blur = pixels_of(Augment(hsv=None, blur=2.0, p={"blur": 0.0})(batch))
    np.testing.assert_array_equal(plain, with_blur)


def test_strong_changes_colour_far_and_geometry_not() -> None:
    image = np.full((1, 1, 64, 64, 3), (235, 215, 230), np.uint8)
    image[..., 16:40, 16:40, :] = (110, 70, 150)
    augment = Augment.strong()
    augment.flips = augment.rotate = False
    augment.blur = augment.sharpen = 0.0
    augment.jpeg = None
    out = pixels_of(augment(batch_of(image.repeat(20, axis=0))))[:, 0].astype(int)
    assert np.ptp(out.mean((1, 2)), axis=0).min() > 20
    for part in (out[:, 16:40, 16:40], out[:, :16]):
        assert np.ptp(part, axis=(1, 2)).max() == 0


# --- the same wherever it runs ----------------------------------------------------------------------------------------


def test_the_result_depends_on_the_seeds_alone() -> None:
    augment = Augment(stain="hed", blur=1.0, jpeg=(50, 90), scale=ScaleAugment([10, 15]))
    batch = batch_of(tissue(24, 2))
    first = augment(batch)
    backwards = {k: v[torch.arange(23, -1, -1)] for k, v in batch.items()}
    with ThreadPoolExecutor(4) as pool:
        others = [*pool.map(augment, [batch] * 8), pickle.loads(pickle.dumps(augment))(batch)]
    for other in [*others, {k: v.flip(0) for k, v in augment(backwards).items()}]:
        assert torch.equal(first["image"], other["image"])
        assert torch.equal(first["magnification"], other["magnification"])
    moved = augment({**batch, "seed": batch["seed"] + 1})
    assert not torch.equal(first["image"], moved["image"])


def test_the_given_batch_is_left_alone() -> None:
    batch = batch_of(tissue(8))
    copy = {k: v.clone() for k, v in batch.items()}
    Augment(scale=ScaleAugment([10, 15], p=1.0))(batch)
    assert all(torch.equal(batch[k], copy[k]) for k in batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, "p=1.5"),
        ({"stain": "pas"}, "stain='pas'"),
        ({"blur": -1}, "blur=-1"),
        ({"blur": (0.5, 1)}, "blur=.*largest sigma"),
        ({"jpeg": True}, "jpeg=True: expected .lowest, highest. quality"),
        ({"jpeg": (90, 50)}, r"jpeg=\(90, 50\)"),
        ({"p": {"colour": 0.5}}, "no change is named colour; expected flips"),
        ({"p": {"blur": 2}}, "expected shares from 0 to 1"),
        ({"sharpen": -0.1}, "sharpen=-0.1"),
        ({"saturation": (2, 1)}, r"saturation=\(2, 1\)"),
        ({"hed": (-1, 0)}, r"hed=\(-1, 0\)"),
    ],
)
def test_augmentations_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Augment(**options)
