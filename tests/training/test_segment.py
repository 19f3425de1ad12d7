"""Segmentation is learnt: the loss by its formula, metrics against plain counting, sources, and one crop by heart."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.data import Augment, loader
from msdask.errors import SpecError
from msdask.models import HookNet, UNet
from msdask.models.segmentation import center_crop
from msdask.training import Recipe, SegmentSource, SegmentTask, evaluate, fit, measure_segmenter
from msdask.training.class_scores import confusion, f1, macro_f1
from msdask.training.segment_metrics import PixelPredictions, pixel_confusion, segment_metrics
from tests.tools.segment_tools import SIZE, write_mapped_cohort


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_mapped_cohort(tmp_path_factory.mktemp("mapped"))


def _batch(size: int = SIZE, images: int = 3, scales: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, scales, size, size)
    return {
        "image": torch.randint(0, 256, (images, scales, 3, size, size), generator=generator, dtype=torch.uint8),
        "label_map": torch.randint(0, 4, shape, generator=generator, dtype=torch.uint8),
    }


def _small_hooknet(**options: object) -> HookNet:
    torch.manual_seed(0)
    return HookNet(3, [20, 10], filters=2, depth=2, **options).eval()  # type: ignore[arg-type]


def test_the_loss_is_the_weighted_cross_entropy_of_target_and_context() -> None:
    batch, weights = _batch(60), (1.0, 2.0, 0.5)
    model = _small_hooknet()
    task = SegmentTask(3, loss_weights=[0.75, 0.25], class_weights=weights)
    loss, (predictions, targets) = task.loss(model, batch)
    with torch.no_grad():
        output, expected = model(batch["image"]), 0.0
    for share, i, logits in ((0.75, 0, output.logits), (0.25, 1, output.context_logits[0])):
        maps = batch["label_map"][:, i, 23:37, 23:37].long()  # 60 px in, 14 px out
        assert logits.shape[-1] == 14
        summed = total = 0.0
        for b, y, x in np.ndindex(3, 14, 14):
            label = int(maps[b, y, x]) - 1
            if label >= 0:
                summed += weights[label] * -float(logits[b, :, y, x].log_softmax(0)[label])
                total += weights[label]
        expected += share * summed / total
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(targets, batch["label_map"][:, 0, 23:37, 23:37].long() - 1)
    predicted = output.logits.argmax(1)
    for b in range(3):
        known = targets[b] >= 0
        naive = confusion(targets[b][known].numpy(), predicted[b][known].numpy(), 3)
        assert np.array_equal(predictions.counts[b].numpy(), naive)


def test_px_without_a_label_change_nothing() -> None:
    batch, model, task = _batch(60), _small_hooknet(), SegmentTask(3)
    unlabeled = batch["label_map"][:, 0] == 0
    loss, _ = task.loss(model, batch)
    logits = model(batch["image"]).logits.detach().requires_grad_()
    targets = task._targets(batch["label_map"][:, 0], logits)
    task._cross_entropy(logits, targets).backward()
    assert not logits.grad.abs().sum(1)[center_crop(unlabeled, 14)].any()
    batch["label_map"][:] = 0
    nothing, (predictions, _) = task.loss(model, batch)
    assert (float(nothing.detach()), int(predictions.counts.sum())) == (0.0, 0)
    assert float(loss.detach()) > 0


def test_metrics_are_those_of_all_px_together() -> None:
    generator = torch.Generator().manual_seed(1)
    metrics = segment_metrics(["a", "b", "c"])
    truths, guesses = [], []
    for _ in range(3):
        truth = torch.randint(-1, 3, (2, 9, 9), generator=generator)
        guess = torch.randint(0, 3, (2, 9, 9), generator=generator)
        truth[0, :5] = -1
        for metric in metrics.values():
            metric.update(PixelPredictions(pixel_confusion(guess, truth, 3)), truth)
        truths.append(truth)
        guesses.append(guess)
    truth, guess = torch.cat(truths).numpy(), torch.cat(guesses).numpy()
    counts = confusion(truth[truth >= 0], guess[truth >= 0], 3)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found["macro_f1"] == pytest.approx(float(macro_f1(counts)))
    assert [found[f"f1_{name}"] for name in "abc"] == pytest.approx(f1(counts).tolist())
    dice = [
        np.mean(
            [
                2 * ((t == k) & (g == k))[t >= 0].sum() / ((t == k)[t >= 0].sum() + (g == k)[t >= 0].sum())
                for k in range(3)
            ]
        )
        for t, g in zip(truth, guess, strict=True)
    ]
    assert found["dice"] == pytest.approx(np.mean(dice))


def test_a_loss_that_does_not_reach_the_context_s_classes_freezes_them() -> None:
    for weights, is_taught in (((1.0,), False), ((1.0, 0.0), False), ((0.75, 0.25), True)):
        model, task = HookNet(3, [20, 10], filters=2, depth=2), SegmentTask(3, loss_weights=weights)
        task.prepare(model)
        loss, _ = task.loss(model, _batch(60))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        head = model.contexts[0].head
        assert head.weight.requires_grad == is_taught
        frozen = sum(not p.requires_grad for p in model.parameters())
        assert (frozen > 0) == (not is_taught)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SpecError, match=r"of the target .above 0., then of each context"):
        SegmentTask(2, loss_weights=[0, 1])
    with pytest.raises(SpecError, match="expected 2 numbers above 0, one a class"):
        SegmentTask(2, class_weights=[1, 0])
    with pytest.raises(SpecError, match="UNet has 0 contexts, expected at most 1 weights"):
        SegmentTask(3, loss_weights=[1, 1]).prepare(UNet(3, filters=1))
    with pytest.raises(SpecError, match="the model has 3 classes, the task 2"):
        SegmentTask(2).prepare(UNet(3, filters=1))
    with pytest.raises(SpecError, match="class 2 in a label map: expected classes 0 to 1"):
        SegmentTask(2).loss(HookNet(2, [20, 10], filters=1, depth=2), _batch())


def test_a_source_counts_what_there_is(store: ms.PatchStore) -> None:
    source = SegmentSource(store.path)
    assert source.magnifications == (20.0, 10.0)
    assert (source.classes, source.patch_size, len(source.patients)) == (2, SIZE, 4)
    batches = source.measured(source.slides, batch_size=4)
    maps = torch.cat([batch["label_map"][:, 0] for batch in batches])
    assert source.counts.sum(0).tolist() == [int((maps == 1).sum()), int((maps == 2).sum())]
    coarse = SegmentSource(store.path, magnifications=[10])
    assert coarse.magnifications == (10.0,)
    expected = coarse.measured(coarse.slides, batch_size=9)
    assert coarse.counts.sum() == sum(int((batch["label_map"] > 0).sum()) for batch in expected)
    weights, counts = source.class_weights(source.slides), source.counts.sum(0)
    assert weights[0] * counts[0] == pytest.approx(weights[1] * counts[1])
    split = source.split()
    assert (split.train, split.test) == (("a.png", "b.png"), ("d.png",))
    source.check(split)


def test_a_source_says_what_is_missing(store: ms.PatchStore, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no set of .* with label maps has 5x together; there are .*20\.0, 10\.0"):
        SegmentSource(store.path, magnifications=[5])
    with pytest.raises(SpecError, match="has class 1 in its label maps, out of range for 1 classes"):
        SegmentSource(store.path, classes=1)
    bare = ms.PatchStore(tmp_path / "bare.zarr")
    (first, *_) = store.values()
    slide = ms.open_slide(first.attrs("a.png")["source"], mpp=0.5)
    bare.write(ms.patches(slide, ms.grid(slide, magnification=20, patch_size=SIZE)))
    with pytest.raises(SpecError, match=r"has no label maps in its sets .*--label-maps"):
        SegmentSource(bare.path)


def test_one_crop_is_learnt_by_heart(store: ms.PatchStore, tmp_path: Path) -> None:
    source = SegmentSource(store.path)
    batch = next(iter(source.measured(source.slides, batch_size=36)))
    inner = center_crop(batch["label_map"][:, 0], 22)
    best = int(torch.minimum((inner == 1).sum((1, 2)), (inner == 2).sum((1, 2))).argmax())
    one = {name: values[best : best + 1].repeat(2, *[1] * (values.ndim - 1)) for name, values in batch.items()}
    recipe = Recipe(epochs=1, lr=1e-2, schedule="cosine", patience=None, accelerator="cpu")
    torch.manual_seed(0)
    for model in (HookNet(2, [20, 10], filters=4, depth=2), UNet(2, [20], filters=4, depth=2)):
        own = one | {"image": one["image"][:, : len(model.magnifications)]}
        result = fit(model, SegmentTask(2), [own] * 60, [own], tmp_path / type(model).__name__, recipe=recipe)
        assert result.valid["macro_f1"] > 0.95


def test_a_run_is_resumed_and_measured_by_slide(store: ms.PatchStore, tmp_path: Path) -> None:
    source = SegmentSource(store.path)
    split, task = source.split(), SegmentTask(source.names, loss_weights=[0.75, 0.25])

    def run(folder: Path, *, resume: bool = False, stops: bool = False) -> HookNet:
        recipe = Recipe(epochs=2, lr=5e-3, accelerator="cpu", precision="bf16", checkpoint_every=1)
        recipe.seed_weights()
        model = HookNet(2, [20, 10], filters=2, depth=2)
        learnt = loader(source.dataset(split.train), batch_size=6, balanced="pixels", augment=Augment.named("hed"))
        valid = source.measured(split.valid, batch_size=6)
        if stops:
            steps = iter(range(100))

            def stop(*_: object) -> None:
                if next(steps) == 2:
                    raise RuntimeError("the third batch")

            model.register_forward_pre_hook(stop)
        found = fit(model, task, learnt, valid, folder, recipe=recipe, resume=resume).model
        assert isinstance(found, HookNet)
        return found

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="the third batch"):
        run(tmp_path / "parts", stops=True)
    resumed = run(tmp_path / "parts", resume=True)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    metrics = measure_segmenter(
        whole, task, source.measured(split.test, batch_size=6), tmp_path / "whole", patients=source.patients
    )
    table = pd.read_csv(tmp_path / "whole" / "pixels.csv")
    assert set(table["patient"]) == {"D"}
    counts = table["pixels"].to_numpy().reshape(2, 2)
    assert metrics["macro_f1"] == pytest.approx(float(macro_f1(counts)))
    again = evaluate(whole, task, source.measured(split.test, batch_size=4))
    assert again["macro_f1"] == pytest.approx(metrics["macro_f1"])
    assert (tmp_path / "whole" / "confusion.png").exists()
