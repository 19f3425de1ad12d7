"""PatchDataset: which patches, with which columns, in which shape."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import msdask as ms
from msdask.data import PatchDataset
from msdask.errors import CorruptChunkError, SpecError
from msdask.extras import how_to_install
from tests.tools.stream_tools import COARSE, GRID, SIZE, SPLITS, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("dataset"))


def naive_batch(cohort: Cohort, name: str, batch: dict[str, torch.Tensor], slide_ids: list[str]) -> np.ndarray:
    """The stored pixels of a batch's slides and rows, one by one."""
    images = cohort.images(name)
    pairs = zip(batch["slide"].tolist(), batch["row"].tolist(), strict=True)
    return np.stack([images[slide_ids[s]][row] for s, row in pairs])


def test_a_batch_holds_the_stored_pixels_and_where_they_are_from(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[TUPLES], keep=False)
    indices = np.random.default_rng(0).integers(0, len(dataset), 30).tolist()
    batch = dataset.__getitems__(indices)
    image = batch["image"]
    assert image.shape == (30, 3, 3, SIZE, SIZE)
    assert image.dtype == torch.uint8
    expected = naive_batch(cohort, TUPLES, batch, dataset.slide_ids)
    np.testing.assert_array_equal(image.permute(0, 1, 3, 4, 2).numpy(), expected)
    assert batch["index"].tolist() == indices
    for i in range(30):
        stored = cohort[TUPLES].open(dataset.slide_ids[int(batch["slide"][i])]).isel(patch=int(batch["row"][i]))
        assert int(batch["x0"][i]) == stored["x0"].values[0]
        assert int(batch["y0"][i]) == stored["y0"].values[0]
        assert int(batch["label"][i]) == stored["label"].values[0]


def test_images_are_a_channels_last_view(cohort: Cohort) -> None:
    image = PatchDataset(cohort[GRID])[0]["image"]
    assert image.shape == (1, 3, SIZE, SIZE)
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_every_patch_is_there_once(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID], keep=False)
    batch = dataset.__getitems__(range(len(dataset)))
    found = set(zip(batch["slide"].tolist(), batch["row"].tolist(), strict=True))
    counts = {s: len(images) for s, images in cohort.images(GRID).items()}
    assert found == {(i, row) for i, s in enumerate(dataset.slide_ids) for row in range(counts[s])}
    assert len(dataset) == len(found)


def test_only_kept_patches_by_default(cohort: Cohort) -> None:
    table = cohort[GRID].table()
    assert 0 < table["keep"].sum() < len(table)
    assert len(PatchDataset(cohort[GRID])) == table["keep"].sum()


@pytest.mark.parametrize("splits", ["test", ["test", "train"], ["train"]])
def test_splits(cohort: Cohort, splits: str | list[str]) -> None:
    dataset = PatchDataset(cohort[GRID], splits=splits, keep=False)
    named = [splits] if isinstance(splits, str) else splits
    expected = {s for s, split in SPLITS.items() if split in named}
    assert {dataset.slide_ids[i] for i in dataset.slide_of.tolist()} == expected
    assert len(dataset) == cohort[GRID].table()["split"].isin(named).sum()


def test_slides_and_labels(cohort: Cohort) -> None:
    table = cohort[GRID].table()
    dataset = PatchDataset(cohort[GRID], slides=["b.svs"], labels=[0, 2], keep=False)
    assert len(dataset) == ((table["slide_id"] == "b.svs") & table["label"].isin([0, 2])).sum()
    assert set(dataset.class_of.tolist()) <= {0, 2}
    labeled = PatchDataset(cohort[GRID], labels="labeled", keep=False)
    assert len(labeled) == (table["label"] >= 0).sum() > 0
    assert labeled.counts() == table["label"][table["label"] >= 0].value_counts().to_dict()


def test_some_magnifications_of_a_tuple(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[TUPLES], magnifications=[5, 20])
    assert dataset.magnifications == [(20.0, 5.0)]
    batch = dataset.__getitems__([3, 40])
    expected = naive_batch(cohort, TUPLES, batch, dataset.slide_ids)[:, [0, 2]]
    np.testing.assert_array_equal(batch["image"].permute(0, 1, 3, 4, 2).numpy(), expected)


def test_labels_at_every_magnification(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[TUPLES], magnifications=[20, 5], target="labels", keep=False)
    batch = dataset.__getitems__(range(0, len(dataset), 7))
    for i in range(len(batch["index"])):
        stored = cohort[TUPLES].open(dataset.slide_ids[int(batch["slide"][i])])["label"].values[int(batch["row"][i])]
        assert batch["label"][i].tolist() == stored[[0, 2]].tolist()


def test_label_maps(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[TUPLES], label_maps=True)
    batch = dataset.__getitems__([50, 1, 7])
    assert batch["label_map"].shape == (3, 3, SIZE, SIZE)
    for i in range(3):
        stored = cohort[TUPLES].open(dataset.slide_ids[int(batch["slide"][i])])["label_map"]
        np.testing.assert_array_equal(batch["label_map"][i].numpy(), stored.isel(patch=int(batch["row"][i])).to_numpy())
    with pytest.raises(SpecError, match="no label_map"):
        PatchDataset(cohort[GRID], label_maps=True)


def test_several_sets_make_one_dataset_with_the_true_magnification_of_each_image(cohort: Cohort) -> None:
    dataset = PatchDataset([cohort[GRID], cohort[COARSE]], target="magnification", keep=False)
    assert len(dataset) == len(cohort[GRID].table()) + len(cohort[COARSE].table())
    batch = dataset.__getitems__(range(len(dataset)))
    nominal = dataset.class_of
    assert dataset.counts() == {10.0: len(cohort[COARSE].table()), 20.0: len(cohort[GRID].table())}
    factor = np.where(np.asarray(dataset.slide_ids)[batch["slide"].numpy()] == "b.svs", 0.25 / 0.2425, 1)
    np.testing.assert_allclose(batch["magnification"][:, 0].numpy(), nominal * factor, rtol=1e-6)
    coarse = nominal == 10
    part = {k: v[coarse] for k, v in batch.items()}
    expected = naive_batch(cohort, COARSE, part, dataset.slide_ids)
    np.testing.assert_array_equal(part["image"].permute(0, 1, 3, 4, 2).numpy(), expected)


def test_a_transform_changes_the_batch(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID], transform=lambda batch: {**batch, "label": batch["label"] + 100})
    assert int(dataset[0]["label"]) >= 99


def test_pytorchs_own_loader_reads_batches(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID])
    batches = list(DataLoader(dataset, batch_size=50, collate_fn=PatchDataset.collate))
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(len(dataset)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magnifications": [40]}, r"magnifications \[40\] are in none of the sets; they have \[20.0, 10.0, 5.0\]"),
        ({"splits": "valid"}, r"splits \['valid'\] are in none of the sets; they have \['test', 'train'\]"),
        ({"slides": ["x"]}, r"slides \['x'\]"),
        ({"target": "class"}, "target='class'"),
        ({"labels": "all"}, "labels='all'"),
        ({"scale": ms.data.ScaleAugment([5, 10])}, "a stored patch has one scale"),
    ],
)
def test_what_makes_no_sense_is_refused(cohort: Cohort, options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PatchDataset(cohort[TUPLES], **options)  # type: ignore[arg-type]


def test_sets_that_do_not_fit_together_are_refused(cohort: Cohort) -> None:
    with pytest.raises(SpecError, match="cannot share a batch"):
        PatchDataset([cohort[GRID], cohort[TUPLES]])
    with pytest.raises(SpecError, match="no patch set"):
        PatchDataset([])


def test_indices_outside_are_refused(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID])
    with pytest.raises(IndexError, match="the dataset has"):
        dataset[len(dataset)]
    assert int(dataset[-1]["index"]) == len(dataset) - 1


def test_an_absent_shard_is_found_when_the_dataset_is_opened(tmp_path_factory: pytest.TempPathFactory) -> None:
    from pathlib import Path

    patch_set = write_cohort(tmp_path_factory.mktemp("absent"), names=(GRID,))[GRID]
    Path(patch_set.arrays("b.svs").shard_path("image", 2)).unlink()
    with pytest.raises(CorruptChunkError, match=r"b\.svs/image/c/2/.* is missing"):
        PatchDataset(patch_set)
    assert len(PatchDataset(patch_set, slides=["a.svs", "c.svs"])) > 0


def test_without_torch_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else found(name, *a)\n"
        "import msdask as ms\n"
        "try: ms.data.loader\n"
        "except ms.MsdaskError as error: print(error, isinstance(error, ImportError))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    missing = f"msdask.data needs torch, which is not installed: {how_to_install('torch')}"
    assert done.stdout.strip() == f"{missing} True"


def test_importing_msdask_imports_no_torch() -> None:
    code = "import sys, msdask; print('torch' in sys.modules, 'data' in dir(msdask))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
