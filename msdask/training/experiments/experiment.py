"""experiment: a whole grid of models over repeated splits, on this machine or a cluster, as one table."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from dask.system import CPU_COUNT

from msdask.engines.engine import Engine
from msdask.engines.in_flight import run_jobs
from msdask.engines.open_engine import open_engine
from msdask.engines.plan import Work
from msdask.errors import MsdaskError, SpecError
from msdask.extraction.cohort_work import setup_of_workers
from msdask.models.backbones import SCALENET, make_backbone
from msdask.storage import places
from msdask.storage.files import write_file
from msdask.storage.locks import held
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.data import ExperimentData
from msdask.training.experiments.frozen import EncodeJob, FrozenFeatures, encode, encoder_of
from msdask.training.experiments.judge import Judged
from msdask.training.experiments.results import collect, write_results
from msdask.training.experiments.rows import Row, rows_of
from msdask.training.experiments.run import RunJob, do_run
from msdask.training.fit import check_monitor

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["ExperimentResult", "RunOutcome", "experiment"]

_KEPT = (
    *("relation", "features", "backbone", "weights", "embedding", "dropout", "fuse"),
    *("batch_size", "augment", "monitor", "seed", "loss_weights"),
)
"""Fields of a configuration that all runs follow from."""
_KEPT_TOO = ("task", "filters", "unet_filters", "depth", "merge", "context_size")
"""The same of segmentation."""


@dataclass(frozen=True)
class RunOutcome:
    """What became of one run.

    Attributes
    ----------
    name : of the run: "features-10x-5x-one, split 3"
    state : "done"; "kept", where it was finished before; "failed"
    number, total : how many runs have ended, of how many
    scores : of the test
    reason : why it failed
    """

    name: str
    state: str
    number: int
    total: int
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    reason: str = ""

    def __str__(self) -> str:
        shown = ("kappa", "balanced_accuracy") if self.scores else ()
        said = self.reason or ", ".join(f"{name.replace('_', ' ')} {self.scores[name]:.4f}" for name in shown)
        return f"{self.number}/{self.total} {self.name}: {self.state}: {said}"


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment found, also as files in its folder.

    Attributes
    ----------
    folder : of the experiment
    judged : scores, table, comparisons, branches, ablation as DataFrames
    text : the tables as Markdown
    failures : run -> why it failed
    """

    folder: Path
    judged: Judged = field(repr=False)
    text: str = field(repr=False)
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether no run failed."""
        return not self.failures

    @property
    def table(self) -> pd.DataFrame:
        """A row a model."""
        return self.judged.table

    @property
    def comparisons(self) -> pd.DataFrame:
        """A row a comparison."""
        return self.judged.comparisons

    def _repr_markdown_(self) -> str:
        return self.text


def experiment(
    config: ExperimentConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    client: Client | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tries: int = 3,
    listener: Callable[[RunOutcome], object] | None = None,
) -> ExperimentResult:
    """Train and test a grid of models on repeated splits, and judge them on the same test patches.

    Each run has a run folder. A run that is finished is not done again, one that was killed goes on where it was, one
    that fails is named and stops no other: call it again with the same configuration. Rows, ablations and the metric
    that is compared may be changed then; what would change runs that are there is refused.

    Parameters
    ----------
    config : an `ExperimentConfig`, a dict of its fields, or a TOML file
    client : of a Dask cluster: one run a task. Its workers see store and output by the same paths; give them one thread
        each, and one GPU each where there are some
    workers : processes of this machine instead, each with a GPU of its own where there are several
    threads : of PyTorch in a run; None: as it is set here, with `workers` their share of the cores
    tries : of a run whose worker dies
    listener : hears of every run that has ended; ``print`` will do

    Returns
    -------
    result : also as table.md, table.csv, table.tex, table.png, comparisons.csv, scores.csv, and branches.csv and
        ablation.csv where there are some

    Raises
    ------
    SpecError
        The configuration makes no sense, or the store cannot give what it asks for: before anything is trained.
    MsdaskError
        The folder holds an experiment with other settings or data, or all runs failed.

    Examples
    --------
    >>> ms.experiment("experiment.toml", listener=print)  # doctest: +SKIP
    """
    plan = ExperimentPlan(ExperimentConfig.read(config))
    output = plan.config.output
    with held(os.path.join(output, "experiment.lock"), f"experiment '{output}'"):
        plan.begin()
        return _done(plan, client, workers, threads, tries, listener)


def _done(
    plan: ExperimentPlan,
    client: Client | None,
    workers: int | None,
    threads: int | None,
    tries: int,
    listener: Callable[[RunOutcome], object] | None,
) -> ExperimentResult:
    """Do the runs, and put them together."""
    if workers is not None and threads is None:
        threads = max(1, CPU_COUNT // workers)
    runs = plan.runs(threads=threads, is_own_process=client is not None or workers is not None)
    here = 0 if client is None and workers is None else None
    given = threads if workers is not None else here
    work = Work(prepare=setup_of_workers())
    ended = _Ended(len(runs), listener)
    with open_engine(client, workers=workers, threads=given, jobs=len(runs), tries=tries, work=work) as engine:
        if jobs := plan.encodings():
            run_jobs(engine, jobs, lambda order, job: _encode(engine, order, job))
        run_jobs(engine, runs, lambda order, job: _run(engine, order, job, ended))
    found = collect(plan.config, plan.data, plan.rows, runs)
    if not len(found.judged.scores):
        name, reason = next(iter(ended.failures.items()))
        raise MsdaskError(f"experiment '{plan.config.output}': all {len(runs)} runs failed; '{name}': {reason}")
    text = write_results(plan.config, found, ended.failures)
    return ExperimentResult(Path(plan.config.output), found.judged, text, ended.failures)


def _encode(engine: Engine, order: int, job: EncodeJob) -> None:
    with engine.job(order) as trace:
        engine.call(f"encode: {job.set_name} {job.slide_id}", trace, encode, job)


def _run(engine: Engine, order: int, job: RunJob, ended: _Ended) -> None:
    """One run; what it raises is what became of it."""
    if job.is_finished:
        ended.add(job.name, "kept", job.facts()["test"])
        return
    try:
        with engine.job(order) as trace:
            facts = engine.call(f"run: {job.name}", trace, do_run, job)
    except Exception as error:  # whatever stops one run stops no other: it is named, with its reason
        reason = str(error) if isinstance(error, MsdaskError) else f"{type(error).__name__}: {error}"
        told = job.folder / "error.txt"
        ended.add(job.name, "failed", reason=f"{reason} (see {told})" if told.exists() else reason)
    else:
        ended.add(job.name, "done", facts["test"])


class _Ended:
    """Counts the runs that have ended, and tells of each."""

    def __init__(self, total: int, listener: Callable[[RunOutcome], object] | None) -> None:
        self.failures: dict[str, str] = {}
        self._total, self._listener, self._number = total, listener, 0
        self._lock = threading.Lock()

    def add(self, name: str, state: str, scores: Mapping[str, float] | None = None, *, reason: str = "") -> None:
        """A run has ended; called from several threads."""
        with self._lock:
            self._number += 1
            if reason:
                self.failures[name] = reason
            if self._listener is not None:
                self._listener(RunOutcome(name, state, self._number, self._total, scores or {}, reason))


class ExperimentPlan:
    """Everything that is known before the first step: data, splits, rows; what cannot be is refused here.

    Parameters
    ----------
    config : of the experiment

    Attributes
    ----------
    config : with its weights decided
    data : tuples and splits
    rows : of the table
    frozen : features, where heads are trained on these
    """

    def __init__(self, config: ExperimentConfig) -> None:
        config = _absolute(config)
        self.config = replace(config, weights=_weights(config))
        self.data = ExperimentData(self.config)
        self.data.splits  # noqa: B018 - checked before anything else takes time
        self._width: int | None = None
        self.frozen: FrozenFeatures | None = None
        if config.features == "frozen":
            encoder = encoder_of(self.config.backbone, self.config.weights, self.config.seed)
            self._width = encoder.width
            self.frozen = FrozenFeatures(self.config, self.data, FrozenFeatures.digest_of(self.data, encoder))
            if self.config.weights == "none":
                warnings.warn(
                    f"features are those of a {config.backbone} with random weights: give weights='imagenet' or a file",
                    UserWarning,
                    stacklevel=4,
                )
        self.rows: list[Row] = rows_of(self.config, len(self.data.classes), width=self._width)
        self._check_rows()

    def parameters(self, row: Row) -> int:
        """How many parameters a row's network has."""
        return row.parameters(self.config, len(self.data.classes), width=self._width)

    def _check_rows(self) -> None:
        for row in self.rows:
            self.parameters(row)
            check_monitor(row.task(self.config, self.data.classes))
            if row.kind == "pooled":
                self.data.areas(row)

    def begin(self) -> None:
        """Make the folder, or check that the experiment that is there is this one."""
        path = Path(self.config.output) / "experiment.json"
        settings = json.loads(json.dumps(self._settings()))
        if path.exists():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise MsdaskError(f"'{path}' describes no experiment: {error!r}; give another output folder") from error
            if changed := [name for name in settings if before.get(name) != settings[name]]:
                raise MsdaskError(
                    f"'{self.config.output}' holds an experiment with other settings or data (differs in "
                    f"{', '.join(changed)}): use the same to go on with it, or give another output folder"
                )
        write_file(path, json.dumps({"config": self.config.to_dict(), "settings": settings}, indent=2) + "\n")
        for split in self.data.splits:
            split.write(Path(self.config.output) / "splits" / str(split.repeat))

    def _settings(self) -> dict[str, Any]:
        """What all runs follow from."""
        config = self.config
        recipe = config.recipe.to_dict()
        for name in ("accelerator", "devices", "strategy", "nodes", "checkpoint_every"):
            del recipe[name]
        return {
            **{name: getattr(config, name) for name in _KEPT},
            **{name: getattr(config, name) for name in _KEPT_TOO if config.task == "segment"},
            "recipe": recipe,
            "magnifications of all models": config.scales,
            "classes": self.data.classes,
            "splits": [[split.train, split.valid, split.test] for split in self.data.splits],
            "data": self.data.contents,
            **({} if self.frozen is None else {"digest of the features": self.frozen.digest}),
        }

    def runs(self, *, threads: int | None = None, is_own_process: bool = False) -> list[RunJob]:
        """All runs: of the first split first, so that a table of some splits is there early."""
        features = None if self.frozen is None or self._width is None else (self.frozen.digest, self._width)
        return [
            RunJob(self.config, row, split, self.data.contents, features, threads, is_own_process)
            for split in self.data.splits
            for row in self.rows
        ]

    def encodings(self) -> Sequence[EncodeJob]:
        """What is to be encoded first."""
        return [] if self.frozen is None else self.frozen.jobs(self.rows)


def _absolute(config: ExperimentConfig) -> ExperimentConfig:
    """The same with paths that mean the same in another process."""
    file = places.local_path(config.weights)
    return replace(
        config,
        store=places.location(config.store),
        output=places.local_path(config.output),
        weights=file if os.path.isfile(file) else config.weights,
    )


def _weights(config: ExperimentConfig) -> str:
    """What backbones begin with, decided once for all runs; loaded once to see that it can be."""
    if config.task == "segment":
        return "none"
    if config.weights not in ("auto", "none"):
        make_backbone(config.backbone, weights=config.weights)
    if config.weights != "auto":
        return config.weights
    if config.backbone == SCALENET:
        return "none"
    try:
        make_backbone(config.backbone, weights="imagenet")
    except SpecError:  # of the name of the backbone: it would be so with any weights
        raise
    except MsdaskError as error:
        warnings.warn(f"training begins with random weights: {error}", UserWarning, stacklevel=4)
        return "none"
    return "imagenet"
