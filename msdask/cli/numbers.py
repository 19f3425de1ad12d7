"""Numbers on the command line: what is no such number is refused with what was expected, and nothing is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import Parameter, Token

__all__ = ["ABOVE_ZERO", "COUNT", "MPP", "NATURAL", "NOT_NEGATIVE", "SHARE", "WHOLE"]


def _whole(least: float, expected: str) -> Parameter:
    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    return _read_by(read, expected)


def _real(fits: Callable[[float], bool], expected: str) -> Parameter:
    def read(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and fits(value)):
            raise ValueError
        return value

    return _read_by(read, expected)


def _above_zero(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


def _read_by(read: Callable[[str], Any], expected: str) -> Parameter:
    """An option's reader, whose refusal says what was expected: `msdask.cli.app` puts the option before it."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        try:
            return read(tokens[0].value.strip())
        except ValueError:
            raise ValueError(f"expected {expected}") from None

    return Parameter(converter=convert)


WHOLE = _whole(-math.inf, "a whole number")
NATURAL = _whole(0, "a whole number, 0 or more")
COUNT = _whole(1, "a whole number, at least 1")
SHARE = _real(lambda value: 0 <= value <= 1, "a fraction from 0 to 1: 0.7 for 70 %")
ABOVE_ZERO = _real(lambda value: value > 0, "a number above 0")
MPP = _read_by(
    lambda text: text if text == "estimate" else _above_zero(text), "um/px above 0, such as 0.25 for 40x, or estimate"
)
NOT_NEGATIVE = _real(lambda value: value >= 0, "a number, 0 or more")
