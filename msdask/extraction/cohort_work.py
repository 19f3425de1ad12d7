"""How much work a cohort is, before any slide is opened, and what worker processes need to do it as this one would."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import cv2

from msdask.engines.open_engine import default_plan
from msdask.engines.plan import Plan, Work
from msdask.extraction.slide_table import SlideRow
from msdask.readers.registry import Backend, backends, register
from msdask.spec import ExtractionSpec
from msdask.storage import places

__all__ = ["bound_here", "cohort_plan", "cohort_work", "repair_work", "setup_of_workers"]

_SECONDS_PER_SLIDE = 0.05
"""To open a slide, find its tissue, and commit it, however small it is."""
_BYTES_PER_SECOND = 25e6
"""Of a slide's file, that one thread works through at 40x."""
_SHARES = ((20.0, 1.0), (10.0, 0.65), (0.0, 0.08))
"""Above which magnification a slide takes which share of that: up to 10x a coarser level is read (simulation.md)."""
_BEGIN_BYTES_PER_SECOND = 1.2e9
"""Of a slide's file, for its mask and its table."""
_UNKNOWN_SECONDS = 60.0
"""For a slide of which nobody knows how large it is without opening it."""
_LOADED_BY_BLOCKS = ("msdask.extraction.slide_job", "msdask.readers.tiff")


def cohort_plan(rows: Sequence[SlideRow], specs: Sequence[ExtractionSpec], *, timeout: float | None = None) -> Plan:
    """What `extract` runs on where nothing is said of workers, threads or a client, and why."""
    return default_plan(cohort_work(rows, specs), timeout=timeout)


def cohort_work(rows: Sequence[SlideRow], specs: Sequence[ExtractionSpec]) -> Work:
    """The work on the slides of a cohort: from sizes of files and magnifications alone, so that it takes no time."""
    patch = max(len(spec.magnifications) * (3 + spec.label_maps) * spec.patch_size**2 for spec in specs)
    share = sum(_share(magnification) for spec in specs for magnification in spec.magnifications)
    seconds = sum(_seconds(row.path, share) for row in rows)
    return Work(len(rows), seconds, patch, setup_of_workers(), bound_here())


def repair_work(slides: int) -> Work:
    """The work of a repair: reading what is stored, which threads do well."""
    return Work(slides, prepare=setup_of_workers(), refusal=bound_here())


def _share(magnification: float) -> float:
    return next(share for above, share in _SHARES if magnification > above)


def _seconds(path: str, share: float) -> float:
    if places.is_url(path) or not os.path.isfile(path):
        return _UNKNOWN_SECONDS
    if os.path.isdir(os.path.splitext(path)[0]):  # MRXS and the like: the pixels lie beside it
        return _UNKNOWN_SECONDS
    size = os.path.getsize(path)
    return _SECONDS_PER_SLIDE + size / _BEGIN_BYTES_PER_SECOND + share * size / _BYTES_PER_SECOND


def bound_here() -> str:
    """Why blocks can be cut in this process only; empty where they can be cut in another one.

    A reader that was registered from the program that runs, or from a notebook, is in no module that another process
    could import.
    """
    bound = sorted(reader.name for reader in backends().values() if not _is_importable(reader.module))
    return f"the reader {bound[0]!r} is in no module that another process can import" if bound else ""


def _is_importable(module: str) -> bool:
    if module == "__main__":
        return False
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # ValueError: a module that was made by hand
        return False
    return spec is not None and spec.has_location


def setup_of_workers() -> Callable[[], None]:
    """A function for a worker process: what was registered and set in this one is so there, and imports are done."""
    return partial(_set_up, tuple(backends().values()), places.settings())


def _set_up(readers: Sequence[Backend], settings: Mapping[str, Mapping[str, Any]]) -> None:
    cv2.setNumThreads(1)  # its own pool would have a thread for each core in every process
    for module in _LOADED_BY_BLOCKS:
        import_module(module)
    for reader in readers:
        register(reader)
    for bucket, options in settings.items():
        places.configure(bucket, options)
