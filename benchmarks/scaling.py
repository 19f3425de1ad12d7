"""The seed's Tables 1 and 2 on this machine: patches of a cohort, and how their extraction scales.

    python benchmarks/scaling.py                                   # makes 3 slides with masks the first time: minutes
    python benchmarks/scaling.py --quick                           # 2 small slides, seconds a row
    python benchmarks/scaling.py --threads 1 2 4 8 16 --workers 1 2 4 8
    python benchmarks/scaling.py --slides mine.csv --masks histoqc/ --labels annotated/ --values 50 100 150

Table 1 counts patches (grid) and tuples (multi-center) for tissue masks and for annotated masks. Table 2 has the
seconds of the whole job (open, mask, select, read, write, commit) and the speed-up, for threads inside one slide, for
threads over the slides of the cohort, and for worker processes, whose start is part of it. The floor (peers.py) is what
decoding each needed tile once and writing each patch once takes by itself: no extractor scales better than that on the
same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from scaling_tables import Timing, draw, markdown_counts, markdown_times, write_csv
from verdict import machine

import msdask as ms
from msdask.cutting.lazy_patches import read_plans
from msdask.cutting.tile_cache import process_cache
from msdask.extraction.slide_table import SlideRow, read_slides
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec

PATCH_SIZE = 224
ROWS = {
    "grid 40x": ("grid", (40.0,)),
    "grid 20x": ("grid", (20.0,)),
    "grid 10x": ("grid", (10.0,)),
    "grid 5x": ("grid", (5.0,)),
    "multi-center 5x/10x": ("centroids", (10.0, 5.0)),
    "multi-center 5x/10x/20x": ("centroids", (20.0, 10.0, 5.0)),
}
"""Rows of both tables, as in the seed."""


@dataclass(frozen=True)
class Cohort:
    """Slides, and where their masks are: kind of mask -> options of `msdask.extract`."""

    name: str
    rows: list[SlideRow]
    masks: dict[str, dict[str, Any]]


@dataclass
class Results:
    """What was counted and measured, so far."""

    counts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    timings: list[Timing] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def generated_cohort(folder: Path, *, count: int, side: int) -> Cohort:
    """Slides of `side` x `side` px at 40x, with tissue masks and annotated masks; made if they are not there."""
    made = folder / f"cohort-{count}-{side}"
    if not (made / "slides.csv").exists():
        from msdask.sample.slides import make_cohort

        print(f"making {count} slides of {side:,} x {side:,} px", file=sys.stderr)
        part = made.with_name(f"part-{made.name}")
        shutil.rmtree(part, ignore_errors=True)
        make_cohort(part, n=count, size=(side, side))
        part.rename(made)
        table = made / "slides.csv"
        table.write_text(table.read_text().replace(str(part), str(made)))
    masks = {
        "tissue masks": {"masks": made / "masks"},
        "annotated masks": {"masks": made / "labels", "values": (50, 100, 150)},
    }
    return Cohort(f"generated, {count} slides", read_slides(made / "slides.csv"), masks)


def own_cohort(given: argparse.Namespace) -> Cohort:
    """The user's slides; without any masks msdask makes tissue masks itself."""
    masks: dict[str, dict[str, Any]] = {}
    if given.masks or not given.labels:
        masks["tissue masks"] = {"masks": given.masks} if given.masks else {}
    if given.labels:
        masks["annotated masks"] = {"masks": given.labels, "values": tuple(given.values) or None}
    rows = read_slides(given.slides)
    return Cohort(f"{Path(given.slides).stem}, {len(rows)} slides", rows, masks)


def spec_of(row: str) -> ExtractionSpec:
    """What a row of the tables extracts; the seed's thresholds."""
    mode, magnifications = ROWS[row]
    return ExtractionSpec(mode, magnifications, patch_size=PATCH_SIZE, min_tissue=0.7, min_label=0.7)


def extract(cohort: Cohort, kind: str, row: str, folder: Path, results: Results, **how: Any) -> tuple[float, int]:
    """(seconds, patches) of one whole extraction into a new store, which is removed."""
    process_cache.cache_clear()  # tiles that the run before has decoded
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    report = ms.extract(cohort.rows, folder, spec_of(row), progress=False, **cohort.masks[kind], **how)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name(f"{folder.name}.locks"), ignore_errors=True)
    results.failures.update(report.failures)
    return seconds, report.patches


class Floor:
    """Seconds of the floor for a cohort: each needed tile decoded once, each patch written once."""

    def __init__(self, cohort: Cohort, kind: str, row: str) -> None:
        import peers

        from msdask.extraction.slide_job import plan_slide
        from msdask.masks.choice import MaskChoice

        self._peers = peers
        self._work = []
        options = cohort.masks[kind]
        folder = os.fspath(options["masks"]) if options.get("masks") else None
        for slide_row in cohort.rows:
            slide, (table,), _ = plan_slide(slide_row, [spec_of(row)], MaskChoice(folder, options.get("values")))
            if table.sizes["patch"]:
                cut = _cut(peers, slide, table)
                file = peers.TileFile(slide.path)
                self._work.append((file, cut, peers.needed_tiles(cut, file)))

    def seconds(self, threads: int, folder: Path) -> float:
        """Decoding and writing with so many threads."""
        total = 0.0
        for file, cut, keys in self._work:
            shard = max(1, 256 // cut.x0.shape[1])
            total += self._peers.floor_decode(file, keys, threads=threads)
            total += self._peers.floor_write(folder, cut, shard=shard, threads=threads)
        return total

    def close(self) -> None:
        """Unmap the files."""
        for file, _, _ in self._work:
            file.close()


def _cut(peers: Any, slide: Slide, table: Any) -> Any:
    spec = ExtractionSpec.from_dict(table.attrs["spec"])
    x0, y0 = (table[name].values.astype(np.int64) for name in ("x0", "y0"))
    footprints = tuple(float(side) for side in table.attrs["footprint"])
    return peers.Cut(x0, y0, footprints, read_plans(slide, spec), spec.patch_size)


def floor_of(cohort: Cohort, kind: str, row: str) -> Floor | None:
    """The floor, or None where it cannot be measured; says why."""
    try:
        return Floor(cohort, kind, row)
    except Exception as error:  # a peer that is not installed, a slide that is no JPEG TIFF: the tables do without
        print(f"{row}: no floor ({type(error).__name__}: {error})", file=sys.stderr)
        return None


def time_row(cohort: Cohort, kind: str, row: str, given: argparse.Namespace, results: Results) -> None:
    """Time all ways to run a row in turns, every second round backwards."""
    store = given.folder / "scratch" / "store.zarr"
    single = replace(cohort, rows=cohort.rows[:1])
    floors = {"one slide": floor_of(single, kind, row), "cohort": floor_of(cohort, kind, row)}
    ways: dict[tuple[str, int], Callable[[], float]] = {}

    for n in given.threads:
        ways["threads, one slide", n] = lambda n=n: extract(single, kind, row, store, results, threads=n)[0]
        ways["threads, cohort", n] = lambda n=n: extract(cohort, kind, row, store, results, threads=n)[0]
        for what, floor in floors.items():
            if floor is not None:
                ways[f"floor, {what}", n] = lambda n=n, floor=floor: floor.seconds(
                    n, given.folder / "scratch" / "floor"
                )
    for n in given.workers:
        ways["workers, one slide", n] = lambda n=n: extract(single, kind, row, store, results, workers=n)[0]
        ways["workers, cohort", n] = lambda n=n: extract(cohort, kind, row, store, results, workers=n)[0]
    extract(cohort, kind, row, store, results, threads=max(given.threads))  # untimed: files in the page cache
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    for turn in range(given.repeats):
        for way in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            seconds[way].append(ways[way]())
    for (way, n), values in seconds.items():
        results.timings.append(Timing(row, kind, way, n, tuple(values), load))
    for floor in floors.values():
        if floor is not None:
            floor.close()


def commit() -> str:
    """The checkout's commit, with "+" if files differ from it."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(cohort: Cohort, given: argparse.Namespace, facts: dict[str, object], results: Results) -> str:
    """Write Markdown, CSV, JSON and the drawing; returns the Markdown."""
    output: Path = given.output
    output.mkdir(parents=True, exist_ok=True)
    versions = facts["versions"]
    packages = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
    about = "; ".join(f"{k} {v}" for k, v in facts.items() if k != "versions")
    parts = [
        f"# Scaling: {cohort.name}",
        f"{about}\n{packages}",
        "## Table 1: patches (tuples)",
        markdown_counts(results.counts, cohort.name),
        "## Table 2: seconds (speed-up)",
        markdown_times(results.timings),
        f"Median of {given.repeats} rounds. Whole jobs: open, mask, select, read, write, sync, commit. The cluster was "
        "started before. Speed-up is against 1 of the same kind.",
        "![speed-up and efficiency](scaling.png)",
    ]
    if results.failures:
        parts.append("Failed: " + "; ".join(f"{k}: {v}" for k, v in results.failures.items()))
    text = "\n\n".join(parts) + "\n"
    (output / "scaling.md").write_text(text, encoding="utf-8")
    write_csv(output, results.counts, results.timings, cohort.name)
    record = {"facts": facts, "cohort": cohort.name, "counts": results.counts}
    record["timings"] = [vars(t) for t in results.timings]
    (output / "scaling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if results.timings:
        draw(results.timings, output / "scaling.png")
    return text


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir()) / "msdask-benchmark-scaling"
    parser.add_argument("--folder", type=Path, default=scratch, help="slides and scratch")
    parser.add_argument("--output", type=Path, default=None, help="where the results go (default: the folder)")
    parser.add_argument("--slides", default=None, help="CSV, folder or slide; default: generated ones")
    parser.add_argument("--masks", default=None, help="folder of tissue masks; default: msdask makes them")
    parser.add_argument("--labels", default=None, help="folder of annotated masks")
    parser.add_argument("--values", type=int, nargs="*", default=[], help="values of the classes in annotated masks")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="default: 1, 2, 4 ... to the cores")
    parser.add_argument("--workers", type=int, nargs="*", default=None, help="default: like threads; nothing: none")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--timed", nargs="+", default=None, help="kinds of masks to time (default: the first)")
    parser.add_argument("--repeats", type=int, default=None, help="rounds (default 3)")
    parser.add_argument("--count", type=int, default=None, help="generated slides (default 3)")
    parser.add_argument("--side", type=int, default=None, help="px of their sides (default 16,384)")
    parser.add_argument("--quick", action="store_true", help="2 slides of 4,096 px, 1 round")
    given = parser.parse_args(arguments)
    powers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= (os.cpu_count() or 1)]
    given.threads = sorted({1, *(given.threads or powers)})
    given.workers = powers if given.workers is None else given.workers
    given.repeats = given.repeats or (1 if given.quick else 3)
    given.count = given.count or (2 if given.quick else 3)
    given.side = given.side or (4096 if given.quick else 16_384)
    given.output = given.output or given.folder
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = arguments_of(arguments)
    (given.folder / "scratch").mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(0)
    facts = {**machine(), "commit": commit()}
    cohort = own_cohort(given) if given.slides else generated_cohort(given.folder, count=given.count, side=given.side)
    results = Results()
    store = given.folder / "scratch" / "store.zarr"
    for row in given.rows:
        for kind in cohort.masks:
            count = extract(cohort, kind, row, store, results, threads=max(given.threads))[1]
            results.counts[row][kind] = count
            print(f"{row}, {kind}: {count:,}", file=sys.stderr, flush=True)
    save(cohort, given, facts, results)
    for kind in given.timed or list(cohort.masks)[:1]:
        for row in given.rows:
            time_row(cohort, kind, row, given, results)
            save(cohort, given, facts, results)  # a run takes long: what is measured stays
            print(f"{row}, {kind}: timed", file=sys.stderr, flush=True)
    medians = {(t.row, t.way, t.n): statistics.median(t.seconds) for t in results.timings}
    print(save(cohort, given, facts, results))
    shutil.rmtree(given.folder / "scratch")
    return 1 if results.failures or not medians else 0


if __name__ == "__main__":
    raise SystemExit(main())
