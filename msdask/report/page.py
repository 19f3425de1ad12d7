"""The HTML report of a run: one self-contained file with tables, pictures and sliders that re-decide the thresholds."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike

from msdask.errors import SpecError
from msdask.progress.counting import counted
from msdask.report.measurements import measurements
from msdask.storage.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "RunReport", "SlideReport", "picture", "render", "write_report"]

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
    qualities : focus, blank, pen and dark (docs/quality.md), (patch,) each, as far as they were measured
    brightness_threshold, contrast_threshold : what `kept` was decided with
    tissue_threshold : least share of tissue that was selected
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
    qualities: Mapping[str, ArrayLike] = field(default_factory=dict)
    brightness_threshold: float | None = None
    contrast_threshold: float = 0.05
    tissue_threshold: float = 0.0

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


@dataclass(frozen=True, slots=True)
class _Failure:
    """A slide that failed for one reason, in these patch sets."""

    slide_id: str
    reason: str
    sets: tuple[str, ...]


def _failures(slides: Sequence[SlideReport]) -> list[_Failure]:
    """Failures, each said once: a slide that cannot be opened fails in every set for the same reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in slides:
        if entry.state == "failed":
            found.setdefault((entry.slide_id, entry.reason), []).append(entry.patch_set)
    return [_Failure(slide_id, reason, tuple(filter(None, sets))) for (slide_id, reason), sets in found.items()]


def _illustrated(slides: Sequence[SlideReport]) -> dict[str, list[SlideReport]]:
    """Entries with pictures by slide: its sets stand together."""
    found: dict[str, list[SlideReport]] = {}
    for entry in slides:
        if entry.pictures:
            found.setdefault(entry.slide_id, []).append(entry)
    return found


def picture(figure: Figure, title: str, *, alt: str = "", quality: int | None = 76) -> Picture:
    """Encode a figure for the report.

    Parameters
    ----------
    figure : as `msdask.plots` returns it
    title, alt : see Picture
    quality : of the JPEG, which is several times smaller than a PNG of tissue; None for PNG
    """
    buffer = io.BytesIO()
    if quality is None:
        figure.savefig(buffer, format="png")
    else:
        options = {"quality": quality, "optimize": True, "progressive": True}
        figure.savefig(buffer, format="jpeg", pil_kwargs=options)
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
    return write_file(path, render(report), what="report")


def render(report: RunReport) -> str:
    """The report as HTML; errors as for `write_report`, but for those of writing."""
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
        failures=_failures(report.slides),
        illustrated=_illustrated(report.slides),
        measurements=measurements(report.slides),
    )


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
