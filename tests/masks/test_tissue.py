"""Tissue masks: msdask's own on synthetic and real images, and those read from files."""

from __future__ import annotations

import configparser
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import dask
import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msdask.cutting.measures import tissue_mean, white_threshold
from msdask.errors import MaskError, MissingScaleError, SpecError
from msdask.masks import glass, planes, tissue
from msdask.masks.files import distinct_values, find_mask, read_tissue_mask
from msdask.masks.tissue import tissue_from_rgb, tissue_mask
from msdask.sample.slides import SampleSlide
from msdask.scale import check_proportions
from msdask.slides.slide import open_slide

STAINS = {
    "pink": (214, 140, 180),
    "pale pink": (232, 208, 224),
    "purple": (140, 95, 160),
    "brown": (140, 95, 60),
    "pale haematoxylin": (205, 210, 224),
}
GLASSES = {"white": (245, 245, 245), "gray": (205, 205, 205), "tinted": (241, 236, 224), "overexposed": (255, 255, 255)}
PENS = {
    "blue": (35, 60, 170),
    "green": (30, 130, 70),
    "teal": (43, 110, 140),
    "red": (205, 25, 40),
    "black": (38, 38, 40),
    "yellow": (235, 220, 60),
}


@dataclass
class FakeSlide:
    """The part of a slide that masks need, over an image in memory."""

    pixels: NDArray[np.uint8]
    mpp_used: float = 8.0
    path: str = "folder/a.svs"
    name: str = "a.svs"

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def at(self, *, mpp: float) -> xr.DataArray:
        height, width = (max(1, round(side * self.mpp_used / mpp)) for side in self.shape)
        reduced = cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_AREA)
        return xr.DataArray(reduced, dims=("y", "x", "channel"), attrs={"mpp": mpp})


@dataclass
class SlideOfShape:
    shape: tuple[int, int]
    path: str = "folder/a.svs"
    name: str = "a.svs"


def glass_image(glass: tuple[int, int, int], size: tuple[int, int] = (200, 260), seed: int = 0) -> NDArray[np.uint8]:
    """Bare glass with a scanner's noise."""
    noise = np.random.default_rng(seed).normal(0, 1.0, (*size, 3))
    return np.clip(np.asarray(glass) + noise, 0, 255).astype(np.uint8)


def blob(size: tuple[int, int] = (200, 260)) -> NDArray[np.bool_]:
    """An ellipse that covers about a third of the image."""
    y, x = np.ogrid[: size[0], : size[1]]
    return ((y - size[0] * 0.5) / (size[0] * 0.32)) ** 2 + ((x - size[1] * 0.45) / (size[1] * 0.32)) ** 2 <= 1


def paint(
    image: NDArray[np.uint8],
    where: NDArray[np.bool_],
    stain: tuple[int, int, int],
    glass: tuple[int, int, int],
    seed: int = 1,
) -> NDArray[np.uint8]:
    """Stain over glass: light is multiplied, and its depth varies as cells do."""
    depth = np.random.default_rng(seed).normal(1, 0.25, where.shape).clip(0.3, 2)[..., None]
    light = (np.asarray(stain) / 245.0) ** depth * np.asarray(glass)
    out = image.copy()
    out[where] = np.clip(light, 0, 255).astype(np.uint8)[where]
    return out


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("glass", GLASSES)
@pytest.mark.parametrize("stain", STAINS)
def test_finds_stained_tissue_on_every_glass(stain: str, glass: str) -> None:
    truth = blob()
    image = paint(glass_image(GLASSES[glass]), truth, STAINS[stain], GLASSES[glass])
    assert iou(tissue_from_rgb(image, mpp=8), truth) > 0.93


@pytest.mark.parametrize("glass", GLASSES)
def test_a_slide_of_glass_alone_is_empty(glass: str) -> None:
    assert not tissue_from_rgb(glass_image(GLASSES[glass]), mpp=8).any()


@pytest.mark.parametrize("stain", STAINS)
def test_an_image_full_of_tissue_is_full(stain: str) -> None:
    image = np.zeros((120, 150, 3), np.uint8)
    image = paint(image, np.ones((120, 150), bool), STAINS[stain], GLASSES["white"])
    assert tissue_from_rgb(image, mpp=8).mean() > 0.98


def test_brown_beside_blue_is_tissue_where_they_blur_to_gray() -> None:
    truth = blob()
    white = GLASSES["white"]
    brown = (np.indices(truth.shape).sum(axis=0) // 3 % 2 == 0) & truth
    image = paint(glass_image(white), truth & ~brown, (150, 160, 200), white)
    image = paint(image, brown, (190, 160, 120), white)
    assert iou(tissue_from_rgb(image, mpp=8), truth) > 0.93


@pytest.mark.parametrize("pen", PENS)
def test_a_pen_mark_is_not_tissue(pen: str) -> None:
    white = GLASSES["white"]
    image = glass_image(white)
    mark = np.zeros(image.shape[:2], bool)
    mark[20:180, 225:240] = True
    soft = cv2.GaussianBlur(mark.astype(np.float32), (0, 0), 1.0)[..., None]
    image = (image * (1 - soft) + np.asarray(PENS[pen]) * soft).astype(np.uint8)
    assert not tissue_from_rgb(image, mpp=8).any()
    with_tissue = paint(image, blob(), STAINS["pink"], white)
    assert iou(tissue_from_rgb(with_tissue, mpp=8), blob()) > 0.93


def test_a_pen_ring_is_not_filled() -> None:
    image = glass_image(GLASSES["white"])
    cv2.circle(image, (130, 100), 60, PENS["green"], 8)
    assert not tissue_from_rgb(image, mpp=8, max_hole_um2=1e6).any()


@pytest.mark.parametrize("dark", [(0, 0, 0), (25, 20, 18), (70, 70, 70)])
def test_dark_borders_are_not_tissue(dark: tuple[int, int, int]) -> None:
    white = GLASSES["white"]
    image = paint(glass_image(white), blob(), STAINS["purple"], white)
    image[:14] = dark
    image[:, -9:] = dark
    image = cv2.GaussianBlur(image, (0, 0), 0.8)
    assert iou(tissue_from_rgb(image, mpp=8), blob()) > 0.93


def test_a_gray_shadow_is_not_tissue() -> None:
    white = GLASSES["white"]
    image = paint(glass_image(white), blob(), STAINS["pink"], white)
    image[:, 235:] = (image[:, 235:] * 0.82).astype(np.uint8)
    image[185:] = (image[185:] * 0.7).astype(np.uint8)
    assert iou(tissue_from_rgb(image, mpp=8), blob()) > 0.93


@pytest.mark.parametrize("strength", [0.05, 0.1])
def test_uneven_light_is_not_tissue(strength: float) -> None:
    glass = GLASSES["tinted"]
    image = paint(glass_image(glass), blob(), STAINS["pale haematoxylin"], glass)
    falloff = 1 - strength * np.linspace(0, 1, image.shape[1])[None, :, None] ** 1.5
    image = (image * falloff).astype(np.uint8)
    assert iou(tissue_from_rgb(image, mpp=8), blob()) > 0.9


def test_white_that_was_not_scanned_does_not_pass_for_glass() -> None:
    glass = GLASSES["tinted"]
    image = paint(glass_image(glass), blob(), STAINS["pale pink"], glass)
    image[:30] = 255
    image[:, :20] = 255
    assert iou(tissue_from_rgb(image, mpp=8), blob() & (image < 255).any(axis=2)) > 0.93


def test_specks_go_and_small_holes_are_filled() -> None:
    white = GLASSES["white"]
    truth = np.zeros((200, 260), bool)
    truth[60:140, 60:180] = True
    stained = truth.copy()
    stained[80:90, 80:90] = False  # 6,400 um2
    stained[100:130, 120:150] = False  # 57,600 um2
    truth[100:130, 120:150] = False
    stained[20:28, 20:28] = True  # 4,096 um2
    image = paint(glass_image(white), stained, STAINS["pink"], white)
    mask = tissue_from_rgb(image, mpp=8)
    assert iou(mask, truth) > 0.92
    assert not mask[15:35, 15:35].any()
    assert mask[80:90, 80:90].all()
    assert not mask[104:126, 124:146].any()
    assert tissue_from_rgb(image, mpp=8, min_area_um2=1000)[22:26, 22:26].all()
    assert not tissue_from_rgb(image, mpp=8, max_hole_um2=0)[84:86, 84:86].any()


def test_a_gray_image_is_judged_by_darkness() -> None:
    white = GLASSES["white"]
    image = paint(glass_image(white), blob(), STAINS["purple"], white)
    gray = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert iou(tissue_from_rgb(gray, mpp=8), blob()) > 0.93


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (7, 4)])
def test_tiny_images(size: tuple[int, int]) -> None:
    assert not tissue_from_rgb(np.full((*size, 3), 240, np.uint8), mpp=8).any()
    assert tissue_from_rgb(np.full((*size, 3), STAINS["pink"], np.uint8), mpp=8).all()
    assert tissue_from_rgb(np.zeros((0, 3, 3), np.uint8), mpp=8).shape == (0, 3)


@pytest.mark.parametrize("mpp", [2.0, 4.0, 16.0])
def test_the_same_tissue_at_other_resolutions(mpp: float) -> None:
    white = GLASSES["white"]
    truth = blob((800, 1040))
    image = paint(glass_image(white, (800, 1040)), truth, STAINS["pink"], white)
    size = round(1040 * 2 / mpp), round(800 * 2 / mpp)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    truth = cv2.resize(truth.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    assert iou(tissue_from_rgb(image, mpp=mpp), truth) > 0.93


@pytest.mark.parametrize("operation", [cv2.MORPH_DILATE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE])
def test_large_discs_act_as_small_ones(operation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = cv2.GaussianBlur(np.random.default_rng(3).random((90, 120)), (0, 0), 2) > 0.5
    by_disc = tissue._morph(mask, operation, 5)
    monkeypatch.setattr(tissue, "_LARGEST_DISC", 0)
    np.testing.assert_array_equal(tissue._morph(mask, operation, 5), by_disc)
    assert (by_disc != mask).any()


def test_strips_leave_no_trace() -> None:
    """The image is classified in strips of rows: tissue across their borders is found as in the transposed image."""
    white = GLASSES["white"]
    truth = blob((700, 300))
    image = paint(glass_image(white, (700, 300)), truth, STAINS["pale haematoxylin"], white)
    mask = tissue_from_rgb(image, mpp=8)
    flipped = tissue_from_rgb(np.ascontiguousarray(image.transpose(1, 0, 2)), mpp=8).T
    assert (mask != flipped).mean() < 1e-3


def test_the_height_of_a_strip_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(100, 256, (300, 40, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8)
    image[100:200, 10:, 1] //= 2
    image[210:260, 5:15] = 20
    found = glass.estimate_glass(image, mpp=8)
    at_once = glass.classify_pixels(image, found, mpp=8)
    monkeypatch.setattr(glass, "_STRIP_PIXELS", 1)
    assert_same_classes(glass.classify_pixels(image, found, mpp=8), at_once)
    assert all(getattr(at_once, name).any() for name in CLASSES), "nothing to compare"


CLASSES = ("stained", "pale", "faint_ink", "ink")


def assert_same_classes(found: glass.PixelClasses, expected: glass.PixelClasses) -> None:
    for name in CLASSES:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("seam", range(12, 200, 12))
def test_a_strip_sees_the_color_around_the_rims_that_it_judges(seam: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pale row beside a gray one, which is stained by the color four rows on: as far as two windows together see."""
    image = np.full((220, 16, 3), 240, np.uint8)
    image[seam - 1], image[seam], image[seam + 4] = (225, 205, 225), (75, 75, 75), (240, 20, 240)
    even = glass.Glass((240.0, 240.0, 240.0), True, None, False, 0.05, 0.035)
    at_once = glass.classify_pixels(image, even, mpp=8)
    for pixels in (1, 16 * seam):
        monkeypatch.setattr(glass, "_STRIP_PIXELS", pixels)
        assert_same_classes(glass.classify_pixels(image, even, mpp=8), at_once)


def test_an_image_of_one_very_wide_row_is_classified() -> None:
    image = np.full((1, 2**17 + 1, 3), 240, np.uint8)
    image[0, 7] = 20
    assert glass.classify_pixels(image, glass.estimate_glass(image, mpp=60), mpp=60).ink.sum() == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_a_table_is_looked_up_as_by_an_index(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, (height, width)).astype(np.int32)
    for table in (rng.random(7) < 0.5, rng.integers(0, 256, 7).astype(np.uint8)):
        found = planes.taken(table, labels)
        np.testing.assert_array_equal(found, table[labels])
        assert found.dtype == table.dtype


def test_a_table_is_looked_up_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 50, (37, 11)).astype(np.int32)
    table = np.random.default_rng(1).integers(0, 256, 50).astype(np.uint8)
    monkeypatch.setattr(planes, "_STRIP_PIXELS", 30)
    np.testing.assert_array_equal(planes.taken(table, labels), table[labels])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 3), st.floats(0.3, 0.7), st.integers(8, 60), st.integers(8, 60))
def test_a_hole_is_as_wide_in_its_box_as_in_the_whole_image(
    seed: int, blur: float, level: float, height: int, width: int
) -> None:
    mask = np.asarray(cv2.GaussianBlur(np.random.default_rng(seed).random((height, width)), (0, 0), blur)) > level
    free = (~mask).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(free, connectivity=4, ltype=cv2.CV_32S)
    edge = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    holes = np.array([n for n in range(1, count) if n not in edge], np.intp)
    distance = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5)
    expected = [distance[labels == hole].max() for hole in holes.tolist()]
    found = tissue._radii(free, np.asarray(labels, np.int32), np.asarray(stats, np.int32), holes)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_holes_whose_boxes_are_larger_than_the_image_are_measured_in_it() -> None:
    """Nested rings: their boxes overlap so much that one look at all is cheaper."""
    mask = np.ones((121, 121), np.bool_)
    for inset in range(4, 56, 4):
        for side in (inset, 120 - inset):
            mask[side, inset : 121 - inset] = mask[inset : 121 - inset, side] = False
    free = (~mask).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(free, connectivity=4, ltype=cv2.CV_32S)
    holes = np.arange(1, count)
    assert (stats[1:, 2] * stats[1:, 3]).sum() > 2 * mask.size
    found = tissue._radii(free, np.asarray(labels, np.int32), np.asarray(stats, np.int32), holes)
    np.testing.assert_array_equal(found, np.ones(count - 1, np.float32))


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (np.zeros((4, 4), np.uint8), {}, "expected .y, x, 3. uint8"),
        (np.zeros((4, 4, 3), np.float32), {}, "float32"),
        (np.zeros((4, 4, 3), np.uint8), {"mpp": 0.0}, "mpp=0.0"),
        (np.zeros((4, 4, 3), np.uint8), {"mpp": float("nan")}, "mpp=nan"),
        (np.zeros((4, 4, 3), np.uint8), {"min_area_um2": -1.0}, "min_area_um2=-1.0"),
        (np.zeros((4, 4, 3), np.uint8), {"max_hole_um2": float("inf")}, "max_hole_um2=inf"),
    ],
)
def test_requests_that_make_no_sense(image: NDArray[np.uint8], options: dict[str, float], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        tissue_from_rgb(image, **({"mpp": 8.0} | options))


def test_the_mask_of_a_slide_says_where_it_comes_from() -> None:
    white = GLASSES["white"]
    slide = FakeSlide(paint(glass_image(white, (400, 520)), blob((400, 520)), STAINS["pink"], white), mpp_used=4.0)
    mask = tissue_mask(slide, mpp=8.0, min_area_um2=5000.0)
    assert mask.dims == ("y", "x")
    assert mask.dtype == bool
    assert mask.shape == (200, 260)
    assert mask.attrs == {
        "source": "msdask",
        "mpp": 8.0,
        "slide_shape": (400, 520),
        "min_area_um2": 5000.0,
        "max_hole_um2": 7_500.0,
    }
    assert iou(mask.to_numpy(), blob()) > 0.93


def test_a_slide_coarser_than_the_mask_is_used_as_it_is() -> None:
    white = GLASSES["white"]
    slide = FakeSlide(paint(glass_image(white), blob(), STAINS["pink"], white), mpp_used=10.0)
    mask = tissue_mask(slide, mpp=8.0)
    assert mask.attrs["mpp"] == 10.0
    assert mask.shape == slide.shape
    assert iou(mask.to_numpy(), blob()) > 0.93


def test_a_slide_smaller_than_a_mask_pixel_has_a_mask() -> None:
    mask = tissue_mask(FakeSlide(np.full((3, 40, 3), STAINS["pink"], np.uint8), mpp_used=0.25))
    assert min(mask.shape) >= 1
    assert mask.attrs["mpp"] == 0.75
    assert mask.all()


def test_a_mask_beyond_the_limit_is_refused_before_a_pixel_is_read() -> None:
    class Huge(FakeSlide):
        shape = (10**6, 10**6)  # type: ignore[assignment]

    with pytest.raises(MaskError, match=r"1000000 x 1000000 px.*coarser"):
        tissue_mask(Huge(np.zeros((1, 1, 3), np.uint8), mpp_used=8.0))


def test_generated_slide(small_slide: SampleSlide) -> None:
    mask = tissue_mask(open_slide(small_slide.path)).to_numpy()
    assert mask.shape == small_slide.mask.shape
    assert iou(mask, small_slide.mask) > 0.88


def test_a_slide_without_scale_has_no_mask_of_ours(scaleless_slide: SampleSlide) -> None:
    with pytest.raises(MissingScaleError, match="mpp="):
        tissue_mask(open_slide(scaleless_slide.path))


def test_cmu_small_region(cmu_small: Path) -> None:
    pixels = np.asarray(tifffile.imread(cmu_small))
    mask = tissue_mask(FakeSlide(pixels, mpp_used=0.499))
    assert mask.shape == (185, 138)
    assert 0.38 < mask.mean() < 0.46
    found = mask.to_numpy()
    assert not found[:, :4].any()  # glass, with a speck of ink in the corner
    assert not found[36:40, 128:133].any()  # dust
    assert found[120:180, 60:100].mean() > 0.97  # dermis


@pytest.mark.parametrize(
    "pattern", ["TCGA-B0-5710*", "TCGA-G9-6363*", "TCGA-21-5786*", "TCGA-HT-8564*", "TCGA-HE-7129*"]
)
def test_crops_full_of_tissue(data_dir: Path, pattern: str) -> None:
    files = sorted((data_dir / "monuseg" / "images").glob(pattern))
    if not files:
        pytest.skip(f"no {pattern} in {data_dir / 'monuseg' / 'images'}")
    pixels = np.ascontiguousarray(tifffile.imread(files[0])[..., :3])
    assert tissue_mask(FakeSlide(pixels, mpp_used=0.25)).mean() > 0.95
    assert tissue_from_rgb(pixels, mpp=0.25).mean() > 0.95


def test_immunohistochemistry_with_pale_stroma() -> None:
    """The image that scikit-image ships: brown glands, nearly gray stroma, a corner of glass."""
    data = pytest.importorskip("skimage.data")
    mask = tissue_mask(FakeSlide(data.immunohistochemistry(), mpp_used=1.0))
    assert 0.85 < mask.mean() < 0.99
    assert mask[10:50, 48:60].mean() > 0.85


# Brightness of the tissue (spec section 6).


@pytest.mark.parametrize(
    ("gray", "threshold"), [(100, 195), (155, 195), (156, 200), (180, 200), (181, 205), (240, 205)]
)
def test_whitish_threshold_by_the_tissue_mean(gray: int, threshold: float) -> None:
    image = np.full((6, 6, 3), 250, np.uint8)
    mask = np.zeros((6, 6), bool)
    mask[2:4, 1:5] = True
    image[mask] = gray
    assert tissue_mean(image, mask) == gray
    assert white_threshold(tissue_mean(image, mask)) == threshold


def test_tissue_mean_is_over_pixels_and_channels() -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (13, 17, 3)).astype(np.uint8)
    mask = rng.random((13, 17)) < 0.4
    inside = [int(image[y, x, c]) for y in range(13) for x in range(17) if mask[y, x] for c in range(3)]
    assert tissue_mean(image, mask) == pytest.approx(sum(inside) / len(inside), rel=1e-12)


def test_tissue_mean_takes_a_mask_of_another_size() -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    image[:, :4] = 100
    assert tissue_mean(image, np.array([[True, False], [True, False]])) == 100


def test_an_empty_mask_has_the_brightest_mean() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert tissue_mean(image, np.zeros((4, 4), bool)) == 255
    assert white_threshold(tissue_mean(image, np.zeros((4, 4), bool))) == 205


# Masks read from files.


def write_png(path: Path, values: NDArray[np.uint8] | NDArray[np.uint16]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", values)
    assert ok
    path.write_bytes(data.tobytes())
    return path


def half(value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, :15] = value
    return mask


@pytest.mark.parametrize("value", [1, 7, 255])
def test_reads_any_png_with_two_values(tmp_path: Path, value: int) -> None:
    path = write_png(tmp_path / "mask with space ü.png", half(value))
    mask = read_tissue_mask(path, slide=SlideOfShape((2000, 3000)))
    assert mask.dims == ("y", "x")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, half() > 0)
    assert mask.attrs == {"source": str(path), "slide_shape": (2000, 3000)}
    assert "slide_shape" not in read_tissue_mask(path).attrs


def test_reads_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", half().astype(np.uint16))
    np.testing.assert_array_equal(read_tissue_mask(tmp_path / "mask.tif"), half() > 0)
    tifffile.imwrite(tmp_path / "bits.tif", half() > 0, photometric="minisblack")
    np.testing.assert_array_equal(read_tissue_mask(tmp_path / "bits.tif"), half() > 0)


def test_a_full_mask_needs_no_zero(tmp_path: Path) -> None:
    assert read_tissue_mask(write_png(tmp_path / "full.png", np.full((4, 6), 255, np.uint8))).all()


def test_an_empty_mask_is_a_warning(tmp_path: Path) -> None:
    path = write_png(tmp_path / "empty.png", np.zeros((4, 6), np.uint8))
    with pytest.warns(UserWarning, match=r"empty\.png.*no patch"):
        mask = read_tissue_mask(path)
    assert not mask.any()


def test_more_than_two_values_are_refused_with_the_ways_out(tmp_path: Path) -> None:
    path = write_png(tmp_path / "annotated.png", (np.arange(600) % 12 * 20).reshape(20, 30).astype(np.uint8))
    with pytest.raises(MaskError) as error:
        read_tissue_mask(path)
    for part in (
        "annotated.png",
        "12 values",
        "0, 20, 40, 60, 80, 100, 120, 140, 160, 180, ... 2 more",
        "read_label_mask",
    ):
        assert part in str(error.value)


def test_two_values_without_zero_are_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "odd.png", half(50) + np.uint8(50))
    with pytest.raises(MaskError, match=r"odd\.png.*50, 100, none of them 0"):
        read_tissue_mask(path)


@pytest.mark.parametrize("name", ["gone.png", "gone"])
def test_a_missing_mask_names_its_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(MaskError, match=rf"{name}.*no such file"):
        read_tissue_mask(tmp_path / name)


def test_a_file_that_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(MaskError, match=r"text\.png"):
        read_tissue_mask(tmp_path / "text.png")


def test_other_proportions_are_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write_png(tmp_path / "turned.png", np.zeros((300, 200), np.uint8))
    with pytest.raises(MaskError, match=r"200 x 300 px.*3000 x 2000 px"):
        read_tissue_mask(path, slide=SlideOfShape((2000, 3000)))


@given(
    height=st.integers(50, 100_000),
    width=st.integers(50, 100_000),
    reduction=st.floats(1, 64),
    ceil=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=300, deadline=None)
def test_rounding_to_whole_pixels_is_no_other_proportion(
    height: int, width: int, reduction: float, ceil: tuple[bool, bool]
) -> None:
    sides = [
        max(1, int(np.ceil(s / reduction) if up else s // reduction))
        for s, up in zip((height, width), ceil, strict=True)
    ]
    if min(height, width) < reduction:
        return
    slack = abs(sides[1] * height - sides[0] * width) / (sides[0] * width)
    if ceil[0] == ceil[1] or slack <= 0.01:
        check_proportions(tuple(sides), (height, width), what="m.png")


@given(height=st.integers(400, 4000), width=st.integers(400, 4000), off=st.sampled_from([0.97, 0.985, 1.015, 1.03]))
@settings(max_examples=200, deadline=None)
def test_proportions_beyond_one_percent_are_refused(height: int, width: int, off: float) -> None:
    with pytest.raises(MaskError, match="proportions"):
        check_proportions((height, round(width * off)), (height * 16, width * 16), what="m.png")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.uint32, np.int64])
def test_distinct_values(dtype: type) -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2 if dtype is bool else 120, (50, 60)).astype(dtype)
    found = distinct_values(values)
    assert found.dtype == np.int64
    assert found.tolist() == sorted({int(v) for v in values.ravel()})


# Finding masks.


@pytest.mark.parametrize(
    "layout",
    ["a.b.svs/a.b.svs_mask_use.png", "a.b/a.b_mask_use.png", "a.b.svs.png", "a.b.png", "a.b.tif", "a.b.svs.tiff"],
)
def test_finds_the_mask_of_a_slide(tmp_path: Path, layout: str) -> None:
    write_png(tmp_path / "other.png", half())
    assert find_mask(tmp_path, "slides/a.b.svs") is None
    mask = write_png(tmp_path / layout, half())
    assert find_mask(tmp_path, "slides/a.b.svs") == mask
    assert find_mask(str(tmp_path), Path("slides/a.b.svs")) == mask
    assert find_mask(tmp_path, "s3://bucket/slides/a.b.svs") == mask
    assert find_mask(tmp_path, "slides/a.svs") is None


def test_the_order_where_several_masks_are_there(tmp_path: Path) -> None:
    order = [
        "a.svs/a.svs_mask_use.png",
        "a/a_mask_use.png",
        "a.svs.png",
        "a.svs.tif",
        "a.svs.tiff",
        "a.png",
        "a.tif",
        "a.tiff",
    ]
    for layout in reversed(order):
        mask = write_png(tmp_path / layout, half())
        assert find_mask(tmp_path, "a.svs") == mask


def test_ome_tiff_names_lose_both_endings(tmp_path: Path) -> None:
    mask = write_png(tmp_path / "a.png", half())
    assert find_mask(tmp_path, "a.ome.tif") == mask


def test_a_slide_is_never_its_own_mask(tmp_path: Path) -> None:
    slide = tmp_path / "a.tif"
    tifffile.imwrite(slide, half())
    assert find_mask(tmp_path, slide) is None
    mask = write_png(tmp_path / "a.png", half())
    assert find_mask(tmp_path, slide) == mask


def test_names_with_glob_characters_mean_themselves(tmp_path: Path) -> None:
    write_png(tmp_path / "a1.png", half())
    assert find_mask(tmp_path, "a[1].svs") is None
    mask = write_png(tmp_path / "a[1].png", half())
    assert find_mask(tmp_path, "a[1].svs") == mask


def test_reads_histoqc_folders(tmp_path: Path) -> None:
    mask = write_png(tmp_path / "a.svs" / "a.svs_mask_use.png", half())
    write_png(tmp_path / "a.svs" / "a.svs_thumb.png", np.zeros((5, 5), np.uint8))
    slide = SlideOfShape((2000, 3000))
    for path in (tmp_path, tmp_path / "a.svs"):
        assert read_tissue_mask(path, slide=slide).attrs["source"] == str(mask)
    assert read_tissue_mask(tmp_path / "a.svs").attrs["source"] == str(mask)


def test_a_folder_without_the_slides_mask_says_what_was_looked_for(tmp_path: Path) -> None:
    write_png(tmp_path / "b.png", half())
    with pytest.raises(
        MaskError,
        match=r"'a\.svs'; looked for a\.svs/a\.svs_mask_use\.png, a/a_mask_use\.png, a\.svs\.xml, a\.xml, "
        r"a\.svs\.geojson, .*a\.svs\.png",
    ):
        read_tissue_mask(tmp_path, slide=SlideOfShape((2000, 3000)))


def test_a_folder_of_several_needs_the_slide(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"found none.*slide="):
        read_tissue_mask(tmp_path)
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}_mask_use.png", half())
    with pytest.raises(MaskError, match=r"found 2 of them"):
        read_tissue_mask(tmp_path)
    slide = SlideOfShape((2000, 3000))
    assert read_tissue_mask(tmp_path, slide=slide).attrs["source"].endswith("a_mask_use.png")


def test_a_good_mask_warns_of_nothing(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", half())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_tissue_mask(path)


# The HistoQC configuration that the docs offer.


def test_the_histoqc_configuration_parses() -> None:
    config = configparser.ConfigParser()
    path = Path(__file__).resolve().parents[2] / "docs" / "histoqc_config.ini"
    assert config.read(path, encoding="utf-8")
    steps = config["pipeline"]["steps"].split()
    assert steps[0] == "BasicModule.getBasicStats"
    assert steps[-1] == "BasicModule.finalComputations"
    assert steps.index("SaveModule.saveFinalMask") > steps.index("BasicModule.finalProcessingArea")
    assert len(set(steps)) == len(steps)
    for step in steps:
        assert config.has_section(step), f"{step} has no section"
        module, function = step.split(":")[0].split(".")
        assert module.endswith("Module")
        assert function.isidentifier()
    assert set(config.sections()) == {"pipeline", "BaseImage.BaseImage", *steps}
    assert config["BaseImage.BaseImage"]["image_work_size"] == "1.25x"
    assert config.getint("BasicModule.finalProcessingArea", "area_threshold") == 10_000 // 64
    assert config.getint("MorphologyModule.fillSmallHoles", "min_size") == 7_500 // 64


def test_a_mask_does_not_depend_on_threads() -> None:
    image = np.random.default_rng(0).integers(120, 256, (1100, 700, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 6), np.uint8)
    image[300:900, 100:500, 1] //= 2
    with dask.config.set(scheduler="sync"):
        one = tissue_from_rgb(image, mpp=8.0)
    with dask.config.set(num_workers=4):
        np.testing.assert_array_equal(tissue_from_rgb(image, mpp=8.0), one)
    assert 0.2 < one.mean() < 0.5
