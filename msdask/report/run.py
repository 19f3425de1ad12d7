"""From the outcomes of a run to its HTML report: pictures and measurements are taken from the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msdask._version import __version__
from msdask.cutting.measures import LOW_CONTRAST, column, measured_names, white_threshold
from msdask.cutting.quality import QUALITIES
from msdask.errors import MsdaskError
from msdask.extraction.outcome import ExtractionReport, SlideOutcome
from msdask.plots import figures, sheets
from msdask.progress.machine import versions
from msdask.report.page import Picture, RunReport, SlideReport, picture, render, write_report
from msdask.slides.slide import Slide
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore

__all__ = ["report_html", "report_run"]


def report_run(
    path: str | os.PathLike[str],
    runs: ExtractionReport | Sequence[ExtractionReport],
    *,
    title: str = "msdask extract",
    pictures: int = 8,
) -> Path:
    """Write the HTML report of one or more calls of `extract` into one store.

    Parameters
    ----------
    path : of the HTML file
    runs, title, pictures : as for `report_html`

    Returns
    -------
    path : of the file
    """
    return write_report(path, _report(runs, title, pictures))


def report_html(
    runs: ExtractionReport | Sequence[ExtractionReport], *, title: str = "msdask extract", pictures: int = 8
) -> str:
    """The HTML report of one or more calls of `extract` into one store, as text.

    Parameters
    ----------
    runs : what `extract` returned
    title : headline
    pictures : how many slides of each set get pictures; drawing reads from slides and store
    """
    return render(_report(runs, title, pictures))


def _report(runs: ExtractionReport | Sequence[ExtractionReport], title: str, pictures: int) -> RunReport:
    runs = [runs] if isinstance(runs, ExtractionReport) else list(runs)
    slides: list[SlideReport] = []
    specs: dict[str, dict[str, Any]] = {}
    for run in runs:
        store = PatchStore(run.store)
        specs |= {name: store[name].spec.to_dict() for name in run.sets}
        drawn = dict.fromkeys(run.sets, 0)
        for outcome in run.outcomes:
            wanted = outcome.state != "failed" and drawn[outcome.set_name] < pictures
            drawn[outcome.set_name] += wanted
            first = not any(entry.slide_id == outcome.slide_id and entry.pictures for entry in slides)
            kinds = (*(("levels",) if first else ()), "selection", "patches") if wanted else ()
            slides.append(_slide_report(store[outcome.set_name], outcome, kinds))
    return RunReport(
        title=title,
        slides=slides,
        specs=specs,
        versions={"msdask": __version__, **versions()},
        facts={"store": runs[0].store, "cores": str(os.cpu_count()), **_engine(runs[0])},
        seconds=sum(run.seconds for run in runs),
    )


def _engine(run: ExtractionReport) -> dict[str, str]:
    return {"ran on": ", ".join(f"{key} {value}" for key, value in run.engine.items())} if run.engine else {}


def _slide_report(patch_set: PatchSet, outcome: SlideOutcome, kinds: Sequence[str]) -> SlideReport:
    if outcome.state == "failed":
        return SlideReport(outcome.slide_id, "failed", outcome.set_name, reason=outcome.reason, seconds=outcome.seconds)
    data = patch_set.open(outcome.slide_id)
    attrs = patch_set.attrs(outcome.slide_id)
    measured = data["measured"].values
    warnings = list(outcome.warnings)
    if outcome.tries > 1:
        warnings.append(f"workers were lost: some of it was tried {outcome.tries} times")
    drawn: tuple[Picture, ...] = ()
    if kinds:
        try:
            drawn = _pictures(patch_set, outcome, kinds)
        except (MsdaskError, OSError) as error:
            warnings.append(f"no pictures: {error}")
    return SlideReport(
        slide_id=outcome.slide_id,
        state="complete" if outcome.state == "complete" else "skipped",
        patch_set=outcome.set_name,
        reason="" if outcome.state == "complete" else "was complete before this run",
        candidates=outcome.counts["candidates"],
        selected=outcome.counts["selected"],
        kept=outcome.counts["kept"],
        written=outcome.patches if outcome.state == "complete" else None,
        magnifications=data.sizes["magnification"],
        seconds=outcome.seconds or None,
        warnings=tuple(warnings),
        pictures=drawn,
        brightness=column(measured, "brightness")[:, 0],
        contrast=column(measured, "contrast")[:, 0],
        tissue=data["tissue"].values,
        qualities={name: column(measured, name)[:, 0] for name in measured_names(measured) if name in QUALITIES},
        brightness_threshold=white_threshold(float(attrs["tissue_mean"])),
        contrast_threshold=LOW_CONTRAST,
        tissue_threshold=patch_set.spec.min_tissue,
    )


def _pictures(patch_set: PatchSet, outcome: SlideOutcome, kinds: Sequence[str]) -> tuple[Picture, ...]:
    """Those of the pictures "levels", "selection" and "patches" that are asked for."""
    data, slide_id = patch_set.open(outcome.slide_id), outcome.slide_id
    mpp, region = float(data.attrs["mpp"]), data.attrs.get("slide_region")
    slide = Slide(outcome.path, mpp=mpp, tolerance=patch_set.spec.tolerance, region=region)
    scales = ", ".join(f"{m:g}x" for m in data["magnification"].values)
    drawn = []
    if "levels" in kinds:
        drawn.append(picture(figures.pyramid(slide), "levels", alt=f"{slide_id}: one point at several magnifications"))
    if "selection" in kinds:
        figure = figures.selection(slide, data, max_size=1000)
        drawn.append(
            picture(figure, "selection", alt=f"{slide_id}: {data.sizes['patch']} selected patches on the slide")
        )
    if "patches" in kinds:
        kept = np.flatnonzero(data["keep"].values)
        n = min(len(kept), 5 if data.sizes["magnification"] == 1 else 3)
        figure = sheets.patches(data, rows=kept[np.linspace(0, len(kept) - 1, n).round().astype(int)])
        drawn.append(picture(figure, "patches", alt=f"{slide_id}: patches at {scales}"))
    return tuple(drawn)
