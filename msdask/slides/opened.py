"""The slide files that this process has open: one reader a file and region, shared by all slides of it."""

from __future__ import annotations

import os
from functools import lru_cache

from msdask.readers.base import Reader
from msdask.readers.registry import open_reader

__all__ = ["file_state", "shared_reader"]


def file_state(path: str) -> tuple[int, int, int] | None:
    """Size, time and inode of a local file, which change when it is replaced or written; None for a URL."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_size, state.st_mtime_ns, state.st_ino


@lru_cache(maxsize=32)
def shared_reader(
    path: str, backend: str | None, region: str | int | None, state: tuple[int, int, int] | None
) -> Reader:
    """One reader a path and region, so that a worker's hundred blocks of a slide parse its metadata once."""
    return open_reader(path, backend=backend, region=region)
