"""What a run ran on: the machine, and the versions of what makes the bytes."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["machine", "versions"]

_PROGRAMS = ("dask", "distributed", "numpy", "tifffile", "xarray", "zarr")


def machine() -> dict[str, Any]:
    """Where the client runs: host, system, processor cores, memory in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory": memory,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that make the bytes."""
    found = {"Python": platform.python_version()}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a frozen program has no metadata
            found[name] = "unknown"
    return found
