"""`keep=` in every place that takes it, and PyTorch's own loader and subsets on a PatchDataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

import msdask as ms
from msdask.data import PatchDataset, VirtualSet
from msdask.errors import SpecError
from tests.tools.stream_tools import GRID, TUPLES, Cohort, write_cohort

RULE = "tissue >= 0.5 and slide_id != 'b.svs'"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("keep"), names=(GRID, TUPLES), slides=("a.svs", "b.svs"))


def test_a_rule_means_the_same_everywhere(cohort, tmp_path):
    patch_set = cohort[GRID]
    table = patch_set.table()
    expected = table[(table["tissue"] >= 0.5) & (table["slide_id"] != "b.svs")].reset_index(drop=True)
    assert 0 < len(expected) < len(table)
    assert patch_set.table(keep=RULE).equals(expected)
    opened = patch_set.open("a.svs", keep=RULE)
    np.testing.assert_array_equal(opened["x0"][:, 0], expected.loc[expected["slide_id"] == "a.svs", "x0_20x"])
    for keep in (RULE, lambda t: (t["tissue"] >= 0.5) & (t["slide_id"] != "b.svs"), expected):
        dataset = PatchDataset(patch_set, keep=keep)
        found = dataset.begin(range(len(dataset))).result()
        names = [dataset.slide_ids[s] for s in found["slide"].tolist()]
        assert list(zip(names, found["row"].tolist(), strict=True)) == list(
            expected[["slide_id", "row"]].itertuples(index=False, name=None)
        )
    assert sum(len(b["row"]) for b in ms.data.loader(patch_set, batch_size=16, keep=RULE)) == len(expected)
    summary = ms.export(cohort.store, tmp_path, name=GRID, keep=RULE, threads=1)
    assert summary.patches == len(expected) == len(list(tmp_path.rglob("*.png")))


def test_rules_of_sets_that_are_not_stored_are_on_their_index(cohort):
    stored = PatchDataset(cohort[GRID], keep=RULE)
    virtual = PatchDataset(VirtualSet.of(cohort[GRID]), keep=RULE)
    assert len(virtual) == len(stored)
    with pytest.raises(SpecError, match="no column 'contrast'"):
        PatchDataset(VirtualSet.of(cohort[GRID]), keep="contrast > 0.1")


def _rows(batches) -> list[tuple[int, int]]:
    return [pair for b in batches for pair in zip(b["slide"].tolist(), b["row"].tolist(), strict=True)]


def test_pytorch_s_own_loader_takes_a_dataset_as_it_is(cohort):
    dataset = PatchDataset(cohort[TUPLES], keep=False, label_maps=True)
    whole = dataset.begin(range(len(dataset))).result()
    batches = list(DataLoader(dataset, batch_size=50))
    assert all(type(batch) is dict for batch in batches)
    for name in whole:
        assert torch.equal(torch.cat([b[name] for b in batches]), whole[name])
    assert batches[0]["image"].is_contiguous() == whole["image"].is_contiguous()  # it was not copied together
    assert sorted(_rows(DataLoader(dataset, batch_size=32, shuffle=True))) == sorted(_rows([whole]))
    (given,) = DataLoader(dataset, batch_size=len(dataset), collate_fn=PatchDataset.collate)
    assert torch.equal(given["image"], whole["image"])


def test_parts_of_a_dataset_are_read_as_it_is(cohort):
    dataset = PatchDataset(cohort[GRID], keep=False)
    order = [30, 2, 17, 2]
    images = dataset.begin(order).result()["image"]
    (batch,) = DataLoader(Subset(dataset, order), batch_size=9)
    assert torch.equal(batch["image"], images)
    (nested,) = DataLoader(Subset(Subset(dataset, order), [1, 0]), batch_size=9)
    assert torch.equal(nested["image"], images[[1, 0]])
    (joined,) = DataLoader(ConcatDataset([Subset(dataset, [30]), Subset(dataset, [2])]), batch_size=9)
    assert torch.equal(joined["image"], images[:2])
    one, other = random_split(dataset, [0.7, 0.3])
    assert sorted(_rows(DataLoader(one, batch_size=9)) + _rows(DataLoader(other, batch_size=9))) == sorted(
        _rows([dataset.begin(range(len(dataset))).result()])
    )
    sample = Subset(dataset, order)[0]
    assert torch.equal(sample["image"], images[0])


def test_the_loader_takes_a_part_of_a_dataset(cohort):
    dataset = PatchDataset(cohort[GRID], splits="train", keep=False)
    part, _ = random_split(dataset, [0.5, 0.5])
    expected = _rows([dataset.begin(part.indices).result()])
    found = _rows(ms.data.loader(part, batch_size=8, seed=3))
    assert sorted(found) == sorted(expected)
    assert _rows(ms.data.loader(Subset(part, [0, 1]), batch_size=8, shuffle=False)) == sorted(expected[:2])
    assert len(dataset.take([])) == 0
    with pytest.raises(SpecError, match="go with patch sets"):
        ms.data.loader(part, batch_size=8, keep=RULE)
    with pytest.raises(SpecError, match="a Subset of list"):
        ms.data.loader(Subset([1, 2], [0]), batch_size=8)


def test_a_patch_knows_its_place_and_the_slide_gives_it_again(cohort):
    patch = cohort[TUPLES][7]
    slide = ms.open_slide(cohort.folder / patch.slide_id)
    size = patch.image.shape[1]
    assert patch.footprint == pytest.approx(size * 0.5 / slide.mpp_used)
    again = slide.read_region(patch.x0, patch.y0, size, size, magnification=20)
    assert again.shape == (size, size, 3)
    assert np.abs(again.astype(int) - patch.image[0]).mean() < 3


def test_a_region_is_cut_out_of_the_whole(cohort):
    slide = ms.open_slide(cohort.folder / "a.svs")
    whole = slide.at(magnification=10).to_numpy()
    np.testing.assert_array_equal(slide.read_region(80, 120, 30, 20, magnification=10), whole[30:50, 20:50])
    level = slide.levels[0][5:15, 10:40].compute()
    np.testing.assert_array_equal(slide.read_region(10, 5, 30, 10), level)
    outside = slide.read_region(-40, -40, 30, 30, mpp=1.0)
    np.testing.assert_array_equal(outside[10:, 10:], whole[:20, :20])
    assert (outside[:10] == 255).all()
    assert (slide.read_region(10**6, 0, 4, 5) == 255).all()
    with pytest.raises(SpecError, match="at least 1 px"):
        slide.read_region(0, 0, 0, 5)
