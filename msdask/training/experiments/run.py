"""One run of an experiment: a model of a row, trained and tested on one split, in a run folder of its own."""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from msdask.data.augment import Augment
from msdask.data.loader import loader
from msdask.data.tuples import TupleDataset
from msdask.errors import MsdaskError
from msdask.models.files import load_model
from msdask.models.fusion import MultiScaleClassifier
from msdask.models.segmentation import SegmentationModel
from msdask.storage.files import replacing, write_file
from msdask.training.ablation import permute_branches
from msdask.training.classify_task import ClassifyTask
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.data import ExperimentData, data_of
from msdask.training.experiments.frozen import FrozenFeatures, device_of
from msdask.training.experiments.gpu import take_gpu
from msdask.training.experiments.rows import Row
from msdask.training.fit import fit
from msdask.training.measure import measure
from msdask.training.run_folder import RunFolder
from msdask.training.segment_grid import GridTask
from msdask.training.segment_measure import measure_segmenter
from msdask.training.splits import Split

__all__ = ["RunJob", "do_run"]

_TRAINING = threading.Lock()
"""Held while something is trained: random numbers are one state of the whole process."""
_MEASURED = 4096
"""Features that are measured at once: metrics cost the same for a batch of any size."""


@dataclass(frozen=True)
class RunJob:
    """A run as it travels to where it is done.

    Attributes
    ----------
    config : of the experiment; its weights are decided
    row, split : which model, and on what
    contents : hash of the data, see `ExperimentData.contents`
    features : (digest, width) of frozen features; None: images
    threads : of PyTorch; None: as they are
    is_own_process : whether it may choose a GPU for the whole process
    """

    config: ExperimentConfig
    row: Row
    split: Split
    contents: str
    features: tuple[str, int] | None = None
    threads: int | None = None
    is_own_process: bool = False

    @property
    def name(self) -> str:
        """Of the run: "features-10x-5x-one, split 3"."""
        return f"{self.row.name}, split {self.split.repeat}"

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output) / "runs" / self.row.name / str(self.split.repeat)

    @property
    def done(self) -> Path:
        """Written last: what there is to know of the run."""
        return self.folder / "done.json"

    @property
    def ablation(self) -> Path:
        """Scores with permuted branches."""
        return self.folder / "ablation.csv"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done.exists() and (not self._is_ablated or self._permutations >= self.config.ablate)

    @property
    def _is_ablated(self) -> bool:
        return self.config.ablate > 0 and (self.row.is_fusion or self.row.kind == "pooled")

    @property
    def _permutations(self) -> int:
        return int(pd.read_csv(self.ablation)["repeat"].max()) + 1 if self.ablation.exists() else 0

    def facts(self) -> dict[str, Any]:
        """What `done` says."""
        found: dict[str, Any] = json.loads(self.done.read_text(encoding="utf-8"))
        return found


def do_run(job: RunJob) -> dict[str, Any]:
    """Train and test what is not trained and tested yet; gives what there is to know of the run.

    A run that was killed goes on from its last checkpoint. One that fails leaves error.txt in its folder.
    """
    if job.is_finished:
        return job.facts()
    failed = job.folder / "error.txt"
    try:
        with _TRAINING, _threads(job.threads):
            if job.is_own_process:
                take_gpu()
            _do(job)
    except Exception:
        write_file(failed, traceback.format_exc())
        raise
    failed.unlink(missing_ok=True)
    return job.facts()


def _do(job: RunJob) -> None:
    began = time.monotonic()
    config, row, data = job.config, job.row, data_of(job.config, job.contents)
    task = row.task(config, data.classes)
    recipe = config.recipe_of(job.split.repeat)
    test = _batches(job, data, job.split.test, is_judged=True)
    model = _trained(job, data)
    if not job.done.exists():
        found = _measured(job, data, model, task, test)
        known = json.loads(RunFolder(job.folder).metrics.read_text(encoding="utf-8"))
        facts = {
            "row": row.name,
            "split": job.split.repeat,
            "parameters": sum(p.numel() for p in model.parameters()),
            "test_tuples": len(test.dataset),
            "best_epoch": known["best_epoch"],
            "valid": known["valid"],
            "test": found,
            "seconds": round(time.monotonic() - began, 2),
        }
    if isinstance(model, MultiScaleClassifier) and job._is_ablated and job._permutations < config.ablate:
        table = permute_branches(
            model, test, repeats=config.ablate, seed=config.seed + job.split.repeat, device=device_of(recipe)
        )
        with replacing(job.ablation, what="ablation") as part:
            table.to_csv(part, index=False)
    if not job.done.exists():
        write_file(job.done, json.dumps(facts, indent=2) + "\n")


def _measured(job: RunJob, data: ExperimentData, model: Any, task: Any, test: Any) -> dict[str, float]:
    """Metrics of the test patches, and what they are of in the folder."""
    recipe = job.config.recipe_of(job.split.repeat)
    options: dict[str, Any] = {"patients": data.source.patients, "recipe": recipe, "figure": False}
    if isinstance(task, ClassifyTask):
        scales = job.row.magnifications
        return measure(model, task, test, job.folder, magnifications=scales, **options)
    grid = GridTask(data.classes, magnifications=test.dataset.magnifications[0], size=_grid_size(data, model))
    return measure_segmenter(model, grid, test, job.folder, **options)


def _grid_size(data: ExperimentData, model: SegmentationModel) -> int:
    """Px a side that every model's output covers at the finest magnification."""
    # A HookNet's border is that of a U-Net of its depth, so that all rows have it.
    return data.source.patch_size - model.border


def _trained(job: RunJob, data: ExperimentData) -> MultiScaleClassifier | SegmentationModel:
    """The model with the weights that were kept: trained now, or before."""
    config, row = job.config, job.row
    folder = RunFolder(job.folder)
    if folder.model.exists():
        model, _ = load_model(folder.path)
    else:
        recipe = config.recipe_of(job.split.repeat)
        recipe.seed_weights()
        width = None if job.features is None else job.features[1]
        task = row.task(config, data.classes)
        about = {
            "experiment": row.name,
            "split": job.split.repeat,
            **data.source.about(task),  # type: ignore[arg-type]
            "initial_weights": config.weights,
            **({} if job.features is None else {"features": {"backbone": config.backbone, "digest": job.features[0]}}),
        }
        job.split.write(job.folder / "lists")
        result = fit(
            row.model(config, len(data.classes), width=width),
            task,
            _batches(job, data, job.split.train, is_training=True),
            _batches(job, data, job.split.valid),
            job.folder,
            recipe=recipe,
            resume=True,
            about=about,
        )
        model = result.model
    if not isinstance(model, (MultiScaleClassifier, SegmentationModel)):
        raise MsdaskError(
            f"'{folder.path}' holds a {type(model).__name__}, no model of an experiment: remove the folder"
        )
    return model


def _batches(
    job: RunJob, data: ExperimentData, slides: Sequence[str], *, is_training: bool = False, is_judged: bool = False
) -> Any:
    """Loader of the tuples of slides, as the run's model takes them."""
    config = job.config
    dataset = data.dataset(slides, job.row, is_judged=is_judged)
    seed = config.seed + job.split.repeat
    if job.features is not None:
        assert isinstance(dataset, TupleDataset)
        frozen = FrozenFeatures(config, data, job.features[0])
        size = config.batch_size if is_training else max(config.batch_size, _MEASURED)
        return frozen.loader(dataset, job.row, batch_size=size, balanced=is_training, shuffle=is_training, seed=seed)
    return loader(
        dataset,
        batch_size=config.batch_size,
        balanced="pixels" if is_training and config.task == "segment" else is_training,
        shuffle=is_training,
        augment=Augment.named(config.augment) if is_training else None,
        seed=seed,
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of PyTorch meanwhile."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
