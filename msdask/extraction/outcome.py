"""What became of every slide of an extraction, and the record of the run, which lies outside the store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from msdask.progress.events import Outcome
from msdask.progress.report import Report
from msdask.storage.files import write_file
from msdask.upper import bound

__all__ = ["ExtractionReport", "SlideOutcome", "write_log"]


@dataclass(frozen=True, slots=True)
class SlideOutcome(Outcome):
    """One slide in one patch set.

    Attributes
    ----------
    state : "complete" (written now), "present" (was complete before) or "failed"
    path : of the slide's file
    counts : candidates, selected, kept, labeled, filled
    seconds : of this run, from the plan's end to the commit; other slides may have run at the same time
    warnings : about scale and mask
    tries : how often the unluckiest of its tasks was tried; above 1 only on a cluster that loses workers
    workers : of a cluster, that worked on it, and those that died over it
    """

    state: Literal["complete", "present", "failed"]
    _: KW_ONLY
    path: str
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    tries: int = 1
    workers: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The outcome as a row of a table."""
        facts = {"seconds": round(self.seconds, 3), "warnings": "; ".join(self.warnings), "path": self.path}
        return {**Outcome.row(self), **self.counts, **facts, "tries": self.tries, "workers": ", ".join(self.workers)}


@dataclass(frozen=True, slots=True)
class ExtractionReport(Report[SlideOutcome]):
    """Outcomes of one call of `extract`, in the order of the slides."""

    states = ("complete", "present", "failed")

    @property
    def failures(self) -> dict[str, str]:
        """Slide id -> reason, of the slides that failed."""
        return {o.slide_id: o.reason for o in self.failed}

    def to_html(
        self, path: str | os.PathLike[str] | None = None, *, title: str = "msdask extract", pictures: int = 8
    ) -> str:
        """The run as one HTML page with tables, pictures and sliders, as `msdask extract --report run.html` writes it.

        Reads the store, and the slides for the pictures.

        Parameters
        ----------
        path : where it is written, too; None writes nothing
        title : headline
        pictures : how many slides of each set get pictures; 0 for none

        Returns
        -------
        html : a page that needs no other file

        Raises
        ------
        FileWriteError
            It cannot be written there.
        """
        html: str = bound("report_html")(self, title=title, pictures=pictures)
        if path is not None:
            write_file(path, html, what="report")
        return html


def write_log(path: str | os.PathLike[str], report: ExtractionReport) -> Path:
    """Write a run's record as a JSON file; returns its path."""
    return write_file(path, report.to_json() + "\n", advice="give another path; the run itself is done")
