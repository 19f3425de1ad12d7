"""What decides how an extraction scales, measured on a small machine: the figures that `simulate.py` computes with.

Times are processor time of one thread where nothing else is said, so that other programs on the machine matter less.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import add
from pathlib import Path

import cv2
import dask

from msdask.engines.engine import JobTrace
from msdask.engines.origin import kept_origin
from msdask.engines.processes import ProcessEngine
from msdask.extraction.cohort import extract
from msdask.extraction.cohort_work import setup_of_workers
from msdask.extraction.slide_job import BlockJob, Target, begin_slide, commit_slide, run_block
from msdask.extraction.slide_table import SlideRow
from msdask.masks.choice import MaskChoice
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from msdask.store.slide_place import SlidePlace

__all__ = [
    "BlockCosts",
    "EngineCosts",
    "SlideCosts",
    "block_costs",
    "both_at_once",
    "engine_costs",
    "lock_share",
    "slide_costs",
]

TASKS = 300


@dataclass(frozen=True)
class SlideCosts:
    """What a slide costs beside its blocks, s.

    Attributes
    ----------
    patches, blocks : of the slide
    file_bytes : of its file
    begin : open, mask, select, write the tables; on one thread
    begin_shared : share of `begin` that further threads can take
    commit : check, sync, make complete; with what it waits for the disk
    block_seconds : of all its blocks
    """

    patches: int
    blocks: int
    file_bytes: int
    begin: float
    begin_shared: float
    commit: float
    block_seconds: float

    @property
    def beside(self) -> float:
        """All but the blocks, s."""
        return self.begin + self.commit


@dataclass(frozen=True)
class BlockCosts:
    """What a patch costs in a block, s.

    Attributes
    ----------
    patch : read, put together, measured and written
    lock : of it, with the interpreter's lock held
    """

    patch: float
    lock: float


@dataclass(frozen=True)
class EngineCosts:
    """What worker processes cost, s of processor time.

    Attributes
    ----------
    start : of the first one, until it can work
    again : of the first one, where the process that it is forked from is there: by the command line, or an earlier run
    fork : of each further one, beside the others
    task : of the caller's thread for each block
    slide : of the caller's thread for each slide: locks, its two other tasks, its part of the index
    """

    start: float
    again: float
    fork: float
    task: float
    slide: float


def _begun(row: SlideRow, spec: ExtractionSpec, store: Path) -> BlockJob:
    """A slide's job in a new store."""
    shutil.rmtree(store, ignore_errors=True)
    name = PatchStore(store).open_set(spec)
    place = SlidePlace(str(store), name, row.slide_id)
    (job,) = begin_slide(row, [spec], [Target(place, place.path)], codec="raw", masks=MaskChoice(), links={})
    assert job is not None
    return job


def slide_costs(path: Path, spec: ExtractionSpec, store: Path, *, rounds: int, only_begin: bool = False) -> SlideCosts:
    """Measure a slide on one thread, the least of the rounds; whole, or without its blocks and so without a commit."""
    row = SlideRow(str(path), path.stem)
    begins, commits, blocks = [], [], []
    cv2.setNumThreads(1)  # as in a worker process
    with dask.config.set(scheduler="synchronous"):
        _begun(row, spec, store)  # what is imported by it, and the file's pages
        for _ in range(rounds):
            begins.append(_cpu(lambda: _begun(row, spec, store)))
            job = _begun(row, spec, store)
            if only_begin:
                continue
            blocks.append(_cpu(lambda job=job: [run_block(job, block) for block in job.todo]))
            commits.append(_without_queues(lambda job=job: commit_slide(job)))
    with dask.config.set(scheduler="threads", num_workers=2):
        shared = min(_share_of_others(lambda: _begun(row, spec, store)) for _ in range(rounds))
    shutil.rmtree(store)
    return SlideCosts(
        job.arrays.shape[0],
        job.arrays.blocks,
        path.stat().st_size,
        min(begins),
        shared,
        min(commits, default=0.0),
        min(blocks, default=0.0),
    )


def block_costs(path: Path, spec: ExtractionSpec, store: Path, *, rounds: int) -> BlockCosts:
    """Measure a patch: its processor time, and the share of it that the interpreter's lock is held."""
    with dask.config.set(scheduler="synchronous"):
        job = _begun(SlideRow(str(path), path.stem), spec, store)
    blocks = job.todo[: max(1, math.ceil(1000 / max(1, job.arrays.rows)))]
    patches = sum(run_block(job, block) for block in blocks)  # also what the first time costs
    times, shares = [], []
    for _ in range(rounds):
        times.append(_cpu(lambda: [run_block(job, block) for block in blocks]) / patches)
        shares.append(lock_share(lambda: [run_block(job, block) for block in blocks], cycle=times[-1]))
    shutil.rmtree(store)
    return BlockCosts(min(times), min(times) * statistics.median(shares))


@dataclass(frozen=True)
class _Schedule:
    """Seconds that a thread has run, and has waited for a core."""

    ran: float
    waited: float

    def __sub__(self, other: _Schedule) -> _Schedule:
        return _Schedule(self.ran - other.ran, self.waited - other.waited)


def _schedule(thread: int) -> _Schedule:
    """Linux's own count."""
    ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
    return _Schedule(int(ran) / 1e9, int(waited) / 1e9)


def lock_share(work: Callable[[], object], *, cycle: float, looks: int = 800) -> float:
    """Share of some work in this thread in which it holds the interpreter's lock.

    A second thread wakes up again and again and looks whether it has to wait for the lock: whether the kernel has put
    it to sleep a second time. So no clock has a part in it, and other programs that take the cores do not matter: they
    interrupt this thread with the lock as often as they find it with it.

    Parameters
    ----------
    work : called until there were enough looks
    cycle : seconds from taking the lock to taking it again, about; looks are farther apart, or they would meet the same
        wait for the lock only once and each free time several times
    looks : how many
    """
    is_over, looked, rng = threading.Event(), [0, 0], random.Random(0)

    def look() -> None:
        while not is_over.is_set():
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            time.sleep(rng.uniform(2 * cycle, 6 * cycle))
            slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
            looked[0] += 1
            looked[1] += slept > 1

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        while looked[0] < looks:
            work()
    finally:
        is_over.set()
        thread.join()
    return looked[1] / looked[0]


def engine_costs(path: Path, spec: ExtractionSpec, folder: Path, *, rounds: int) -> EngineCosts:
    """Measure worker processes: some that do nothing, and the caller of a run over many names of a small slide."""
    starts, agains, forks, tasks, slides = [], [], [], [], []
    for _ in range(rounds):
        used = []
        for workers in (1, 3):
            _end_kept()
            before = _of_children()
            engine = ProcessEngine(workers, 1, prepare=setup_of_workers())
            trace = JobTrace()
            while len(trace.workers) < workers:  # until every one of them has done something
                engine.run("nothing", trace, add, 0, range(workers), lambda block, count: None)
            if workers == 3:
                used_before = time.process_time()
                engine.run("nothing", trace, add, 0, range(TASKS), lambda block, count: None)
                tasks.append((time.process_time() - used_before) / TASKS)
            engine.close()
            if workers == 1:
                agains.append(_started_again())
            _end_kept()
            used.append(_of_children() - before)
        starts.append(used[0])
        forks.append(max(0.0, used[1] - used[0]) / 2)
        few, many = (_of_caller(path, spec, folder, count) for count in (4, 20))
        slides.append((many - few) / 16)
    return EngineCosts(min(starts), min(agains), min(forks), min(tasks), max(0.0, min(slides)))


def _started_again() -> float:
    """Seconds of wall until the first worker of a second run has done something."""
    began = time.perf_counter()
    with closing(ProcessEngine(1, 1, prepare=setup_of_workers())) as engine, engine.job(0) as trace:
        engine.call("nothing: at all", trace, add, 0, 1)
        return time.perf_counter() - began


def _end_kept() -> None:
    """As if no run had been before; what it has used counts from then on."""
    if (origin := kept_origin(setup_of_workers())) is not None:
        origin.end()


def _of_children() -> float:
    """Processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _of_caller(path: Path, spec: ExtractionSpec, folder: Path, count: int) -> float:
    """Processor time of this process while others extract one slide under so many names."""
    store = folder / "caller.zarr"
    shutil.rmtree(store, ignore_errors=True)
    rows = [SlideRow(str(path), f"slide-{i}") for i in range(count)]
    seconds = _cpu(lambda: extract(rows, store, spec, workers=2, progress=False))
    shutil.rmtree(store)
    shutil.rmtree(store.with_name(f"{store.name}.locks"), ignore_errors=True)
    return seconds


def both_at_once(path: Path, row: str, store: Path, *, rounds: int) -> float:
    """How much more processor time a patch takes while another process does the same; 1: none, or no second core."""
    command = [sys.executable, __file__, str(path), row]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def times(count: int) -> float:
        running = [
            subprocess.Popen([*command, f"{store}-{i}"], env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            for i in range(count)
        ]
        for process in running:  # both have imported and read everything before either starts
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        return max(json.loads(process.communicate()[0]) for process in running)

    return sorted(times(2) / times(1) for _ in range(rounds))[rounds // 2]


def _child(path: str, row: str, store: str) -> None:
    """Processor time of a patch in this process, once the parent says so."""
    from scaling_cohorts import spec_of

    job = _begun(SlideRow(path, Path(path).stem), spec_of(row), Path(store))
    blocks = job.todo[: max(1, math.ceil(1500 / max(1, job.arrays.rows)))]
    patches = sum(run_block(job, block) for block in blocks)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(_cpu(lambda: [run_block(job, block) for block in blocks]) / patches), flush=True)
    shutil.rmtree(store)


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _without_queues(work: Callable[[], object]) -> float:
    """Seconds of some work in this thread, less those that it has waited for a core that others had."""
    own = threading.get_native_id()
    before, started = _schedule(own), time.perf_counter()
    work()
    return time.perf_counter() - started - (_schedule(own) - before).waited


def _share_of_others(work: Callable[[], object]) -> float:
    """Which part of some work's processor time other threads than this one have taken."""
    mine, all_of_it = time.thread_time(), time.process_time()
    work()
    return 1 - (time.thread_time() - mine) / max(time.process_time() - all_of_it, 1e-9)


def main(arguments: Sequence[str]) -> None:
    """The child of `both_at_once`."""
    _child(*arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
