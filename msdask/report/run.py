"""From the outcomes of a run to its HTML report: pictures and measurements are taken from the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msdask._version import __version__
from msdask.cutting.measures import LOW_CONTRAST, column, white_threshold
from msdask.errors import MsdaskError
from msdask.extraction.outcome import ExtractionReport, SlideOutcome
from msdask.plots import figures
from msdask.progress.machine import versions
from msdask.report.page import Picture, RunReport, SlideReport, picture, write_report
from msdask.slides.slide import Slide
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore

__all__ = ["report_run"]


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
    runs : what `extract` returned
    title : headline
    pictures : how many slides of each set get pictures; drawing reads from slides and store

    Returns
    -------
    path : of the file
    """
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
            slides.append(_slide_report(store[outcome.set_name], outcome, wanted))
    report = RunReport(
        title=title,
        slides=slides,
        specs=specs,
        versions={"msdask": __version__, **versions()},
        facts={"store": runs[0].store, "cores": str(os.cpu_count()), **_engine(runs[0])},
        seconds=sum(run.seconds for run in runs),
    )
    return write_report(path, report)


def _engine(run: ExtractionReport) -> dict[str, str]:
    return {"ran on": ", ".join(f"{key} {value}" for key, value in run.engine.items())} if run.engine else {}


def _slide_report(patch_set: PatchSet, outcome: SlideOutcome, with_pictures: bool) -> SlideReport:
    if outcome.state == "failed":
        return SlideReport(outcome.slide_id, "failed", outcome.set_name, reason=outcome.reason, seconds=outcome.seconds)
    data = patch_set.open(outcome.slide_id)
    attrs = patch_set.attrs(outcome.slide_id)
    measured = data["measured"].values
    warnings = list(outcome.warnings)
    if outcome.tries > 1:
        warnings.append(f"workers were lost: some of it was tried {outcome.tries} times")
    drawn: tuple[Picture, ...] = ()
    if with_pictures:
        try:
            drawn = _pictures(patch_set, outcome)
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
        brightness_threshold=white_threshold(float(attrs["tissue_mean"])),
        contrast_threshold=LOW_CONTRAST,
    )


def _pictures(patch_set: PatchSet, outcome: SlideOutcome) -> tuple[Picture, ...]:
    data = patch_set.open(outcome.slide_id)
    mpp, region = float(data.attrs["mpp"]), data.attrs.get("slide_region")
    slide = Slide(outcome.path, mpp=mpp, tolerance=patch_set.spec.tolerance, region=region)
    mask = data.get("mask")
    selected = figures.selection(slide, data, mask=mask, max_size=1200)
    kept = np.flatnonzero(data["keep"].values)
    n = min(len(kept), 6 if data.sizes["magnification"] == 1 else 4)
    sheet = figures.patches(data, rows=kept[np.linspace(0, len(kept) - 1, n).round().astype(int)])
    scales = ", ".join(f"{m:g}x" for m in data["magnification"].values)
    return (
        picture(figures.pyramid(slide), "levels", alt=f"{outcome.slide_id}: one point at several magnifications"),
        picture(selected, "selection", alt=f"{outcome.slide_id}: {data.sizes['patch']} selected patches on the slide"),
        picture(sheet, "patches", alt=f"{outcome.slide_id}: patches at {scales}"),
    )
