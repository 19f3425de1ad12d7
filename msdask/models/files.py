"""Models as files: safetensors for the weights, JSON beside it for what they are; and the models that come along."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msdask.errors import MsdaskError, SpecError
from msdask.models.registry import create, names
from msdask.storage.files import replacing

__all__ = ["Released", "load_model", "load_released", "released", "save_model", "weights_hash"]

FORMAT = 2
"""Of the JSON: msdask_model (this number), class (a registered name), config, about. Format 1 had no task in `about`,
and the validation's metrics as `valid`."""

_said: set[tuple[str, str]] = set()


def save_model(model: nn.Module, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> Path:
    """Write a model as ``<name>.safetensors`` and ``<name>.json``.

    Parameters
    ----------
    model : of a registered class; its name, `config` attribute and weights are written
    path : file ending in .safetensors
    about : what to say of it in the JSON: task, data, licence, notice, metrics (by the data they were measured on), and
        what its task needs to know

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
    if name not in names():
        raise SpecError(f"model of class {name}: only registered ones can be loaded again (@msdask.models.register)")
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
        A file is missing, damaged, of a newer format, or the weights do not fit: found out before memory is taken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights, described = files_of(path)
    for file in (weights, described):
        if not file.is_file():
            known = ", ".join(dict.fromkeys(r.name for r in released()))
            raise MsdaskError(
                f"model '{os.fspath(path)}': no file '{file.name}' there; expected a run folder, or a .safetensors "
                f"file with its .json beside it, or, for scales, one of {known}"
            )
    content = _described(described)
    try:
        _check_shapes(content, weights)
        model = create(content["class"], **content["config"])
        model.load_state_dict(load_file(weights))
    except (SpecError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise MsdaskError(f"model '{described}' does not describe a model of msdask: {error}") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MsdaskError(f"model '{weights}': the weights are damaged or of another model: {reason}") from error
    return model.eval(), content["about"]


def files_of(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The weights and the JSON of a model; parameters as for `load_model`."""
    weights = Path(path)
    weights = weights / "model.safetensors" if weights.is_dir() else weights.with_suffix(".safetensors")
    return weights, weights.with_suffix(".json")


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (hex) of a model's weights: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_shapes(content: Mapping[str, Any], weights: Path) -> None:
    """Raise a RuntimeError where the file's tensors are not those of the model that is described.

    The model is made without memory for its tensors: a description may claim any size.
    """
    from safetensors import safe_open

    try:
        with torch.device("meta"):
            model = create(content["class"], **content["config"])
    except (RuntimeError, NotImplementedError):  # a model that computes with tensors while it is made: not known here
        return
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    with safe_open(weights, "pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    wrong = sorted(wanted.keys() ^ found.keys()) or [key for key in wanted if wanted[key] != found[key]]
    if wrong:
        key = wrong[0]
        raise RuntimeError(
            f"{len(wrong)} tensors differ, such as {key!r}: the file has {found.get(key)}, the model {wanted.get(key)}"
        )


def _described(path: Path) -> dict[str, Any]:
    """The JSON of a model, in today's format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["msdask_model"] > FORMAT:
            raise MsdaskError(
                f"model '{path}' has format {content['msdask_model']}, this msdask reads {FORMAT}: update msdask"
            )
        about = dict(content.get("about", {}))
        if content["msdask_model"] == 1:  # only scale detectors were saved then
            valid = about.pop("valid", None)
            about = {"task": "scale", **about} | ({"metrics": {"valid": valid}} if valid else {})
        config = dict(content["config"])
        if "weights" in config:  # what it began with: everything is in the file beside it, nothing else is read
            config["weights"] = None
        return {"class": content["class"], "config": config, "about": about}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MsdaskError(f"model '{path}' does not describe a model of msdask: {error!r}") from error


@dataclass(frozen=True)
class Released:
    """A model that comes with msdask.

    Attributes
    ----------
    name : unique within its task
    task : what it does: "scale"
    licence : of the weights
    data : that it learnt from
    metrics : by the data that they were measured on
    notice : what whoever uses it should know; said once when it is loaded; "" for nothing
    path : of its weights
    """

    name: str
    task: str
    licence: str
    data: str
    metrics: Mapping[str, Mapping[str, float]] = field(repr=False)
    notice: str
    path: Path = field(repr=False)


@cache
def _released() -> tuple[Released, ...]:
    """Every model in `released/`: a .safetensors file with its .json, in which `about` has a name."""
    found = []
    for path in (Path(__file__).parent / "released").glob("*.json"):
        about = _described(path)["about"]
        facts = {key: about[key] for key in ("name", "task", "licence", "data", "metrics")}
        found.append(Released(**facts, notice=about.get("notice", ""), path=path.with_suffix(".safetensors")))
    return tuple(sorted(found, key=lambda r: (r.task, r.name)))


def released(task: str | None = None) -> list[Released]:
    """The models that come with msdask.

    Parameters
    ----------
    task : only those for it, such as "scale"

    Examples
    --------
    >>> [(r.task, r.name, r.licence) for r in released()]
    [('scale', 'default', 'CC BY-NC-SA 4.0'), ('scale', 'free', 'MIT')]
    """
    return [r for r in _released() if task is None or r.task == task]


def load_released(name: str = "default", *, task: str = "scale") -> tuple[nn.Module, dict[str, Any]]:
    """A model that comes with msdask; says once what there is to know of it, such as a licence that is not msdask's.

    Parameters
    ----------
    name : see `released`; for "scale" there are "default" (learnt from MoNuSeg: CC BY-NC-SA 4.0, not for commercial
        use) and "free" (learnt from free data only, less good)
    task : what it is for
    """
    found = next((r for r in released(task) if r.name == name), None)
    if found is None:
        raise SpecError(f"model {name!r}: expected one of {', '.join(r.name for r in released(task))}, or a path")
    if found.notice and (task, name) not in _said:
        _said.add((task, name))
        warnings.warn(found.notice, UserWarning, stacklevel=3)
    return load_model(found.path)
