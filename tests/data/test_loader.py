"""The loader: the same batches for any number of workers, balanced, shared among ranks, resumed in mid-epoch."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import msdask as ms
from msdask.data import Augment, PatchDataset, PatchLoader, VirtualSet
from msdask.errors import CorruptChunkError, SpecError
from tests.tools.stream_tools import GRID, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("loader"), names=(GRID, TUPLES))


def epoch(loader: PatchLoader) -> list[dict[str, torch.Tensor]]:
    return list(loader)


def assert_same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, values in a.items():
            assert torch.equal(values, b[name]), name


def test_an_epoch_shows_every_patch_once_with_its_own_pixels(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID])
    loader = ms.data.loader(dataset, batch_size=16, seed=1)
    batches = epoch(loader)
    assert len(batches) == len(loader) == -(-len(dataset) // 16)
    index = torch.cat([b["index"] for b in batches])
    assert sorted(index.tolist()) == list(range(len(dataset)))
    assert index.tolist() != sorted(index.tolist())
    images = torch.cat([b["image"] for b in batches])
    expected = dataset.__getitems__(index.tolist())["image"]
    assert torch.equal(images, expected)


WORKERS = [
    {"num_workers": 2},
    # A worker takes seconds to start: it imports torch.
    pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
    pytest.param({"num_workers": 2, "start_method": "spawn"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", [{"prefetch": 7}, *WORKERS])
def test_batches_are_the_same_for_any_number_of_workers(cohort: Cohort, options: dict[str, Any]) -> None:
    def make(**how: Any) -> PatchLoader:
        return ms.data.loader(cohort[TUPLES], batch_size=16, seed=5, split="train", augment=Augment(stain="hed"), **how)

    expected, other = make(), make(**options)
    first = epoch(expected)
    assert_same(first, epoch(other))
    # Workers that live on give the second epoch's batches, not the first's again.
    second = epoch(expected)
    assert_same(second, epoch(other))
    assert any((a["image"] != b["image"]).any() for a, b in zip(first, second, strict=True))
    assert next(iter(other))["image"].permute(0, 1, 3, 4, 2).is_contiguous()
    other.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_whole_batches_on_a_device_are_the_cpus_for_any_number_of_workers(cohort: Cohort, workers: int) -> None:
    def make(**how: Any) -> PatchLoader:
        return ms.data.loader(cohort[TUPLES], batch_size=16, seed=5, split="train", augment=Augment(), **how)

    expected, one = epoch(make()), make(device="cpu")
    found = epoch(one)
    other = make(device="cpu", num_workers=workers, prefetch=3)
    assert_same(found, epoch(other))
    other.close()
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(values, b[name]) for name, values in a.items() if name != "image")
        assert (a["image"].int() - b["image"].int()).abs().max() <= 1
    one.epoch = 0
    assert_same(expected, epoch(one.to(None)))


def test_another_augmentation_than_ours_is_made_before_a_batch_is_sent(cohort: Cohort) -> None:
    def darker(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch | {"image": batch["image"] // 2}

    plain, sent = (
        epoch(ms.data.loader(cohort[GRID], batch_size=16, augment=darker, device=device)) for device in (None, "cpu")
    )
    assert_same(plain, sent)


def test_threads_follow_from_the_cores(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, batches in ((1, 2), (4, 4), (64, 8)):
        # By its module: the function has the same name.
        monkeypatch.setattr(sys.modules[PatchLoader.__module__], "CPU_COUNT", cores)
        assert ms.data.loader(cohort[GRID], batch_size=16).prefetch == batches
        assert ms.data.loader(cohort[GRID], batch_size=16, num_workers=4).prefetch == 2
        assert ms.data.loader(cohort[GRID], batch_size=16, prefetch=5).prefetch == 5


@pytest.mark.parametrize(("message", "is_told"), [("DataLoader worker (pid 1) is killed", False), ("no memory", True)])
def test_a_worker_that_aborts_after_it_was_told_to_end_is_no_error(
    cohort: Cohort, message: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=64)

    def aborted() -> None:
        raise RuntimeError(message)

    workers = SimpleNamespace(_iterator=SimpleNamespace(_shutdown_workers=aborted))
    monkeypatch.setattr(loader, "_workers", workers)
    with pytest.raises(RuntimeError, match=message) if is_told else nullcontext():
        loader.close()


def test_seeds_and_epochs_give_other_orders(cohort: Cohort) -> None:
    def order(seed: int, number: int) -> tuple[int, ...]:
        loader = ms.data.loader(cohort[GRID], batch_size=64, seed=seed)
        loader.set_epoch(number)
        return tuple(torch.cat([b["index"] for b in loader]).tolist())

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, number) for seed in range(2) for number in range(2)}) == 4


def test_without_shuffle_batches_come_in_the_datasets_order(cohort: Cohort) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=10, shuffle=False)
    index = torch.cat([b["index"] for b in loader]).tolist()
    assert index == list(range(len(index)))


@pytest.mark.parametrize("balanced", [True, "slide"])
def test_balance_evens_out_classes_or_slides(cohort: Cohort, balanced: bool | str) -> None:
    # Patches of one class are spread unevenly over the slides.
    labels = [1] if balanced == "slide" else [0, 1, 2]
    dataset = PatchDataset(cohort[GRID], labels=labels, keep=False)
    values = dataset.slide_of if balanced == "slide" else dataset.class_of.astype(int)
    counts = np.unique(values, return_counts=True)[1]
    loader = ms.data.loader(dataset, batch_size=32, balanced=balanced)  # type: ignore[arg-type]
    drawn = values[np.concatenate([loader.order.indices(number) for number in range(4000 // len(dataset))])]
    seen = np.unique(drawn, return_counts=True)[1]
    assert len(seen) == len(counts) > 1
    assert chisquare(seen).pvalue > 1e-3
    assert chisquare(seen, counts / counts.sum() * seen.sum()).pvalue < 1e-6


def test_balance_by_magnification_for_the_detector(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID], target="magnification")
    assert dataset.counts() == {20.0: len(dataset)}
    batch = next(iter(ms.data.loader(dataset, batch_size=8, balanced=True)))
    assert len(batch["index"]) == 8


def test_a_balanced_patch_that_is_drawn_twice_is_augmented_twice(cohort: Cohort) -> None:
    dataset = PatchDataset(cohort[GRID], labels="labeled", slides=["a.svs"])
    batches = epoch(ms.data.loader(dataset, batch_size=len(dataset), balanced=True, augment=Augment()))
    index, images = batches[0]["index"].tolist(), batches[0]["image"]
    repeated = next(i for i in index if index.count(i) > 3)
    places = [k for k, i in enumerate(index) if i == repeated]
    assert len({images[k].numpy().tobytes() for k in places}) > 1


def test_ranks_share_the_patches(cohort: Cohort) -> None:
    loaders = [ms.data.loader(cohort[GRID], batch_size=16, rank=rank, world_size=3) for rank in range(3)]
    shares = [torch.cat([b["index"] for b in loader]).tolist() for loader in loaders]
    assert sorted(i for share in shares for i in share) == list(range(len(loaders[0].dataset)))
    assert len({len(loader) for loader in loaders}) == 1


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(("stop", "num_workers"), [(1, 0), (4, 0), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_resumed_epoch_equals_an_unbroken_one(
    cohort: Cohort, stop: int, num_workers: int, device: str | None
) -> None:
    def make() -> PatchLoader:
        return ms.data.loader(
            cohort[GRID],
            batch_size=32,
            seed=2,
            augment=Augment(),
            num_workers=num_workers,
            split="train",
            device=device,
        )

    whole = make()
    whole.set_epoch(3)
    unbroken = epoch(whole)
    broken = make()
    broken.set_epoch(3)
    begun = iter(broken)
    first = [next(begun) for _ in range(stop)]
    state = broken.state_dict()
    assert (state["epoch"], state["batch"]) == (3, stop)
    resumed = make()
    resumed.load_state_dict(state)
    resumed.set_epoch(3)  # as a trainer does, for the epoch that it resumes
    begun.close()
    broken.close()
    assert_same(unbroken, first + epoch(resumed))
    assert_same(epoch(whole), epoch(resumed))
    for loader in (whole, resumed):
        loader.close()


def test_the_next_iteration_is_the_next_epoch_from_its_start(cohort: Cohort) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=64)
    epoch(loader)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["batch"] == 0
    next(iter(loader))
    assert loader.state_dict()["batch"] == 1
    assert len(epoch(loader)) == len(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_is_iterated_inside_its_own_loop_gives_both_loops_a_whole_epoch(
    cohort: Cohort, num_workers: int
) -> None:
    expected = epoch(ms.data.loader(cohort[GRID], batch_size=48, seed=3))
    loader = ms.data.loader(cohort[GRID], batch_size=48, seed=3, num_workers=num_workers)
    outer, inner = [], []
    for batch in loader:
        outer.append(batch)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, len(outer))
        if len(outer) in (1, 3, len(loader)):
            inner.append(epoch(loader))
    assert_same(expected, outer)
    assert len(inner) == 3
    for whole in inner:
        assert_same(expected, whole)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    loader.close()


def test_an_iteration_that_was_left_in_the_middle_does_not_hold_up_the_next_ones(cohort: Cohort) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=48, seed=3)
    left = iter(loader)  # as a traceback in a notebook holds it
    next(left)
    first, second = epoch(loader), epoch(loader)
    assert_same(epoch(ms.data.loader(cohort[GRID], batch_size=48, seed=3)), first)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, second, strict=True))
    assert loader.state_dict()["epoch"] == 2
    left.close()


def test_an_epoch_that_is_chosen_in_the_middle_of_a_loop_is_the_next_one(cohort: Cohort) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=48)
    for number, _ in enumerate(loader):
        if number == 1:
            loader.set_epoch(7)
    assert (loader.epoch, loader.state_dict()["batch"]) == (7, 0)


def test_a_state_of_another_loader_is_refused(cohort: Cohort) -> None:
    state = ms.data.loader(cohort[GRID], batch_size=64).state_dict()
    with pytest.raises(SpecError, match=r"another loader \(batch_size: 64, here 32; seed: 0, here 1\)"):
        ms.data.loader(cohort[GRID], batch_size=32, seed=1).load_state_dict(state)


def test_drop_last(cohort: Cohort) -> None:
    loader = ms.data.loader(cohort[GRID], batch_size=50, drop_last=True)
    assert {len(b["index"]) for b in loader} == {50}
    assert len(loader) == len(loader.dataset) // 50


def test_fork_is_refused_with_the_reason(cohort: Cohort) -> None:
    with pytest.raises(SpecError, match=r"start_method='fork': .*inherits locks .* hang.*num_workers=0.*'spawn'"):
        ms.data.loader(cohort[GRID], batch_size=8, num_workers=2, start_method="fork")


def test_classes_cannot_be_balanced_where_some_patches_have_none(cohort: Cohort) -> None:
    with pytest.raises(SpecError, match=r"\d+ of \d+ patches have no label.*labels='labeled'"):
        ms.data.loader(PatchDataset(cohort[GRID], keep=False), batch_size=8, balanced=True)


def test_an_empty_dataset_is_refused(cohort: Cohort) -> None:
    with pytest.raises(SpecError, match="0 patches"):
        ms.data.loader(PatchDataset(cohort[GRID], labels=[9]), batch_size=8)


def test_arguments_that_make_no_sense_are_refused(cohort: Cohort) -> None:
    with pytest.raises(SpecError, match="balanced='classes'"):
        ms.data.loader(cohort[GRID], batch_size=8, balanced="classes")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"batch_size=1\.5: expected a whole number"):
        ms.data.loader(cohort[GRID], batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="prefetch=0"):
        ms.data.loader(cohort[GRID], batch_size=8, prefetch=0)
    with pytest.raises(SpecError, match="splits= and keep= to the PatchDataset"):
        ms.data.loader(PatchDataset(cohort[GRID]), batch_size=8, split="train")


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_chunk_raises_and_names_it(tmp_path: Path, num_workers: int) -> None:
    patch_set = write_cohort(tmp_path, names=(GRID,), slides=("a.svs",))[GRID]
    shard = Path(patch_set.arrays("a.svs").shard_path("image", 0))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 255
    shard.write_bytes(data)
    loader = ms.data.loader(
        PatchDataset(patch_set, keep=False), batch_size=16, num_workers=num_workers, augment=Augment()
    )
    with pytest.raises(CorruptChunkError, match=r"a\.svs/image' chunk \(0, 0\): the checksum"):
        epoch(loader)


def test_virtual_sets_are_shuffled_by_blocks(cohort: Cohort) -> None:
    loader = ms.data.loader(VirtualSet.of(cohort[GRID]), batch_size=32)
    assert loader.order.shuffle == "blocks"
    index = torch.cat([b["index"] for b in loader])
    assert sorted(index.tolist()) == list(range(len(loader.dataset)))
