"""Numbers and lengths as they are written: decimal commas, groups of thousands, units."""

from __future__ import annotations

import pytest

from msdask.readers.quantities import micrometres_of, read_length, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.2738", 0.2738),
        ("0,2738", 0.2738),
        ("40,000", 40.0),
        (" 20 ", 20.0),
        ("40x", 40.0),
        ("2,5e-4", 2.5e-4),
        (",25", 0.25),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1,234,567", 1234567.0),
        ("1'000", 1000.0),
        ("0\N{ARABIC DECIMAL SEPARATOR}25", 0.25),
        (0.5, 0.5),
        (7, 7.0),
    ],
)
def test_numbers_are_read_whatever_the_decimal_sign(text: object, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "abc", "1.2.3", "1,2,3", "12,34.5", "1,2.3,4", "nan", "inf", "1e999", None, True, "5 um"]
)
def test_what_is_no_number_is_none(text: object) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("value", "unit", "length"),
    [
        ("0,00025", "millimetre", 0.25),
        ("0.25", "µm", 0.25),  # micro sign
        ("0.25", "μm", 0.25),  # Greek mu
        ("0.25", r"\u00B5m", 0.25),  # as ImageJ escapes it
        ("0.25", "Microns", 0.25),
        ("0.25 um/px", "nm", 0.25),
        ("250", "nm", 0.25),
        ("2500", "Å", 0.25),
        (0.00001, "inch", 0.254),
        ("0,25 microns per pixel", "m", 0.25),
    ],
)
def test_lengths_are_read_in_any_unit(value: object, unit: str, length: float) -> None:
    assert read_length(value, unit) == pytest.approx(length)


@pytest.mark.parametrize("unit", ["pixel", "furlong", "", "Mm", "reference frame"])
def test_what_is_no_length_is_none(unit: str) -> None:
    assert micrometres_of(unit) is None
