"""Other scales than a patch has: drawn, enlarged from its middle, or cut from the slides exactly."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from msdask.data import Augment, PatchDataset, ScaleAugment, ScaleRange, VirtualSet, loader
from msdask.data.images import image_lattice, image_patches
from msdask.data.scales import ScaledCut, enlarge_center
from msdask.errors import MissingScaleError, SpecError
from tests.data.test_augment import batch_of, pixels_of, tissue
from tests.tools.scale_tools import textured_image
from tests.tools.stream_tools import GRID, TUPLES, write_cohort

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


def test_lists_and_shares_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SpecError, match="at least two"):
        ScaleAugment([10])
    with pytest.raises(SpecError, match="p=2"):
        ScaleAugment([10, 20], p=2)
    with pytest.raises(SpecError, match="scales from 10 to 5"):
        ScaleRange(10, 5)
    with pytest.raises(SpecError, match=r"mosaic=1\.5"):
        ScaleRange(5, 10, mosaic=1.5)


# --- any scale of a range, cut from the slides ------------------------------------------------------------------------

Rows = list[dict[str, object]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Three images of 400 px, at 40x, 40x and 20x."""
    folder = tmp_path_factory.mktemp("images")
    rows: Rows = []
    for i, magnification in enumerate((40.0, 40.0, 20.0)):
        Image.fromarray(textured_image(i)).save(folder / f"{i}.png")
        rows.append({"path": folder / f"{i}.png", "magnification": magnification})
    return rows


def plain_images(folder: Path, values: tuple[int, ...], size: int = 300) -> Rows:
    for value in values:
        Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(folder / f"{value}.png")
    return [{"path": folder / f"{value}.png", "magnification": 40} for value in values]


def drawn(rows: Rows, scale: ScaleRange, *, size: int = 32, times: int = 1) -> dict[str, torch.Tensor]:
    """Every place of some images, `times` times."""
    dataset = PatchDataset(image_patches(rows, patch_size=size), target="magnification", scale=scale)
    indices = np.tile(np.arange(len(dataset)), times)
    return dataset.begin(indices, seeds=np.arange(len(indices)) + 100).result()


def cut_one(virtual: VirtualSet, magnification: float, point: tuple[float, float], size: int) -> np.ndarray:
    """The cut around a point of the first patch."""
    out = np.zeros((size, size, 3), np.uint8)
    (slide_id, *_) = virtual.slides
    for future in virtual.begin_scaled(slide_id, [ScaledCut(0, 0, magnification, point, out)]):
        future.result()
    return out


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_a_cut_is_the_area_mean_of_the_image_and_contains_its_point_at_the_points_share(
    images: Rows, ratio: int
) -> None:
    size, point = 32, (0.25, 0.75)
    virtual = image_patches(images[:1], patch_size=320)  # its first patch begins at 0, 0
    step = min(ratio, 4)  # px of the coarsest halving of 400 px
    top, left = (round(share * 320 / 400 * (400 - size * ratio) / step) * step for share in point)
    level = textured_image(0).astype(float)
    naive = level[top:, left:][: size * ratio, : size * ratio].reshape(size, ratio, size, ratio, 3).mean((1, 3))
    cut = cut_one(virtual, 40 / ratio, point, size)
    assert np.abs(cut - naive).max() <= ratio.bit_length()  # a rounding step each halving


def test_above_the_images_own_scale_a_cut_is_enlarged(images: Rows) -> None:
    virtual = image_patches(images[:1], patch_size=64)
    native, enlarged = cut_one(virtual, 40.0, (0.0, 0.0), 32), cut_one(virtual, 80.0, (0.0, 0.0), 64)
    expected = cv2.resize(native, (64, 64), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(enlarged[:60, :60], expected[:60, :60])


def test_cuts_of_every_scale_lie_inside_and_reach_every_edge(tmp_path: Path) -> None:
    pixels = np.full((300, 400, 3), 120, np.uint8)
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        edge[:] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    batch = drawn([{"path": tmp_path / "a.png", "magnification": 40}], ScaleRange(3, 60), times=8)
    images = batch["image"][:, 0, 0].numpy()
    assert images.max() < 160  # cubic splines overshoot; what lies outside would be white
    dark = images < 60
    for edge in (dark[:, 0].all(1), dark[:, -1].all(1), dark[:, :, 0].all(1), dark[:, :, -1].all(1)):
        assert edge.sum() > 5


def test_magnifications_are_even_in_octaves_within_the_range(images: Rows) -> None:
    batch = drawn(images, ScaleRange(8, 32), times=4)
    octaves = torch.log2(batch["magnification"]).flatten()
    assert octaves.min() >= 3
    assert octaves.max() <= 5
    assert kstest((octaves.numpy() - 3) / 2, "uniform").pvalue > 1e-3
    emphasized = torch.log2(drawn(images, ScaleRange(2.56, 40, emphasis=0.5), times=4)["magnification"])
    upper = np.log2(40) - 2
    assert float((emphasized >= upper).float().mean()) == pytest.approx(0.5 + 0.5 * 2 / np.log2(40 / 2.56), abs=0.05)


def test_the_range_begins_higher_where_a_patch_does_not_fit(images: Rows) -> None:
    batch = drawn(images, ScaleRange(1, 60), size=64, times=8)
    of_20x = batch["slide"] == 2
    lowest = [float(batch["magnification"][part].min()) for part in (of_20x, ~of_20x)]
    assert lowest[0] >= 64 / 400 * 20
    assert lowest[1] >= 64 / 400 * 40
    assert lowest[0] < 64 / 400 * 40


def test_the_same_blobs_are_half_as_wide_at_half_the_magnification(images: Rows) -> None:
    virtual = image_patches(images[:1], patch_size=96)

    def width(cut: np.ndarray) -> float:
        dark = cut[..., 1] < 140
        return dark.sum() / np.count_nonzero(dark[:, 1:] & ~dark[:, :-1])

    widths = [width(cut_one(virtual, m, (0.9, 0.9), 96)) for m in (40.0, 20.0)]
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.2)


def test_mosaics_are_four_quarters_half_of_them_from_any_image(tmp_path: Path) -> None:
    rows = plain_images(tmp_path, (50, 100, 150, 200))
    batch = drawn(rows, ScaleRange(6, 50, mosaic=1.0), size=33, times=2)
    crops = batch["image"][:, 0, 0].numpy()
    kinds = np.array([len(np.unique(crop)) for crop in crops])
    assert 0.4 < np.mean(kinds > 1) < 0.6  # of the mixed ones 1 in 64 has one colour by chance
    for crop in crops:
        for part in (crop[:16, :16], crop[16:, :16], crop[:16, 16:], crop[16:, 16:]):
            assert len(np.unique(part)) == 1
    whole = drawn(rows, ScaleRange(6, 50), size=33)["image"].numpy()
    assert all(len(np.unique(crop)) == 1 for crop in whole)


def test_a_quarter_too_large_for_another_image_comes_from_the_same_one(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    rows = plain_images(tmp_path, (50,), 400) + plain_images(small, (200,), 80)
    dataset = PatchDataset(image_patches(rows, patch_size=32), scale=ScaleRange(4, 40, mosaic=1.0))
    large = np.flatnonzero(dataset.slide_of == dataset.slide_ids.index("50.png"))
    batch = dataset.begin(large, seeds=np.arange(len(large))).result()
    is_coarse = batch["magnification"].flatten() < 8  # 16 px at 8x are 80 px at 40x
    values = [batch["image"][part].unique().tolist() for part in (is_coarse, ~is_coarse)]
    assert values == [[50], [50, 200]]


def test_a_draw_depends_on_its_seed_alone(images: Rows) -> None:
    dataset = PatchDataset(image_patches(images, patch_size=32), scale=ScaleRange(4, 60, mosaic=0.5))
    seeds = np.arange(40) + 7
    first = dataset.begin(np.arange(40), seeds=seeds).result()
    again = dataset.begin(np.arange(39, -1, -1), seeds=seeds[::-1].copy()).result()
    assert torch.equal(first["image"], again["image"].flip(0))
    other = dataset.begin(np.arange(40), seeds=seeds + 1000).result()
    assert not torch.equal(first["magnification"], other["magnification"])


def test_an_epoch_goes_on_where_it_was_interrupted(images: Rows) -> None:
    dataset = PatchDataset(image_patches(images, patch_size=32), scale=ScaleRange(4, 60, mosaic=0.5))
    options = {"batch_size": 50, "balanced": "slide", "augment": Augment.strong()}
    whole, broken = loader(dataset, **options), loader(dataset, **options)
    expected = list(whole)
    iterator = iter(broken)
    taken = [next(iterator) for _ in range(3)]
    rest = loader(dataset, **options)
    rest.load_state_dict(broken.state_dict())
    for a, b in zip(expected, [*taken, *rest], strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["magnification"], b["magnification"])


def test_whole_slides_give_any_scale_too_and_only_near_their_patches(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, names=(GRID,), slides=("a.svs",))
    virtual = VirtualSet.of(cohort[GRID])
    dataset = PatchDataset(virtual, scale=ScaleRange(5, 30))
    batch = dataset.__getitems__(range(0, len(dataset), 9))
    assert batch["image"].float().std((1, 2, 3, 4)).median() > 3
    assert batch["magnification"].min() >= 5


def test_a_range_of_scales_is_refused_for_tuples(tmp_path: Path) -> None:
    tuples = VirtualSet.of(write_cohort(tmp_path, names=(TUPLES,), slides=("a.svs",))[TUPLES])
    with pytest.raises(SpecError, match="one magnification, no tuples"):
        PatchDataset(tuples, scale=ScaleRange(5, 30))


def test_an_image_too_small_for_every_scale_of_the_range_is_named(images: Rows) -> None:
    with pytest.raises(SpecError, match=r"'0\.png' is too small for a patch of 200 px: it fits at 20x and above"):
        PatchDataset(image_patches(images[:1], patch_size=200), scale=ScaleRange(5, 20))


# --- images as sets ---------------------------------------------------------------------------------------------------


def test_the_places_of_images_are_a_grid_at_the_lowest_of_their_scales(images: Rows) -> None:
    virtual = image_patches(images, patch_size=32)
    assert virtual.spec.magnifications == (20.0,)
    counts = np.bincount(virtual.index()["slide"].values)
    assert counts.tolist() == [49, 49, 169]  # 400 px at 40x are 200 px at 20x


def test_an_image_of_unknown_scale_is_refused(images: Rows) -> None:
    with pytest.raises(MissingScaleError, match=r"0\.png"):
        image_patches([{"path": images[0]["path"]}], patch_size=32)


def test_the_lattice_has_every_magnification_that_fits_equally_often(images: Rows) -> None:
    classes = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0)
    sets = image_lattice(images, magnifications=classes, patch_size=48, side=3)
    dataset = PatchDataset(sets, target="magnification")
    for slide, magnification in enumerate((40.0, 40.0, 20.0)):
        fits = [m for m in classes if m <= magnification and 400 * m / magnification >= 48]
        of_slide = dataset.class_of[dataset.slide_of == slide]
        assert dict(zip(*np.unique(of_slide, return_counts=True), strict=True)) == dict.fromkeys(fits, 9)
    batch = dataset.__getitems__(np.flatnonzero((dataset.slide_of == 0) & (dataset.class_of == 40)).tolist())
    level = textured_image(0)
    places = [(y, x) for y in (0, 176, 352) for x in (0, 176, 352)]
    assert sorted(zip(batch["y0"].tolist(), batch["x0"].tolist(), strict=True)) == places
    for image, y, x in zip(batch["image"][:, 0], batch["y0"].tolist(), batch["x0"].tolist(), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), level[y : y + 48, x : x + 48])
    with pytest.raises(SpecError, match="fits any of 3 images"):
        image_lattice(images, magnifications=classes, patch_size=401)
