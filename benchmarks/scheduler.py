"""What planning costs when there are no pixels: tasks, seconds and memory of client and scheduler, slide by slide.

    python benchmarks/scheduler.py                    # 2,000 slides of 20,000 patches on a real cluster: minutes
    python benchmarks/scheduler.py --slides 200 --table 2000

The cohort's own code runs (`msdask.extract` with a client): a scheduler and workers as processes of their own on the
loopback, every task that a real run would have, with arguments of real size. Only the three functions that would read
and write pixels do nothing. So all time that passes is overhead, on a machine where client, scheduler and workers
share the cores. What 100,000 slides take is extrapolated from it and said so; that the client's table and report of
100,000 slides fit is measured, with as many rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import scheduler_jobs
from verdict import machine

import msdask as ms
from msdask.extraction import cohort
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec

GOAL = 100_000
SPEC = ExtractionSpec("grid", (20.0,), patch_size=224)


@dataclass(frozen=True)
class Sample:
    """State of a run after so many slides; memory in MiB, `held` = tasks that the scheduler knows."""

    slides: int
    seconds: float
    client: float
    scheduler: float
    held: int


def _mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[Any, int]]:
    """(client, process id of the scheduler): scheduler and workers as processes, on 127.0.0.1."""
    from distributed import Client

    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    file = str(folder / "scheduler.json")

    def start(program: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen([*command, "--scheduler-file", file, *options], env=environment, stderr=errors)

    with (folder / "cluster.log").open("wb") as errors:
        processes = [start("dask_scheduler", "--port", "0")]
        processes += [start("dask_worker", "--nthreads", "1", "--no-nanny") for _ in range(workers)]
        try:
            with Client(scheduler_file=file, timeout=60) as client:
                client.wait_for_workers(workers, timeout=60)
                yield client, processes[0].pid
        finally:
            for process in reversed(processes):  # nothing is left to be finished, and a worker waits for its scheduler
                process.kill()
                process.wait()


@contextmanager
def no_pixels() -> Iterator[None]:
    """The cohort's three functions that read and write, replaced by those that do nothing."""
    names = ("begin_slide", "run_block", "commit_slide")
    with mock.patch.multiple(cohort, **{name: getattr(scheduler_jobs, name) for name in names}):
        yield


class Sampling:
    """A listener that takes samples while the slides of a run get done."""

    def __init__(self, slides: int, client: Any, scheduler: int, *, samples: int = 25) -> None:
        self.samples: list[Sample] = []
        self._client, self._scheduler = client, scheduler
        self._every, self._done = max(1, slides // samples), 0
        self._started = time.perf_counter()

    def __call__(self, event: ms.events.Event) -> None:
        """Take a sample every few slides."""
        if not isinstance(event, ms.events.SlideDone):
            return
        self._done += 1
        if self._done % self._every == 0:
            held = self._client.run_on_scheduler(_tasks)
            seconds = time.perf_counter() - self._started
            self.samples.append(Sample(self._done, seconds, _mib(os.getpid()), _mib(self._scheduler), held))


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def cohort_rows(slide: Path, count: int, patches: int) -> list[SlideRow]:
    """So many slides; all of them are one file."""
    return [
        SlideRow(str(slide), f"slide-{i:06d}.svs", cohort={"patches": patches, "split": "train"}) for i in range(count)
    ]


def run_cluster(folder: Path, slide: Path, given: argparse.Namespace) -> tuple[list[Sample], dict[str, float]]:
    """Many slides on a cluster."""
    rows = cohort_rows(slide, given.slides, given.patches)
    with cluster(folder, given.workers) as (client, scheduler), no_pixels():
        ms.extract(rows[: 2 * given.workers], folder / "warm.zarr", SPEC, client=client, progress=False)
        before = {"client before": _mib(os.getpid()), "scheduler before": _mib(scheduler)}
        times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), scheduler)]
        sampling = Sampling(given.slides, client, scheduler)
        report = ms.extract(rows, folder / "cohort.zarr", SPEC, client=client, progress=False, listeners=[sampling])
        after = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), scheduler)]
    assert report.is_complete, report.failures
    used = [b.user + b.system - a.user - a.system for a, b in zip(times, after, strict=True)]
    return sampling.samples, before | {"seconds": report.seconds, "client cpu": used[0], "scheduler cpu": used[1]}


def run_table(folder: Path, slide: Path, count: int) -> dict[str, float]:
    """The client alone, with the table and the report of so many slides: one block each, no cluster."""
    table = folder / "slides.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "slide_id", "split", "patches"))
        writer.writerows((slide, f"slide-{i:06d}.svs", "train", 200) for i in range(count))
    before, started = _mib(os.getpid()), time.perf_counter()
    rows = read_slides(table)
    read, seconds = _mib(os.getpid()), time.perf_counter() - started
    with no_pixels():
        report = ms.extract(rows, folder / "table.zarr", SPEC, threads=2, progress=False)
    assert report.is_complete
    return {
        "rows": count,
        "seconds to read": seconds,
        "MiB of the table": read - before,
        "seconds to run": report.seconds,
        "MiB of table and report": _mib(os.getpid()) - before,
    }


def growth(samples: Sequence[Sample], name: str) -> float:
    """KiB a slide, fitted over the second half of a run: the first half fills pools and caches."""
    half = samples[len(samples) // 2 :]
    return float(np.polyfit([s.slides for s in half], [getattr(s, name) for s in half], 1)[0]) * 1024


def report(
    facts: dict[str, Any], samples: Sequence[Sample], run: dict[str, float], table: dict[str, float], given: Any
) -> str:
    """The Markdown that is printed and kept."""
    blocks = -(-given.patches // 256)
    tasks = given.slides * (blocks + 2)
    per_million = run["seconds"] / (given.slides * given.patches) * 1e6
    lines = [
        f"# Planning without pixels: {given.slides:,} slides of {given.patches:,} patches, {given.workers} workers",
        "; ".join(f"{k} {v}" for k, v in facts.items() if k != "versions"),
        "| slides done | seconds | tasks/s | client, MiB | scheduler, MiB | tasks held by the scheduler |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(
            f"| {s.slides:,} | {s.seconds:.1f} | {s.slides * (blocks + 2) / s.seconds:,.0f} | {s.client:.0f} | "
            f"{s.scheduler:.0f} | {s.held} |"
            for s in samples[:: max(1, len(samples) // 8)]
        ),
        f"Measured: {blocks + 2} tasks a slide, {tasks:,} in all, {run['seconds']:.1f} s: **{per_million:.2f} s of "
        f"overhead per million patches** ({tasks / run['seconds']:,.0f} tasks/s). Processor time a million patches: "
        f"client {run['client cpu'] / (given.slides * given.patches) * 1e6:.2f} s, scheduler "
        f"{run['scheduler cpu'] / (given.slides * given.patches) * 1e6:.2f} s. Memory grew by "
        f"{growth(samples, 'client'):.2f} KiB a slide at the client and {growth(samples, 'scheduler'):.2f} KiB at the "
        "scheduler (fit over the second half).",
        f"Measured: a client with the table and the report of {table['rows']:,} slides grew by "
        f"{table['MiB of table and report']:.0f} MiB ({table['MiB of the table']:.0f} for the table, read in "
        f"{table['seconds to read']:.1f} s); running them with nothing to do took {table['seconds to run']:.0f} s.",
        f"Extrapolated to {GOAL:,} slides of {given.patches:,} patches ({GOAL * (blocks + 2):,} tasks, "
        f"{GOAL * given.patches:,} patches): {GOAL * given.patches / 1e6 * per_million / 3600:.1f} hours of overhead, "
        f"{samples[-1].scheduler + growth(samples, 'scheduler') * (GOAL - given.slides) / 1024:.0f} MiB at the "
        f"scheduler, {samples[-1].client + growth(samples, 'client') * (GOAL - given.slides) / 1024:.0f} MiB at the "
        "client.",
        "![curves](scheduler.png)",
    ]
    return "\n\n".join(lines) + "\n"


def draw(samples: Sequence[Sample], path: Path, tasks: int) -> None:
    """Memory and rate over the slides that are done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    x = [s.slides for s in samples]
    for name in ("client", "scheduler"):
        left.plot(x, [getattr(s, name) for s in samples], marker=".", label=name)
    left.set(xlabel="slides done", ylabel="resident memory, MiB", ylim=(0, None))
    left.legend(frameon=False)
    rates = [(b.slides - a.slides) * tasks / (b.seconds - a.seconds) for a, b in pairwise(samples)]
    right.plot(x[1:], rates, marker=".")
    right.set(xlabel="slides done", ylabel="tasks per second", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=2000, help="on the cluster")
    parser.add_argument("--patches", type=int, default=20_000, help="of a slide")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=int, default=GOAL, help="rows of the table that the client holds")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "msdask-benchmark-scheduler")
    given = parser.parse_args(arguments)
    facts = machine()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slide = make_slide(folder / "slide.svs", size=(2048, 2048), seed=1).path
        samples, run = run_cluster(folder, slide, given)
        table = run_table(folder, slide, given.table)
    text = report(facts, samples, run, table, given)
    (given.output / "scheduler.md").write_text(text, encoding="utf-8")
    record = {"facts": facts, "samples": [asdict(s) for s in samples], "run": run, "table": table}
    (given.output / "scheduler.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(samples, given.output / "scheduler.png", -(-given.patches // 256) + 2)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
