"""A simulation of many cores: the default plan for 4, 16 and 64 of them, with the figures of a machine of two.

    python benchmarks/simulate.py                    # measures for some minutes, then simulates
    python benchmarks/simulate.py --quick            # smaller slides, one round

Nothing that it prints about more cores than this machine has was measured there. Measured here: processor time of a
patch and of it the part under the interpreter's lock, what a slide costs before and after its blocks, the start of
worker processes and the caller's part of a task, and how much slower a patch is while both cores work. Simulated with
these: msdask's own rule for processes and threads (`msdask.engines.plan`) and its own queue, which gives workers
their tasks (`msdask.engines.task_queue`), task by task. Where several threads share a process, they wait for each other
at the lock as at a counter (mean value analysis). Assumed: the commit of a huge slide grows with its blocks, syncs do
not wait for each other, and memory behaves in one of two ways: it grows with the cores, or every doubling of
the cores costs as much as the first did.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from one_core import BlockCosts, EngineCosts, SlideCosts, block_costs, both_at_once, engine_costs, slide_costs
from scaling_cohorts import SMALL, UNIT, repeat_slide, spec_of, unit_slide
from verdict import Check, machine, markdown_checks

from msdask.engines.engine import JobTrace
from msdask.engines.machine import Machine
from msdask.engines.plan import Plan, Work, choose_plan
from msdask.engines.processes import MOST_JOBS
from msdask.engines.task_queue import Batch, Task, TaskQueue

CORES = (4, 16, 64)
MEMORY_PER_CORE = 4 * 2**30
COHORT, SMALLS = 32, 500
ROWS = ("grid 40x", "grid 20x", "grid 10x", "multi-center 5x/10x/20x")
SLIDE_TARGETS = {"grid 40x": 0.65, "grid 20x": 0.6, "grid 10x": 0.6}
COHORT_TARGET = 0.75
BYTES_PER_SECOND, SECONDS_PER_SLIDE = 25e6, 0.05
"""With these the plan guesses the work of a slide from its file, see `msdask.extraction.cohort_work`."""


@dataclass(frozen=True)
class Figures:
    """All that was measured for one row.

    Attributes
    ----------
    blocks : of a patch
    small : a slide of 1,500 x 2,000 px
    unit : a slide of 4,096 px
    cohort : one of a cohort
    begun : a huge slide, of which only the beginning was measured
    """

    blocks: BlockCosts
    small: SlideCosts
    unit: SlideCosts
    cohort: SlideCosts
    begun: SlideCosts

    @property
    def huge(self) -> SlideCosts:
        """The huge slide, with a commit that goes on as it grows from the unit's blocks to those of the cohort's."""
        a, b = self.unit, self.cohort
        a_block = max(0.0, b.commit - a.commit) / max(1, b.blocks - a.blocks)
        return replace(self.begun, commit=b.commit + a_block * (self.begun.blocks - b.blocks))


@dataclass(frozen=True)
class Sizes:
    """px of the sides of a slide of the cohort, and of the huge one: multiples of the unit's."""

    cohort: int = 5 * UNIT
    huge: int = 20 * UNIT


@dataclass(frozen=True)
class Run:
    """One simulated run."""

    plan: Plan
    seconds: float
    patches: int
    one_thread: float

    def efficiency(self, cores: int) -> float:
        """Against so many times one thread that does everything one after another."""
        return self.one_thread / (cores * self.seconds)


def rate(threads: int, costs: BlockCosts, slower: float) -> float:
    """Patches per second of a process whose threads wait for one lock.

    Mean value analysis of a closed system: `threads` customers, one counter (the lock) and a place without a queue.

    >>> round(rate(1, BlockCosts(patch=0.001, lock=0.0002), 1.0))
    1000
    """
    free, found, queue = (costs.patch - costs.lock) * slower, 0.0, 0.0
    for customers in range(1, threads + 1):
        at_counter = costs.lock * slower * (1 + queue)
        found = customers / (free + at_counter)
        queue = found * at_counter
    return found


def plan_of(cores: int, slides: Sequence[SlideCosts], patch_bytes: int) -> Plan:
    """What msdask would choose on such a machine."""
    seconds = sum(SECONDS_PER_SLIDE + slide.file_bytes / BYTES_PER_SECOND for slide in slides)
    return choose_plan(Machine(cores, cores * MEMORY_PER_CORE), Work(len(slides), seconds, patch_bytes))


def simulate(
    cores: int, slides: Sequence[SlideCosts], costs: BlockCosts, engine: EngineCosts, slower: float, patch_bytes: int
) -> Run | None:
    """Run the slides on the worker processes that the plan gives, task by task, through msdask's own queue.

    None where the plan is threads of one process, for work that is too small for others.
    """
    plan = plan_of(cores, slides, patch_bytes)
    if plan.kind != "processes":
        return None
    queue = TaskQueue(cores, plan.workers, plan.threads)
    traces = [JobTrace(order) for order in range(len(slides))]
    left = [slide.blocks for slide in slides]
    idle: list[int] = []
    events: list[tuple[float, int, Task | None]] = []
    for worker in range(plan.workers):
        heapq.heappush(events, (engine.start + (engine.fork if worker else 0.0), worker, None))
    waiting, next_slide, caller, ends = 0, 0, 0.0, 0.0

    def put(order: int, step: str, count: int = 1) -> int:
        batch = Batch(traces[order])
        queue.put([Task(step, batch, print, (order,), is_block=step == "block") for _ in range(count)])
        return count

    def seconds_of(task: Task, threads: int) -> float:
        slide = slides[task.args[0]]
        if task.label == "begin":
            return slide.begin * slower * (1 - slide.begin_shared + slide.begin_shared / threads)
        if task.label == "commit":
            return slide.commit
        return slide.patches / slide.blocks / rate(threads, costs, slower)

    while next_slide < min(len(slides), MOST_JOBS, 2 * plan.workers):
        waiting += put(next_slide, "begin")
        next_slide += 1
    while events:
        now, worker, task = heapq.heappop(events)
        ends = max(ends, now)
        idle.append(worker)
        if task is not None:
            order = task.args[0]
            queue.done(task)
            left[order] -= task.label == "block"
            if task.label == "begin" and slides[order].blocks:
                waiting += put(order, "block", slides[order].blocks)
            elif task.label == "commit":
                queue.forget(traces[order])
                if next_slide < len(slides):
                    waiting += put(next_slide, "begin")
                    next_slide += 1
            elif not left[order]:
                waiting += put(order, "commit")
        while idle and waiting:
            number = idle.pop(0)
            taken = queue.take(number)
            assert taken is not None
            waiting -= 1
            caller = max(now, caller) + (engine.task if taken[0].is_block else engine.slide / 2)
            heapq.heappush(events, (caller + seconds_of(*taken), number, taken[0]))
    one = sum(slide.beside + slide.patches * costs.patch for slide in slides)
    return Run(plan, ends, sum(slide.patches for slide in slides), one)


def measure(row: str, folder: Path, sizes: Sizes, rounds: int) -> Figures:
    """All figures of a row, on slides that are made if they are not there."""
    spec, store = spec_of(row), folder / "simulate.zarr"
    unit, small = unit_slide(folder, 0, (UNIT, UNIT)), unit_slide(folder, 0, SMALL)
    larger = [folder / f"huge-{side}.svs" for side in (sizes.cohort, sizes.huge)]
    for path, side in zip(larger, (sizes.cohort, sizes.huge), strict=True):
        if not path.exists():
            repeat_slide(unit, path, side // UNIT)
    costs = [slide_costs(path, spec, store, rounds=rounds) for path in (small, unit, larger[0])]
    begun = slide_costs(larger[1], spec, store, rounds=rounds, only_begin=True)
    return Figures(block_costs(larger[0], spec, store, rounds=rounds), *costs, begun)


def cases(row: str, figures: Figures, sizes: Sizes) -> dict[str, list[SlideCosts]]:
    """What is simulated of a row: name -> slides."""
    found = {
        f"one slide of {sizes.huge:,} px": [figures.huge],
        f"{COHORT} slides of {sizes.cohort:,} px": [figures.cohort] * COHORT,
    }
    if row == "grid 20x":
        found[f"{SMALLS} slides of {SMALL[0]:,} x {SMALL[1]:,} px"] = [figures.small] * SMALLS
    return found


def tables(
    measured: dict[str, Figures], engine: EngineCosts, both: float, cores: Sequence[int], sizes: Sizes
) -> tuple[str, list[Check], list[dict[str, object]]]:
    """The simulated runs as Markdown and as records, and what the targets say of those on 16 cores."""
    lines = [
        "| | row | cores | plan | patches | one thread, s | simulated, s | patches/s | efficiency | of the first run "
        "in a Python program | with memory that does not grow |",
        "| --- " * 11 + "|",
    ]
    checks, records = [], []
    for row, figures in measured.items():
        spec = spec_of(row)
        patch_bytes = len(spec.magnifications) * spec.patch_size**2 * 3
        for name, slides in cases(row, figures, sizes).items():
            for n in cores:
                forked = replace(engine, start=engine.again)
                run, worse, first = (
                    simulate(n, slides, figures.blocks, costs, slower, patch_bytes)
                    for costs, slower in ((forked, both), (forked, both ** math.log2(n)), (engine, both))
                )
                if run is None or worse is None or first is None:
                    lines.append(f"| {name} | {row} | {n} | threads: not simulated |" + " |" * 7)
                    continue
                plan = f"{run.plan.workers} x 1 to {run.plan.threads}"
                efficiencies = f"{run.efficiency(n):.2f} | {first.efficiency(n):.2f} | {worse.efficiency(n):.2f}"
                lines.append(
                    f"| {name} | {row} | {n} | {plan} | {run.patches:,} | {run.one_thread:.1f} | {run.seconds:.1f} | "
                    f"{run.patches / run.seconds:,.0f} | {efficiencies} |"
                )
                records.append({"case": name, "row": row, "cores": n, "seconds": run.seconds, "patches": run.patches})
                records[-1] |= {"efficiency, first run in Python": first.efficiency(n)}
                records[-1] |= {"efficiency": run.efficiency(n), "efficiency, pessimistic": worse.efficiency(n)}
                target = (
                    SLIDE_TARGETS.get(row) if len(slides) == 1 else COHORT_TARGET if len(slides) == COHORT else None
                )
                if n == 16 and target is not None:
                    remark = f"simulated; {first.efficiency(n):.2f} for the first run in a Python program, "
                    remark += f"{worse.efficiency(n):.2f} with memory that does not grow"
                    what = f"16 cores, {name}, {row}: default / 16 x one thread"
                    checks.append(Check(what, run.efficiency(n), target, unit="", remark=remark))
    return "\n".join(lines), checks, records


def measured_table(measured: dict[str, Figures], sizes: Sizes) -> str:
    """What was measured, a row a line."""
    lines = [
        "| row | a patch, us | under the lock, us | threads that one lock feeds | begin, commit of a slide of 1,500 x "
        f"2,000 px, ms | {UNIT:,} px | {sizes.cohort:,} px | {sizes.huge:,} px (its commit goes on from the others) | "
        "share of begin that threads can take |",
        "| --- " * 9 + "|",
    ]
    for row, f in measured.items():
        slides = (f.small, f.unit, f.cohort, f.huge)
        cells = " | ".join(f"{1e3 * slide.begin:,.0f}, {1e3 * slide.commit:,.0f}" for slide in slides)
        lines.append(
            f"| {row} | {1e6 * f.blocks.patch:,.0f} | {1e6 * f.blocks.lock:.0f} | "
            f"{f.blocks.patch / f.blocks.lock:.1f} | {cells} | {f.begun.begin_shared:.2f} |"
        )
    return "\n".join(lines)


def report(
    facts: dict[str, object],
    measured: dict[str, Figures],
    engine: EngineCosts,
    both: float,
    cores: Sequence[int],
    sizes: Sizes,
) -> tuple[str, list[dict[str, object]]]:
    """The Markdown that is printed and kept, and the simulated runs."""
    table, checks, records = tables(measured, engine, both, cores, sizes)
    about = "; ".join(f"{k} {v}" for k, v in facts.items() if k != "versions")
    parts = [
        "# Many cores, simulated",
        f"**A simulation, not a measurement.** No machine of {', '.join(map(str, cores))} cores was at hand. The "
        "figures of the first table were measured on the machine below; the second one follows from them by msdask's "
        "own plan and queue ([how](../simulate.py)).",
        about,
        "## Measured here",
        measured_table(measured, sizes),
        f"The first worker process takes {engine.start:.2f} s of processor time until it can work, or "
        f"{1e3 * engine.again:.0f} ms where the process is there that it is forked from (of `msdask extract`, which "
        f"forks it from itself, and of every later run of a program), each further one "
        f"{1e3 * engine.fork:.0f} ms; a block costs the caller {1e3 * engine.task:.2f} ms, a slide "
        f"{1e3 * engine.slide:.1f} ms. A patch at 40x takes {both:.2f} times the processor time while both cores do "
        "the same. All times are processor time, so that a busy machine says little else; those of a commit have the "
        "syncs in them, but not the waits for a core. Least of the rounds.",
        "## Simulated",
        table,
        "Efficiency is one thread's seconds / (cores x seconds of the run), the start of the processes among them: of "
        "`msdask extract` and of later runs of a Python program, then of the first one. Memory grows with the cores "
        "(each is as much slower as with two), or every doubling costs as much as the first (the last column).",
        "## Against the targets",
        markdown_checks(checks),
        "What is compared with fastslide on many cores cannot be simulated: how it scales is its own.",
    ]
    return "\n\n".join(parts) + "\n", records


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir()) / "msdask-benchmark-scaling" / "slides"
    parser.add_argument("--folder", type=Path, default=scratch, help="slides and scratch")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--cores", type=int, nargs="+", default=list(CORES), help="to simulate")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, a smaller slide")
    given = parser.parse_args(arguments)
    if not Path("/proc/self/task").is_dir():
        parser.error("the time under the interpreter's lock is measured on Linux only")
    rounds, sizes = (1, Sizes(2 * UNIT, 4 * UNIT)) if given.quick else (given.rounds, Sizes())
    given.folder.mkdir(parents=True, exist_ok=True)
    facts = machine()
    measured = {}
    for row in given.rows:
        measured[row] = measure(row, given.folder, sizes, rounds)
        print(f"{row}: measured", file=sys.stderr, flush=True)
    small = unit_slide(given.folder, 0, SMALL)
    engine = engine_costs(small, spec_of("grid 20x"), given.folder, rounds=rounds)
    unit = unit_slide(given.folder, 0, (UNIT, UNIT))
    both = max(1.0, both_at_once(unit, given.rows[0], given.folder / "both.zarr", rounds=rounds))
    facts["load after"] = os.getloadavg()[0]
    text, records = report(facts, measured, engine, both, given.cores, sizes)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "simulation.md").write_text(text, encoding="utf-8")
    record = {"facts": facts, "measured": {row: asdict(f) for row, f in measured.items()}, "engine": asdict(engine)}
    record |= {"both at once": both, "simulated": records}
    (given.output / "simulation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
