"""The pool of threads: what holds for it alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from msdask.engines.engine import JobTrace
from msdask.engines.in_flight import run_jobs
from msdask.engines.threads import ThreadEngine
from msdask.storage.patience import PassingError, persist


def test_no_block_is_still_running_when_a_failed_slide_lets_go_of_its_lock() -> None:
    running, failing, ended = threading.Event(), threading.Event(), threading.Event()

    def block(job: None, number: int, **options: Any) -> int:
        if number == 0:
            running.wait(30)
            failing.set()
            raise ZeroDivisionError
        running.set()
        failing.wait(30)
        np.linalg.svd(np.random.default_rng(0).random((300, 300)))  # still at work while the other one has failed
        ended.set()
        return 1

    engine = ThreadEngine(2)
    with pytest.raises(ZeroDivisionError):
        engine.run("", JobTrace(), block, None, [0, 1], lambda number, count: None)
    assert ended.is_set()
    engine.close()


def test_a_run_that_is_interrupted_waits_for_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "600")
    engine, asked, begun = ThreadEngine(2), threading.Event(), time.monotonic()

    def request() -> None:
        asked.set()
        raise PassingError("503")

    def work(order: int, job: str) -> None:
        if job == "waits":
            persist("a server", request)
        assert asked.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(engine, ["waits", "interrupted"], work)
    engine.close()
    assert time.monotonic() - begun < 60
