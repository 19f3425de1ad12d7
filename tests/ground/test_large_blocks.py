"""Memory of large blocks: kept while it is asked for, given back afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from msdask.computing import large_blocks_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(64 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

faults()
usual, at_first = faults(), resident()
with large_blocks_kept():
    with large_blocks_kept():
        faults()
    kept, meanwhile = faults(), resident()
print(usual, kept, faults(), meanwhile - at_first > 2**25, resident() - at_first < 2**24)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_blocks_are_there_at_once_and_go_back_afterwards() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    usual, kept, after, is_kept, is_back = ran.stdout.split()
    assert int(kept) < int(usual) / 10
    assert int(after) > 5 * int(kept), "as it was before"
    assert (is_kept, is_back) == ("True", "True")
