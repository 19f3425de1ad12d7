"""Augmentation of whole batches on a device: what the CPU makes of the same draws, patch by patch."""

from __future__ import annotations

from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from msdask.data import Augment, ScaleAugment
from msdask.data.device import finish
from msdask.data.draws import DRAW, as_draws, as_tensor, blur_kernel, noise_field, noise_table
from msdask.data.feed import Feed

ONE: dict[str, Any] = {"flips": False, "rotate": False, "hsv": None, "p": 1}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def batch_of(count: int = 24, images: int = 2, size: int = 64) -> dict[str, torch.Tensor]:
    """Tissue, and every fourth image noise of all colours, with label maps."""
    tissue, anything = (
        data.immunohistochemistry(),
        np.random.default_rng(3).integers(0, 256, (512, 512, 3), dtype=np.uint8),
    )
    corners = np.random.default_rng(0).integers(0, 512 - size, (count * images, 2)).tolist()
    crops = [(anything if i % 4 == 0 else tissue)[y : y + size, x : x + size] for i, (y, x) in enumerate(corners)]
    pixels = np.stack(crops).reshape(count, images, size, size, 3)
    return {
        "image": torch.from_numpy(pixels).movedim(-1, -3),
        "label_map": torch.from_numpy(pixels[..., 0] % 7),
        "magnification": torch.full((count, images), 10.0),
        "seed": torch.arange(count) + 1000,
    }


def on_device(augment: Augment, batch: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    feed = Feed(device)
    return {name: values.cpu() for name, values in feed.ready(feed.send(augment.begin(batch))).items()}


def differences(augment: Augment, device: str, **size: int) -> torch.Tensor:
    """Of each px from the CPU's; all else has to be equal."""
    batch = batch_of(**size)
    expected, found = augment(batch), on_device(augment, batch, device)
    assert expected.keys() == found.keys()
    for name in expected.keys() - {"image"}:
        assert torch.equal(expected[name], found[name]), name
    assert found["image"].movedim(-3, -1).is_contiguous()
    return (expected["image"].int() - found["image"].int()).abs()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [64, 37])
@pytest.mark.parametrize(
    ("options", "most", "share"),
    [
        ({"flips": True, "rotate": True, "p": 0.5}, 0, 0),
        ({"scale": ScaleAugment([10, 15])}, 0, 0),
        ({"saturation": (0.0, 2.0), "contrast": 0.5, "brightness": 0.3}, 1, 1e-4),
        ({"contrast": 0.2, "brightness": 0.1}, 1, 1e-4),
        ({"stain": "hed"}, 1, 1e-3),
        ({"stain": "hed", "hed": (0.5, 0.05)}, 1, 1e-3),
        # OpenCV itself cuts fractions off in one part of a row and rounds them in the rest of it.
        ({"hsv": ((-15, 8), (-30, 20), (-15, 15))}, 1, 0.1),
        ({"hsv": ((-200, 200), (-90, 90), (-90, 90))}, 1, 0.1),
        ({"noise": 0.05}, 1, 1e-4),
        ({"blur": 3.0}, 0, 0),
        ({"sharpen": 2.0}, 1, 1e-4),
        ({"jpeg": (30, 95)}, 0, 0),
        ({"stain": "he"}, 0, 0),
    ],
)
def test_a_change_differs_from_the_cpus_by_1_at_most(
    options: dict[str, Any], most: int, share: float, size: int, device: str
) -> None:
    difference = differences(Augment(**{**ONE, **options}), device, size=size)
    assert difference.max() <= most
    assert (difference > 0).float().mean() <= share


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("augment", "most", "share"),
    [(Augment(), 1, 0), (Augment.strong(), 3, 1e-4), (Augment.strong(scale=ScaleAugment([10, 15])), 3, 1e-4)],
)
def test_changes_in_a_row_differ_from_the_cpus_where_a_later_one_makes_more_of_a_1(
    augment: Augment, most: int, share: float, device: str
) -> None:
    difference = differences(augment, device, count=96, size=96)
    assert difference.max() <= most
    assert (difference > 1).float().mean() <= share


def test_a_blur_wider_than_the_image_is_mirrored_as_often_as_the_cpus() -> None:
    assert differences(Augment(**ONE, blur=4.0), "cpu", size=7).max() == 0


def test_every_orientation_is_the_cpus() -> None:
    ways = list(product([False, True], [False, True], range(4)))
    batch = batch_of(len(ways))
    draws = np.zeros(len(ways), DRAW)
    draws["vertical"], draws["horizontal"], draws["quarters"] = zip(*ways, strict=True)
    found = finish(batch, as_tensor(draws))
    for i, (vertical, horizontal, quarters) in enumerate(ways):
        for name in ("image", "label_map"):
            expected = batch[name][i].numpy()
            expected = expected[..., ::-1, :] if vertical else expected
            expected = expected[..., ::-1] if horizontal else expected
            np.testing.assert_array_equal(found[name][i].numpy(), np.rot90(expected, quarters, (-2, -1)))


def test_a_tuple_shares_a_draw() -> None:
    batch = batch_of()
    batch["image"] = batch["image"][:, :1].expand(-1, 3, -1, -1, -1)
    del batch["label_map"]
    found = on_device(Augment(stain="hed", noise=0.0, blur=1.0), batch, "cpu")["image"]
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert not torch.equal(found, batch["image"])


def test_the_result_depends_on_the_seeds_alone() -> None:
    augment, batch = Augment(stain="hed", noise=0.02, blur=1.0, sharpen=1.0), batch_of()
    whole = on_device(augment, batch, "cpu")
    backwards = on_device(augment, {name: values.flip(0) for name, values in batch.items()}, "cpu")
    for name, values in whole.items():
        assert torch.equal(values, backwards[name].flip(0)), name
    part = on_device(augment, {name: values[7:9] for name, values in batch.items()}, "cpu")
    assert torch.equal(whole["image"][7:9], part["image"])


def test_the_given_batch_is_left_alone() -> None:
    batch = batch_of()
    copy = {name: values.clone() for name, values in batch.items()}
    on_device(Augment.strong(), batch, "cpu")
    assert all(torch.equal(batch[name], copy[name]) for name in batch)


def test_patches_that_only_the_cpu_can_change_are_changed_before() -> None:
    batch = batch_of()
    augment = Augment(jpeg=(30, 95), p={"jpeg": 0.3})
    begun = augment.begin(batch)
    done = (begun["image"] != batch["image"]).any(dim=4).any(dim=3).any(dim=2).any(dim=1)
    assert 0.1 < done.float().mean() < 0.5
    left = as_draws(begun["draw"])
    assert not left[done.numpy()].view(np.uint8).any()
    assert torch.equal(begun["image"][done], augment(batch)["image"][done])


def test_draws_travel_as_a_column() -> None:
    draws = np.zeros(5, DRAW)
    draws["hsv"], draws["jpeg"] = np.arange(15).reshape(5, 3), np.arange(5)
    np.testing.assert_array_equal(as_draws(torch.from_numpy(as_tensor(draws).numpy().copy())), draws)


def test_blur_kernels_are_opencvs() -> None:
    rng = np.random.default_rng(0)
    for sigma in rng.uniform(0.1, 4.0, 200).tolist():
        kernel = blur_kernel(sigma)
        assert kernel.sum() == 256
        step = np.zeros((1, 101), np.uint8)
        step[:, 50:] = 255
        blurred = cv2.GaussianBlur(step, (0, 0), sigma)[0]
        exact = np.convolve(np.pad(step[0].astype(float), 50, mode="reflect"), kernel, "same")[50:-50]
        np.testing.assert_array_equal(blurred, np.floor(exact / 256 + 0.5))


def test_noise_goes_round_the_end_of_its_table() -> None:
    table = noise_table()
    np.testing.assert_array_equal(noise_field(len(table) - 2, 5), [*table[-2:], *table[:3]])
    assert abs(float(table.mean())) < 2e-3
    assert abs(float(table.std()) - 1) < 2e-3
