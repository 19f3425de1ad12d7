"""Clusters: the same bytes on any number of workers, few and small tasks, and lost workers that stop nobody else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dask.utils import key_split
from distributed import Client, LocalCluster

from msdask.engines.dask_cluster import ClusterEngine
from msdask.engines.in_flight import run_jobs
from msdask.engines.open_engine import open_engine
from msdask.engines.workers import BLOCKS_PER_THREAD
from msdask.errors import MsdaskError
from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport
from msdask.sample.slides import SampleSlide, make_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.cluster_tools import dask_processes, faulty_cluster
from tests.tools.store_tools import target, tree, use_small_blocks

REPOSITORY = Path(__file__).resolve().parents[2]
GRID = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.5)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    return make_slide(tmp_path_factory.mktemp("sample") / "a.svs", size=(1280, 1536), seed=20)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes with the faults of `cluster_tools`."""
    with faulty_cluster(2) as found:
        yield found


def cohort(sample: SampleSlide, folder: Path, *names: str) -> Path:
    """A folder with copies of one slide under these names."""
    folder.mkdir()
    for name in names:
        shutil.copy(sample.path, folder / name)
    return folder


def run(slides: Path, store: Path, **options: Any) -> ExtractionReport:
    return extract(slides, store, GRID, progress=False, **options)


def states(report: ExtractionReport) -> dict[str, str]:
    return {o.slide_id: o.state for o in report.outcomes}


def slow_block(job: float, block: int, **options: Any) -> int:
    """A block that takes its time."""
    threading.Event().wait(job)
    return 1


@contextmanager
def adapting(minimum: int, maximum: int, **options: Any) -> Iterator[Client]:
    """A cluster that dask's adaptive scaling makes larger and smaller, of threads of this process."""
    loopback = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": ":0"}
    with (
        LocalCluster(n_workers=minimum, threads_per_worker=1, processes=False, **loopback) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=minimum, maximum=maximum, interval="200ms", **options)
        yield client


def test_a_cluster_that_adapts_from_nothing_is_given_work(sample: SampleSlide, tmp_path: Path) -> None:
    with adapting(0, 1) as client:
        report = run(cohort(sample, tmp_path / "slides", "a.svs"), tmp_path / "s.zarr", client=client)
    assert report.is_complete, report.failures
    run(tmp_path / "slides", tmp_path / "t.zarr")
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [100, 2], ids=["few large slides", "many small slides"])
def test_a_cluster_that_adapts_grows_with_the_work_that_is_left(blocks: int) -> None:
    """Blocks of 0.1 s: three of them would never ask for a second worker, where the target is 2 s."""
    jobs, workers = 200 // blocks, [0]
    with adapting(1, 3, target_duration="2s") as client, open_engine(client, jobs=jobs) as engine:

        def work(order: int, job: float) -> None:
            with engine.job(order) as trace:
                engine.run("extract: job", trace, slow_block, job, range(blocks), done)

        def done(block: int, patches: int) -> None:
            workers.append(engine.facts()["workers"])

        run_jobs(engine, [0.1] * jobs, work)
    assert max(workers) == 3


# --- what goes over the wire ------------------------------------------------------------------------------------------


def test_tasks_are_few_small_named_and_bounded(
    sample: SampleSlide, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "c.svs", "d.svs", "e.svs")
    submit = client.submit
    sent: list[tuple[str, int, set[str], int]] = []
    futures: list[Any] = []
    results: list[int] = []
    most = 0
    gathered = ClusterEngine._result

    def measured(engine: Any, *args: Any, **options: Any) -> Any:
        results.append(len(pickle.dumps(value := gathered(engine, *args, **options))))
        return value

    def recorded(function: Any, **options: Any) -> Any:
        nonlocal most
        future = submit(function, **options)
        sent.append((options["key"], len(pickle.dumps(function)), set(options["workers"]), options["priority"]))
        futures.append(future)
        most = max(most, sum(not f.done() for f in futures if f.key.startswith("extract")))
        return future

    monkeypatch.setattr(client, "submit", recorded)
    monkeypatch.setattr(ClusterEngine, "_result", measured)
    report = run(slides, tmp_path / "s.zarr", client=client)
    assert report.is_complete, report.failures
    blocks = sum(-(-report.outcomes[0].counts["selected"] // 16) for _ in range(5))
    assert blocks >= 5 * 3
    assert len(sent) == blocks + 2 * 5
    assert max(size for _, size, _, _ in sent) < 10_000
    assert len(results) == len(sent)
    assert max(results) < 10_000
    assert most <= 2 * BLOCKS_PER_THREAD
    assert {key_split(key) for key, *_ in sent} == {"begin", "extract", "commit"}
    assert sum("/grid-20x-64/c.svs/" in key for key, *_ in sent) == blocks // 5
    assert {priority for key, *_, priority in sent if "c.svs" in key} == {-2}


def test_what_travels_does_not_grow_with_the_slide(sample: SampleSlide, tmp_path: Path) -> None:
    """A block's task of a slide of many patches is as large as of a few."""
    from msdask.extraction.slide_job import begin_set
    from msdask.selection.select import grid
    from msdask.slides.slide import open_slide

    sizes = []
    for size in (256, 32):
        slide = open_slide(sample.path)
        table = grid(slide, magnification=10, patch_size=size)
        job = begin_set(slide, table, target(tmp_path / f"{size}"))
        sizes.append((table.sizes["patch"], len(pickle.dumps(job.slide)) + len(pickle.dumps(job.cutter))))
    assert sizes[1][0] > 30 * sizes[0][0]
    assert abs(sizes[1][1] - sizes[0][1]) < 200


# --- lost workers -----------------------------------------------------------------------------------------------------


def test_a_lost_worker_changes_nothing_but_the_tries(sample: SampleSlide, client: Client, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "once.svs")
    report = run(slides, tmp_path / "s.zarr", client=client)
    assert states(report) == {"a.svs": "complete", "once.svs": "complete"}, report.failures
    assert {o.slide_id: o.tries for o in report.outcomes}["once.svs"] == 2
    (slides / "once.svs.once").unlink()
    run(slides, tmp_path / "t.zarr")
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_a_slide_that_kills_its_workers_is_set_aside_and_the_others_finish(
    sample: SampleSlide, client: Client, tmp_path: Path
) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b-exit.svs", "c.svs")
    report = run(slides, tmp_path / "s.zarr", client=client, tries=2)
    assert states(report) == {"a.svs": "complete", "b-exit.svs": "failed", "c.svs": "complete"}
    assert "'extract: grid-20x-64/b-exit.svs/1' was given up after 2 tries" in report.failures["b-exit.svs"]
    assert "the worker died each time it ran (tcp://127.0.0.1:" in report.failures["b-exit.svs"]


@pytest.mark.slow
def test_slides_that_kill_or_hang_their_workers_are_set_aside_and_the_others_finish(
    sample: SampleSlide, client: Client, tmp_path: Path
) -> None:
    names = ("a.svs", "b-exit.svs", "c.svs", "d-hang.svs", "e-memory.svs", "f-unopenable.svs", "g.svs")
    slides = cohort(sample, tmp_path / "slides", *names)
    report = run(slides, tmp_path / "s.zarr", client=client, tries=2, timeout=4)
    good = ("a.svs", "c.svs", "g.svs")
    assert states(report) == {name: "complete" if name in good else "failed" for name in names}
    assert "took longer than timeout=4 s" in report.failures["d-hang.svs"]
    assert "more memory" in report.failures["e-memory.svs"]
    assert "'begin: f-unopenable.svs' was given up" in report.failures["f-unopenable.svs"]
    assert {o.tries for o in report.outcomes if o.state == "failed"} == {2}
    assert all(worker.startswith("tcp://127.0.0.1:") for o in report.outcomes for worker in o.workers)
    assert PatchStore(tmp_path / "s.zarr")["grid-20x-64"].slides == list(good)
    renamed = cohort(sample, tmp_path / "good", *good)
    run(renamed, tmp_path / "t.zarr")
    for name in good:
        stored = tree(tmp_path / "s.zarr" / "grid-20x-64" / name)
        undisturbed = tree(tmp_path / "t.zarr" / "grid-20x-64" / name)
        # The path of the slide, which is another one here, stands in its document.
        assert {k: v for k, v in stored.items() if k != "zarr.json"} == {
            k: v for k, v in undisturbed.items() if k != "zarr.json"
        }


def test_an_error_of_a_slide_is_not_tried_again(sample: SampleSlide, client: Client, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "recursion.svs")
    os.truncate(slides / "b.svs", 1000)
    report = run(slides, tmp_path / "s.zarr", client=client)
    assert states(report) == {"a.svs": "complete", "b.svs": "failed", "recursion.svs": "failed"}
    # Its traceback is too deep to travel.
    assert "RecursionError" in report.failures["recursion.svs"]
    assert {o.tries for o in report.outcomes} == {1}


def test_ctrl_c_on_a_cluster_leaves_what_a_rerun_finishes(
    sample: SampleSlide, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdask.engines import in_flight

    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "c.svs", "d.svs")
    original, calls = in_flight.wait, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(in_flight, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(slides, tmp_path / "s.zarr", client=client)
    assert run(slides, tmp_path / "s.zarr", client=client).is_complete
    run(slides, tmp_path / "t.zarr")
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


# --- determinism ------------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_threads_or_workers(sample: SampleSlide, client: Client, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "c.svs")
    for threads in (1, 2, 8):
        assert run(slides, tmp_path / f"{threads}.zarr", threads=threads).is_complete
    assert run(slides, tmp_path / "cluster.zarr", client=client).is_complete
    expected = tree(tmp_path / "1.zarr")
    assert tree(tmp_path / "2.zarr") == tree(tmp_path / "8.zarr") == tree(tmp_path / "cluster.zarr") == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bytes_do_not_depend_on_the_number_of_workers(workers: int, sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "c.svs")
    run(slides, tmp_path / "threads.zarr", threads=1)
    with faulty_cluster(workers) as client:
        report = run(slides, tmp_path / "s.zarr", client=client)
    assert report.engine["workers"] == workers
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "threads.zarr")


# --- real processes over TCP ------------------------------------------------------------------------------------------


def msdask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from msdask.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, timeout=120, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_runs_on_a_scheduler_that_was_started_apart(sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs")
    arguments = ["-m", "20", "-s", "64", "-x", "0.5", "-q", "--report", tmp_path / "run.json"]
    with dask_processes(tmp_path, 2) as processes:
        ended = msdask("extract", slides, "-o", tmp_path / "s.zarr", *arguments, "--scheduler", processes.address)
    assert ended.returncode == 0, ended.stderr
    assert "dashboard: http://127.0.0.1" in ended.stderr
    run(slides, tmp_path / "t.zarr")
    names = ("image", "measured", "keep", "x0")
    for name in names:
        where = Path("grid-20x-64", "b.svs", name)
        assert tree(tmp_path / "s.zarr" / where) == tree(tmp_path / "t.zarr" / where)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["engine"] == {"kind": "cluster", "scheduler": processes.address, "workers": 2, "threads": 2}


def test_a_scheduler_that_is_not_there_is_a_clear_error(sample: SampleSlide, tmp_path: Path) -> None:
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        from msdask.cli.terminal import open_client

        with (
            pytest.raises(MsdaskError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"),
            open_client("tcp://127.0.0.1:9"),
        ):
            pass


# --- the recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cores"), [("slurm", "-c 16|--cpus-per-task=16"), ("pbs", "ncpus=16")])
def test_the_job_scripts_of_the_recipes_are_what_they_say(
    kind: str, cores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask
    import yaml

    jobqueue = pytest.importorskip("dask_jobqueue")
    recipe = yaml.safe_load((REPOSITORY / "docs" / "cluster" / f"{kind}.yaml").read_text())
    defaults = set(dask.config.get(f"jobqueue.{kind}"))
    assert set(recipe["jobqueue"][kind]) <= defaults | {"resource-spec"}
    monkeypatch.chdir(tmp_path)  # logs
    made = {"slurm": jobqueue.SLURMCluster, "pbs": jobqueue.PBSCluster}[kind]
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    merged = dask.config.merge(dask.config.config, recipe)  # as a file in ~/.config/dask is
    with dask.config.set(merged), made(scheduler_options=options) as cluster:
        script = cluster.job_script()
    assert any(text in script for text in cores.split("|"))
    assert "--nthreads 1 " in script
    assert "--nworkers 16 " in script
    assert "--memory-limit 2.79GiB" in script
    assert "--lifetime 7h50m" in script
    assert "export OMP_NUM_THREADS=1" in script


def test_the_recipe_for_kubernetes_has_what_its_cluster_takes() -> None:
    import yaml

    recipe = yaml.safe_load((REPOSITORY / "docs" / "cluster" / "kubernetes.yaml").read_text())
    # Parameters of dask_kubernetes.operator.KubeCluster 2026.3.
    known = {"name", "namespace", "image", "n_workers", "resources", "env", "worker_command", "idle_timeout"}
    assert set(recipe) <= known
    assert recipe["worker_command"][:3] == ["dask-worker", "--nthreads", "1"]
    assert all(isinstance(value, str) for value in recipe["env"].values())
