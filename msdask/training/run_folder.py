"""Run folders: what a training run leaves behind, and the callbacks that write it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from msdask._version import __version__
from msdask.errors import MsdaskError
from msdask.plots.curves import best_epoch
from msdask.storage.files import replacing, write_file
from msdask.storage.tables import write_table
from msdask.training.module import TaskModule

__all__ = ["BestCheckpoint", "EpochLog", "LastCheckpoint", "RandomState", "RunFolder", "write_json"]


class RunFolder:
    """Paths of one run.

    hparams.json (model, task, recipe, hashes of the data, versions), log.csv (a row an epoch), curves.png,
    metrics.json, model.safetensors with model.json, checkpoints/best.ckpt and checkpoints/last.ckpt.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.hparams = self.path / "hparams.json"
        self.log = self.path / "log.csv"
        self.curves = self.path / "curves.png"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"

    def begin(self, hparams: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or check that what is there may be gone on with.

        Raises
        ------
        MsdaskError
            There is a run already and `resume` is off, or it was made with other settings.
        """
        content = {**hparams, "versions": _versions()}
        content = json.loads(json.dumps(content))
        if self.last.exists() or self.model.exists():
            if not resume:
                raise MsdaskError(
                    f"'{self.path}' holds a training run already: resume it (resume=True, --resume), or give another "
                    "folder"
                )
            changed = _changed(json.loads(self.hparams.read_text(encoding="utf-8")), content)
            if changed:
                raise MsdaskError(
                    f"'{self.path}' holds a run with other settings (differs in {', '.join(changed)}): use the same "
                    "to resume it, or give another folder"
                )
        write_json(self.hparams, content)
        self.checkpoints.mkdir(exist_ok=True)

    def resumed(self, *, best: tuple[str, Literal["min", "max"]] | None) -> Path:
        """The checkpoint that a run goes on from.

        A run that was killed between its two checkpoints has the weights of its best epoch in last.ckpt alone: they are
        put into best.ckpt.

        Parameters
        ----------
        best : which column of the log says which epoch is the best, and in which direction; None where no best weights
            are kept

        Raises
        ------
        MsdaskError
            A checkpoint cannot be read, or best.ckpt has the weights of another epoch than the best one of the log.
        """
        last = read_checkpoint(self.last)
        rows = last.get("callbacks", {}).get(EpochLog.__name__, {}).get("rows", [])
        if best is None or not rows:
            return self.last
        wanted = rows[best_epoch(rows, *best)]
        if (last["epoch"], last["global_step"]) == (wanted["epoch"], wanted["step"]):
            with replacing(self.best) as part:
                shutil.copyfile(self.last, part)
            return self.last
        held = read_checkpoint(self.best)["epoch"] if self.best.exists() else None
        if held != wanted["epoch"]:
            raise MsdaskError(
                f"checkpoint '{self.best}' {'is missing' if held is None else f'has the weights of epoch {held}'}; "
                f"expected those of epoch {wanted['epoch']}, the best of the log: put it back, or train again in "
                "another folder"
            )
        return self.last

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Add to metrics.json."""
        known = json.loads(self.metrics.read_text(encoding="utf-8")) if self.metrics.exists() else {}
        write_json(self.metrics, {**known, **values})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, which holds plain tensors and values only: nothing in it is unpickled into code.

    Raises
    ------
    MsdaskError
        It cannot be read so.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise MsdaskError(f"checkpoint '{path}' cannot be read safely: {reason}; train again without resume") from error
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write in one step, so that a killed run leaves no half file."""
    write_file(path, json.dumps(content, indent=2) + "\n")


def _versions() -> dict[str, str]:
    return {
        "msdask": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "pytorch-lightning")},
    }


_MAY_CHANGE = {"epochs", "accelerator", "devices", "strategy", "nodes", "checkpoint_every"}
"""Settings of a recipe that a resumed run may have of its own."""


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = []
    for group in ("model", "task", "recipe"):
        before, after = old.get(group, {}), new.get(group, {})
        if group == "task":  # runs that say nothing of it were made when every task monitored its loss
            before = {"monitor": "loss", "mode": "min", **before}
        names += [
            f"{group}.{name}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name) and not (group == "recipe" and name in _MAY_CHANGE)
        ]
    # Runs of older versions do not say what they learnt from.
    before, after = old.get("data", {}), new.get("data", {})
    return names + [f"data.{name}" for name in before if name in after and before[name] != after[name]]


class EpochLog(Callback):
    """Writes log.csv: a row an epoch with learning rate, training loss and all validation metrics.

    Its rows travel in the checkpoints: a resumed run's log is that of an unbroken one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._sum = 0.0
        self._batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Take in a batch's loss."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._sum += float(loss) * trainer.accumulate_grad_batches
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the epoch's row."""
        assert isinstance(module, TaskModule)
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": self._sum / max(self._batches, 1),
            **{f"valid_{name}": value for name, value in module.results.items()},
        }
        self._sum, self._batches = 0.0, 0
        self.rows.append(row)
        if trainer.is_global_zero:
            names = list(self.rows[0])
            write_table(self.path, [[row[name] for name in names] for row in self.rows], header=names)

    def state_dict(self) -> dict[str, Any]:
        """Rows and the sums of the running epoch."""
        return {"rows": list(self.rows), "sum": self._sum, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = list(state_dict["rows"])
        self._sum, self._batches = state_dict["sum"], state_dict["batches"]


class LastCheckpoint(Checkpoint):
    """What a killed run resumes from: written at the end of each epoch, and every so many steps within it.

    Not at an epoch's last batch: resumed from there, Lightning would leave out the epoch's validation.
    """

    def __init__(self, path: Path, *, every: int | None) -> None:
        self.path = path
        self.every = every
        self._saved = 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Write within the epoch."""
        step = trainer.global_step
        if self.every is not None and step != self._saved and step % self.every == 0 and not trainer.is_last_batch:
            self._saved = step
            _save(trainer, self.path)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write after validation and log."""
        _save(trainer, self.path)


class BestCheckpoint(Checkpoint):
    """The weights of the best epoch so far.

    Which one that is says the log alone, which travels in the checkpoints: there is no second record that could differ
    from it, and no path, so a run folder may be moved. Comes after `LastCheckpoint`: `RunFolder.resumed` mends what a
    kill between the two leaves.

    Parameters
    ----------
    path : of the checkpoint
    log : whose rows are compared
    monitor, mode : column that decides, and whether it is to be small or large
    """

    def __init__(self, path: Path, log: EpochLog, *, monitor: str, mode: Literal["min", "max"]) -> None:
        self.path = path
        self._log = log
        self._monitor, self._mode = monitor, mode

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write if no epoch before was as good."""
        if best_epoch(self._log.rows, self._monitor, self._mode) == len(self._log.rows) - 1:
            _save(trainer, self.path)


def _save(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint beside its place and rename it; every process calls this."""
    part = path.with_name(f".{path.name}.part")
    trainer.save_checkpoint(part)
    if trainer.is_global_zero:
        os.replace(part, path)


class RandomState(Callback):
    """Keeps torch's random state in the checkpoints: dropout goes on where it was."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore, after everything else is set up."""
        if self._restored is not None:
            torch.set_rng_state(self._restored["cpu"].cpu().to(torch.uint8))
            if torch.cuda.is_available() and self._restored["cuda"]:
                torch.cuda.set_rng_state_all([s.cpu().to(torch.uint8) for s in self._restored["cuda"]])
            self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """States of the CPU and of all GPUs."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember for `on_train_start`."""
        self._restored = state_dict
