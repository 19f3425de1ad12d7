"""A store under all that may befall it: random steps against a model, and processes that are killed at any write.

    python benchmarks/trust.py                          # 10,000 steps and 3,000 kills: hours
    python benchmarks/trust.py --steps 1000 --kills 100

Steps: tests/whole/test_store_model.py (write, overwrite, correct facts, damage, lose, repair, remove, a second writer,
a kill at any write), with seeds of their own. Kills: a process that writes a slide, or writes over one, ends itself by
SIGKILL before a random write; then the same call again must give the bytes of an undisturbed run, and what was complete
before must have stayed readable. A violation ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from msdask.sample.slides import make_slide
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import BLOCK, lazy_grid, tree
from tests.whole.test_faults import KILLED
from tests.whole.test_store_model import StoreModel

STEPS_A_RUN = 40
MOST_WRITES = 40
"""About what one slide's writing takes."""


def steps(count: int) -> None:
    """At most so many steps of the model; an assertion fails at the first violation."""
    run_state_machine_as_test(
        StoreModel,
        settings=settings(
            max_examples=-(-count // STEPS_A_RUN),
            stateful_step_count=STEPS_A_RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def dying(arguments: list[str]) -> None:
    """The tests' process that kills itself, with everything imported already."""
    sys.argv = ["-c", *arguments]
    exec(compile(KILLED, "<killed>", "exec"), {"__name__": "__main__"})


def kills(count: int, seed: int) -> int:
    """So many killed processes; how many were killed before they had finished."""
    import msdask.cutting.lazy_patches as lazy_patches

    server = multiprocessing.get_context("forkserver")  # a process of one thread that has imported msdask, forked
    server.set_forkserver_preload(["tests.whole.test_faults", "tests.tools.store_tools"])

    lazy_patches.MAX_PATCHES_PER_BLOCK = BLOCK
    folder = Path(tempfile.mkdtemp(prefix="msdask-trust-"))
    slide = make_slide(folder / "small.svs", size=(2304, 3072), seed=0).path
    whole, rng, killed = folder / "whole.zarr", random.Random(seed), 0
    (name,) = [PatchStore(whole).write(lazy_grid(slide)).name]
    expected = tree(whole)
    for i in range(count):
        store, at, is_overwrite = folder / "s.zarr", rng.randrange(MOST_WRITES), rng.random() < 0.5
        if is_overwrite:
            shutil.copytree(whole, store)
        arguments = [str(slide), str(store), "raw", str(at), *(["overwrite"] if is_overwrite else [])]
        process = server.Process(target=dying, args=(arguments,))
        process.start()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise AssertionError(f"kill {i}: the process ended with {process.exitcode}")
        killed += process.exitcode != 0
        if is_overwrite and PatchStore(store).verify() != {name: []}:
            raise AssertionError(f"kill {i}: write over a slide, killed at {at}: {PatchStore(store).verify()}")
        PatchStore(store).write(lazy_grid(slide))
        if tree(store) != expected:
            raise AssertionError(f"kill {i}: killed at {at}: other bytes than an undisturbed run's")
        for path in (store, *folder.glob("s.zarr.*")):
            shutil.rmtree(path)
    shutil.rmtree(folder)
    return killed


def main(arguments: Sequence[str] | None = None) -> int:
    """Both, and what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if options.steps:
        steps(options.steps)
        print(f"{options.steps} steps against the model: 0 violations, {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    if options.kills:
        killed = kills(options.kills, options.seed)
        seconds = time.perf_counter() - began
        print(f"{options.kills} processes, {killed} killed on the way: 0 violations, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
