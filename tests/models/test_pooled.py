"""Pooled contexts, and models that take features, against plain loops."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from msdask.errors import SpecError
from msdask.models import FeatureFusion, PooledContext, create, load_model, make_backbone, save_model


@pytest.fixture
def pooled() -> PooledContext:
    torch.manual_seed(0)
    return PooledContext(3, (20, 5), backbone="scalenet", embedding=8).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_it_has_the_parameters_of_the_fusion_that_it_stands_for(pooled):
    assert parameters(pooled) == parameters(FeatureFusion(3, (20, 5), backbone="scalenet", embedding=8))


def test_features_are_the_mean_over_the_area(pooled):
    images = torch.rand(2, 4, 3, 32, 32)
    area = torch.tensor([[[1, 0, 0, 0], [0, 0.25, 0.5, 0]], [[1, 0, 0, 0], [0, 0.1, 0.2, 0.3]]])
    with torch.inference_mode():
        features, logits = pooled.encode(images, area)
        for b in range(2):
            for m, branch in enumerate(pooled.branches):
                of_each = torch.stack([branch(images[b, k : k + 1])[0][0] for k in range(4)])
                weights = area[b, m] / area[b, m].sum()
                expected = (weights[:, None] * of_each).sum(0)
                torch.testing.assert_close(features[b, m], expected, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(logits[b, m], branch.head(features[b, m]))
        torch.testing.assert_close(pooled(images, area).logits, pooled.head(features.flatten(1)))


def test_areas_of_other_images_are_refused(pooled):
    with pytest.raises(SpecError, match=r"area of shape \(2, 3, 4\): expected .* \(B, 2, K\)"):
        pooled(torch.rand(2, 4, 3, 32, 32), torch.ones(2, 3, 4))
    with pytest.raises(SpecError, match="area of shape None"):
        pooled(torch.rand(2, 4, 3, 32, 32))
    with pytest.raises(SpecError, match="expected two or more for PooledContext"):
        PooledContext(3, (20,), backbone="scalenet")


@pytest.mark.parametrize(
    "name", ["SingleScale", "FeatureFusion", "PredictionFusion", "AttentionFusion", "PooledContext"]
)
def test_a_model_of_features_says_what_its_heads_say_of_images(name, tmp_path):
    torch.manual_seed(1)
    scales = (20,) if name == "SingleScale" else (20, 5)
    whole = create(name, classes=3, magnifications=scales, backbone="scalenet", embedding=8).eval()
    width = make_backbone("scalenet").n_features
    heads = create(name, classes=3, magnifications=scales, backbone=f"features-{width}", embedding=8).eval()
    own = heads.state_dict()
    heads.load_state_dict({key: value for key, value in whole.state_dict().items() if key in own})
    images = torch.randint(0, 256, (4, len(scales), 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        features = [b.backbone(b.normalize(images[:, m])) for m, b in enumerate(whole.branches)]
        given = (images, torch.eye(len(scales)).expand(4, -1, -1)) if name == "PooledContext" else (images,)
        torch.testing.assert_close(heads(torch.stack(features, 1)).logits, whole(*given).logits)
    loaded, _ = load_model(save_model(heads, tmp_path / "heads.safetensors"))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(torch.stack(features, 1)).logits, heads(torch.stack(features, 1)).logits)


def test_features_of_another_shape_are_refused():
    heads = FeatureFusion(3, (20, 5), backbone="features-16", embedding=8)
    with pytest.raises(SpecError, match=r"expected \(B, 2, F\), features for each of 20x, 5x"):
        heads(torch.zeros(2, 2, 3, 32, 32))
    for backbone in ("features-", "features-many", "features-0"):
        with pytest.raises(SpecError, match="expected how many features there are, such as 'features-512'"):
            make_backbone(backbone)
    with pytest.raises(SpecError, match="features that are computed have none any more"):
        make_backbone("features-8", weights="imagenet")
