"""kill -9 at random moments: client, worker and nanny, as real processes. The same call again gives the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.cluster_tools import Processes, dask_processes
from tests.tools.store_tools import tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.3)
SEED = 11
ALL = 9
"""Points of each kind of fault."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 5 shards each."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("a.svs", "b.svs")):
        make_slide(folder / name, size=(1280, 1536), seed=20 + seed)
    return folder


@pytest.fixture(scope="module")
def undisturbed(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Bytes of a run that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        assert run(slides, store).is_complete
    return tree(store)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A scheduler and two nannies with a worker each."""
    with dask_processes(tmp_path_factory.mktemp("processes"), 2) as found:
        yield found


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    """Starts clients that have imported everything already."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(
        ["msdask.extraction.cohort", "msdask.engines.dask_cluster", "distributed", "msdask.store.patch_store"]
    )
    return made


def run(slides: Path, store: Path, client: Client | None = None) -> ExtractionReport:
    return extract(slides, store, GRID, client=client, progress=False)


def run_in_process(slides: Path, store: Path, address: str | None) -> None:
    """What a client process does."""
    import msdask.cutting.lazy_patches

    msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK = 16
    if address is None:
        run(slides, store)
    else:
        with Client(address, set_as_default=False) as client:
            run(slides, store, client)


def moment(number: int, kind: int, steps: int) -> int:
    """After how many files of the store the `number`-th fault of a kind comes."""
    return int(np.random.default_rng([SEED, kind]).integers(0, steps, ALL)[number])


def wait_for_files(store: Path, count: int, alive: threading.Thread | multiprocessing.process.BaseProcess) -> bool:
    """Until the store has so many files; whether the run was still at it."""
    end = time.monotonic() + 60
    while alive.is_alive() and time.monotonic() < end:
        if sum(len(files) for _, _, files in os.walk(store)) >= count:  # what goes while it looks is left out
            return True
    return False


def assert_same(store: Path, expected: dict[str, str]) -> None:
    found = tree(store)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def never_complete_when_it_is_not(store: Path, expected: dict[str, str]) -> None:
    """Slides that say that they are complete have all their bytes, whatever happened."""
    if not (store / GRID.name / "zarr.json").exists():
        return
    for slide in PatchStore(store)[GRID.name].slides:
        found = tree(store / GRID.name / slide)
        assert found == {k.split("/", 2)[2]: v for k, v in expected.items() if k.startswith(f"{GRID.name}/{slide}/")}


def points(quick: int) -> pytest.MarkDecorator:
    """All points of a kind of fault; the first few of them in every run of the tests, the others in the slow ones."""
    values = [pytest.param(i, marks=[pytest.mark.slow] if i >= quick else []) for i in range(ALL)]
    return pytest.mark.parametrize("number", values)


@points(2)
def test_a_client_with_threads_is_killed(
    number: int,
    slides: Path,
    undisturbed: dict[str, str],
    context: multiprocessing.context.ForkServerContext,
    tmp_path: Path,
) -> None:
    store = tmp_path / "s.zarr"
    process = context.Process(target=run_in_process, args=(slides, store, None))
    process.start()
    wait_for_files(store, moment(number, 0, len(undisturbed)), process)
    process.kill()
    process.join()
    never_complete_when_it_is_not(store, undisturbed)
    assert run(slides, store).is_complete
    assert_same(store, undisturbed)


@points(2)
def test_a_client_of_a_cluster_is_killed(
    number: int,
    slides: Path,
    undisturbed: dict[str, str],
    processes: Processes,
    context: multiprocessing.context.ForkServerContext,
    tmp_path: Path,
) -> None:
    processes.wait()
    store = tmp_path / "s.zarr"
    process = context.Process(target=run_in_process, args=(slides, store, processes.address))
    process.start()
    wait_for_files(store, moment(number, 1, len(undisturbed)), process)
    process.kill()
    process.join()
    # What its workers were at goes on for a moment: the same call, at once.
    report = run(slides, store, processes.client)
    assert report.is_complete, report.failures
    assert_same(store, undisturbed)


@points(1)
@pytest.mark.parametrize("nanny", [False, True], ids=["worker", "nanny"])
def test_a_worker_or_its_nanny_is_killed(
    nanny: bool, number: int, slides: Path, undisturbed: dict[str, str], processes: Processes, tmp_path: Path
) -> None:
    while len(processes.workers) < 2:
        processes.add_worker()
    processes.wait()
    store = tmp_path / "s.zarr"
    reports: list[ExtractionReport] = []
    thread = threading.Thread(target=lambda: reports.append(run(slides, store, processes.client)))
    thread.start()
    wait_for_files(store, moment(number, 2 + nanny, len(undisturbed)), thread)
    processes.kill(number % 2, nanny=nanny)
    thread.join(120)
    assert not thread.is_alive()
    # The run outlives its workers.
    assert reports[0].is_complete, reports[0].failures
    assert_same(store, undisturbed)
    assert {o.state for o in run(slides, store, processes.client).outcomes} == {"present"}
    assert_same(store, undisturbed)
    shutil.rmtree(store)
