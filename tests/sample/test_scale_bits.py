"""The generated task: what each magnification sees, exactly, and that it can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import msdask as ms
from msdask.errors import SpecError
from msdask.sample import ScaleBits, make_scale_bits

GROUP = {"product": 8, "xor": 4}
SCALES = (20, 10, 5)


def extracted(folder: Path, **options) -> tuple[ScaleBits, ms.PatchStore]:
    task = make_scale_bits(folder, **options)
    store = ms.PatchStore(folder / "bits.zarr")
    for spec in (task.tuples(), task.grids()):
        report = ms.extract(task.table, store, spec, values=task.values, threads=1, progress=False)
        assert report.is_complete, report.failures
    return task, store


@pytest.fixture(scope="module", params=["product", "xor"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScaleBits, ms.PatchStore]:
    return extracted(tmp_path_factory.mktemp("bits"), task=request.param, slides=(1, 1, 1), side=4)


def by_site(task: ScaleBits, store: ms.PatchStore, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Tuples (site, magnification, y, x, channel) and labels of a slide, sites in row-major order."""
    found = store["centroids-20x-10x-5x-64"].open(slide_id).compute()
    row, column = (((found[name].values[:, 0] - 96) // 256) for name in ("y0", "x0"))
    order = np.argsort(row * task.side + column)
    return found["image"].values[order], found["label"].values[order, 0]


def test_every_site_is_a_tuple_with_the_label_of_its_bits(made):
    task, store = made
    for slide_id in task.bits:
        images, labels = by_site(task, store, slide_id)
        assert images.shape == (16, 3, 64, 64, 3)
        np.testing.assert_array_equal(labels, task.label(slide_id).ravel())
    assert store["centroids-20x-10x-5x-64"].index()["keep"].values.all()


def test_each_magnification_shows_its_own_bit_and_nothing_of_the_others(made):
    """Sites of a group that agree in a bit are the same image at its magnification, to the last value."""
    task, store = made
    for slide_id in ("valid-0.svs", "test-0.svs"):
        images, _ = by_site(task, store, slide_id)
        bits = task.bits[slide_id].reshape(-1, 3)
        size = GROUP[task.task]
        for first in range(0, len(images), size):
            for i in range(first, first + size):
                for j in range(first, i):
                    is_same = [np.array_equal(images[i, m], images[j, m]) for m in range(3)]
                    assert is_same == (bits[i] == bits[j]).tolist()
        groups = bits.reshape(-1, size, 3)
        assert all(len({tuple(b) for b in group.tolist()}) == size for group in groups)


def test_what_a_magnification_does_not_see_is_flat_there(made):
    task, store = made
    images, _ = by_site(task, store, "train-0.svs")
    assert (images[:, 1, 16:48, 16:48].reshape(16, -1, 3).std(1) == 0).all()
    assert (images[:, 2, 16:48, 16:48].reshape(16, -1, 3).std(1) == 0).all()
    assert (images[:, 0].reshape(16, -1, 3).std(1) > 20).all()


def test_both_motifs_have_the_same_histogram_and_mean(made):
    task, store = made
    images, _ = by_site(task, store, "test-0.svs")
    size = GROUP[task.task]
    for m in range(3):
        sorted_values = np.sort(images[:size, m].reshape(size, -1, 3), axis=1)
        assert (sorted_values == sorted_values[:1]).all()


def test_grids_are_linked_one_to_one(made):
    pytest.importorskip("torch")
    task, store = made
    linked = ms.data.LinkedSet([store[f"grid-{m}x-64"] for m in SCALES])
    assert linked.index().sizes["patch"] == 3 * task.side**2
    assert set(linked.dropped.values()) == {0}
    for slide_id in task.bits:
        rows = linked.linked_rows(slide_id)
        assert all(sorted(rows[:, m].tolist()) == list(range(task.side**2)) for m in range(3))
        labels = linked.labels(slide_id)
        assert (labels == labels[:, :1]).all()
        tuples, _ = by_site(task, store, slide_id)
        for m, scale in enumerate(SCALES):
            found = store[f"grid-{scale}x-64"].open(slide_id).compute()
            start = (96, 64, 0)[m]
            site = [
                int((y - start) // 256 * task.side + (x - start) // 256)
                for y, x in zip(found["y0"].values[:, 0], found["x0"].values[:, 0], strict=True)
            ]
            np.testing.assert_array_equal(found["image"].values[:, 0], tuples[site, m])


@pytest.mark.parametrize("options", [{"task": "sum"}, {"side": 6}, {"slides": (0, 1, 1)}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(SpecError):
        make_scale_bits(tmp_path, **options)


@pytest.mark.slow
def test_three_magnifications_learn_it_and_fewer_stay_at_their_ceilings(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("pytorch_lightning")
    from msdask.models import FeatureFusion, SingleScale
    from msdask.training import ClassifySource, ClassifyTask, Recipe, evaluate, fit

    task, store = extracted(tmp_path, slides=(2, 1, 1), side=16)
    cpu = {"accelerator": "cpu", "patience": None}
    for model_class, scales in ((SingleScale, (20,)), (FeatureFusion, (20, 5)), (FeatureFusion, SCALES)):
        source = ClassifySource(store.path, magnifications=scales, classes=8)
        split = source.split()
        source.check(split)
        torch.manual_seed(0)
        model = model_class(8, scales, backbone="scalenet")
        train = ms.data.loader(source.dataset(split.train), batch_size=64, balanced=True)
        valid = source.measured(split.valid, batch_size=128)
        recipe = Recipe(epochs=4, lr=3e-3, schedule="cosine", **cpu)
        result = fit(model, ClassifyTask(8), train, valid, tmp_path / f"run-{len(scales)}", recipe=recipe)
        found = evaluate(
            result.model, ClassifyTask(8), source.measured(split.test, batch_size=128), recipe=Recipe(**cpu)
        )
        ceiling = task.ceilings[len(scales)]
        assert ceiling - 0.02 <= found["balanced_accuracy"] <= ceiling + 1e-6
