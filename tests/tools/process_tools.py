"""Worker processes for tests: the faults of `faults.py` built in, which slides ask for by their names."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from msdask.extraction.cohort_work import setup_of_workers

__all__ = ["children", "killed", "use_faulty_processes"]


def use_faulty_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the worker processes of `extract` and `repair` their faults, and blocks of at most 16 images."""
    monkeypatch.setattr("msdask.extraction.cohort_work.setup_of_workers", faulty_setup)


def faulty_setup() -> Callable[[], None]:
    return partial(_with_faults, setup_of_workers())


def _with_faults(setup: Callable[[], None]) -> None:
    setup()
    from tests.tools import faults

    assert faults.run_block


def killed(mark: Path) -> str:
    """Be killed as the system does where memory is short; the second time not."""
    if mark.exists():
        return "done"
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def children() -> set[psutil.Process]:
    """Processes that this one has, those of other tests among them, but for the one that is kept for a next run."""
    found = psutil.Process().children(recursive=True)
    return {one for one in found if not any("fork_on_request" in word for word in one.cmdline())}
