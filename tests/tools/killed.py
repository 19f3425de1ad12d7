"""A process that writes shards and is killed in the middle, for tests of what its next run makes of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tools.store_tools import tree

__all__ = ["assert_gone_on_with"]

_BEGIN = """
import sys, time, torch; torch.set_num_threads(1)
import msdask as ms
slide, model, output = sys.argv[1:]
def wrote(*_): print('.', flush=True); time.sleep(0.05)
"""


def assert_gone_on_with(code: str, slide: Path, model: Path, folder: Path, *, shards: int) -> None:
    """Kill a program after some shards, run it again, and compare with the bytes of an undisturbed run.

    Parameters
    ----------
    code : that writes `output` from `slide` and `model`, and calls `wrote` after every shard
    slide, model : files
    folder : for what is written
    shards : that are written before the kill, at least
    """
    program = [sys.executable, "-c", _BEGIN + code, str(slide), str(model)]
    killed, whole = folder / "killed.ome.zarr", folder / "whole.ome.zarr"
    with subprocess.Popen([*program, str(killed)], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        for _ in range(shards):
            assert run.stdout.readline()
        time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    for output in (killed, whole):
        subprocess.run([*program, str(output)], check=True)
    assert tree(killed) == tree(whole)
