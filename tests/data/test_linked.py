"""LinkedSet: tuples of a patch and its parents, against a loop over all patches of the coarser grids."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import msdask as ms
from msdask.data import LinkedSet, PatchDataset, PatchStream, loader
from msdask.errors import SpecError, StoreError
from msdask.sample.slides import make_slide
from msdask.store import layout
from tests.tools.store_tools import copy_store, forge

SIZE = 32
NAMES = [f"grid-{m}x-{SIZE}" for m in (20, 10, 5)]
SLIDES = ("a.svs", "b.svs", "c.svs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    """Three slides of two classes, split, with linked grids at 20x, 10x and 5x; some patches have no label."""
    folder = tmp_path_factory.mktemp("linked")
    rows = []
    for seed, (slide, split) in enumerate(zip(SLIDES, ("train", "train", "test"), strict=True)):
        make_slide(folder / slide, size=(900, 1100), mpp=0.5, seed=seed, levels=(1, 4), threads=1)
        mask = np.full((90, 110), 1, np.uint8)
        mask[:45, 45:] = 2  # in the middle of a 5x patch, which then has no label
        mask[45:, 43:] = 2  # where a 5x patch has another label than some of the 20x ones in it
        mask[70:, :30] = 0
        Image.fromarray(mask).save(folder / f"{slide}.png")
        rows.append({"path": folder / slide, "mask": folder / f"{slide}.png", "mpp": 0.5, "split": split})
    made = ms.PatchStore(folder / "linked.zarr")
    specs = [
        ms.ExtractionSpec(mode="grid", magnifications=(m,), patch_size=SIZE, unlabeled="keep", min_label=0.6)
        for m in (20.0, 10.0, 5.0)
    ]
    report = ms.extract(rows, made, specs, values={1: 0, 2: 1}, threads=2, progress=False)
    assert report.is_complete, report.failures
    return made


@pytest.fixture
def copied(store: ms.PatchStore, tmp_path: Path) -> ms.PatchStore:
    """A copy that a test may damage."""
    copy_store(store.path, tmp_path / "copied.zarr")
    return ms.PatchStore(tmp_path / "copied.zarr")


def sets(store: ms.PatchStore, names: list[str] = NAMES) -> list[ms.store.patch_set.PatchSet]:
    return [store[name] for name in names]


def naive_tuples(store: ms.PatchStore, slide_id: str, names: list[str] = NAMES) -> list[tuple[int, ...]]:
    """Rows of every patch of the finest grid and of the patches that contain it, by looking at each; -1 none."""
    tables = [store[name].open(slide_id) for name in names]
    found = []
    for i in range(tables[0].sizes["patch"]):
        rows = [i]
        x, y = (int(tables[0][v].values[i, 0]) for v in ("x0", "y0"))
        for m, table in enumerate(tables[1:], 1):
            room = SIZE * (20 / (20, 10, 5)[m] - 1)
            holders = [
                k
                for k in range(table.sizes["patch"])
                if 0 <= x - int(table["x0"].values[k, 0]) <= room and 0 <= y - int(table["y0"].values[k, 0]) <= room
            ]
            rows.append(holders[0] if holders else -1)
        found.append(tuple(rows))
    return found


def test_tuples_are_the_patches_and_the_stored_ones_that_contain_them(store: ms.PatchStore) -> None:
    dataset = PatchDataset(LinkedSet(sets(store), labeled=False), keep=False)
    batch = dataset.__getitems__(range(len(dataset)))
    found = {s: [] for s in SLIDES}
    for slide, rows in zip(batch["slide"].tolist(), batch["linked_row"].tolist(), strict=True):
        found[dataset.slide_ids[slide]].append(tuple(rows))
    for slide_id in SLIDES:
        assert found[slide_id] == [rows for rows in naive_tuples(store, slide_id) if -1 not in rows]
    assert len(batch["linked_row"]) > 500


def test_a_batch_holds_the_pixels_and_labels_of_every_set(store: ms.PatchStore) -> None:
    dataset = PatchDataset(LinkedSet(sets(store)), target="labels", keep=False)
    batch = dataset.__getitems__(np.random.default_rng(0).integers(0, len(dataset), 60).tolist())
    assert batch["image"].shape == (60, 3, 3, SIZE, SIZE)
    assert batch["label"].shape == (60, 3)
    assert batch["image"].permute(0, 1, 3, 4, 2).is_contiguous()
    assert (batch["label"] >= 0).all()
    labels = dataset.__getitems__(range(len(dataset)))["label"]
    assert (labels[:, 0] != labels[:, 2]).any()
    stored = {(n, s): store[n].open(s).compute() for n in NAMES for s in SLIDES}
    for i in range(60):
        slide_id = dataset.slide_ids[int(batch["slide"][i])]
        for m, name in enumerate(NAMES):
            patch = stored[name, slide_id].isel(patch=int(batch["linked_row"][i, m]))
            np.testing.assert_array_equal(batch["image"][i, m].permute(1, 2, 0).numpy(), patch["image"].values[0])
            assert int(batch["label"][i, m]) == int(patch["label"].values[0])
    assert batch["magnification"][0].tolist() == [20.0, 10.0, 5.0]


def test_what_is_left_out_is_counted_by_its_first_reason(store: ms.PatchStore) -> None:
    linked = LinkedSet(sets(store))
    counts = dict.fromkeys(linked.dropped, 0)
    kept = 0
    for slide_id in SLIDES:
        labels = [store[n].open(slide_id)["label"].values[:, 0] for n in NAMES]
        for rows in naive_tuples(store, slide_id):
            lacking = [f"no parent at {m}x" for m, row in zip((20, 10, 5), rows, strict=True) if row < 0]
            lacking += [
                f"no label at {m}x"
                for m, row, label in zip((20, 10, 5), rows, labels, strict=True)
                if row >= 0 and label[row] < 0
            ]
            if lacking:
                counts[lacking[0]] += 1
            else:
                kept += 1
    assert linked.dropped == counts
    assert counts["no parent at 5x"] > 0
    assert counts["no label at 20x"] > 0
    assert counts["no label at 5x"] > 0
    assert linked.index().sizes["patch"] == kept
    assert f"{kept} tuples on 3 slides" in repr(linked)
    assert f"no parent at 5x: {counts['no parent at 5x']}" in repr(linked)


def test_a_tuple_is_kept_where_all_its_patches_are(copied: ms.PatchStore) -> None:
    path = Path(copied.path, NAMES[2], "a.svs")
    keep = layout.read_column(path, "keep").copy()
    keep[0] = False
    layout.create_column(path, "keep", keep, ("patch",))
    linked = LinkedSet(sets(copied), labeled=False)
    everything, kept = PatchDataset(linked, keep=False), PatchDataset(linked)
    rows = everything.__getitems__(range(len(everything)))
    verdicts = {(n, s): copied[n].open(s)["keep"].values for n in NAMES for s in SLIDES}
    expected = [
        all(verdicts[n, everything.slide_ids[s]][row] for n, row in zip(NAMES, linked_row, strict=True))
        for s, linked_row in zip(rows["slide"].tolist(), rows["linked_row"].tolist(), strict=True)
    ]
    assert 0 < len(kept) == sum(expected) < len(everything)


def test_splits_slides_and_magnifications_are_chosen_as_for_other_sets(store: ms.PatchStore) -> None:
    linked = LinkedSet(sets(store))
    train, test = (PatchDataset(linked, splits=s) for s in ("train", "test"))
    assert {train.slide_ids[i] for i in train.slide_of.tolist()} == {"a.svs", "b.svs"}
    assert {test.slide_ids[i] for i in test.slide_of.tolist()} == {"c.svs"}
    outer = PatchDataset(linked, magnifications=[20, 5], target="labels", keep=False)
    whole = PatchDataset(linked, target="labels", keep=False)
    a, b = (d.__getitems__([3, 70]) for d in (outer, whole))
    for name in ("image", "label", "linked_row", "magnification"):
        assert torch.equal(a[name], b[name][:, [0, 2]])
    two = LinkedSet(sets(store, NAMES[1:]), slides=["b.svs"])
    assert two.magnifications == (10.0, 5.0)
    assert two.slides == ["b.svs"]


def test_the_loader_streams_them_by_threads_and_workers_alike(store: ms.PatchStore) -> None:
    dataset = PatchDataset(LinkedSet(sets(store)), target="labels")
    batches = list(loader(dataset, batch_size=50, balanced=True, augment=ms.data.Augment()))
    assert len(batches) == -(-len(dataset) // 50)
    again = pickle.loads(pickle.dumps(dataset))
    index = batches[0]["index"]
    plain = loader(dataset, batch_size=50, balanced=True)
    assert torch.equal(next(iter(plain))["image"], again.__getitems__(index.tolist())["image"])
    streamed = torch.cat([b["linked_row"] for b in PatchStream(dataset, batch_size=40)])
    assert len(streamed) == len(dataset)


def test_a_slide_without_links_is_named_with_the_way_out(copied: ms.PatchStore) -> None:
    forge(Path(copied.path), NAMES[0], "b.svs", change=lambda attrs: attrs.pop("links"))
    with pytest.raises(StoreError, match=r"slide 'b.svs' of 'grid-20x-32' is linked to nothing .* in one run"):
        LinkedSet(sets(copied))
    assert LinkedSet(sets(copied), slides=["a.svs", "c.svs"]).slides == ["a.svs", "c.svs"]


def relink(attrs: dict[str, Any], spec_hash: str) -> None:
    attrs["links"]["parent_10x"]["spec_hash"] = spec_hash


def test_links_into_a_set_of_another_spec_are_refused(copied: ms.PatchStore) -> None:
    for slide_id in SLIDES:
        forge(
            Path(copied.path), NAMES[0], slide_id, change=lambda a: a["links"]["parent_10x"].update(spec_hash="another")
        )
    with pytest.raises(
        StoreError, match=r"was linked to 'grid-10x-32' of spec another, which is now of spec [0-9a-f]{8}"
    ):
        LinkedSet(sets(copied))


def test_links_into_a_slide_that_was_extracted_anew_are_refused(copied: ms.PatchStore) -> None:
    moved = copied[NAMES[1]].columns("a.svs", ["x0"])[0] + np.int32(7)
    forge(Path(copied.path), NAMES[1], "a.svs", {"x0": moved})
    with pytest.raises(StoreError, match=r"'a.svs' .* 'grid-10x-32' that do not contain its own"):
        LinkedSet(sets(copied))


def test_sets_that_cannot_be_linked_are_refused(store: ms.PatchStore) -> None:
    with pytest.raises(SpecError, match="two or more magnifications"):
        LinkedSet(sets(store)[:1])
    with pytest.raises(SpecError, match=r"no complete slides \['x'\]"):
        LinkedSet(sets(store), slides=["x"])


def test_without_any_label_the_reason_is_said(copied: ms.PatchStore) -> None:
    for slide_id in SLIDES:
        none = np.full_like(copied[NAMES[2]].columns(slide_id, ["label"])[0], -1)
        forge(Path(copied.path), NAMES[2], slide_id, {"label": none})
    with pytest.raises(SpecError, match=r"no tuple is left of .*no label at 5x: \d+.*labeled=False"):
        LinkedSet(sets(copied))
