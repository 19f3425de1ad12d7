"""The drawing of a classifier says what the modules say."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from msdask.errors import SpecError
from msdask.models import AttentionFusion, FeatureFusion, PredictionFusion, ScaleRegressor, SingleScale
from msdask.plots import architecture


def _made(model, scales=(20, 10, 5), **options):
    with torch.device("meta"):
        return model(4, scales, backbone="scalenet", **options)


def _texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (FeatureFusion, ["concat features", "3 × 128 = 384", "384 → 4", f"{384 * 4 + 4:,} param."]),
        (PredictionFusion, ["concat logits", "3 × 4 = 12", "12 → 4", "52 param."]),
        (AttentionFusion, ["attention", "3 tokens of 128", "128 → 4"]),
    ],
)
@pytest.mark.parametrize("losses", ["one", "n+1"])
def test_a_fusion_s_boxes_have_the_shapes_and_counts_of_its_modules(model, fused, losses):
    made = _made(model, dropout=0.2)
    texts = _texts(architecture(made, losses, patch_size=96))
    assert set(fused) <= set(texts)
    branch = made.branches[0]
    for part in (branch.backbone, branch.embedding, branch.head):
        assert texts.count(f"{sum(p.numel() for p in part.parameters()):,} param.") >= 3
    assert texts.count("3 × 96 × 96") == texts.count("dropout 0.2") == 3
    assert any(f"{sum(p.numel() for p in made.parameters()):,} parameters" in text for text in texts)
    taught = [text for text in texts if text.startswith("CE, label at ")]
    assert taught == (["CE, label at 20x", "CE, label at 10x", "CE, label at 5x"] if losses == "n+1" else [])


@pytest.mark.parametrize(("model", "dashed"), [(FeatureFusion, 3), (PredictionFusion, 0), (AttentionFusion, 3)])
def test_what_one_loss_does_not_reach_is_dashed(model, dashed):
    def count(losses):
        boxes = [p for p in architecture(_made(model), losses).axes[0].patches if hasattr(p, "get_boxstyle")]
        return sum(box.get_linestyle() == "--" for box in boxes)

    assert count("one") == dashed
    assert count("n+1") == 0


def test_a_single_scale_has_no_fusion_and_copies_have_a_row_each():
    texts = _texts(architecture(_made(SingleScale, (10,))))
    assert not {"embedding", "concat features", "concat logits"} & set(texts)
    texts = _texts(architecture(_made(FeatureFusion, (10,), copies=3)))
    assert texts.count("10x") == 3


def test_weights_of_losses_are_written():
    texts = _texts(architecture(_made(FeatureFusion, (10, 5)), "n+1", loss_weights=[1, 0.5, 0.25]))
    assert {"CE", "0.5 × CE, label at 10x", "0.25 × CE, label at 5x"} <= set(texts)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(SpecError, match="expected a classifier such as FeatureFusion"):
        architecture(ScaleRegressor("scalenet"))
    with pytest.raises(SpecError, match="it has one loss"):
        architecture(_made(SingleScale, (10,)), "n+1")
    with pytest.raises(SpecError, match="expected one of one"):
        architecture(_made(FeatureFusion), "two")
