"""PatchStream: the same epoch from large reads, for any number of workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from msdask.data import Augment, PatchDataset, PatchStream
from msdask.errors import SpecError
from tests.tools.stream_tools import GRID, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("stream"), names=(GRID, TUPLES))


def test_an_epoch_shows_every_patch_once_with_its_own_pixels(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[TUPLES])
    stream = PatchStream(dataset, batch_size=10, mix=2)
    batches = list(stream)
    assert len(batches) == len(stream)
    assert [len(b["index"]) for b in batches[:-1]] == [10] * (len(stream) - 1)
    index = torch.cat([b["index"] for b in batches])
    assert sorted(index.tolist()) == list(range(len(dataset)))
    images = torch.cat([b["image"] for b in batches])
    assert torch.equal(images, dataset.__getitems__(index.tolist())["image"])
    assert batches[0]["image"].permute(0, 1, 3, 4, 2).is_contiguous()


def test_the_order_is_that_of_shuffled_blocks(cohort: Cohort) -> None:
    stream = PatchStream(PatchDataset(cohort[GRID]), batch_size=7, mix=3, seed=4)
    stream.set_epoch(2)
    assert torch.cat([b["index"] for b in stream]).tolist() == stream.order.windows(2)[0].tolist()


@pytest.mark.slow
def test_the_order_is_the_same_for_any_number_of_workers(cohort: Cohort) -> None:
    stream = PatchStream(PatchDataset(cohort[GRID]), batch_size=24, augment=Augment())
    expected = list(stream)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = list(loader)
    assert len(found) == len(expected) > 4
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["index"], b["index"])
        assert torch.equal(a["image"], b["image"])


def test_ranks_and_drop_last(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID])
    streams = [PatchStream(dataset, batch_size=16, drop_last=True, rank=r, world_size=2) for r in range(2)]
    shares = [[b["index"] for b in stream] for stream in streams]
    assert {len(i) for share in shares for i in share} == {16}
    assert not set(torch.cat(shares[0]).tolist()) & set(torch.cat(shares[1]).tolist())
    with pytest.raises(SpecError, match="epoch=-1"):
        streams[0].set_epoch(-1)
