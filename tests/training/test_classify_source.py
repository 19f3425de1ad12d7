"""What classifiers learn from: tuples of a store, splits by patient, and what is refused before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.errors import MsdaskError, SpecError
from msdask.training import ClassifySource, Split
from tests.tools.class_tools import COHORT, SCALES, TUPLES, write_class_cohort
from tests.tools.store_tools import copy_store, forge


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_class_cohort(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def copied(store: ms.PatchStore, tmp_path: Path) -> ms.PatchStore:
    copy_store(store.path, tmp_path / "copied.zarr")
    return ms.PatchStore(tmp_path / "copied.zarr")


def test_multicenter_tuples_have_the_label_of_their_centroid(store):
    source = ClassifySource(store.path)
    dataset = source.dataset(["a0.png", "b.png"])
    batch = dataset.__getitems__(range(len(dataset)))
    assert batch["image"].shape[1:3] == (3, 3)
    assert batch["label"].tolist() == [
        int(label)
        for slide in ("a0.png", "b.png")
        for label in store[TUPLES].open(slide)["label"].values[:, 0]
        if label >= 0
    ]
    assert source.magnifications == SCALES
    assert source.classes == 2
    assert source.counts.sum() == store[TUPLES].index().sizes["patch"]


def test_some_magnifications_of_tuples_have_the_centroid_s_label_all_the_same(store):
    few = ClassifySource(store.path, magnifications=[5, 10]).dataset(["b.png"])
    all_of_them = ClassifySource(store.path).dataset(["b.png"])
    a, b = (d.__getitems__([0, 50]) for d in (few, all_of_them))
    np.testing.assert_array_equal(a["image"].numpy(), b["image"][:, 1:].numpy())
    assert a["label"].tolist() == b["label"].tolist()


def test_upper_region_tuples_have_a_label_at_every_magnification(store):
    source = ClassifySource(store.path, "upper_region", losses="n+1")
    batch = next(iter(source.measured(["c.png"], batch_size=200)))
    assert batch["label"].shape == (len(batch["image"]), 3)
    for m, scale in enumerate((20, 10, 5)):
        stored = store[f"grid-{scale}x-32"].open("c.png")["label"].values[:, 0]
        assert batch["label"][:, m].tolist() == stored[batch["linked_row"][:, m].numpy()].tolist()
    assert source.dropped["no parent at 5x"] > 0
    complete = ms.data.LinkedSet([store[f"grid-{m}x-32"] for m in (20, 10, 5)]).index().sizes["patch"]
    assert int(source.counts.sum()) == complete


def test_one_magnification_of_grids_is_a_grid(store):
    source = ClassifySource(store.path, "upper_region", magnifications=[10])
    assert source.magnifications == (10.0,)
    assert source.dataset(["a0.png"]).__getitems__([0])["image"].shape == (1, 1, 3, 32, 32)


def test_what_is_left_out_is_counted(copied):
    none = copied[TUPLES].columns("b.png", ["label"])[0].copy()
    none[:7, 0] = -1
    forge(Path(copied.path), TUPLES, "b.png", {"label": none})
    assert ClassifySource(copied.path).dropped == {"no label at 20x": 7, "white or of low contrast": 0}


def test_the_stored_split_and_patients_are_those_of_the_table(store):
    source = ClassifySource(store.path)
    split = source.split()
    assert split == Split(0, ("a0.png", "a1.png", "b.png"), ("c.png",), ("d.png", "e.png"))
    source.check(split)
    assert source.patients == {slide: patient for slide, (_, patient) in COHORT.items()}


def test_drawn_splits_keep_patients_together(store):
    source = ClassifySource(store.path)
    for seed in range(10):
        split = source.split(ratios=(60, 20, 20), seed=seed)
        parts = [part for part in ("train", "valid", "test") for s in getattr(split, part) if s in ("a0.png", "a1.png")]
        assert len(set(parts)) == 1
        assert len(split.train) + len(split.valid) + len(split.test) == 6


def test_a_patient_in_two_parts_is_refused(store, tmp_path):
    for name, slides in {"train": ["a0", "b"], "valid": ["c", "a1"], "test": ["d"]}.items():
        (tmp_path / f"list_{name}.csv").write_text("\n".join(slides) + "\n")
    with pytest.raises(
        SpecError, match=r"patient 'A' is in two parts: slide 'a0.png' is in 'train' and slide 'a1.png' in 'valid'"
    ):
        ClassifySource(store.path).split(lists=tmp_path)


def test_a_slide_in_two_parts_is_refused(store, tmp_path):
    for name, slides in {"train": ["a0", "b"], "valid": ["c"], "test": ["b"]}.items():
        (tmp_path / f"list_{name}.csv").write_text("\n".join(slides) + "\n")
    with pytest.raises(SpecError, match=r"slide 'b.png' is in 'train' and in 'test'"):
        ClassifySource(store.path).split(lists=tmp_path)


def test_a_class_missing_from_a_part_is_refused(copied):
    for slide in ("c.png",):
        label = copied[TUPLES].columns(slide, ["label"])[0]
        forge(Path(copied.path), TUPLES, slide, {"label": np.zeros_like(label)})
    source = ClassifySource(copied.path)
    with pytest.raises(SpecError, match=r"class 1 is missing from 'valid' \(1 slides\): slides with it: 5, such as"):
        source.check(source.split())


def test_one_slide_a_class_is_refused(tmp_path):
    halves = {slide: (min(i, 3), min(i, 3)) for i, slide in enumerate(COHORT)}
    made = write_class_cohort(tmp_path, modes=["grid"], classes=halves, scales=(20.0,))
    source = ClassifySource(made.path, "upper_region")
    assert source.classes == 4
    for split in (source.split(), source.split(ratios=(60, 20, 20))):
        with pytest.raises(SpecError, match=r"class [0-2] is missing .*slides with it: 1, of 1 patients .*, too few"):
            source.check(split)


def test_labels_out_of_range_are_refused(store):
    with pytest.raises(SpecError, match=r"classes=1|label 1, out of range for 1 classes"):
        ClassifySource(store.path, classes=1)
    source = ClassifySource(store.path, classes=3)
    with pytest.raises(SpecError, match=r"class 2 is missing from 'train' .*it is on no slide: the labels are 0 to 1"):
        source.check(source.split())


def test_a_set_without_labels_is_refused(copied):
    for slide in COHORT:
        label = copied[TUPLES].columns(slide, ["label"])[0]
        forge(Path(copied.path), TUPLES, slide, {"label": np.full_like(label, -1)})
    with pytest.raises(SpecError, match=r"'centroids-20x-10x-5x-32' of .* has no labels: extract with annotated masks"):
        ClassifySource(copied.path)


def test_magnifications_that_are_not_in_the_store_are_refused(store):
    with pytest.raises(SpecError, match=r"magnifications \[40, 10\] are in no set .*\[20.0, 10.0, 5.0\]"):
        ClassifySource(store.path, magnifications=[40, 10])
    with pytest.raises(SpecError, match=r"\[40, 10\] asked for, .* has grid sets at \[20.0, 10.0, 5.0\]"):
        ClassifySource(store.path, "upper_region", magnifications=[40, 10])


def test_a_store_without_such_sets_is_refused(tmp_path):
    made = write_class_cohort(tmp_path, modes=["grid"], scales=(20.0,))
    with pytest.raises(SpecError, match=r"has no set of centroids; it has \['grid-20x-32'\]"):
        ClassifySource(made.path)
    with pytest.raises(MsdaskError, match="is no patch store"):
        ClassifySource(tmp_path / "nothing.zarr")


def test_n_plus_1_losses_without_the_centroid_are_refused(store):
    with pytest.raises(SpecError, match=r"tuples around 20x patches, without that magnification"):
        ClassifySource(store.path, magnifications=[10, 5], losses="n+1")


def test_classes_that_are_not_measured_are_said(store):
    source = ClassifySource(store.path, classes=3)
    with pytest.warns(UserWarning, match=r"classes \[2\] are on none of the 1 slides"):
        source.warn_of_missing(["d.png"])
