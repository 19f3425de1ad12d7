"""From the runs of an experiment to its results: gathered from their folders, judged, and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from msdask.data.linked import LinkedSet
from msdask.plots.experiment import experiment_scores
from msdask.spec import format_magnification
from msdask.storage.files import replacing, write_file
from msdask.training.class_scores import SCORES
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.data import ExperimentData
from msdask.training.experiments.judge import Judged, judge
from msdask.training.experiments.rows import Row
from msdask.training.experiments.run import RunJob
from msdask.training.experiments.tables import SHOWN, latex, markdown

__all__ = ["Found", "collect", "write_results"]

_COLUMNS = ["slide", "patient", "row", "label", "predicted"]


@dataclass(frozen=True)
class Found:
    """Results, and what is to be said of them."""

    judged: Judged
    caption: str
    notes: list[str]
    baselines: list[str]


def collect(config: ExperimentConfig, data: ExperimentData, rows: Sequence[Row], jobs: Sequence[RunJob]) -> Found:
    """Judge what is finished of an experiment."""
    segments = config.task == "segment"
    done = [job for job in jobs if job.done.exists()]
    runs = {(job.row.name, job.split.repeat): job.facts() for job in done}
    predictions = {
        (job.row.name, job.split.repeat): pd.read_csv(job.folder / "pixels.csv", dtype={"slide": str, "patient": str})
        if segments
        else pd.read_parquet(job.folder / "predictions.parquet", columns=_COLUMNS)
        for job in done
    }
    ablations = {
        (job.row.name, job.split.repeat): pd.read_csv(job.ablation)
        for job in done
        if config.ablate and job.ablation.exists()
    }
    drawn = {split.repeat: data.drawn(split) for split in data.splits}
    metrics = [*SCORES, *(f"f1_{name}" for name in data.classes if segments)]
    judged = judge(
        rows, runs, predictions, ablations, drawn=drawn, metric=config.metric, metrics=metrics, seed=config.seed
    )
    test, train = np.mean(list(drawn.values()), axis=0)
    what = "patients" if data.source.patients else "slides"
    splits = len(data.splits)
    caption = (
        f"Mean ± standard deviation over {splits} split{'' if splits == 1 else 's'} by {what[:-1]} (on average "
        f"{test:.4g} {what} for testing and {train:.4g} for training). All models of a split are judged on the "
        f"same {'px of the ' if segments else ''}test patches."
    )
    return Found(judged, caption, _notes(config, data, rows, judged), [row.name for row in rows if not row.is_fusion])


def _notes(config: ExperimentConfig, data: ExperimentData, rows: Sequence[Row], judged: Judged) -> list[str]:
    scales = " ".join(map(format_magnification, config.scales))
    if config.task == "segment":
        return _segment_notes(config, data, judged)
    left = ", ".join(f"{reason}: {count:,}" for reason, count in data.source.dropped.items() if count) or "none"
    finest = "the patch of the finest grid" if isinstance(data.source.patches, LinkedSet) else "the centroid"
    notes = [
        f"Every model, single scales too, learns from and is judged on the {int(data.source.counts.sum()):,} tuples "
        f"that there are at all magnifications ({scales}), with the label of {finest}. Left out: {left}.",
    ]
    if judged.best_single:
        notes.append(f"Best single scale in validation: {judged.best_single}.")
    for row in rows:
        if row.kind == "pooled":
            cover = ", ".join(f"{format_magnification(m)} {c:.0%}" for m, c in data.areas(row).covered.items())
            notes.append(f"{row.name}: share of the contexts that fine patches cover: {cover}.")
    if missing := [name for name in ("matched", "pooled") if name not in config.baselines]:
        notes.append(f"Left out by the configuration: the baselines {' and '.join(missing)}.")
    if config.features == "frozen":
        notes.append(
            f"Heads on features of a frozen {config.backbone} (weights: {config.weights}), without augmentation; "
            "parameters are those of the heads."
        )
    return notes


def _segment_notes(config: ExperimentConfig, data: ExperimentData, judged: Judged) -> list[str]:
    left = ", ".join(f"{reason}: {count:,}" for reason, count in data.source.dropped.items() if count) or "none"
    finest = format_magnification(config.scales[0])
    return [
        f"All models are judged on the px that a {finest} target shows, at {finest}: coarser outputs are enlarged by "
        f"repeating px. Patches left out: {left}.",
        *([f"Best U-Net in validation: {judged.best_single}."] if judged.best_single else []),
        *(
            []
            if "matched" in config.baselines or config.unet_filters
            else ["Left out by the configuration: U-Nets as large as HookNets."]
        ),
    ]


def write_results(config: ExperimentConfig, found: Found, failures: Mapping[str, str]) -> str:
    """Write the tables and the figure into the experiment's folder; gives the Markdown."""
    folder, judged = Path(config.output), found.judged
    notes = [*found.notes, *(f"FAILED: {name}: {reason}" for name, reason in failures.items())]
    by_class = [str(name) for name in judged.scores.columns if str(name).startswith("f1_")]
    shown = [*by_class, "macro_f1"] if config.task == "segment" else SHOWN
    text = markdown(judged, caption=found.caption, notes=notes, metric=config.metric, shown=shown)
    write_file(folder / "table.md", text)
    write_file(folder / "table.tex", latex(judged, caption=found.caption, metric=config.metric, shown=shown))
    tables = {
        "table": judged.table,
        "comparisons": judged.comparisons,
        "scores": judged.scores,
        "branches": judged.branches,
        "ablation": judged.ablation,
    }
    for name, table in tables.items():
        if len(table):
            with replacing(folder / f"{name}.csv", what="table") as part:
                table.to_csv(part, index=False)
    order = [name for name in judged.table["row"] if (judged.scores["row"] == name).any()]
    drawn = {
        score: {name: judged.scores.loc[judged.scores["row"] == name, score].to_list() for name in order}
        for score in shown
    }
    with replacing(folder / "table.png", what="figure") as part:
        experiment_scores(drawn, baselines=found.baselines).savefig(part, format="png", dpi=110)
    return text
