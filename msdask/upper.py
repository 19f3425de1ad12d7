"""Upper: functions of upper rooms that methods of lower ones offer, bound by the package's face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["bind", "bound"]

_bound: dict[str, Callable[..., Any]] = {}


def bind(name: str, function: Callable[..., Any]) -> None:
    """Say which function stands for a name."""
    _bound[name] = function


def bound(name: str) -> Callable[..., Any]:
    """The function that the face bound to a name."""
    return _bound[name]
