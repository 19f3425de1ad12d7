"""The HTML report of a run: one self-contained file with tables, pictures and sliders that re-decide the thresholds."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike, NDArray

from msdask.errors import SpecError
from msdask.progress.counting import counted
from msdask.storage.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "RunReport", "SlideReport", "picture", "write_report"]

SAMPLES_PER_SLIDE = 3000
"""Most measurements of one slide that the sliders get."""
SAMPLES_PER_REPORT = 120_000
"""Most measurements of all slides together: keeps the report of a large cohort at a few MB."""
BRIGHTNESS_STEP, CONTRAST_STEP, TISSUE_STEP = 0.01, 0.0001, 0.001
"""Measurements are embedded as whole multiples of these; the sliders move in multiples of them too."""

_UNKNOWN = "\u2013"

State = Literal["complete", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image of the report.

    Attributes
    ----------
    title : shown above it
    data : a PNG or JPEG file's bytes
    alt : what is to be seen, for those who do not see it; the title if empty
    """

    title: str
    data: bytes
    alt: str = ""

    def uri(self) -> str:
        """The image as a data: URI."""
        if self.data.startswith(b"\x89PNG\r\n"):
            kind = "png"
        elif self.data.startswith(b"\xff\xd8\xff"):
            kind = "jpeg"
        else:
            raise SpecError(
                f"report picture {self.title!r}: starts with {self.data[:8]!r}; expected the bytes of a PNG or JPEG"
            )
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class SlideReport:
    """What became of one slide in one patch set.

    Attributes
    ----------
    slide_id : as in the store
    state : "complete", "failed" or "skipped" (was there already)
    patch_set : its name
    reason : why it failed or was skipped
    candidates : positions of the lattice; None where unknown
    selected : patches that were selected and stored; tuples, where the set has several magnifications
    kept : those of them that are neither too bright nor of too low contrast
    written : how many of them by this run; None where it wrote none
    magnifications : of the set: with several, what is counted are tuples
    seconds : wall time of the slide; None where nothing was done
    warnings : sentences
    pictures : shown in this order
    brightness, contrast, tissue : (patch,) measured on the finest magnification; brightness 0 to 255, the others 0 to
        1; NaN = not measured
    brightness_threshold, contrast_threshold : what `kept` was decided with
    """

    slide_id: str
    state: State
    patch_set: str = ""
    reason: str = ""
    candidates: int | None = None
    selected: int | None = None
    kept: int | None = None
    written: int | None = None
    magnifications: int = 1
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    brightness: ArrayLike | None = None
    contrast: ArrayLike | None = None
    tissue: ArrayLike | None = None
    brightness_threshold: float | None = None
    contrast_threshold: float = 0.05

    @property
    def rate(self) -> float | None:
        """Patches, or tuples, a second; None where nothing was timed."""
        return self.written / self.seconds if self.written is not None and self.seconds else None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes
    ----------
    title : headline
    slides : one entry per slide and patch set, in the order of the run
    specs : patch set -> its extraction spec as a dict
    versions : program -> version
    facts : what else belongs in the head of the report, name -> value (command, store, duration, machine ...)
    seconds : wall time of the whole run; slides run side by side, so it is less than the sum of theirs
    notes : sentences shown below the head
    """

    title: str
    slides: Sequence[SlideReport]
    specs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    notes: Sequence[str] = ()

    def totals(self) -> dict[str, float | int | str | None]:
        """Sums over the slides; `rate` is all that was written over the run's wall time, `counted` says it in words."""
        counts = {name: sum(getattr(e, name) or 0 for e in self.slides) for name in ("candidates", "selected", "kept")}
        states = {state: sum(e.state == state for e in self.slides) for state in get_args(State)}
        written = sum(e.written or 0 for e in self.slides)
        rate = written / self.seconds if self.seconds else None
        words = counted((e.written or 0, e.magnifications) for e in self.slides)
        slides = len({e.slide_id for e in self.slides})
        sums = {"slides": slides, **states, **counts, "written": written, "counted": words}
        return {**sums, "seconds": self.seconds, "rate": rate}


def picture(figure: Figure, title: str, *, alt: str = "", quality: int | None = 88) -> Picture:
    """Encode a figure for the report.

    Parameters
    ----------
    figure : as `msdask.plots` returns it
    title, alt : see Picture
    quality : of the JPEG, which is several times smaller than a PNG of tissue; None for PNG
    """
    buffer = io.BytesIO()
    if quality is None:
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08)
    else:
        options = {"quality": quality, "optimize": True, "subsampling": 0}
        figure.savefig(buffer, format="jpeg", bbox_inches="tight", pad_inches=0.08, pil_kwargs=options)
    return Picture(title, buffer.getvalue(), alt)


def write_report(path: str | os.PathLike[str], report: RunReport) -> Path:
    """Write the report as one HTML file that needs nothing else: no server, no network, no other file.

    An existing file is replaced, at once and as a whole; its folder is made if it does not exist.

    Returns
    -------
    path : of the file

    Raises
    ------
    FileWriteError
        The file cannot be written there.
    SpecError
        Measurements of different lengths, or a picture that is neither PNG nor JPEG.
    """
    return write_file(path, _render(report), what="report")


def _render(report: RunReport) -> str:
    environment = Environment(
        loader=PackageLoader("msdask.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_count, decimal=_decimal, duration=_duration, plain=_plain)
    return environment.get_template("report.html").render(
        report=report,
        totals=report.totals(),
        has_sets=any(entry.patch_set for entry in report.slides),
        failures=[entry for entry in report.slides if entry.state == "failed"],
        warned=[entry for entry in report.slides if entry.warnings],
        illustrated=[entry for entry in report.slides if entry.pictures],
        measurements=_measurements(report.slides),
    )


def _measurements(slides: Sequence[SlideReport]) -> dict[str, Any]:
    """What the sliders work on, as plain JSON values.

    Brightness is rounded up, contrast and tissue down, each to a multiple of its step: so comparing the rounded values
    with a threshold that is such a multiple gives what comparing the measured ones would.
    """
    measured = [(entry, *_measured(entry)) for entry in slides if entry.brightness is not None]
    measured = [item for item in measured if len(item[1])]
    budget = max(1, min(SAMPLES_PER_SLIDE, SAMPLES_PER_REPORT // max(1, len(measured))))
    entries = []
    for entry, brightness, contrast, tissue in measured:
        count = len(brightness)
        shown = np.arange(count) if count <= budget else np.arange(budget) * count // budget
        entries.append(
            {
                "name": f"{entry.slide_id} · {entry.patch_set}" if entry.patch_set else entry.slide_id,
                "patches": count,
                "kept": entry.kept,
                "brightnessThreshold": entry.brightness_threshold,
                "contrastThreshold": entry.contrast_threshold,
                "brightness": _steps(-brightness[shown], BRIGHTNESS_STEP, sign=-1),
                "contrast": _steps(contrast[shown], CONTRAST_STEP),
                "tissue": _steps(tissue[shown], TISSUE_STEP),
            }
        )
    steps = {"brightness": BRIGHTNESS_STEP, "contrast": CONTRAST_STEP, "tissue": TISSUE_STEP}
    return {"steps": steps, "slides": entries}


def _measured(entry: SlideReport) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Brightness, contrast and tissue of the patches that were measured."""
    brightness = np.asarray(entry.brightness, dtype=np.float64).reshape(-1)
    contrast = np.asarray(entry.contrast if entry.contrast is not None else [], dtype=np.float64).reshape(-1)
    tissue = np.ones_like(brightness) if entry.tissue is None else np.asarray(entry.tissue, np.float64).reshape(-1)
    if not len(brightness) == len(contrast) == len(tissue):
        raise SpecError(
            f"report of slide {entry.slide_id!r}: {len(brightness)} brightness, {len(contrast)} contrast and "
            f"{len(tissue)} tissue values; expected one of each per patch"
        )
    known = np.isfinite(brightness) & np.isfinite(contrast) & np.isfinite(tissue)
    return brightness[known], contrast[known], tissue[known]


def _steps(values: NDArray[np.float64], step: float, *, sign: int = 1) -> list[int]:
    # Float32 holds 0.7 as 0.69999999: the slack keeps such a value at its step.
    whole: list[int] = (sign * np.floor(values / step + 4e-3)).astype(np.int64).tolist()
    return whole


def _count(value: float | int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _decimal(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}" if value < 100 else _count(value)


def _duration(seconds: float | None) -> str:
    """12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds is None:
        return _UNKNOWN
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    """A spec's value as people write it: 20, 10, 5 rather than [20.0, 10.0, 5.0]."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)
