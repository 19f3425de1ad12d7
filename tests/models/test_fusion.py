"""Classifiers of several magnifications: shapes of parameters and outputs, against the formulas of the paper."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from msdask.errors import SpecError
from msdask.models import AttentionFusion, FeatureFusion, PredictionFusion, SingleScale, create
from msdask.models.files import load_model, save_model

SCALES = (20.0, 10.0, 5.0)
FUSIONS = (FeatureFusion, PredictionFusion, AttentionFusion)


def _images(magnifications: int = 3, count: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, magnifications, 3, size, size), generator=generator, dtype=torch.uint8)


def _small(model_class, classes: int = 5, magnifications=SCALES, **options):
    torch.manual_seed(0)
    return model_class(classes, magnifications, backbone="scalenet", **options)


def _shapes(model: torch.nn.Module, *ends: str) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if k.endswith(ends) and "backbone" not in k}


def test_resnet34_with_embeddings_has_the_shapes_of_the_paper():
    with torch.device("meta"):
        features, predictions, attention = (fusion(5, SCALES) for fusion in FUSIONS)
    for model in (features, predictions, attention):
        branches = {k: v for k, v in _shapes(model, "weight").items() if k.startswith("branches")}
        assert branches == {
            f"branches.{i}.{name}.weight": shape
            for i in range(3)
            for name, shape in (("embedding", (128, 512)), ("head", (5, 128)))
        }
    assert features.head.weight.shape == (5, 3 * 128)
    assert predictions.head.weight.shape == (5, 3 * 5)
    assert attention.head.weight.shape == (5, 128)
    assert attention.scales.shape == (3, 128)


def test_without_embeddings_the_features_are_the_backbone_s():
    with torch.device("meta"):
        features, predictions, attention = (fusion(5, SCALES, embedding=None) for fusion in FUSIONS)
        single = SingleScale(5, [10])
    assert features.head.weight.shape == (5, 3 * 512)
    assert predictions.head.weight.shape == (5, 15)
    assert attention.head.weight.shape == (5, 512)
    assert [tuple(b.head.weight.shape) for m in (features, predictions, attention) for b in m.branches] == [
        (5, 512)
    ] * 9
    assert _shapes(single, "weight") == {"branches.0.head.weight": (5, 512)}


def test_branches_have_one_architecture_and_weights_of_their_own():
    model = _small(FeatureFusion)
    first, second = (dict(model.branches[i].backbone.named_parameters()) for i in (0, 1))
    assert [(k, v.shape) for k, v in first.items()] == [(k, v.shape) for k, v in second.items()]
    assert all(a is not b for a, b in zip(first.values(), second.values(), strict=True))
    assert not torch.equal(first["network.stages.0.0.0.weight"], second["network.stages.0.0.0.weight"])


@pytest.mark.parametrize("embedding", [16, None])
@pytest.mark.parametrize("magnifications", [(20.0,), (20.0, 5.0), (40.0, 20.0, 10.0, 1.25)])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_number_of_magnifications_with_and_without_embedding(fusion, magnifications, embedding):
    model = _small(fusion, 4, magnifications, embedding=embedding).eval()
    output = model(_images(len(magnifications)))
    assert output.logits.shape == (4, 4)
    assert output.branch_logits.shape == (4, len(magnifications), 4)
    if fusion is AttentionFusion:
        assert output.attention.shape == (4, len(magnifications))
        torch.testing.assert_close(output.attention.sum(1), torch.ones(4))
    else:
        assert output.attention is None


def _by_hand(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits of every branch, one after the other, from the formulas."""
    features, logits = [], []
    for i, branch in enumerate(model.branches):
        f = branch.backbone((images[:, i].float() / 255 - 0.7) / 0.2)
        e = F.linear(f, branch.embedding.weight, branch.embedding.bias)
        features.append(e)
        logits.append(F.linear(e, branch.head.weight, branch.head.bias))
    return torch.stack(features, 1), torch.stack(logits, 1)


def test_feature_fusion_is_a_linear_layer_on_the_concatenated_features():
    model, images = _small(FeatureFusion).eval(), _images()
    features, logits = _by_hand(model, images)
    expected = F.linear(torch.cat([features[:, 0], features[:, 1], features[:, 2]], 1), *model.head.parameters())
    torch.testing.assert_close(model(images).logits, expected)
    torch.testing.assert_close(model(images).branch_logits, logits)


@pytest.mark.parametrize("fuse", ["logits", "probabilities"])
def test_prediction_fusion_is_a_linear_layer_on_the_branches_classes(fuse):
    model, images = _small(PredictionFusion, fuse=fuse).eval(), _images()
    _, logits = _by_hand(model, images)
    given = logits.softmax(2) if fuse == "probabilities" else logits
    torch.testing.assert_close(model(images).logits, F.linear(given.flatten(1), *model.head.parameters()))


def test_attention_is_one_pre_norm_layer_over_the_scales():
    model, images = _small(AttentionFusion, embedding=16, heads=2).eval(), _images()
    tokens = _by_hand(model, images)[0] + model.scales
    q, k, v = F.linear(F.layer_norm(tokens, (16,)), model.attention.in_proj_weight, model.attention.in_proj_bias).chunk(
        3, -1
    )
    seen, weights = [], []
    for head in range(2):
        mine = slice(8 * head, 8 * head + 8)
        weights.append((q[..., mine] @ k[..., mine].transpose(1, 2) / 8**0.5).softmax(-1))
        seen.append(weights[-1] @ v[..., mine])
    tokens = tokens + F.linear(torch.cat(seen, -1), *model.attention.out_proj.parameters())
    tokens = tokens + model.mix(F.layer_norm(tokens, (16,)))
    output = model(images)
    torch.testing.assert_close(output.logits, F.linear(tokens.mean(1), *model.head.parameters()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.attention, torch.stack(weights).mean(0).mean(1))


def test_a_single_scale_is_its_branch():
    model, images = _small(SingleScale, 3, [10]).eval(), _images(1)
    output = model(images)
    assert torch.equal(output.logits, output.branch_logits[:, 0])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_branch_alone_is_a_model_with_the_same_weights(fusion):
    model, images = _small(fusion).eval(), _images()
    for i, magnification in enumerate(SCALES):
        alone = model.branch(magnification)
        assert isinstance(alone, SingleScale)
        torch.testing.assert_close(alone(images[:, i : i + 1]).logits, model(images).branch_logits[:, i])
        assert alone.branches[0] is model.branches[i]
    with pytest.raises(SpecError, match=r"magnification 40: the model has \[20.0, 10.0, 5.0\]"):
        model.branch(40)


@pytest.mark.parametrize("fusion", [SingleScale, *FUSIONS])
def test_dropout_is_off_in_evaluation_and_on_in_training(fusion):
    magnifications = SCALES if fusion is not SingleScale else SCALES[:1]
    model, images = _small(fusion, magnifications=magnifications, dropout=0.5), _images(len(magnifications))
    model.eval()
    assert torch.equal(model(images).branch_logits, model(images).branch_logits)
    for module in model.modules():  # statistics of the batch stay as they are: only dropout is on
        module.train(isinstance(module, torch.nn.Dropout))
    assert not torch.equal(model(images).branch_logits, model(images).branch_logits)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_copies_of_one_magnification_have_the_parameters_of_a_fusion(fusion):
    three, copies = _small(fusion), _small(fusion, magnifications=(10,), copies=3).eval()
    assert [p.shape for p in copies.parameters()] == [p.shape for p in three.parameters()]
    images = _images(1)
    output = copies(images)
    assert output.branch_logits.shape == (4, 1, 5)
    alone = torch.stack([branch(images[:, 0])[1] for branch in copies.branches])
    torch.testing.assert_close(output.branch_logits[:, 0], alone.mean(0))
    if output.attention is not None:
        torch.testing.assert_close(output.attention, torch.ones(4, 1))
    with pytest.raises(SpecError, match="3 branches see 10x"):
        copies.branch(10)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_magnifications_are_put_in_the_order_of_a_batch(fusion):
    assert _small(fusion, magnifications=(5, 20, 10)).config["magnifications"] == [20.0, 10.0, 5.0]


@pytest.mark.parametrize("fusion", [SingleScale, *FUSIONS])
def test_a_saved_model_is_the_same_model(fusion, tmp_path):
    magnifications = SCALES if fusion is not SingleScale else SCALES[:1]
    options = {"fuse": "probabilities"} if fusion is PredictionFusion else {}
    model, images = _small(fusion, magnifications=magnifications, **options).eval(), _images(len(magnifications))
    save_model(model, tmp_path / "model.safetensors", about={"task": "classify"})
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    for a, b in zip(loaded(images), model(images), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert isinstance(create(fusion.__name__, **model.config), fusion)


def test_images_at_another_number_of_magnifications_are_refused():
    with pytest.raises(SpecError, match=r"shape \(4, 2, 3, 32, 32\): expected \(B, 3, 3, S, S\).*20x, 10x, 5x"):
        _small(FeatureFusion)(_images(2))


@pytest.mark.parametrize(
    ("fusion", "arguments", "match"),
    [
        (FeatureFusion, {"classes": 1}, "classes=1"),
        (FeatureFusion, {"magnifications": ()}, "one or more"),
        (FeatureFusion, {"magnifications": (10, 10)}, "each once"),
        (FeatureFusion, {"magnifications": (10, -5)}, "above 0"),
        (FeatureFusion, {"dropout": 1.0}, "dropout"),
        (FeatureFusion, {"embedding": 0}, "embedding"),
        (FeatureFusion, {"copies": 0}, "copies=0"),
        (SingleScale, {"magnifications": (10, 5)}, "expected one"),
        (PredictionFusion, {"fuse": "votes"}, "fuse='votes'"),
        (AttentionFusion, {"heads": 3}, "heads=3: expected a divisor of the width of the features, 128"),
    ],
)
def test_options_that_make_no_sense_are_refused(fusion, arguments, match):
    with pytest.raises(SpecError, match=match):
        _small(fusion, **arguments)


def _exclusive_or(fusion, **options) -> float:
    """Accuracy, after training, on the XOR of what two magnifications show, whose features are given."""
    model = _small(fusion, 2, (20, 5), embedding=16, **options)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (512, 2), generator=generator)
    features = torch.randn(512, 2, 16, generator=generator) * 0.1
    features[..., 0] += 2.0 * bits - 1
    label = bits[:, 0] ^ bits[:, 1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        branch_logits = torch.stack([model.branches[i].head(features[:, i]) for i in (0, 1)], 1)
        logits, _ = model.fuse(features, branch_logits)
        optimizer.zero_grad()
        F.cross_entropy(logits, label).backward()
        optimizer.step()
    balanced = torch.stack([(logits.argmax(1) == label)[label == k].float().mean() for k in (0, 1)])
    return float(balanced.mean())


def test_attention_learns_the_xor_of_two_scales_and_the_sums_cannot():
    assert _exclusive_or(AttentionFusion) > 0.98
    assert _exclusive_or(FeatureFusion) <= 0.78
    assert _exclusive_or(PredictionFusion) <= 0.78
    assert _exclusive_or(PredictionFusion, fuse="probabilities") <= 0.78
