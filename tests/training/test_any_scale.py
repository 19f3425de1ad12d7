"""Any scale: what is drawn, what is read, and scores against um/px."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.data import MppRange
from msdask.errors import SpecError
from msdask.models import FeatureFusion, SingleScale
from msdask.training import ClassifySource, accuracy_by_mpp
from tests.tools.class_tools import COHORT, SIZE, write_class_cohort


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_class_cohort(tmp_path_factory.mktemp("classes"))


def _source(store, *scales, **options) -> ClassifySource:
    return ClassifySource(store.path, magnifications=scales or None, **options)


def test_scales_are_drawn_evenly_in_octaves_and_tuples_keep_their_ratios():
    drawn = np.stack([MppRange(0.25, 2.0).draw(np.array([20.0, 10.0, 5.0]), seed) for seed in range(4000)])
    np.testing.assert_allclose(drawn / drawn[:, :1], np.broadcast_to([1, 0.5, 0.25], drawn.shape), rtol=1e-6)
    mpp = 10 / drawn[:, 0]
    assert 0.25 <= mpp.min() < 0.26
    assert 1.9 < mpp.max() <= 2.0
    octaves = np.histogram(np.log2(mpp), bins=3, range=(-2, 1))[0] / len(mpp)
    assert np.abs(octaves - 1 / 3).max() < 0.03
    again = MppRange(0.25, 2.0).draw(np.array([20.0, 10.0, 5.0]), 7)
    assert (again == drawn[7]).all()


def test_a_slide_s_own_px_are_where_its_range_begins():
    scale = MppRange(0.25, 2.0)
    assert scale.limited((1.0, 20.0)) == (0.5, 2.0)
    assert scale.limited((10.0, 80.0)) == (0.25, 1.0)
    drawn = [scale.draw(np.array([20.0]), seed, limits=(10.0, 20.0))[0] for seed in range(200)]
    assert 10.0 <= min(drawn) < max(drawn) <= 20.0001
    with pytest.raises(SpecError, match="slide 'a' has scales from 4 um/px"):
        scale.check("a", (0.1, 2.5), 32)
    with pytest.raises(SpecError, match="expected the finest and the coarsest"):
        MppRange(2.0, 0.25)


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.5])
def test_pixels_are_the_slide_s_around_the_patch_s_center(store, mpp):
    dataset = _source(store, 20.0, 10.0).dataset(["d.png"], mpp=(mpp, mpp))
    batch = dataset.begin(np.arange(len(dataset))).result()
    folder = ms.PatchStore(store.path).path.rsplit("/", 1)[0]
    pixels = np.asarray(Image.open(f"{folder}/d.png").convert("RGB")).astype(np.float64)
    margin = 200
    canvas = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    assert batch["magnification"][0].tolist() == pytest.approx([10 / mpp, 5 / mpp])
    for k in range(0, len(dataset), 7):
        for image, step in enumerate((mpp / 0.5, mpp / 0.25)):
            side = int(SIZE * step)
            y, x = (int(batch[name][k]) + SIZE // 2 - side // 2 + margin for name in ("y0", "x0"))
            area = canvas[y : y + side, x : x + side]
            fine = np.kron(area, np.ones((2, 2, 1))).reshape(SIZE, side * 2 // SIZE, SIZE, side * 2 // SIZE, 3)
            difference = fine.mean((1, 3)) - batch["image"][k, image].movedim(0, -1).numpy()
            assert np.abs(difference).max() <= 1.01  # of rounding


def test_an_epoch_s_scales_depend_on_its_number_alone(store):
    def drawn(epoch: int, workers: int = 0) -> np.ndarray:
        dataset = _source(store, 20.0).dataset(["a0.png", "b.png"], mpp=(0.5, 2.0))
        batches = ms.data.loader(dataset, batch_size=16, balanced=True, seed=3, num_workers=workers)
        batches.set_epoch(epoch)
        return np.concatenate([batch["magnification"][:, 0].numpy() for batch in batches])

    assert (drawn(0) == drawn(0)).all()
    assert not (drawn(0) == drawn(1)).all()
    assert len(np.unique(drawn(0))) > 20


def test_scores_at_every_scale_are_a_table_and_a_figure(store, tmp_path):
    class Left(SingleScale):
        """Says class 0 of dark images: right at every scale, as the halves differ in brightness."""

        def forward(self, images):
            output = super().forward(images)
            dark = (images.float().mean((1, 2, 3, 4)) < 152).float()
            return output._replace(logits=torch.stack([dark, 1 - dark], 1) * 10)

    source = _source(store, 20.0)
    model = Left(2, [20.0], backbone="scalenet").eval()
    table = accuracy_by_mpp(model, source, ["d.png", "e.png"], mpp=(0.5, 1.0), points=3, folder=tmp_path)
    assert table["mpp"].tolist() == pytest.approx([0.5, 0.5**0.5, 1.0])
    assert (table["patches"] == len(source.dataset(["d.png", "e.png"]))).all()
    assert table["balanced_accuracy"].min() > 0.9  # not where a patch lies on the border, or leaves the slide
    stored = pd.read_csv(tmp_path / "accuracy_by_mpp.csv")
    pd.testing.assert_frame_equal(stored, table)
    assert (tmp_path / "accuracy_by_mpp.png").read_bytes()[:4] == b"\x89PNG"
    axes = ms.plots.scores_by_mpp({"one": table, "two": table}, marked=[0.5]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]


def test_what_cannot_be_is_refused(store):
    with pytest.raises(SpecError, match="labels of several magnifications belong to their scale"):
        _source(store, losses="n+1").dataset(["d.png"], mpp=(0.5, 2.0))
    with pytest.raises(SpecError, match=r"slide 'd.png' has scales from 0\.5 um/px"):
        accuracy_by_mpp(FeatureFusion(2, (20.0, 10.0), backbone="scalenet"), _source(store, 20.0), ["d.png"])
    with pytest.warns(UserWarning, match=r"2 of 2 slides are coarser than 0\.25 um/px"):
        _source(store, 20.0).dataset(["d.png", "e.png"], mpp=(0.25, 2.0))
    assert _source(store, 20.0).common_range(["d.png", "e.png"], (0.25, 2.0)) == (0.5, 2.0)
    assert _source(store, 20.0).common_range(["d.png"], (0.48, 2.0)) == (0.48, 2.0)
    with pytest.raises(SpecError, match="labels of several magnifications"):
        _source(store, losses="n+1").common_range(["d.png"], (0.5, 2.0))
    with pytest.raises(SpecError, match="two or more points"):
        accuracy_by_mpp(FeatureFusion(2, (20.0, 10.0), backbone="scalenet"), _source(store), list(COHORT), points=1)
