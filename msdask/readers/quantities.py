"""Numbers and lengths as people and programs write them into files: decimal commas, units by any of their names."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["micrometres_of", "read_length", "read_number"]

_MICROMETRES: dict[float, tuple[str, ...]] = {
    1e6: ("m", "meter", "meters", "metre", "metres"),
    1e5: ("dm", "decimeter", "decimetre"),
    1e4: ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    1e3: ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    1.0: ("um", "µm", "μm", "µ", "μ", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
    1e-3: ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    1e-4: ("å", "angstrom", "angstroms", "ångström"),
    1e-6: ("pm", "picometer", "picometre"),
    25400.0: ("in", "inch", "inches", '"'),
    25.4: ("thou", "mil"),
    25400.0 / 72: ("pt", "point", "points"),
}
_UNITS = {name: size for size, names in _MICROMETRES.items() for name in names}
_ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})")
"""ImageJ writes the micro sign as \\u00B5."""
_PER_PIXEL = re.compile(r"\s*(?:/|per)\s*(?:px|pix|pixels?)$", re.I)
_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d.,']*|[.,]\d+)(?:[eE][+-]?\d+)?)\s*(\D.*)?$", re.S)
_SIGNS = re.compile("[.,']")
_GROUPS = re.compile(r"[+-]?\d{1,3}(?:[.,']\d{3})+$")


def read_number(value: Any) -> float | None:
    """A finite number, or None where there is none to be read.

    A comma is the decimal sign where it is the only one; where both are there, the last of them is. What several equal
    signs part are groups of thousands. A trailing "x", as of magnifications, is left out.

    >>> read_number("0,2738"), read_number("40,000"), read_number("1,234.5"), read_number("1.234,5"), read_number("40x")
    (0.2738, 40.0, 1234.5, 1234.5, 40.0)
    """
    number, unit = _quantity(value)
    return number if unit in ("", "x", "X", "×") else None


def read_length(value: Any, unit: str = "um") -> float | None:
    """A length in um, or None where it cannot be read.

    Parameters
    ----------
    value : a number, or text, which may have its own unit behind it
    unit : of a value without one

    >>> read_length("0.25"), read_length("0,00025 mm"), read_length("250 nm/px"), read_length(1, "inch")
    (0.25, 0.25, 0.25, 25400.0)
    """
    number, own = _quantity(value)
    scale = micrometres_of(own or unit)
    # rounded to what a float can say of the product of two
    return None if number is None or scale is None else float(f"{number * scale:.14g}")


def micrometres_of(unit: str) -> float | None:
    """Size of one unit of length in um, by any of its names; None where it is none.

    >>> micrometres_of("millimetre"), micrometres_of("Microns"), micrometres_of("pixel")
    (1000.0, 1.0, None)
    """
    name = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), unit).strip()
    name = _PER_PIXEL.sub("", name).strip().rstrip(".")
    if len(name) == 2 and name[0].isupper() and name[1].islower():  # Mm, Pm: prefixes of large units
        return None
    return _UNITS.get(name, _UNITS.get(name.lower()))


def _quantity(value: Any) -> tuple[float | None, str]:
    """Number and unit of "0,25 um"; (None, "") where there is no number."""
    if isinstance(value, bool) or value is None:
        return None, ""
    if not isinstance(value, str):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None, ""
        return (number, "") if math.isfinite(number) else (None, "")
    match = _QUANTITY.match(value.replace("\N{NO-BREAK SPACE}", " ").replace("\N{ARABIC DECIMAL SEPARATOR}", ","))
    if match is None:
        return None, ""
    point = _with_point(match[1])
    if point is None or not math.isfinite(float(point)):
        return None, ""
    return float(point), (match[2] or "").strip()


def _with_point(text: str) -> str | None:
    """The digits of a number with a point as the decimal sign, or None where its signs make no sense."""
    signs = [c for c in text if c in ".,'"]
    if len(signs) < 2 and "'" not in signs:
        return text.replace(",", ".")
    if len(set(signs)) == 1:
        return _SIGNS.sub("", text) if _GROUPS.match(text) else None
    if signs.count(signs[-1]) > 1:
        return None
    whole, _, fraction = text.rpartition(signs[-1])
    return f"{_SIGNS.sub('', whole)}.{fraction}" if _GROUPS.match(whole) else None
