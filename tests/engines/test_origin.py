"""How worker processes are started: forked from one of one thread, which a run leaves to the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from msdask.engines.origin import kept_origin
from msdask.engines.plan import nothing
from msdask.engines.processes import ProcessEngine
from msdask.extraction.cohort_work import setup_of_workers
from tests.tools.cluster_tools import wait_until
from tests.tools.process_tools import children, killed


def start_a_thread() -> None:
    """What makes forking unsafe: a thread of whichever library."""
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


@pytest.fixture
def _nothing_kept() -> None:
    """As if no run had been before."""
    if (origin := kept_origin(nothing)) is not None:
        origin.end()


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
@pytest.mark.parametrize(("prepare", "forks"), [(setup_of_workers(), True), (start_a_thread, False)])
def test_processes_are_forked_from_one_of_one_thread_only(prepare: Any, forks: bool) -> None:
    with closing(ProcessEngine(2, prepare=prepare)) as engine, engine.job(0) as trace:
        parent = engine.call("step: x", trace, os.getppid)
        assert (parent != os.getpid()) == forks
        assert engine.call("step: x", trace, threading.active_count) == (1 if forks else 2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_the_process_that_they_are_forked_from_may_die(tmp_path: Path) -> None:
    with closing(ProcessEngine(1)) as engine, engine.job(0) as trace:
        origin = psutil.Process(engine.call("step: x", trace, os.getppid))
        origin.kill()
        origin.wait(30)
        assert engine.call("step: x", trace, abs, -7) == 7, "its workers go on"
        assert engine.call("step: x", trace, killed, tmp_path / "mark") == "done"
        assert engine.call("step: x", trace, os.getppid) not in (origin.pid, os.getpid())


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_run_leaves_the_process_that_workers_are_forked_from_to_the_next_one() -> None:
    origins = []
    for _ in range(2):
        with closing(ProcessEngine(2)) as engine, engine.job(0) as trace:
            origins.append(engine.call("step: x", trace, os.getppid))
    assert origins[0] == origins[1]
    pair = [ProcessEngine(1), ProcessEngine(1)]
    for engine in pair:
        with engine.job(0) as trace:
            origins.append(engine.call("step: x", trace, os.getppid))
    assert origins[2] != origins[3], "one at a time has it"
    for engine in pair:
        engine.close()
    kept = kept_origin(nothing)
    assert kept is not None
    kept.keep()
    assert kept_origin(setup_of_workers()) is None, "what is asked for is another one, which the first makes room for"
    assert not kept.is_alive


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_one_that_was_kept_and_has_died_is_replaced() -> None:
    with closing(ProcessEngine(1)) as engine, engine.job(0) as trace:
        origin = psutil.Process(engine.call("step: x", trace, os.getppid))
    origin.kill()
    wait_until(lambda: origin.status() == psutil.STATUS_ZOMBIE)
    with closing(ProcessEngine(1)) as engine, engine.job(0) as trace:
        assert engine.call("step: x", trace, os.getppid) not in (origin.pid, os.getpid())


FORKS_ITSELF = """
import os, sys, threading
from msdask.engines.origin import fork_from_here, have_one_thread
have_one_thread()
from msdask.engines.plan import nothing
from msdask.engines.processes import ProcessEngine
from msdask.extraction.cohort_work import setup_of_workers
if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("not written twice", end=" ")
is_forked = fork_from_here(setup_of_workers())
engine = ProcessEngine(1, prepare=setup_of_workers())
with engine.job(0) as trace:
    origin = engine.call("step: x", trace, os.getppid)
engine.close()
with open(f"/proc/{origin}/cmdline") as file:
    print(is_forked, sys.argv[-1] in file.read())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
@pytest.mark.parametrize(("word", "is_forked"), [("alone", True), ("thread", False)])
def test_a_program_of_one_thread_may_fork_it_from_itself(word: str, is_forked: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", FORKS_ITSELF, word], capture_output=True, text=True, timeout=120)
    assert ran.stdout == f"not written twice {is_forked} {is_forked}\n", ran.stderr


FAILS = """
import os
from msdask.engines import origin
from msdask.engines.plan import nothing
from msdask.engines.processes import ProcessEngine
def broken(handle):
    raise ValueError("what went wrong")
origin.have_one_thread()
origin.fork_on_request = broken
print(origin._Forked(nothing).ended(), origin.fork_from_here(nothing))
engine = ProcessEngine(1, prepare=nothing)
with engine.job(0) as trace:
    print(engine.call("step: x", trace, abs, -7))
engine.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_one_that_fails_says_why_and_another_is_started_instead() -> None:
    ran = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "1 False\n7\n", ran.stderr
    assert ran.stderr.count("ValueError: what went wrong") == 2
    assert "in broken" in ran.stderr


def test_processes_are_not_made_before_the_run_and_end_with_it() -> None:
    before = children()
    with closing(ProcessEngine(3)) as engine:
        assert engine.facts()["workers"] == 3
    assert children() <= before
