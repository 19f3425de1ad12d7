"""The machine that a run may use: cores and free memory, or those of its container."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from dask.system import CPU_COUNT

__all__ = ["Machine", "free_in_container", "this_machine"]

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What a run may use.

    Attributes
    ----------
    cores : that this process may run on
    memory : bytes that are free
    refusal : why no worker processes can be used here; empty where they can
    """

    cores: int
    memory: int
    refusal: str = ""


def this_machine(refusal: str = "") -> Machine:
    """What this process may use now.

    Parameters
    ----------
    refusal : why worker processes cannot be used
    """
    free: int = psutil.virtual_memory().available
    own = free_in_container()
    return Machine(CPU_COUNT, free if own is None else min(free, own), refusal)


def free_in_container(root: Path = _CGROUP) -> int | None:
    """Bytes that a container may still take, its file cache counted as free; None where it has no limit of its own.

    Parameters
    ----------
    root : where the control groups are mounted
    """
    ways = (("", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss"))  # version 2, version 1
    for folder, limit, taken in ways:
        with suppress(OSError, ValueError):
            most = int((root / folder / limit).read_text())
            lines = (line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
            used = next((int(value) for name, value in lines if name == taken), 0)
            return max(0, most - used)
    return None
