"""Models for inference: from a file or as given, on a device, with the names of their classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from msdask.errors import MsdaskError, SpecError
from msdask.extras import require

if TYPE_CHECKING:
    from torch import nn

__all__ = ["class_names", "evaluating", "identity_of", "load_network"]

N = TypeVar("N", bound="nn.Module")


def load_network(
    model: str | os.PathLike[str] | nn.Module, kind: type[N], *, expected: str, device: str | None
) -> tuple[N, dict[str, Any]]:
    """A network of one kind, and what its file says of it.

    Parameters
    ----------
    model : run folder, .safetensors file, or the network itself
    kind : class that it must be of
    expected : what that is, for the message
    device : "cpu", "cuda" ...; None: where a given model is; a loaded one goes to a GPU if there is one

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or is of another kind.
    SpecError
        There is no such device.
    """
    require("inference")
    import torch

    from msdask.models import load_model

    about: dict[str, Any] = {}
    network: Any = model
    if isinstance(model, (str, os.PathLike)):
        network, about = load_model(model)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(network, kind):
        named = f"model '{model}' is a" if isinstance(model, (str, os.PathLike)) else "model of class"
        raise MsdaskError(f"{named} {type(network).__name__}: expected {expected}")
    if device is not None:
        try:
            network = network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise SpecError(f"device={device!r}: {str(error).splitlines()[0]}; expected 'cpu', 'cuda' ...") from error
    return network, about


def identity_of(network: nn.Module) -> dict[str, Any]:
    """Class, configuration and SHA-256 of the weights: what of a model decides its results."""
    from msdask.models.files import weights_hash

    config = dict(getattr(network, "config", {}))
    return {"class": type(network).__name__, "config": config, "weights": weights_hash(network)}


def class_names(classes: Sequence[Any], count: int) -> tuple[str, ...]:
    """Names of a model's classes, one for each and no two the same."""
    names = tuple(map(str, classes))
    if len(names) != count or len(set(names)) < count:
        raise SpecError(f"classes={list(names)!r}: the model has {count}, expected a name of its own for each")
    return names


@contextmanager
def evaluating(network: N) -> Iterator[N]:
    """The network in evaluation mode, and as it was before when this ends."""
    was_training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(was_training)
