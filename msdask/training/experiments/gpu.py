"""Which GPU a process that does runs takes, where several processes share a machine with several."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

try:
    import fcntl
except ImportError:  # Windows has none: the GPUs are shared by number of process there
    fcntl = None  # type: ignore[assignment]

__all__ = ["free_gpu", "take_gpu"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[IO[bytes]] = []
"""Open while this process lives: that is what holds the lock."""


def take_gpu() -> None:
    """See to it that this process uses a GPU that no other process of an experiment on this machine uses.

    Where nothing says which GPUs are meant (CUDA_VISIBLE_DEVICES) and there are several, the process sets that variable
    for itself, before it uses CUDA; without effect afterwards. With more processes than GPUs the rest share them.
    """
    if _held or _VISIBLE in os.environ or torch.cuda.is_initialized():
        return
    count = torch.cuda.device_count()
    if count > 1:
        folder = Path(tempfile.gettempdir()) / f"msdask-gpus-{getpass.getuser()}"
        os.environ[_VISIBLE] = str(free_gpu(count, folder))


def free_gpu(count: int, folder: Path) -> int:
    """Number of a GPU whose lock nobody holds, which this process then does; any where all are held.

    Parameters
    ----------
    count : GPUs of the machine
    folder : of the locks; made
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count if fcntl is not None else 0):
        lock = open(folder / str(number), "ab")  # noqa: SIM115 - stays open as long as the process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return number
    return os.getpid() % count
