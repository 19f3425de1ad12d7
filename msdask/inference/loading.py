"""Models for inference: from a file or as given, on a device, with the names of their classes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msdask.computing import large_blocks_kept
from msdask.errors import MsdaskError, SpecError
from msdask.extras import require

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Loaded", "ModelFile", "class_names", "evaluating", "identity_of", "load_network"]

N = TypeVar("N", bound="nn.Module")
M = TypeVar("M")

_KEPT = 2
"""Models that a worker keeps: that of its run, and that of another one beside it."""


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
        with large_blocks_kept():
            yield network
    finally:
        network.train(was_training)


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A model that is loaded.

    Attributes
    ----------
    model : such as a `Classifier`
    device : that its network is on
    """

    model: M
    device: str

    @classmethod
    def of(cls, model: Any) -> Loaded[Any]:
        """A model with a `network`."""
        return cls(model, str(next(model.network.parameters()).device))

    def here(self) -> Loaded[M]:
        """Itself."""
        return self


@dataclass(frozen=True)
class ModelFile(Generic[M]):
    """A model that workers load from its file, each once.

    Attributes
    ----------
    path : absolute, of a run folder or .safetensors file
    hash : SHA-256 of the file and the JSON beside it
    load : loads it, given path, device and classes; a function of a module
    device : None: a worker's GPU if it has one
    classes : names, or None
    torch_threads : that a network computes with on a CPU: those of the process that begins the run, since their number
        decides the last bits of what it says
    """

    path: str
    hash: str
    load: Callable[..., M]
    device: str | None
    classes: tuple[str, ...] | None
    torch_threads: int

    @classmethod
    def of(
        cls,
        model: Any,
        load: Callable[..., M],
        *,
        device: str | None,
        classes: Sequence[str] | None,
    ) -> ModelFile[M]:
        """The file of a model.

        Raises
        ------
        SpecError
            A network is given, which is no file.
        """
        import torch

        if not isinstance(model, (str, os.PathLike)):
            raise SpecError(
                f"model of class {type(model).__name__}: workers load it from a file that they can read; give the run "
                "folder or the .safetensors file (msdask.models.save_model writes one)"
            )
        named = None if classes is None else tuple(map(str, classes))
        return cls(os.path.abspath(model), _file_hash(model), load, device, named, torch.get_num_threads())

    def here(self) -> Loaded[M]:
        """The model in this process: loaded, or from the last time.

        Raises
        ------
        MsdaskError
            What lies there is not what the run was begun with.
        """
        import torch

        torch.set_num_threads(self.torch_threads)  # of this thread
        with _cache_lock:  # so that threads of a worker that need it at once load it once
            if self not in _cache:
                if (found := _file_hash(self.path)) != self.hash:
                    raise MsdaskError(
                        f"model '{self.path}' has SHA-256 {found[:12]}... on this worker, {self.hash[:12]}... where "
                        "the run began: put the same files under this path on every machine, and run again"
                    )
                _cache[self] = Loaded.of(self.load(self.path, device=self.device, classes=self.classes))
                while len(_cache) > _KEPT:
                    _cache.popitem(last=False)
            _cache.move_to_end(self)
            return _cache[self]


_cache: OrderedDict[ModelFile[Any], Loaded[Any]] = OrderedDict()
_cache_lock = threading.Lock()


def _file_hash(path: str | os.PathLike[str]) -> str:
    from msdask.models.files import files_of

    digest = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
