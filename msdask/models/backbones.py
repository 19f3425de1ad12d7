"""Backbones by name: torchvision's classification networks without their last layer, EfficientNet-Lite0, ScaleNet."""

from __future__ import annotations

import difflib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from msdask.errors import MsdaskError, SpecError
from msdask.models.efficientnet_lite import EfficientNetLite0, load_imagenet
from msdask.models.scalenet import ScaleNet

__all__ = ["LITE0", "PRECOMPUTED", "SCALENET", "Backbone", "Normalization", "Weights", "make_backbone"]

SCALENET = "scalenet"
LITE0 = "efficientnet_lite0"
_OWN = (SCALENET, LITE0)
"""Networks that torchvision has not."""
PRECOMPUTED = "features-"
"""Begins the name of a backbone that is none: "features-512" stands for features that were computed before."""
Weights = str | os.PathLike[str] | None

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
_TISSUE = ((0.7, 0.7, 0.7), (0.2, 0.2, 0.2))


class Normalization(nn.Module):
    """From images to what a backbone takes: ImageNet's mean and deviation for torchvision's, tissue's for ScaleNet,
    about -1 to 1 for EfficientNet-Lite0.

    Its constants follow from the name of the backbone: they are no part of a model's weights. Features that were
    computed before stay as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        mean, std = {SCALENET: _TISSUE, LITE0: _LITE}.get(backbone, _IMAGENET)
        self.is_off = backbone.startswith(PRECOMPUTED)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images, channels last in memory, of (B, 3, H, W) uint8, or float from 0 to 1."""
        if self.is_off:
            return images.float()
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """A network from normalized images (B, 3, H, W) to features (B, n_features)."""

    def __init__(self, network: nn.Module, n_features: int) -> None:
        super().__init__()
        self.network = network
        self.n_features = n_features

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, n_features)."""
        features: Tensor = self.network(images).flatten(1)
        return features


def make_backbone(name: str = "resnet34", *, weights: Weights = None) -> Backbone:
    """A backbone by name.

    Parameters
    ----------
    name : any classification network of torchvision ("resnet34", "densenet121", "efficientnet_b0", ...),
        "efficientnet_lite0", "scalenet", or "features-512" for 512 features of each image that were computed before and
        are passed on as they are
    weights : None for random ones; "imagenet" for torchvision's best, from its cache or its server, and for
        "efficientnet_lite0" from a package (the extra "pretrained", no download afterwards); or a file
        (.safetensors, or .pt / .pth holding a state dict), of the whole network or of the backbone

    Raises
    ------
    SpecError
        No such network; the message names similar ones.
    MsdaskError
        The weights cannot be loaded; the message says why and what to do.
    """
    if name.startswith(PRECOMPUTED):
        return Backbone(nn.Identity(), _width(name, weights))
    if name == SCALENET:
        if weights == "imagenet":
            raise SpecError("backbone 'scalenet' has no ImageNet weights: use weights=None, or a file")
        scalenet = ScaleNet()
        backbone = Backbone(scalenet, scalenet.n_features)
    elif name == LITE0:
        lite = EfficientNetLite0()
        if weights == "imagenet":
            load_imagenet(lite)
        backbone = Backbone(lite, _remove_last_layer(lite, name))
    else:
        network = _torchvision_network(name, imagenet=weights == "imagenet")
        backbone = Backbone(network, _remove_last_layer(network, name))
    if weights not in (None, "imagenet"):
        _load_file(backbone, Path(os.fspath(weights)), name)
    return backbone


def _width(name: str, weights: Weights) -> int:
    """How many features a name such as "features-512" means."""
    number = name.removeprefix(PRECOMPUTED)
    if not number.isdecimal() or int(number) < 1:
        raise SpecError(f"backbone {name!r}: expected how many features there are, such as '{PRECOMPUTED}512'")
    if weights is not None:
        raise SpecError(f"backbone {name!r} with weights {weights!r}: features that are computed have none any more")
    return int(number)


def _torchvision_network(name: str, *, imagenet: bool) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        similar = difflib.get_close_matches(name, [*names, *_OWN], n=4) or ["resnet34", "densenet121", SCALENET]
        raise SpecError(f"backbone {name!r}: no such network; similar ones: {', '.join(similar)}")
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") and not imagenet else {}
    if name in ("googlenet", "inception_v3") and not imagenet:
        options["aux_logits"] = False
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if imagenet else None, **options)
    except (OSError, RuntimeError) as error:  # no network, no permission, or a download whose hash is wrong
        raise MsdaskError(
            f"backbone {name!r}: ImageNet weights cannot be loaded ({error}); they are looked for in "
            f"'{torch.hub.get_dir()}/checkpoints' and on torchvision's server: put the file there, give its path as "
            "weights=..., or train from scratch with weights=None"
        ) from error


def _remove_last_layer(network: nn.Module, name: str) -> int:
    """Replace the last linear layer by nothing; returns how many features then come out."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SpecError(f"backbone {name!r}: it does not end in a linear layer; choose another network")
    path, last = linear[-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return last.in_features


def _load_file(backbone: Backbone, path: Path, name: str) -> None:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MsdaskError(
            f"backbone {name!r}: weights '{path}': no such file; expected None, 'imagenet' or a file"
        ) from None
    except (OSError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise MsdaskError(f"backbone {name!r}: weights '{path}' cannot be read as a state dict: {reason}") from error
    except SafetensorError as error:
        raise MsdaskError(f"backbone {name!r}: weights '{path}' are no safetensors file: {error}") from error
    wanted = backbone.network.state_dict()
    state = {key.removeprefix("network."): value for key, value in state.items()}
    missing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if missing:
        raise MsdaskError(
            f"backbone {name!r}: weights '{path}' are of another network: {len(missing)} of {len(wanted)} tensors are "
            f"missing or of another shape, such as {missing[0]!r}"
        )
    backbone.network.load_state_dict({key: state[key] for key in wanted})
