"""fit and evaluate: the one way to train a model, to resume a run and to measure what came out."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn

from msdask.errors import MsdaskError, SpecError
from msdask.models.files import save_model
from msdask.plots.curves import best_epoch, draw_curves
from msdask.training.module import TaskModule
from msdask.training.on_device import OnDevice
from msdask.training.recipe import Recipe
from msdask.training.run_folder import (
    BestCheckpoint,
    EpochLog,
    LastCheckpoint,
    RandomState,
    RunFolder,
    read_checkpoint,
)
from msdask.training.shares import check_share
from msdask.training.task import Batch, PreparesModel, Task

__all__ = ["FitResult", "Listener", "check_monitor", "evaluate", "fit"]

Listener = Callable[[Batch, Any, Tensor], None]
"""Called with a batch, and the predictions and targets of it."""

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class FitResult:
    """What came out of a run.

    Attributes
    ----------
    folder : of the run
    model : with the weights that were kept, in evaluation mode
    best_epoch : whose weights these are, from 0
    epochs : that were run
    valid : metrics of that epoch on the validation data
    """

    folder: Path
    model: nn.Module
    best_epoch: int
    epochs: int
    valid: dict[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    task: Task,
    train: Iterable[Batch],
    valid: Iterable[Batch],
    folder: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    resume: bool = False,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> FitResult:
    """Train a model, keep the best weights, leave a run folder.

    Parameters
    ----------
    model : its `config` attribute (plain JSON values) is saved with it
    task : loss, metrics, and which of them decides what is best
    train, valid : loaders of batches, such as `msdask.data.loader`'s; with `set_epoch` each epoch has an order of its
        own, with `state_dict` and `load_state_dict` a run can be resumed in the middle of an epoch
    folder : made, or refused if a run is there already and `resume` is off
    recipe : how
    resume : go on from the last checkpoint of the folder, if there is one
    progress : show a bar
    about : what to say of the model in model.json (data, licence, range)

    Returns
    -------
    result : the model with the weights that were kept, also in ``<folder>/model.safetensors`` and ``model.json``

    Raises
    ------
    MsdaskError
        The loss is not finite, a loader is empty, a batch has one image where batch norm needs two, or the folder holds
        another run.
    SpecError
        The task monitors what it does not measure, or a loader was made for another number of processes than train.
    """
    recipe = recipe or Recipe()
    check_monitor(task)
    run = RunFolder(folder)
    run.begin(
        {
            "model": {"class": type(model).__name__, **getattr(model, "config", {})},
            "task": {**task.config, "monitor": task.monitor, "mode": task.mode},
            "recipe": recipe.to_dict(),
            "data": _data_of(train=train, valid=valid),
        },
        resume=resume,
    )
    best = _monitored(task) if recipe.keep == "best" else None
    checkpoint = run.resumed(best=best) if resume and run.last.exists() else None
    seed_everything(recipe.seed, workers=True, verbose=False)
    if isinstance(task, PreparesModel):
        task.prepare(model)
    module = TaskModule(model, task, recipe)
    log = EpochLog(run.log)
    with _quiet():
        trainer = Trainer(
            **_engine(recipe, progress=progress),
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.clip,
            accumulate_grad_batches=recipe.accumulate,
            default_root_dir=run.path,
            callbacks=[
                *_callbacks(recipe, task, run, log),
                log,
                RandomState(),
                _Epochs(train, valid),
                OnDevice(train, valid),
            ],
        )
        for loader in (train, valid):
            check_share(loader, trainer.global_rank, trainer.world_size)
        with _interruptible():
            trainer.fit(module, _one_loader(train), _one_loader(valid), ckpt_path=checkpoint)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not log.rows:
        raise MsdaskError("training: no epoch was finished: the training loader is empty")
    return _finish(trainer, module, run, log, about)


def _data_of(**loaders: Iterable[Batch]) -> dict[str, str]:
    """Hash of what each loader reads, of those that say it: the answer to "which data trained this model?"."""
    hashes = {name: getattr(getattr(one, "dataset", None), "contents_hash", None) for name, one in loaders.items()}
    return {name: value for name, value in hashes.items() if value is not None}


def evaluate(
    model: nn.Module,
    task: Task,
    loader: Iterable[Batch],
    *,
    folder: str | os.PathLike[str] | None = None,
    name: str = "test",
    recipe: Recipe | None = None,
    progress: bool = False,
    listener: Listener | None = None,
) -> dict[str, float]:
    """Measure a model: its task's metrics and its loss on a loader.

    Parameters
    ----------
    model : as `fit` returns it, or loaded
    task : loss and metrics
    loader : batches
    folder : run folder whose metrics.json gets the result under `name`
    recipe : device and precision
    listener : hears of every batch of this process what was predicted, such as a `PredictionTable`

    Raises
    ------
    MsdaskError
        The loader is empty.
    SpecError
        The loader was made for another number of processes than measure.
    """
    recipe = recipe or Recipe()
    module = TaskModule(model, task, Recipe(precision=recipe.precision))
    with _quiet():
        callbacks: list[Callback] = [OnDevice(loader), *([_Heard(listener)] if listener is not None else [])]
        trainer = Trainer(**_engine(recipe, progress=progress), callbacks=callbacks)
        check_share(loader, trainer.global_rank, trainer.world_size)
        trainer.test(module, _one_loader(loader), verbose=False)
    if not module.results:
        raise MsdaskError("test: the loader gave no batch: the split is empty")
    if folder is not None and trainer.is_global_zero:
        RunFolder(folder).add_metrics({name: module.results})
    return module.results


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's tips and notes; errors and warnings of ours go through."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt be one: Lightning leaves the program on it, and has later ones ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as left:
        if not isinstance(left.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _engine(recipe: Recipe, *, progress: bool) -> dict[str, Any]:
    return {
        "accelerator": recipe.accelerator,
        "devices": recipe.devices,
        "strategy": recipe.strategy,
        "num_nodes": recipe.nodes,
        "precision": _PRECISION[recipe.precision],
        "use_distributed_sampler": False,  # our loaders split by rank themselves
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "enable_checkpointing": True,
    }


def check_monitor(task: Task) -> None:
    """Refuse a task that monitors what it does not measure."""
    known = ["loss", *task.metrics()]
    if task.monitor not in known:
        raise SpecError(f"task: monitor={task.monitor!r}: expected one of {', '.join(known)}")
    if task.mode not in ("min", "max"):
        raise SpecError(f"task: mode={task.mode!r}: expected 'min' or 'max'")


def _monitored(task: Task) -> tuple[str, Literal["min", "max"]]:
    """Column of the log that says which epoch is the best, and in which direction."""
    return f"valid_{task.monitor}", task.mode


def _callbacks(recipe: Recipe, task: Task, run: RunFolder, log: EpochLog) -> list[Callback]:
    monitor, mode = _monitored(task)
    callbacks: list[Callback] = [
        LastCheckpoint(run.last, every=recipe.checkpoint_every),
        BestCheckpoint(run.best, log, monitor=monitor, mode=mode),
    ]
    if recipe.patience is not None:
        # A metric may be undefined for an epoch (a kappa of constant predictions); a loss may not.
        is_loss = task.monitor == "loss"
        callbacks.append(
            EarlyStopping(
                monitor, mode=mode, patience=recipe.patience, check_on_train_epoch_end=False, check_finite=is_loss
            )
        )
    return callbacks


class _Batches:
    """A list of batches as one loader: Lightning takes a list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def _one_loader(loader: Iterable[Batch]) -> Iterable[Batch]:
    return _Batches(loader) if isinstance(loader, (list, tuple)) else loader


class _Heard(Callback):
    """Tells a listener what was predicted."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def on_test_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.listener(batch, outputs["predictions"], outputs["targets"])


class _Epochs(Callback):
    """Tells the loader which epoch begins, and keeps in the checkpoints where in it the loader stands.

    Lightning would do the second itself, if it were not asked for the number of steps (by the schedule) before.
    """

    def __init__(self, loader: Any, valid: Any) -> None:
        self.loader, self.valid = loader, valid

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Look at the shares again: strategies that spawn processes give all of them the same loaders."""
        for loader in (self.loader, self.valid):
            check_share(loader, trainer.global_rank, trainer.world_size)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.loader.state_dict()) if hasattr(self.loader, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if hasattr(self.loader, "load_state_dict") and state_dict:
            self.loader.load_state_dict(state_dict)


def _finish(
    trainer: Trainer, module: TaskModule, run: RunFolder, log: EpochLog, about: dict[str, Any] | None
) -> FitResult:
    keeps_best = module.recipe.keep == "best"
    state = read_checkpoint(run.best if keeps_best else run.last)["state_dict"]
    prefix = "averaged." if module.averaged is not None else "model."
    model = module.model
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    model.eval()
    monitor, mode = _monitored(module.task)
    best = log.rows[best_epoch(log.rows, monitor, mode)] if keeps_best else log.rows[-1]
    valid = {key.removeprefix("valid_"): value for key, value in best.items() if key.startswith("valid_")}
    if trainer.is_global_zero:
        draw_curves(log.rows, run.curves, monitor=monitor, mode=mode)
        run.add_metrics({"best_epoch": int(best["epoch"]), "epochs": len(log.rows), "valid": valid})
        said = {"task": module.task.config.get("task"), **(about or {}), "metrics": {"valid": valid}}
        save_model(model, run.model, about=said)
    return FitResult(run.path, model, int(best["epoch"]), len(log.rows), valid)
