"""The ways to do a row of Table 2 on some cores: msdask's engines, the floor, and readers that only read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peers
from cores import some_cores
from scaling_cohorts import Job

import msdask as ms
from msdask.cutting.tile_cache import process_cache

__all__ = ["FLOOR", "ONE", "OURS", "WAYS", "Measured", "ways_of"]

ONE = "threads"
"""On one core this is what our ways are compared with."""
OURS = ("threads", "processes", "default", "cluster")
FLOOR = "floor (decoding alone)"
PEERS = ("fastslide reading", "OpenSlide reading")
WAYS = (*OURS, FLOOR, *PEERS)
PEER_PATCHES = 600
"""That a reader reads at most of each slide: it is timed a patch."""


@dataclass(frozen=True)
class Measured:
    """One run: patches (tuples) per second, seconds, and on what our engine ran."""

    rate: float
    seconds: float
    engine: str = ""


Way = Callable[[], Measured]


def ways_of(job: Job, cores: int, folder: Path, names: tuple[str, ...]) -> dict[str, Way]:
    """Who runs on so many cores: what is asked for, is installed and differs from the others there."""
    ways: dict[str, Way] = {
        "threads": lambda: _extract(job, cores, folder, threads=cores),
        "processes": lambda: _extract(job, cores, folder, workers=cores),
        "default": lambda: _extract(job, cores, folder),
        "cluster": lambda: _on_cluster(job, cores, folder),
        FLOOR: lambda: _floor(job, cores),
        "fastslide reading": lambda: _reading(job, cores, peers.fastslide_reads),
        "OpenSlide reading": lambda: _reading(job, cores, peers.openslide_reads),
    }
    needs = {"fastslide reading": "fastslide", "OpenSlide reading": "openslide", "cluster": "distributed"}
    is_there = {name: name not in needs or find_spec(needs[name]) is not None for name in names}
    beside = OURS[1:] if cores == 1 else ()  # on one core they are one thread with more around it
    return {name: ways[name] for name in names if is_there[name] and name not in beside}


def _extract(job: Job, cores: int, folder: Path, **how: Any) -> Measured:
    """One whole job into a new store, which is removed: open, mask, select, read, write, sync, commit.

    Raises
    ------
    RuntimeError
        A slide failed, or the store has other patches than were selected.
    """
    store = folder / "store.zarr"
    shutil.rmtree(store, ignore_errors=True)
    process_cache.cache_clear()  # tiles that the run before has decoded
    with some_cores(cores):
        started = time.perf_counter()
        report = ms.extract(list(job.cohort.rows), store, job.spec, progress=False, **job.options, **how)
        seconds = time.perf_counter() - started
    shutil.rmtree(store)
    shutil.rmtree(store.with_name(f"{store.name}.locks"), ignore_errors=True)
    if report.failures or report.patches != job.patches:
        failed = dict(list(report.failures.items())[:3])
        raise RuntimeError(f"{job.row}: {report.patches} of {job.patches} patches were written; failed: {failed}")
    facts = {k: v for k, v in report.engine.items() if k in ("kind", "workers", "threads")}
    return Measured(report.patches / seconds, seconds, ", ".join(f"{k} {v}" for k, v in facts.items()))


def _on_cluster(job: Job, cores: int, folder: Path) -> Measured:
    """The same on a cluster of this machine, a worker of one thread a core; its start is not timed."""
    from distributed import Client, LocalCluster

    with some_cores(cores):
        cluster = LocalCluster(
            n_workers=cores, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        with cluster, Client(cluster) as client:
            client.wait_for_workers(cores)
            return _extract(job, cores, folder, client=client)


def _floor(job: Job, cores: int) -> Measured:
    """Each needed tile decoded once, nothing else."""
    seconds = 0.0
    for path, cut in job.cuts:
        file = peers.TileFile(path)
        keys = peers.needed_tiles(cut, file)
        with some_cores(cores):
            seconds += peers.floor_decode(file, keys, threads=cores)
        file.close()
    return Measured(job.patches / seconds, seconds)


def _reading(job: Job, cores: int, read: Callable[..., float]) -> Measured:
    """A reader that only reads: a run of neighbours of each slide, inside the slide; nothing is written."""
    patches, seconds = 0, 0.0
    for path, cut in job.cuts:
        inside = np.flatnonzero(np.all((cut.x0 >= 0) & (cut.y0 >= 0), axis=1))[:PEER_PATCHES].tolist()
        if inside:
            with some_cores(cores):
                seconds += len(inside) / read(path, cut, threads=cores, order=inside)
            patches += len(inside)
    return Measured(patches / seconds, seconds) if patches else Measured(0.0, 0.0)
