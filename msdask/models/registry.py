"""The registry: every model by its name, which is what a file of a model says of its class."""

from __future__ import annotations

import difflib
from typing import TypeVar

from torch import nn

from msdask.errors import SpecError

__all__ = ["create", "names", "register"]

M = TypeVar("M", bound=nn.Module)

_models: dict[str, type[nn.Module]] = {}


def register(model: type[M]) -> type[M]:
    """Enter a class of models under its name; as a decorator.

    The class takes its configuration as keywords, plain JSON values, and keeps it in an attribute `config`: a file of
    a model holds these and the weights.

    Raises
    ------
    SpecError
        Another class has this name.

    Examples
    --------
    >>> @register
    ... class Doubler(nn.Module):
    ...     def __init__(self, *, factor=2):
    ...         super().__init__()
    ...         self.config = {"factor": factor}
    >>> create("Doubler", factor=3).config
    {'factor': 3}
    """
    known = _models.setdefault(model.__name__, model)
    if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        raise SpecError(f"model {model.__name__!r}: {known.__module__} has registered one of this name; choose another")
    _models[model.__name__] = model
    return model


def names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(_models)


def create(name: str, **config: object) -> nn.Module:
    """A new model by its name.

    Parameters
    ----------
    name : one of `msdask.models.list()`
    **config : of its class

    Raises
    ------
    SpecError
        No model has this name.
    """
    if name not in _models:
        similar = difflib.get_close_matches(name, _models, n=3) or names()
        raise SpecError(
            f"model {name!r} is not registered; there are {', '.join(similar)}; a class of yours is, once the module "
            "with its @msdask.models.register is imported"
        )
    return _models[name](**config)
