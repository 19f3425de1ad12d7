"""What the sliders of a report work on: measurements of the patches as plain whole numbers, and how each is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from msdask.errors import SpecError

__all__ = ["SAMPLES_PER_REPORT", "SAMPLES_PER_SLIDE", "SHOWN", "Measured", "Shown", "measurements"]

SAMPLES_PER_SLIDE = 3000
"""Most measurements of one slide that the sliders get."""
SAMPLES_PER_REPORT = 120_000
"""Most measurements of all slides together: keeps the report of a large cohort at a few MB."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How one measure is shown and decided.

    Attributes
    ----------
    name : of the column
    at_most : whether patches below a threshold are kept, or those above it
    step : measurements are embedded as whole multiples of it, and thresholds are such multiples
    low, high, move : of the slider
    percent : whether its value is written as a percentage
    """

    name: str
    at_most: bool
    step: float
    low: float
    high: float
    move: float
    percent: bool = False


SHOWN = (
    Shown("brightness", True, 0.01, 0, 255, 1),
    Shown("contrast", False, 0.0001, 0, 0.5, 0.005),
    Shown("tissue", False, 0.001, 0, 1, 0.01, percent=True),
    Shown("focus", False, 0.001, 0.2, 0.7, 0.01),
    Shown("blank", True, 0.001, 0, 1, 0.01, percent=True),
    Shown("pen", True, 0.001, 0, 1, 0.01, percent=True),
    Shown("dark", True, 0.001, 0, 1, 0.01, percent=True),
)
"""Every measure that has a slider, in the order shown."""


class Measured(Protocol):
    """What is asked of an entry of a report; see `msdask.report.page.SlideReport`."""

    @property
    def slide_id(self) -> str: ...  # noqa: D102
    @property
    def patch_set(self) -> str: ...  # noqa: D102
    @property
    def kept(self) -> int | None: ...  # noqa: D102
    @property
    def brightness(self) -> ArrayLike | None: ...  # noqa: D102
    @property
    def contrast(self) -> ArrayLike | None: ...  # noqa: D102
    @property
    def tissue(self) -> ArrayLike | None: ...  # noqa: D102
    @property
    def qualities(self) -> Mapping[str, ArrayLike]: ...  # noqa: D102
    @property
    def brightness_threshold(self) -> float | None: ...  # noqa: D102
    @property
    def contrast_threshold(self) -> float: ...  # noqa: D102
    @property
    def tissue_threshold(self) -> float: ...  # noqa: D102


def measurements(slides: Sequence[Measured]) -> dict[str, Any]:
    """What the sliders work on, as plain JSON values.

    Values that have an upper threshold are rounded up, the others down, each to a multiple of its step: so comparing
    the rounded values with a threshold that is such a multiple gives what comparing the measured ones would.

    Returns
    -------
    measurements : "measures", one dict of `Shown` each; "sets", the names of the patch sets; "slides", of each its
        name, set, patches, kept, thresholds of the run and values by measure

    Raises
    ------
    SpecError
        A slide has columns of different lengths.
    """
    measured = [(entry, columns) for entry in slides if (columns := _columns(entry)) and len(columns["brightness"])]
    budget = max(1, min(SAMPLES_PER_SLIDE, SAMPLES_PER_REPORT // max(1, len(measured))))
    sets = list(dict.fromkeys(entry.patch_set for entry, _ in measured))
    entries = []
    for entry, columns in measured:
        count = len(columns["brightness"])
        shown = np.arange(count) if count <= budget else np.arange(budget) * count // budget
        entries.append(
            {
                "name": entry.slide_id,
                "set": sets.index(entry.patch_set),
                "patches": count,
                "kept": entry.kept,
                "thresholds": {
                    "brightness": entry.brightness_threshold,
                    "contrast": entry.contrast_threshold,
                    "tissue": entry.tissue_threshold,
                },
                "values": {
                    shape.name: _steps(columns[shape.name][shown], shape) for shape in SHOWN if shape.name in columns
                },
            }
        )
    there = [shape for shape in SHOWN if any(shape.name in columns for _, columns in measured)]
    return {"measures": [asdict(shape) for shape in there], "sets": sets, "slides": entries}


def _columns(entry: Measured) -> dict[str, NDArray[np.float64]]:
    """The columns of a slide, without the patches that were not measured; {} without any."""
    if entry.brightness is None:
        return {}
    given: dict[str, ArrayLike] = {
        "brightness": entry.brightness,
        "contrast": [] if entry.contrast is None else entry.contrast,
        "tissue": np.ones(np.size(entry.brightness)) if entry.tissue is None else entry.tissue,
        **entry.qualities,
    }
    columns = {name: np.asarray(values, np.float64).reshape(-1) for name, values in given.items()}
    if len({len(values) for values in columns.values()}) > 1:
        counts = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise SpecError(f"report of slide {entry.slide_id!r}: {counts} values; expected one of each per patch")
    known = np.isfinite(list(columns.values())).all(0)
    return {name: values[known] for name, values in columns.items()}


def _steps(values: NDArray[np.float64], shape: Shown) -> list[int]:
    sign = -1 if shape.at_most else 1
    # Float32 holds 0.7 as 0.69999999: the slack keeps such a value at its step.
    whole: list[int] = (sign * np.floor(sign * values / shape.step + 4e-3)).astype(np.int64).tolist()
    return whole
