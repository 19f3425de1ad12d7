"""The generated task of segmentation: what each magnification can see, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import msdask as ms
from msdask.errors import SpecError
from msdask.sample.hook_regions import BLOCK, LABELED, MIDDLE, REGION, TWINS, HookRegions, make_hook_regions

Pixels = Callable[[str, float], np.ndarray]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> HookRegions:
    return make_hook_regions(tmp_path_factory.mktemp("regions"), slides=(0, 0, 1), side=2, seed=3)


@pytest.fixture(scope="module")
def pixels(task: HookRegions) -> Pixels:
    def read(twin: str, magnification: float) -> np.ndarray:
        slide = ms.open_slide(task.table.parent / f"test-0{twin}.svs")
        return np.asarray(slide.at(mpp=10 / magnification))

    return read


def test_a_coarse_magnification_sees_nothing_of_the_fine_motif(pixels: Pixels) -> None:
    assert (pixels("", 20) != pixels("-a", 20)).any()
    for magnification in (10, 5, 2.5):
        assert np.array_equal(pixels("", magnification), pixels("-a", magnification))
        assert np.array_equal(pixels("-c", magnification), pixels("-ac", magnification))
    assert (pixels("", 5) != pixels("-c", 5)).any()
    assert (pixels("", 2.5) != pixels("-c", 2.5)).any()
    assert np.array_equal(pixels("", 1.25), pixels("-c", 1.25))  # there both are gone


def test_what_a_fine_unet_reaches_does_not_show_the_ring(pixels: Pixels) -> None:
    differs = (pixels("", 20) != pixels("-c", 20)).any(-1).reshape(2, REGION, 2, REGION).any((0, 2))
    start = (REGION - MIDDLE) // 2
    assert not differs[start:-start, start:-start].any()
    assert differs[start - 1].any()
    assert LABELED // 2 + 122 < MIDDLE // 2  # px: 122 is the farthest that an output px of a U-Net of depth 4 sees


def test_labels_are_the_two_motifs(task: HookRegions, pixels: Pixels) -> None:
    for twin in TWINS:
        name = f"test-0{twin}.svs"
        mask = np.kron(task.labels(name), np.ones((BLOCK, BLOCK), np.uint8))
        with Image.open(task.table.parent / "masks" / f"{name}.png") as stored:
            assert np.array_equal(np.asarray(stored), task.labels(name))
        image = pixels(twin, 20)[..., 0].astype(int)
        assert mask.shape == image.shape
        for row, column in np.ndindex(2, 2):
            area = np.s_[row * REGION : (row + 1) * REGION, column * REGION : (column + 1) * REGION]
            labels, region = mask[area], image[area]
            edge = (REGION - LABELED) // 2
            assert (labels > 0).sum() == LABELED**2 == (labels[edge:-edge, edge:-edge] > 0).sum()
            # a checker changes along both axes
            is_checker = region[0, 0] != region[0, 8] and region[0, 0] != region[8, 0]
            assert ((labels[labels > 0] - 1) % 2 == is_checker).all()
            for y in range(edge, REGION - edge, BLOCK):
                for x in range(edge, REGION - edge, BLOCK):
                    fine = region[y, x] != region[y, x + 1] and region[y, x] != region[y + 1, x]
                    assert (labels[y, x] - 1) // 2 == fine


def test_patches_lie_around_the_middles_of_regions(task: HookRegions) -> None:
    slide = ms.open_slide(task.table.parent / "test-0.svs")
    for size in (348, 284):
        table = ms.centroids(slide, magnifications=[20, 5], patch_size=size, stride=REGION, roi=task.roi(size))
        centers = table["x0"].values[:, 0] + size / 2
        assert sorted(set(centers.tolist())) == [256, 768]
        assert len(table["patch"]) == 4


def test_the_task_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second = (make_hook_regions(tmp_path / name, slides=(1, 0, 0), side=1, seed=5) for name in "ab")
    assert (tmp_path / "a/train-0.svs").read_bytes() == (tmp_path / "b/train-0.svs").read_bytes()
    assert np.array_equal(first.fine["train-0.svs"], second.fine["train-0.svs"])
    with pytest.raises(SpecError, match="side=0: expected 1 region or more"):
        make_hook_regions(tmp_path, side=0)
    with pytest.raises(SpecError, match="how many for training, validation and test"):
        make_hook_regions(tmp_path, slides=(0, 0, 0))
