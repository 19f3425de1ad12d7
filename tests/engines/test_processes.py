"""Worker processes of this machine: what holds for them alone, and what is promised of workers that are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from msdask.engines import in_flight, processes
from msdask.engines.engine import Stopped
from msdask.engines.open_engine import open_engine
from msdask.engines.plan import Work
from msdask.engines.processes import ProcessEngine
from msdask.errors import MsdaskError, SpecError, WorkerLostError
from msdask.extraction.cohort import extract
from msdask.extraction.outcome import ExtractionReport
from msdask.sample.slides import SampleSlide, make_slide
from msdask.spec import ExtractionSpec
from tests.tools.cluster_tools import wait_until
from tests.tools.process_tools import children, killed, use_faulty_processes
from tests.tools.store_tools import tree, use_small_blocks

REPOSITORY = Path(__file__).resolve().parents[2]
GRID = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.5)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    use_faulty_processes(monkeypatch)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    return make_slide(tmp_path_factory.mktemp("sample") / "a.svs", size=(1280, 1536), seed=20)


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


def in_order(job: list[int], block: int, **options: Any) -> int:
    """What a block was given to do its parts on."""
    return 10 * options.get("parts", 1) + len(options)


# --- what is asked and told -------------------------------------------------------------------------------------------


def test_a_block_has_the_threads_that_its_neighbours_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CPU_COUNT", 4)
    told: list[tuple[int, int]] = []
    with open_engine(workers=1, jobs=1) as engine, engine.job(0) as trace:
        engine.run("step: blocks", trace, in_order, [], [7], lambda *block: told.append(block))
    assert told == [(7, 82)], "alone on 4 cores: a pool, and 8 parts"


def test_what_it_ran_on_is_told(sample: SampleSlide, tmp_path: Path) -> None:
    report = run(cohort(sample, tmp_path / "slides", "a.svs"), tmp_path / "s.zarr", workers=2, threads=3)
    assert report.engine == {"kind": "processes", "workers": 2, "threads": 3}
    assert all(worker.startswith("process ") for o in report.outcomes for worker in o.workers)


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (3, None), (1, 4), (2, 2)])
def test_bytes_do_not_depend_on_processes_or_their_threads(
    workers: int, threads: int | None, sample: SampleSlide, tmp_path: Path
) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs")
    assert run(slides, tmp_path / "s.zarr", workers=workers, threads=threads).is_complete
    run(slides, tmp_path / "t.zarr", threads=1)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_what_cannot_travel_is_an_error_of_its_task() -> None:
    with open_engine(workers=1, jobs=1) as engine, engine.job(0) as trace:
        with pytest.raises(Exception, match="pickle"):
            engine.call("step: x", trace, len, threading.Lock())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pickle"):
            engine.call("step: x", trace, threading.Lock)
        assert engine.call("step: x", trace, abs, -7) == 7


def refuse() -> None:
    raise ModuleNotFoundError("No module named 'absent'")


def test_processes_that_cannot_be_made_ready_end_the_run_with_the_reason() -> None:
    with (
        open_engine(workers=2, jobs=1, work=Work(prepare=refuse)) as engine,
        engine.job(0) as trace,
        pytest.raises(ModuleNotFoundError, match="absent"),
    ):
        engine.call("step: x", trace, abs, -7)


def test_processes_that_die_at_their_start_end_the_run_with_the_reason() -> None:
    with (
        open_engine(workers=2, jobs=1, work=Work(prepare=os.abort)) as engine,
        engine.job(0) as trace,
        pytest.raises(MsdaskError, match="could not be started: it was ended by SIGABRT"),
    ):
        engine.call("step: x", trace, abs, -7)


# --- lost workers -----------------------------------------------------------------------------------------------------


def test_a_lost_process_changes_nothing_but_the_tries(sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "once.svs")
    report = run(slides, tmp_path / "s.zarr", workers=2)
    assert states(report) == {"a.svs": "complete", "once.svs": "complete"}, report.failures
    assert {o.slide_id: o.tries for o in report.outcomes} == {"a.svs": 1, "once.svs": 2}
    (slides / "once.svs.once").unlink()
    run(slides, tmp_path / "t.zarr", threads=1)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_slides_that_kill_or_hang_their_processes_are_set_aside_and_the_others_finish(
    sample: SampleSlide, tmp_path: Path
) -> None:
    names = ("a.svs", "b-exit.svs", "c.svs", "d-hang.svs", "e-memory.svs", "f-unopenable.svs", "g.svs")
    slides = cohort(sample, tmp_path / "slides", *names)
    report = run(slides, tmp_path / "s.zarr", workers=2, tries=2, timeout=10)
    good = ("a.svs", "c.svs", "g.svs")
    assert states(report) == {name: "complete" if name in good else "failed" for name in names}, report.failures
    failed = report.failures
    assert "'extract: grid-20x-64/b-exit.svs/1' was given up after 2 tries" in failed["b-exit.svs"]
    assert "the worker ended with code 3 each time it ran (process " in failed["b-exit.svs"]
    assert "took longer than timeout=10 s" in failed["d-hang.svs"]
    assert "more memory" in failed["e-memory.svs"]
    assert "'begin: f-unopenable.svs' was given up" in failed["f-unopenable.svs"]
    assert {o.slide_id: o.tries for o in report.outcomes} == {name: 1 if name in good else 2 for name in names}


def test_a_time_limit_without_workers_is_kept_by_processes(sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b-hang.svs")
    report = run(slides, tmp_path / "s.zarr", tries=1, timeout=8)
    assert states(report) == {"a.svs": "complete", "b-hang.svs": "failed"}
    assert report.engine["kind"] == "processes"


def test_an_error_of_a_slide_is_not_tried_again(sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "recursion.svs")
    os.truncate(slides / "b.svs", 1000)
    report = run(slides, tmp_path / "s.zarr", workers=2)
    assert states(report) == {"a.svs": "complete", "b.svs": "failed", "recursion.svs": "failed"}
    assert "RecursionError" in report.failures["recursion.svs"]
    assert {o.tries for o in report.outcomes} == {1}


def test_what_was_killed_is_tried_again_and_an_idle_process_that_dies_costs_nothing(tmp_path: Path) -> None:
    warned: list[str] = []
    with closing(ProcessEngine(1)) as engine, engine.job(0) as trace:
        trace.warn = warned.append
        assert engine.call("step: x", trace, killed, tmp_path / "mark") == "done"
        assert "'step: x' was lost with its worker, which was ended by SIGKILL: it is tried again" in warned[0]
        (idle,) = engine._processes
        os.kill(engine.call("step: pid", trace, os.getpid), signal.SIGKILL)
        wait_until(lambda: not idle.is_alive)
        assert engine.call("step: x", trace, abs, -7) == 7
    assert len(warned) == 1
    assert trace.tries == 2


def test_a_task_is_tried_as_often_as_was_said() -> None:
    with (
        open_engine(workers=1, jobs=1, tries=3) as engine,
        engine.job(0) as trace,
        pytest.raises(WorkerLostError, match="'step: x' was given up after 3 tries: the worker was ended by SIGABRT"),
    ):
        engine.call("step: x", trace, os.abort)
    assert trace.tries == 3


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_a_rerun_finishes(
    sample: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs", "c.svs", "d.svs")
    original, calls = in_flight.wait, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    before = children()
    with monkeypatch.context() as patch:
        patch.setattr(in_flight, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(slides, tmp_path / "s.zarr", workers=2)
    assert children() <= before
    assert run(slides, tmp_path / "s.zarr", workers=2).is_complete
    run(slides, tmp_path / "t.zarr", threads=1)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_what_hangs_when_the_run_is_stopped_is_ended_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    engine = ProcessEngine(1)
    with engine.job(0) as trace:
        assert engine.call("step: x", trace, abs, -7) == 7
        threading.Timer(0.2, engine.stop).start()
        with pytest.raises(Stopped):
            engine.call("step: x", trace, time.sleep, 3600)
    engine.close()


# --- programs that know nothing of processes --------------------------------------------------------------------------

PROGRAM = """
import sys
import msdask as ms
print("main runs", flush=True)
spec = ms.ExtractionSpec("grid", (20.0,), 64, min_tissue=0.5)
report = ms.extract(sys.argv[1], sys.argv[2], spec, progress=False, workers=2)
print(report.summary(), report.engine["kind"])
"""


@pytest.mark.parametrize("way", ["script", "stdin", "-c"])
def test_a_program_without_a_guard_runs_once(way: str, sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    first = {"script": [str(script)], "stdin": ["-"], "-c": ["-c", PROGRAM]}[way]
    ended = subprocess.run(
        [sys.executable, *first, str(slides), str(tmp_path / "s.zarr")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        input=PROGRAM if way == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("main runs") == 1
    assert "2 complete" in ended.stdout
    assert "processes" in ended.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_program(
    sent: signal.Signals, sample: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = cohort(sample, tmp_path / "slides", *(f"{i}.svs" for i in range(30)))
    script = tmp_path / "program.py"
    # Events come one at a time: the run lasts until the signal comes, however busy the machine is.
    slow = PROGRAM.replace("workers=2", "workers=2, listeners=[lambda event: time.sleep(0.05)]")
    # A shell has its background jobs, and so what they start, ignore Ctrl-C.
    hears = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script.write_text(f"{hears}{slow}")
    program = subprocess.Popen(
        [sys.executable, str(script), str(slides), str(tmp_path / "s.zarr")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list((tmp_path / "s.zarr").glob("grid-*/*/zarr.json"))) >= 1)
    workers = psutil.Process(program.pid).children(recursive=True)
    assert len(workers) >= 2
    program.send_signal(sent)
    _, said = program.communicate(timeout=60)
    assert program.returncode != 0
    assert ("KeyboardInterrupt" in said) == (sent == signal.SIGINT)
    assert "worker_main" not in said, "the workers say nothing of it"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    monkeypatch.undo()  # the program knows of no small blocks
    assert run(slides, tmp_path / "s.zarr", threads=2).is_complete


def test_the_command_line_starts_workers_of_its_own(sample: SampleSlide, tmp_path: Path) -> None:
    slides = cohort(sample, tmp_path / "slides", "a.svs", "b.svs")
    code = "import sys; from msdask.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "extract", slides, "-o", tmp_path / "s.zarr", "-m", "20", "-s", "64"]
    options = ["-x", "0.5", "-q", "--workers", "2", "--report", tmp_path / "run.json"]
    ended = subprocess.run(
        list(map(str, [*command, *options])), cwd=REPOSITORY, timeout=120, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 complete" in ended.stdout
    assert json.loads((tmp_path / "run.json").read_text())["engine"]["kind"] == "processes"


def test_where_no_process_can_be_started_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with (
        pytest.raises(SpecError, match=r"workers=2: this program has no Python interpreter"),
        open_engine(workers=2, jobs=1),
    ):
        pass
    with pytest.raises(SpecError, match=r"timeout=5 needs worker processes"), open_engine(timeout=5, jobs=1):
        pass
    with open_engine(jobs=1) as engine:
        assert engine.facts()["kind"] == "threads"
