"""Tissue masks of generated scenes with their truth, and of real tissue against masks drawn by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.masks.canvas import find_canvas
from msdask.masks.tissue import tissue_from_rgb, tissue_mask
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from tests.tools.mask_scenes import KINDS, MPP, drawn_mask, iou, make_scene, tissue_on_glass

GLASS = (243, 242, 244)
WHITE = (255, 255, 255)


def ellipse(size: tuple[int, int] = (600, 800)) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (size[1] // 2, size[0] // 2), (160, 110), 20, 0, 360, 1, -1)
    return mask > 0


def rectangle(size: tuple[int, int] = (600, 800)) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    mask[150:450, 200:600] = True
    return mask


def flat(color: tuple[int, int, int], size: tuple[int, int] = (600, 800)) -> NDArray[np.uint8]:
    return np.full((*size, 3), color, np.uint8)


def stained(image: NDArray[np.uint8], where: NDArray[np.bool_], color: tuple[int, int, int], deviation: float) -> None:
    noise = np.random.default_rng(0).normal(0, deviation, (*where.shape, 1))
    image[where] = np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)[where]


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_scene(kind: str, variant: int) -> None:
    scene = make_scene(kind, variant)
    assert iou(tissue_from_rgb(scene.image, mpp=MPP), scene.truth) > 0.94


@pytest.mark.parametrize("shape", [ellipse, rectangle])
@pytest.mark.parametrize("glass", [GLASS, WHITE, (250, 250, 250)])
@pytest.mark.parametrize("pale", [(228, 222, 234), (222, 214, 230), (232, 226, 236), (236, 226, 232)])
def test_pale_tissue_beside_strong_stays(pale, glass, shape) -> None:
    image, where = flat(glass), shape()
    stained(image, where, pale, 3)
    alone = tissue_from_rgb(image, mpp=8.0)[where].mean()
    image[20:90, 20:780] = (110, 60, 90)
    assert tissue_from_rgb(image, mpp=8.0)[where].mean() > 0.98
    assert alone > 0.98


@pytest.mark.parametrize("shape", [ellipse, rectangle])
@pytest.mark.parametrize("cell", [6, 8, 10])
@pytest.mark.parametrize("wall", [1, 2, 3])
def test_fat_with_thin_walls_stays(wall: int, cell: int, shape) -> None:
    """Cells of 48 to 80 um, walls of 8 to 24 um."""
    image, where = flat(GLASS), shape()
    walls = np.zeros(where.shape, np.bool_)
    for k in range(wall):
        walls[150 + k :: cell + wall] = True
        walls[:, 200 + k :: cell + wall] = True
    image[walls & where] = (205, 140, 185)
    assert tissue_from_rgb(image, mpp=8.0)[where].mean() > 0.9


@pytest.mark.parametrize(
    ("shape", "is_tissue"),
    [("disc 80", True), ("disc 140", False), ("crack 24", True), ("torn 120", False)],
)
def test_which_holes_belong_to_the_tissue(shape: str, is_tissue: bool) -> None:
    image, where = flat(GLASS), rectangle()
    stained(image, where, (190, 120, 170), 12)
    hole = np.zeros(where.shape, np.uint8)
    kind, um = shape.split()
    side = float(um) / 8
    if kind == "disc":
        cv2.circle(hole, (400, 300), round(side / 2), 1, -1)
    elif kind == "crack":
        cv2.line(hole, (330, 300), (345, 312), 1, round(side))
    else:  # two lobes and a bay, 6,900 um2
        cv2.rectangle(hole, (390, 290), (390 + round(side), 296), 1, -1)
        cv2.rectangle(hole, (390, 296), (393, 306), 1, -1)
    image[hole > 0] = GLASS
    found = tissue_from_rgb(image, mpp=8.0)[hole > 0].mean()
    assert found > 0.95 if is_tissue else found < 0.4
    assert tissue_from_rgb(image, mpp=8.0, max_hole_um2=1e5)[hole > 0].mean() > 0.95


@pytest.mark.parametrize("quality", [None, 85])
@pytest.mark.parametrize("glass", [(229, 227, 221), (236, 235, 232), (215, 214, 210)])
@pytest.mark.parametrize("canvas", [WHITE, (0, 0, 0), (128, 128, 128), (200, 200, 200), (240, 240, 250)])
def test_glass_inside_a_canvas_is_not_tissue(canvas, glass, quality) -> None:
    """Three scanned rectangles, one of them empty, take a twentieth of the canvas or less."""
    image, truth = flat(canvas, (2000, 2600)), np.zeros((2000, 2600), np.bool_)
    rng = np.random.default_rng(4)
    for y, x, with_tissue in ((200, 150, True), (1300, 400, False), (900, 1700, True)):
        area = (slice(y, y + 320), slice(x, x + 420))
        piece = ellipse((320, 420)) if with_tissue else np.zeros((320, 420), np.bool_)
        image[area] = np.clip(np.asarray(glass) + rng.normal(0, 0.8, (320, 420, 3)), 0, 255)
        stained(image[area], piece, (190, 120, 170), 12)
        truth[area] = piece
    if quality is not None:
        ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert ok
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    assert iou(tissue_from_rgb(image, mpp=8.0), truth) > 0.95


@pytest.mark.parametrize("canvas", [255, 200, 0])
def test_a_scanned_rectangle_full_of_tissue(canvas: int) -> None:
    image, where = flat((canvas,) * 3), rectangle()
    stained(image, where, (205, 140, 185), 18)
    assert iou(tissue_from_rgb(image, mpp=8.0), where) > 0.95


def test_glass_that_is_overexposed_is_no_canvas() -> None:
    image, where = flat(WHITE), ellipse()
    stained(image, where, (190, 120, 170), 12)
    assert find_canvas(image) is None
    assert iou(tissue_from_rgb(image, mpp=8.0), where) > 0.95


def test_the_mask_drawn_by_hand(cmu_small: Path) -> None:
    slide = open_slide(cmu_small)
    mask = tissue_mask(slide)
    drawn = drawn_mask(slide.shape, mask.shape)
    assert iou(mask.to_numpy(), drawn) > 0.93
    strip = np.s_[62:72, 18:44]  # hangs at the rest by a thread
    assert mask.to_numpy()[strip][drawn[strip]].mean() > 0.85


def test_no_patch_in_tissue_is_mostly_glass(cmu_small: Path) -> None:
    """At 20x. Cavities of 100 um and more are not tissue; gaps between collagen are."""
    slide = open_slide(cmu_small)
    pixels = slide.at(mpp=slide.mpp_used).to_numpy()
    glass = (pixels.min(axis=2) >= 225) & (np.ptp(pixels, axis=2) < 16)
    patches = grid(slide, tissue_mask(slide), magnification=20, patch_size=224)
    x0, y0 = (patches[name].to_numpy().astype(int).ravel() for name in ("x0", "y0"))
    share = np.array([glass[y : y + 224, x : x + 224].mean() for x, y in zip(x0, y0, strict=True)])
    assert len(share) >= 40
    assert (share > 0.3).sum() <= 6
    assert share.max() < 0.42


@pytest.mark.parametrize("pattern", ["TCGA-B0-5710*", "TCGA-21-5786*"])
def test_real_tissue_laid_on_glass(data_dir: Path, pattern: str) -> None:
    files = sorted((data_dir / "monuseg" / "images").glob(pattern))
    if not files:
        pytest.skip(f"no {pattern} in {data_dir / 'monuseg' / 'images'}")
    pixels = np.ascontiguousarray(tifffile.imread(files[0])[..., :3])
    scene = tissue_on_glass(pixels, mpp=0.25)
    assert iou(tissue_from_rgb(scene.image, mpp=MPP), scene.truth) > 0.97
