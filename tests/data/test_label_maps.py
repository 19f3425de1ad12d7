"""Label maps in training: they stay with their images to the px, and their px say how often a patch is drawn."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import msdask as ms
from msdask.data import Augment, PatchDataset, ScaleAugment
from msdask.data.balance import pixel_chances
from msdask.data.feed import Feed
from msdask.data.order import EpochOrder, weighted_draws
from msdask.data.scales import enlarge_center
from msdask.errors import SpecError
from tests.data.test_augment import batch_of, pixels_of

SPEC = ms.ExtractionSpec("centroids", (20, 5), patch_size=48, min_tissue=0.0, unlabeled="keep", label_maps=True)
GIVEN, WITHOUT = "centroids-20x-5x-40", "grid-10x-40"
ONE: dict[str, Any] = {"flips": False, "rotate": False, "hsv": None, "p": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    """One slide in three sets: with label maps from an extraction, with those that were given, and without."""
    folder = tmp_path_factory.mktemp("maps")
    sample = ms.sample.make_slide(folder / "a.svs", size=(512, 640), seed=1, levels=(1, 4), associated=False)
    ms.sample.write_labels(sample, folder / "labels")
    options: dict[str, Any] = {"labels": folder / "labels", "values": [50, 100, 150]}
    extracted = ms.extract(sample.path, folder / "s.zarr", SPEC, threads=0, progress=False, **options)
    assert extracted.is_complete
    store, slide = ms.PatchStore(folder / "s.zarr"), ms.open_slide(sample.path)
    labels = xr.DataArray(sample.labels // 50, dims=("y", "x"))
    chosen: dict[str, Any] = {"labels": labels, "min_tissue": 0.0, "unlabeled": "keep", "patch_size": 40}
    store.write(ms.patches(slide, ms.centroids(slide, magnifications=[20, 5], **chosen), labels=labels))
    store.write(ms.patches(slide, ms.grid(slide, magnification=10, **chosen)))
    return store


# --- maps stay with their images --------------------------------------------------------------------------------------


def nearest(maps: np.ndarray, share: float) -> np.ndarray:
    """The px under the center of each px of the enlarged map, by the definition; -1 where it lies between two."""
    size = len(maps)
    out = np.zeros(maps.shape, int)
    for i, j in product(range(size), repeat=2):
        at = [(size - size * share) / 2 + (k + 0.5) * share for k in (i, j)]
        is_between = any(abs(a - round(a)) < 1e-2 for a in at)
        out[i, j] = -1 if is_between else maps[int(at[0]), int(at[1])]
    return out


@pytest.mark.parametrize("share", [10 / 12, 2 / 3, 0.987, 0.31])
@pytest.mark.parametrize("size", [32, 33])
def test_an_enlarged_map_has_the_class_under_each_px(size: int, share: float) -> None:
    maps = np.random.default_rng(0).integers(0, 200, (size, size), dtype=np.uint8)
    expected = nearest(maps, share)
    found = enlarge_center(maps, share, interpolation=0)
    assert (expected >= 0).mean() > 0.4
    np.testing.assert_array_equal(found[expected >= 0], expected[expected >= 0])


def is_aligned(images: np.ndarray, maps: np.ndarray) -> bool:
    """Whether images (0 or 255 as the map says, interpolated since) can be of these maps.

    The nearest px has at least a quarter of the weight of an interpolated one; OpenCV rounds weights to 1/32.
    """
    slack = 255 / 16
    return bool((images[maps == 1] >= 64 - slack).all() and (images[maps == 0] <= 191 + slack).all())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_maps_stay_with_images_to_the_px_under_every_change_of_geometry(device: str | None) -> None:
    maps = np.random.default_rng(1).integers(0, 2, (48, 2, 31, 31), dtype=np.uint8)
    batch = batch_of(np.repeat(maps[..., None] * 255, 3, axis=-1), label_map=maps)
    augment = Augment(hsv=None, scale=ScaleAugment([10, 20, 40], p=0.7), p=0.7)
    if device is None:
        out = augment(batch)
    else:
        feed = Feed(device)
        out = feed.ready(feed.send(augment.begin(batch)))
    images, changed = pixels_of(out)[..., 0].astype(float), out["label_map"].numpy()
    assert set(np.unique(changed)) == {0, 1}
    assert is_aligned(images, changed)
    assert (changed != maps).any(axis=(1, 2, 3)).sum() > 40
    for moved in (np.roll(changed, 1, -1), np.roll(changed, 1, -2), changed[..., ::-1], changed.swapaxes(-1, -2)):
        assert not is_aligned(images, moved)
    still = out["magnification"].numpy() == 10
    np.testing.assert_array_equal(images[still], changed[still] * 255)


@pytest.mark.parametrize(
    "options",
    [
        {"hsv": ((-90, 90), (-90, 90), (-90, 90))},
        {"stain": "hed", "hed": (0.5, 0.05)},
        {"stain": "he"},
        {"saturation": (0.0, 2.0), "contrast": 0.5, "brightness": 0.3},
        {"noise": 0.1},
        {"blur": 3.0},
        {"sharpen": 2.0},
        {"jpeg": (30, 40)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_colors_or_sharpness_never_touches_a_map(options: dict[str, Any]) -> None:
    random = np.random.default_rng(2)
    maps = random.integers(0, 256, (6, 2, 32, 32), dtype=np.uint8)
    batch = batch_of(random.integers(60, 200, (6, 2, 32, 32, 3), dtype=np.uint8), label_map=maps)
    augment, feed = Augment(**{**ONE, **options}), Feed("cpu")
    for out in (augment(batch), feed.ready(feed.send(augment.begin(batch)))):
        assert (pixels_of(out) != pixels_of(batch)).any()
        np.testing.assert_array_equal(out["label_map"].numpy(), maps)


# --- balance by px ----------------------------------------------------------------------------------------------------


def expected_pixels(chances: np.ndarray, counts: np.ndarray) -> list[float]:
    """Expected labelled px of each class in a patch that is drawn."""
    return [
        sum(float(p) * int(row[k]) for p, row in zip(chances, counts, strict=True)) for k in range(1, counts.shape[1])
    ]


@given(st.integers(1, 5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_every_class_is_expected_equally_often_where_each_is_somewhere_ahead(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 400, (60, classes + 1)) * (random.random((60, classes + 1)) < 0.5)
    counts = np.concatenate([counts, np.eye(classes + 1, dtype=int) * random.integers(1, 5000, classes + 1)])
    chances = pixel_chances(counts)
    assert chances.sum() == pytest.approx(1)
    assert chances.min() >= 0
    assert not chances[counts[:, 1:].sum(1) == 0].any()
    totals, weights = counts.sum(0), np.zeros(classes)
    expected = expected_pixels(chances, counts)
    # Of one class alone in some patch: weights that make all equal exist unless they would have to be below 0.
    given_class = counts[:, 1:] / totals[1:]
    exact = np.linalg.solve((given_class.T @ counts[:, 1:]).T, np.ones(classes))
    if (exact >= 0).all():
        np.testing.assert_allclose(expected, np.mean(expected), rtol=1e-6)
        weights = exact / exact.sum()
        for i in range(0, len(counts), 7):
            naive = sum(weights[k] * counts[i, k + 1] / totals[k + 1] for k in range(classes))
            assert chances[i] == pytest.approx(naive, abs=1e-9)


def test_unlabeled_px_and_absent_classes_count_nothing() -> None:
    counts = np.array([[900, 100, 0, 0], [0, 500, 0, 0], [999, 0, 0, 1], [1000, 0, 0, 0]])
    chances = pixel_chances(counts)
    assert chances[3] == 0
    np.testing.assert_allclose(expected_pixels(chances, counts)[0], expected_pixels(chances, counts)[2])
    np.testing.assert_allclose(pixel_chances(counts * [[0, 1, 1, 1]]), chances)
    np.testing.assert_allclose(pixel_chances(counts[:, [0, 1, 3]]), chances)
    with pytest.raises(SpecError, match="none of 2 patches has a labelled px"):
        pixel_chances(counts[[3, 3]])


def test_draws_follow_the_chances() -> None:
    chances = np.array([0, 3, 0, 0, 1, 4, 0], float)
    drawn = weighted_draws(chances, 80_000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=7)
    assert not counts[chances == 0].any()
    np.testing.assert_allclose(counts / 80_000, chances / 8, atol=0.006)
    orders = [EpochOrder(7, 2, chance_of=chances, rank=rank, world_size=2, seed=5) for rank in range(2)]
    assert [len(order.indices(3)) for order in orders] == [4, 4]
    np.testing.assert_array_equal(orders[0].indices(3), orders[0].indices(3))
    assert any((orders[0].indices(e) != orders[1].indices(e)).any() for e in range(4))


@pytest.mark.parametrize("name", [SPEC.name, GIVEN])
@pytest.mark.parametrize("magnification", [20, 5])
def test_label_pixels_of_a_dataset_are_those_of_its_maps(name: str, magnification: float, store: ms.PatchStore) -> None:
    dataset = PatchDataset(store[name], magnifications=[magnification], label_maps=True, labels=[0, 1])
    maps = dataset.begin(np.arange(len(dataset))).result()["label_map"][:, 0].numpy()
    found = dataset.label_pixels()
    np.testing.assert_array_equal(found, np.stack([(maps == k).sum((1, 2)) for k in range(found.shape[1])], axis=1))
    assert found.sum() == maps.size


def test_counts_that_are_stored_are_not_counted_again(store: ms.PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msdask.data.patches.count_labels", None)
    assert PatchDataset(store[SPEC.name], keep=False).label_pixels().shape == (len(store[SPEC.name]), 4)
    with pytest.raises(TypeError):
        PatchDataset(store[GIVEN], keep=False).label_pixels()


def test_a_loader_balances_the_px_of_classes(store: ms.PatchStore) -> None:
    dataset = PatchDataset(store[SPEC.name], label_maps=True, keep=False)
    loaders = [ms.data.loader(dataset, batch_size=32, balanced="pixels", seed=4) for _ in range(2)]
    epochs = [[batch["index"] for batch in one] for one in loaders]
    assert all(torch.equal(a, b) for a, b in zip(*epochs, strict=True))
    counts, drawn = dataset.label_pixels(), np.zeros(3)
    plain = counts[:, 1:].sum(0) / counts[:, 1:].sum()
    for epoch in range(200):
        drawn += counts[loaders[0].order.indices(epoch), 1:].sum(0)
    assert np.ptp(plain) > 0.1
    np.testing.assert_allclose(drawn / drawn.sum(), 1 / 3, atol=0.02)
    with pytest.raises(SpecError, match="this state is of another loader"):
        ms.data.loader(dataset, batch_size=32, seed=4).load_state_dict(loaders[0].state_dict())
    with pytest.raises(SpecError, match="has no label_map: extract it with label maps"):
        ms.data.loader(store[WITHOUT], batch_size=4, balanced="pixels")


def test_classes_that_cannot_be_made_equal_are_told(store: ms.PatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PatchDataset(store[GIVEN])
    counts = np.tile(np.array([[0, 90, 10]], np.uint32), (len(dataset), 1))
    monkeypatch.setattr(dataset, "label_pixels", lambda: counts)
    with pytest.warns(UserWarning, match=r"cannot make the classes equal.*class 0: 90.0%, class 1: 10.0%"):
        ms.data.loader(dataset, batch_size=8, balanced="pixels")
