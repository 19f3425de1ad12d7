"""Tuples that several models share, areas of fine patches, and loaders of features, against plain loops."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.data import AreaSet, FeatureLoader, LinkedSet, TupleDataset, loader
from msdask.errors import SpecError
from tests.tools.class_tools import SIZE, TUPLES, write_class_cohort

SLIDES = ["a0.png", "c.png"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_class_cohort(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def linked(store: ms.PatchStore) -> LinkedSet:
    return LinkedSet([store[f"grid-{m}x-{SIZE}"] for m in (20, 10, 5)])


def read(dataset: TupleDataset) -> dict[str, np.ndarray]:
    batch = dataset.__getitems__(range(len(dataset)))
    return {name: value.numpy() for name, value in batch.items()}


def test_models_of_some_magnifications_get_the_same_tuples_and_labels(linked):
    whole = read(TupleDataset(linked, slides=SLIDES))
    for scales in ([20], [10, 5], [5]):
        for labels_of_each in (False, True):
            some = read(TupleDataset(linked, slides=SLIDES, magnifications=scales, labels_of_each=labels_of_each))
            for name in ("slide", "row", "x0", "y0", "whole"):
                np.testing.assert_array_equal(some[name], whole[name])
            columns = [(20, 10, 5).index(m) for m in scales]
            np.testing.assert_array_equal(some["image"], whole["image"][:, columns])
            np.testing.assert_array_equal(some["linked_row"], whole["linked_row"][:, columns])
    np.testing.assert_array_equal(whole["whole"], whole["label"])


def test_the_class_that_is_balanced_is_that_of_the_whole(linked):
    dataset = TupleDataset(linked, slides=SLIDES, magnifications=[5], labels_of_each=True)
    assert dataset.class_of.tolist() == read(dataset)["whole"].tolist()
    batch = next(iter(loader(dataset, batch_size=8, balanced=True)))
    assert batch["whole"].shape == (8,)
    assert batch["label"].shape == (8, 1)


@pytest.mark.parametrize("is_linked", [True, False])
def test_areas_are_the_fine_patches_in_each_context(store, linked, is_linked):
    tuples = linked if is_linked else store[TUPLES]
    areas = AreaSet(tuples, [20, 10, 5])
    batch = read(TupleDataset(areas, slides=["c.png"]))
    finest = store[f"grid-20x-{SIZE}" if is_linked else TUPLES]
    x, y = (values[:, 0].astype(int) for values in finest.columns("c.png", ["x0", "y0"]))
    pixels = finest.read("c.png", np.arange(len(x)))[:, 0]
    for i in range(0, len(batch["row"]), 7):
        row = int(batch["row"][i])
        np.testing.assert_array_equal(batch["image"][i, 0].transpose(1, 2, 0), pixels[row])
        assert batch["area"][i, 0].tolist() == [1.0] + [0.0] * (batch["area"].shape[2] - 1)
        for m, side in ((1, 2 * SIZE), (2, 4 * SIZE)):
            if is_linked:
                coarse = store[f"grid-{(20, 10, 5)[m]}x-{SIZE}"]
                parent = linked.linked_rows("c.png")[row, m]
                ax, ay = (int(v[parent, 0]) for v in coarse.columns("c.png", ["x0", "y0"]))
            else:
                ax, ay = (int(v[row, m]) for v in finest.columns("c.png", ["x0", "y0"]))
            expected = {}
            for j in range(len(x)):
                width = min(ax + side, x[j] + SIZE) - max(ax, x[j])
                height = min(ay + side, y[j] + SIZE) - max(ay, y[j])
                if width > 0 and height > 0:
                    expected[pixels[j].tobytes()] = width * height / side**2
            seen = np.flatnonzero(batch["area"][i, m])
            found = {batch["image"][i, k].transpose(1, 2, 0).tobytes(): batch["area"][i, m, k] for k in seen}
            assert found == pytest.approx(expected)
    assert areas.covered[10.0] > 0.8


@pytest.mark.parametrize("scales", [[20, 10, 5], [20, 5], [10, 5]])
def test_areas_have_the_labels_of_the_patches_that_they_stand_for(linked, scales, monkeypatch):
    stored, flip = LinkedSet.labels, np.array([0, 1, 0] if 10 in scales[1:] else [0, 0, 1], np.int16)
    # The classes of these slides are large: those of a coarse patch are made others than those in it.
    monkeypatch.setattr(LinkedSet, "labels", lambda self, slide_id: stored(self, slide_id) ^ flip)
    areas = read(TupleDataset(AreaSet(linked, scales), slides=SLIDES, labels_of_each=True))
    tuples = read(TupleDataset(linked, magnifications=scales, slides=SLIDES, labels_of_each=True))
    for name in ("label", "whole", "row", "slide"):
        np.testing.assert_array_equal(areas[name], tuples[name])
    assert (areas["label"] != areas["whole"][:, None]).any(), "or the test proves nothing"


def test_contexts_that_fine_patches_do_not_cover_are_refused(tmp_path):
    task = ms.sample.make_scale_bits(tmp_path, slides=(1, 1, 1), side=4)
    store = ms.PatchStore(tmp_path / "bits.zarr")
    ms.extract(task.table, store, task.tuples(), values=task.values, threads=1, progress=False)
    (tuples,) = store.values()
    with pytest.raises(SpecError, match=r"contexts at 5x cannot be replaced by 20x patches.* cover 6.2%.*pooled_set"):
        AreaSet(tuples, [20, 5])
    fine = ms.ExtractionSpec("grid", (20.0,), 64)
    ms.extract(task.table, store, fine, values=task.values, threads=1, progress=False, name="fine")
    assert AreaSet(tuples, [20, 5], fine=store["fine"]).covered[5.0] == 1
    with pytest.raises(SpecError, match=r"'fine' has patches of 64 px at \[20.0\]; expected 64 px at 10x"):
        AreaSet(tuples, [10, 5], fine=store["fine"])


def test_batches_of_features_are_those_of_the_tuples(linked):
    dataset = TupleDataset(linked, slides=SLIDES, magnifications=[20, 5])
    features = [np.random.default_rng(m).normal(size=(50, 3)).astype(np.float32) for m in (0, 1)]
    rows = [np.arange(len(dataset)) * (m + 1) % 50 for m in (0, 1)]
    batches = list(FeatureLoader(dataset, features, rows, batch_size=10))
    joined = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
    for name in ("whole", "label", "slide", "row", "x0", "y0"):
        np.testing.assert_array_equal(joined[name], read(dataset)[name])
    for m in (0, 1):
        np.testing.assert_array_equal(joined["features"][:, m], features[m][rows[m]])


def test_an_epoch_of_features_goes_on_where_it_stood(linked):
    dataset = TupleDataset(linked, slides=SLIDES)
    features, rows = [np.zeros((1, 2), np.float32)] * 3, [np.zeros(len(dataset), np.int64)] * 3

    def make() -> FeatureLoader:
        return FeatureLoader(dataset, features, rows, batch_size=8, balanced=True, seed=3)

    unbroken = make()
    expected = [[batch["index"].tolist() for batch in unbroken] for _ in range(2)]
    assert expected[0] != expected[1]
    broken = make()
    begun = iter(broken)
    first = [next(begun)["index"].tolist() for _ in range(2)]
    resumed = make()
    resumed.load_state_dict(broken.state_dict())
    assert first + [batch["index"].tolist() for batch in resumed] == expected[0]
    assert [batch["index"].tolist() for batch in resumed] == expected[1]


def test_features_of_other_tuples_are_refused(linked):
    dataset = TupleDataset(linked, slides=SLIDES)
    with pytest.raises(SpecError, match=r"features of \[3\] tuples: expected those of <PatchDataset"):
        FeatureLoader(dataset, [np.zeros((3, 2), np.float32)], [np.arange(3)], batch_size=2)
