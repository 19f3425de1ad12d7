"""Deadlines: what hangs is ended with its process, what is in time is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("holds_gil", [False, True])
def test_a_deadline_ends_a_process_that_hangs_even_in_native_code(holds_gil: bool) -> None:
    # A regular expression of exponential time holds the GIL for years.
    hang = "import re; re.match('(a+)+$', 'a' * 60 + 'b')" if holds_gil else "threading.Event().wait()"
    code = f"import threading\nfrom msdask.engines.deadline import deadline\nwith deadline(0.5):\n    {hang}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60, capture_output=True, check=False)
    assert ended.returncode == 1
    assert b"Timeout" in ended.stderr


def test_a_deadline_that_is_met_does_nothing() -> None:
    code = (
        "import time\nfrom msdask.engines.deadline import deadline\nwith deadline(0.2):\n    pass\n"
        "with deadline(30):\n    with deadline(0.2):\n        pass\n    time.sleep(0.5)\nprint('alive')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60, capture_output=True, check=False)
    assert ended.stdout.strip() == b"alive"
