"""Which crops show tissue: real tissue at any scale does, glass and flat areas do not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.masks.crops import look_at


def crops_of(image: NDArray[np.uint8], scale: float, count: int = 8) -> NDArray[np.uint8]:
    """Crops of 96 px (or the whole, where it is smaller) at another scale."""
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), np.uint8)
    random, side = np.random.default_rng(0), min(96, *resized.shape[:2])
    corners = [[int(random.integers(0, n - side + 1)) for n in resized.shape[:2]] for _ in range(count)]
    return np.stack([resized[y : y + side, x : x + side] for y, x in corners])


@pytest.mark.parametrize("magnification", [2.8, 5, 10, 20, 40, 60])
def test_real_tissue_is_tissue_at_every_scale(magnification: float, data_dir: Path, cmu_small: Path) -> None:
    paths = sorted((data_dir / "monuseg" / "images").glob("*.tif"))[::5]
    images = [(tifffile.imread(path)[..., :3], 40) for path in paths] + [(tifffile.imread(cmu_small, key=0), 20)]
    looks = [look_at(crops_of(image, magnification / own)) for image, own in images]
    assert all(look.is_tissue.any() for look in looks)
    assert {what for look in looks for what in look.found} <= {"tissue", "glass"}


@pytest.mark.parametrize("change", ["blurred", "pale", "dark", "jpeg"])
def test_tissue_of_another_scanner_is_tissue(change: str, cmu_small: Path) -> None:
    image = tifffile.imread(cmu_small, key=0)[600:1400, 600:1400]
    if change == "jpeg":
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    elif change == "blurred":
        image = cv2.GaussianBlur(image, (0, 0), 2)
    else:
        image = (255 - (255 - image.astype(float)) * (0.6 if change == "pale" else 1.3)).clip(0, 255).astype(np.uint8)
    assert look_at(crops_of(image, 1)).is_tissue.mean() > 0.7


def test_what_was_found_is_counted_the_most_frequent_first() -> None:
    flat = np.full((3, 60, 60, 3), (200, 120, 180), np.uint8)
    flat[1] = 255
    looks = look_at(flat)
    assert str(looks) == "2 without structure, 1 glass"
    assert not looks.is_tissue.any()
