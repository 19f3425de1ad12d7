"""Worker processes for tests: the faults of `faults.py` built in, which slides ask for by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from msdask.extraction.cohort_work import setup_of_workers

__all__ = ["use_faulty_processes"]


def use_faulty_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the worker processes of `extract` and `repair` their faults, and blocks of at most 16 images."""
    monkeypatch.setattr("msdask.extraction.cohort_work.setup_of_workers", faulty_setup)


def faulty_setup() -> Callable[[], None]:
    return partial(_with_faults, setup_of_workers())


def _with_faults(setup: Callable[[], None]) -> None:
    setup()
    from tests.tools import faults

    assert faults.run_block
