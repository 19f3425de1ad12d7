"""The pool of threads: what holds for it alone."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from msdask.engines.engine import JobTrace
from msdask.engines.threads import ThreadEngine


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
