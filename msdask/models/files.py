"""Models as files: safetensors for the weights, JSON beside it for what they are; and the models that come along."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from msdask.errors import MsdaskError, SpecError
from msdask.models.regressor import ScaleRegressor
from msdask.storage.files import replacing

__all__ = ["RELEASED", "load_model", "load_released", "save_model"]

FORMAT = 1
RELEASED = {"default": "scale-monuseg", "free": "scale-free"}
"""Name of a released scale detector -> its files here."""

_CLASSES: dict[str, type[nn.Module]] = {"ScaleRegressor": ScaleRegressor}
_said: set[str] = set()


def save_model(model: nn.Module, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> Path:
    """Write a model as ``<name>.safetensors`` and ``<name>.json``.

    Parameters
    ----------
    model : its class, `config` attribute and weights are written
    path : file ending in .safetensors
    about : what to say of it in the JSON: data, range, licence

    Returns
    -------
    path : the file of the weights

    Raises
    ------
    FileWriteError
        A file cannot be written; the model that was there is still whole.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise SpecError(f"model '{path}': the weights go into a file that ends in .safetensors")
    name = type(model).__name__
    if name not in _CLASSES:
        raise SpecError(f"model of class {name}: only {', '.join(_CLASSES)} can be loaded again")
    content = {
        "msdask_model": FORMAT,
        "class": name,
        "config": getattr(model, "config", {}),
        "about": dict(about or {}),
    }
    # Not save_file: it makes files that only their owner may read.
    weights = save({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()})
    # Both are whole before the first takes its place.
    with (
        replacing(path.with_suffix(".json"), what="model") as described,
        replacing(path, what="model") as part,
    ):
        part.write_bytes(weights)
        described.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Read a model that `save_model` wrote; nothing is unpickled.

    Parameters
    ----------
    path : the .safetensors file, the .json beside it, or a run folder with model.safetensors

    Returns
    -------
    model : in evaluation mode, on the CPU
    about : what its JSON says

    Raises
    ------
    MsdaskError
        A file is missing, damaged, of a newer format, or the weights do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = Path(path)
    weights = weights / "model.safetensors" if weights.is_dir() else weights.with_suffix(".safetensors")
    described = weights.with_suffix(".json")
    for file in (weights, described):
        if not file.is_file():
            raise MsdaskError(
                f"model '{os.fspath(path)}': no file '{file.name}' there; expected a run folder, or a .safetensors "
                f"file with its .json beside it, or one of {', '.join(RELEASED)}"
            )
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        if content["msdask_model"] > FORMAT:
            raise MsdaskError(
                f"model '{described}' has format {content['msdask_model']}, this msdask reads {FORMAT}: update msdask"
            )
        kind = _CLASSES[content["class"]]
        model = kind(**content["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise MsdaskError(f"model '{described}' does not describe a model of msdask: {error!r}") from error
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MsdaskError(f"model '{weights}': the weights are damaged or of another model: {reason}") from error
    return model.eval(), dict(content.get("about", {}))


def load_released(name: str = "default") -> tuple[nn.Module, dict[str, Any]]:
    """A model that comes with msdask; says its licence once where that is not msdask's own.

    Parameters
    ----------
    name : "default" (learnt from MoNuSeg: CC BY-NC-SA 4.0, not for commercial use) or "free" (learnt from free data
        only, less good)
    """
    if name not in RELEASED:
        raise SpecError(f"model {name!r}: expected one of {', '.join(RELEASED)}, or a path")
    model, about = load_model(Path(__file__).parent / "released" / f"{RELEASED[name]}.safetensors")
    if about.get("notice") and name not in _said:
        _said.add(name)
        warnings.warn(str(about["notice"]), UserWarning, stacklevel=3)
    return model, about
