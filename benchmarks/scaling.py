"""The original's Tables 1 and 2 on this machine: patches of a cohort, and how their extraction scales with the cores.

    python benchmarks/scaling.py                          # 1, 2, 4 ... all cores, about 5 minutes
    python benchmarks/scaling.py --quick                  # small slides, one round, a minute
    python benchmarks/scaling.py --cores 1 8 16 --seconds 600 --side 81920 --cohort-side 16384
    python benchmarks/scaling.py --slides mine.csv --masks histoqc/ --labels annotated/ --values 50 100 150

Table 1 counts patches (grid) and tuples (multi-center) for masks that msdask finds, given tissue masks and annotated
masks. Table 2 has the seconds of whole jobs (open, mask, select, read, write, sync, commit), the start of processes
among them, for one huge slide, a cohort of 32 and many small slides: on threads, on worker processes, on what msdask
takes by default with so many cores, and on a cluster that was started before. Beside them the floor (each needed tile
decoded once and nothing else), fastslide and OpenSlide, which only read. On Linux everything is bound to the cores that
it is measured with, so that a client beside its workers has none of its own.

Ways take turns in rounds, every second round backwards, until the seconds of a row are used; rows that find none left
are named and left out. Large slides are made by repeating the encoded tiles of a generated one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).parents[1]))

from cores import all_cores, can_bind, powers_of_two
from scaling_cohorts import ROWS, UNIT, Cohort, Job, generated_cohorts, own_cohort
from scaling_tables import Timing, draw, markdown_counts, markdown_ratios, markdown_times, write_csv
from scaling_ways import WAYS, Measured, ways_of
from verdict import machine

MOST_ROUNDS = 5
FIRST = ((0, "grid 40x"), (1, "multi-center 5x/10x/20x"), (0, "grid 20x"), (1, "grid 20x"), (2, "grid 20x"))
"""What is timed first: (cohort, row); the others come after, as far as there is time."""


@dataclass
class Results:
    """What was counted and measured, so far."""

    counts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    timings: list[Timing] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def jobs_to_time(cohorts: Sequence[Cohort], given: argparse.Namespace) -> Iterator[Job]:
    """The jobs of Table 2, those first that say most; small slides have one row."""
    chosen = [(i, row) for i, row in FIRST if i < len(cohorts) and row in given.rows]
    rest = [(i, row) for row in given.rows for i in range(min(2, len(cohorts))) if (i, row) not in chosen]
    for i, row in [*chosen, *rest]:
        yield Job(cohorts[i], next(iter(cohorts[i].masks)), row)


def count(cohorts: Sequence[Cohort], given: argparse.Namespace, results: Results) -> None:
    """Table 1."""
    for cohort in cohorts:
        for kind in cohort.masks:
            for row in given.rows:
                results.counts[row][f"{cohort.name}: {kind}"] = Job(cohort, kind, row).patches


def time_job(job: Job, given: argparse.Namespace, results: Results, seconds: float) -> None:
    """Time all ways of a job in turns, at least once, until its seconds are used."""
    scratch = given.folder / "scratch"
    ways = {(name, n): way for n in given.cores for name, way in ways_of(job, n, scratch, tuple(given.ways)).items()}
    ends = time.monotonic() + seconds
    try:
        ways[given.ways[0], max(given.cores)]()  # untimed: files in the page cache, code compiled
    except (KeyError, RuntimeError) as error:
        results.failures[f"{job.cohort.name}, {job.row}"] = str(error)
        return
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    load = os.getloadavg()[0]
    for turn in range(given.rounds):
        if turn and time.monotonic() > ends:
            break
        for way in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            try:
                found[way].append(ways[way]())
            except Exception as error:  # a slide that is no JPEG TIFF has no floor, say: the others go on
                results.failures[f"{job.cohort.name}, {job.row}, {way[0]}"] = f"{type(error).__name__}: {error}"
                found[way].append(Measured(0.0, 0.0))
    for (name, n), runs in found.items():
        if all(run.rate > 0 for run in runs):
            rates, took = tuple(run.rate for run in runs), tuple(run.seconds for run in runs)
            timing = Timing(job.cohort.name, job.row, name, n, job.patches, rates, took, load, runs[0].engine)
            results.timings.append(timing)


def commit() -> str:
    """The checkout's commit, with "+" if files differ from it."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(given: argparse.Namespace, facts: dict[str, object], results: Results) -> str:
    """Write Markdown, CSV, JSON and the drawing; returns the Markdown."""
    output: Path = given.output
    output.mkdir(parents=True, exist_ok=True)
    versions = facts["versions"]
    packages = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
    about = "; ".join(f"{k} {v}" for k, v in facts.items() if k != "versions")
    rounds = sorted({len(t.rates) for t in results.timings})
    parts = [
        "# Scaling",
        f"{about}\n{packages}",
        "## Table 1: patches (tuples)",
        markdown_counts(results.counts),
        "## Table 2: seconds (speed-up)",
        markdown_times(results.timings),
        f"Medians of {' to '.join(map(str, rounds))} rounds. Whole jobs: open, mask, select, read, write, sync, "
        "commit, the start of worker processes among them; a cluster was started before. The speed-up of msdask's ways "
        "is against its own single thread, that of the others against themselves. The floor decodes each needed tile "
        f"once and does nothing else; readers read only, and their seconds are those of all patches at their speed. "
        f"{'All of it bound' if can_bind() else 'Not bound'} to the cores that it is measured with.",
        "## What decides",
        markdown_ratios(results.timings),
        "![speed-up and efficiency](scaling.png)",
    ]
    if results.left_out:
        parts.append(f"Left out, since {given.seconds:g} s were used: {'; '.join(results.left_out)}.")
    if results.failures:
        parts.append("Failed: " + "; ".join(f"{k}: {v}" for k, v in results.failures.items()))
    text = "\n\n".join(parts) + "\n"
    (output / "scaling.md").write_text(text, encoding="utf-8")
    write_csv(output, results.counts, results.timings)
    record = {"facts": facts, "counts": results.counts, "timings": [asdict(t) for t in results.timings]}
    record |= {"failures": results.failures, "left out": results.left_out}
    (output / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(results.timings, output / "scaling.png")
    return text


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir()) / "msdask-benchmark-scaling"
    parser.add_argument("--folder", type=Path, default=scratch, help="slides and scratch; best on a fast disk")
    parser.add_argument("--output", type=Path, default=None, help="where the results go (default: the folder)")
    parser.add_argument("--cores", type=int, nargs="+", default=None, help="default: 1, 2, 4 ... all")
    parser.add_argument("--seconds", type=float, default=None, help="for Table 2, of all rows (default 300)")
    parser.add_argument("--rounds", type=int, default=None, help=f"at most (default {MOST_ROUNDS})")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--side", type=int, default=None, help=f"px of the huge slide, a multiple of {UNIT:,}")
    parser.add_argument("--count", type=int, default=None, help="slides of the cohort (default 32)")
    parser.add_argument("--cohort-side", type=int, default=None, help="px of their sides (default 4,096)")
    parser.add_argument("--small", type=int, default=None, help="slides of 1,500 x 2,000 px (default 64)")
    parser.add_argument("--slides", default=None, help="CSV, folder or slide, instead of generated ones")
    parser.add_argument("--masks", default=None, help="folder of tissue masks; default: msdask makes them")
    parser.add_argument("--labels", default=None, help="folder of annotated masks")
    parser.add_argument("--values", type=int, nargs="*", default=[], help="values of the classes in annotated masks")
    parser.add_argument("--quick", action="store_true", help="small slides, one round, 60 s")
    given = parser.parse_args(arguments)
    given.cores = sorted({1, *(given.cores or powers_of_two(all_cores()))})
    quick = given.quick
    given.seconds = given.seconds or (60.0 if quick else 300.0)
    given.rounds = given.rounds or (1 if quick else MOST_ROUNDS)
    given.side = given.side or (UNIT if quick else 4 * UNIT)
    given.count = given.count or (4 if quick else 32)
    given.cohort_side = given.cohort_side or (2048 if quick else 4096)
    given.small = given.small or (4 if quick else 64)
    given.output = given.output or given.folder
    if given.side % UNIT:
        parser.error(f"--side {given.side}: expected a multiple of {UNIT}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = arguments_of(arguments)
    (given.folder / "scratch").mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(0)
    facts = {**machine(), "cores measured": str(given.cores), "commit": commit()}
    if given.slides:
        cohorts = [own_cohort(given.slides, masks=given.masks, labels=given.labels, values=tuple(given.values))]
    else:
        sizes = {"side": given.side, "count": given.count, "cohort_side": given.cohort_side, "small": given.small}
        cohorts = generated_cohorts(given.folder / "slides", **sizes)
    results = Results()
    count(cohorts, given, results)
    jobs = list(jobs_to_time(cohorts, given))
    ends = time.monotonic() + given.seconds
    for i, job in enumerate(jobs):
        if (left := ends - time.monotonic()) <= 0:
            results.left_out.append(f"{job.row} of {job.cohort.name}")
            continue
        time_job(job, given, results, left / (len(jobs) - i))
        save(given, facts, results)  # a run takes long: what is measured stays
        print(f"{job.cohort.name}, {job.row}: timed, {ends - time.monotonic():.0f} s left", file=sys.stderr, flush=True)
    print(save(given, facts, results))
    shutil.rmtree(given.folder / "scratch")
    return 1 if results.failures or not results.timings else 0


if __name__ == "__main__":
    raise SystemExit(main())
