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
from scipy.stats import kstest
from skimage import data
from skimage.color import hed2rgb, hed_from_rgb, rgb2hed

from msdask.data.augment import Augment, ScaleAugment, enlarge_center, turn
from msdask.data.stain import jitter_hed
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


@pytest.mark.parametrize("options", [{"blur": 1.5}, {"jpeg": (20, 60)}, {"stain": "hed"}, {"stain": "he"}])
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


# --- scale ------------------------------------------------------------------------------------------------------------


def test_the_specifications_case() -> None:
    assert ScaleAugment.crop_size(224, 10, 12) == pytest.approx(186.67, abs=0.01)


def test_the_new_magnification_is_drawn_up_to_the_next_higher_one() -> None:
    scale = ScaleAugment([5, 10, 15], p=1.0)
    drawn = np.array([scale.draw(np.array([10.0]), seed)[0] for seed in range(2000)])
    assert kstest((drawn - 10) / 5, "uniform").pvalue > 1e-3
    assert scale.draw(np.array([15.0]), 0)[0] == 15
    assert (np.array([scale.draw(np.array([9.6]), seed)[0] for seed in range(200)]) > 10).any()  # a nominal 10x
    assert scale.draw(np.array([4.0]), 0)[0] == 4


def test_half_of_the_patches_change_their_scale() -> None:
    scale = ScaleAugment([5, 10])
    changed = np.mean([scale.draw(np.array([5.0]), seed)[0] != 5 for seed in range(2000)])
    assert 0.46 < changed < 0.54


def naive_enlarged(image: np.ndarray, share: float) -> np.ndarray:
    """Bilinear values at the center of each px of the result, by the definition."""
    size = len(image)
    edge = (size - size * share) / 2
    out = np.zeros(image.shape)
    for i, j in product(range(size), repeat=2):
        y, x = (edge + (k + 0.5) * share - 0.5 for k in (i, j))
        top, left = int(np.floor(y)), int(np.floor(x))
        for r, c in product((0, 1), repeat=2):
            weight = (1 - abs(y - top - r)) * (1 - abs(x - left - c))
            out[i, j] += weight * image[np.clip(top + r, 0, size - 1), np.clip(left + c, 0, size - 1)]
    return out


@pytest.mark.parametrize("share", [10 / 12, 2 / 3, 0.5, 0.987, 1.0])
def test_enlarging_equals_the_naive_way(share: float) -> None:
    image = tissue(1, size=32)[0, 0]
    error = np.abs(enlarge_center(image, share).astype(float) - naive_enlarged(image, share))
    assert error.max() <= 4  # positions are rounded to 1/32 px
    assert error.mean() < 0.6


def test_a_disc_grows_as_its_label_says() -> None:
    size, y = 224, np.mgrid[:224, :224] - 111.5
    disc = np.where(np.hypot(*y) < 50, 0, 255).astype(np.uint8)
    batch = batch_of(np.broadcast_to(disc[None, None, :, :, None], (20, 1, size, size, 3)).copy())
    out = ScaleAugment([10, 15], p=1.0)(batch)
    radius = np.sqrt((255 - pixels_of(out)[:, 0, :, :, 0].astype(float)).sum(axis=(1, 2)) / 255 / np.pi)
    np.testing.assert_allclose(radius, 50 * out["magnification"][:, 0].numpy() / 10, rtol=0.01)


def test_label_maps_are_enlarged_without_new_values() -> None:
    maps = np.random.default_rng(0).choice(np.array([0, 1, 7], np.uint8), (10, 2, 32, 32))
    pixels = np.repeat(maps[..., None], 3, axis=-1)
    out = ScaleAugment([10, 40], p=1.0)(batch_of(pixels, label_map=maps))
    assert set(np.unique(out["label_map"].numpy())) == {0, 1, 7}
    assert (out["label_map"].numpy() != maps).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, "p=1.5"),
        ({"stain": "pas"}, "stain='pas'"),
        ({"blur": -1}, "blur=-1"),
        ({"blur": (0.5, 1)}, "blur=.*largest sigma"),
        ({"jpeg": True}, "jpeg=True: expected .lowest, highest. quality"),
        ({"jpeg": (90, 50)}, r"jpeg=\(90, 50\)"),
    ],
)
def test_augmentations_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Augment(**options)
    with pytest.raises(SpecError, match="at least two"):
        ScaleAugment([10])
    with pytest.raises(SpecError, match="p=2"):
        ScaleAugment([10, 20], p=2)
