"""The rule that chooses processes and threads, for machines that are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from msdask.engines.engine import JobTrace
from msdask.engines.machine import Machine, free_in_container, this_machine
from msdask.engines.plan import MOST_THREADS, Work, choose_plan, threads_of_task, worker_memory
from msdask.engines.task_queue import Batch, Task, TaskQueue

GIB = 2**30
HUGE = Work(slides=1, seconds=900)
COHORT = Work(slides=32, seconds=1500)
MANY_SMALL = Work(slides=500, seconds=75)
FEW_SMALL = Work(slides=3, seconds=0.6)


@pytest.mark.parametrize(
    ("cores", "gib", "work", "expected"),
    [
        (1, 64, COHORT, ("threads", 1, 1)),
        (2, 64, Work(slides=7, seconds=300), ("threads", 1, 2)),
        # beside each other, what begins and ends them waits for no lock
        (2, 64, Work(slides=8, seconds=300), ("processes", 2, 2)),
        (2, 64, COHORT, ("processes", 2, 2)),
        # what is done for a small slide holds the lock
        (2, 64, MANY_SMALL, ("processes", 2, 2)),
        (1, 64, MANY_SMALL, ("threads", 1, 1)),
        (2, 64, FEW_SMALL, ("threads", 1, 1)),
        (4, 16, HUGE, ("processes", 4, 4)),
        (4, 16, COHORT, ("processes", 4, 4)),
        (16, 64, HUGE, ("processes", 16, 4)),
        (16, 64, COHORT, ("processes", 16, 4)),
        (16, 64, MANY_SMALL, ("processes", 16, 4)),
        (64, 256, HUGE, ("processes", 64, 4)),
        (64, 256, COHORT, ("processes", 64, 4)),
        # a process for each 2 s of work is enough, each with more threads
        (64, 256, MANY_SMALL, ("processes", 38, 4)),
        # less than starting them would cost
        (64, 256, FEW_SMALL, ("threads", 1, 1)),
        # memory for fewer than there are cores
        (16, 8, HUGE, ("processes", 7, 4)),
        (64, 8, COHORT, ("processes", 7, 4)),
        (16, 1, COHORT, ("threads", 1, 4)),
    ],
)
def test_the_plan_of_a_machine(cores: int, gib: int, work: Work, expected: tuple[str, int, int]) -> None:
    plan = choose_plan(Machine(cores, gib * GIB), work)
    assert (plan.kind, plan.workers, plan.threads) == expected
    assert f"{cores} cores, {gib}.0 GiB of memory free, {work.slides} slides" in str(plan)


def test_processes_that_are_at_hand_are_worth_less_work() -> None:
    tiny = Work(slides=100, seconds=7)
    first, later = (choose_plan(Machine(2, 16 * GIB), tiny, at_hand=at_hand) for at_hand in (False, True))
    assert (first.kind, first.threads) == ("threads", 1), "of small slides, two threads take longer than one"
    assert (later.kind, later.workers) == ("processes", 2)
    assert choose_plan(Machine(64, 256 * GIB), MANY_SMALL, at_hand=True).workers == 64
    assert choose_plan(Machine(64, 256 * GIB), Work(8, 1.5), at_hand=True).kind == "threads"
    assert choose_plan(Machine(2, 16 * GIB), HUGE, at_hand=True).kind == "threads"


@pytest.mark.parametrize("cores", [2, 4, 16, 64])
@pytest.mark.parametrize("gib", [4, 16, 64, 512])
@pytest.mark.parametrize("patch_bytes", [150_528, 12 * 2**20])
def test_processes_never_exceed_memory_or_cores(cores: int, gib: int, patch_bytes: int) -> None:
    plan = choose_plan(Machine(cores, gib * GIB), Work(32, 1500, patch_bytes))
    assert plan.workers <= cores
    assert plan.kind == "threads" or plan.workers * worker_memory(patch_bytes) <= 0.8 * gib * GIB


def test_larger_patches_need_more_memory_a_process() -> None:
    small, large = (choose_plan(Machine(64, 32 * GIB), Work(32, 1500, size)).workers for size in (150_528, 48 * 2**20))
    assert large < small


def test_a_time_limit_needs_processes() -> None:
    assert choose_plan(Machine(2, 16 * GIB), FEW_SMALL, must_end=True).kind == "processes"
    assert choose_plan(Machine(1, GIB // 2), FEW_SMALL, must_end=True).workers == 1


def test_what_can_be_done_in_this_process_only_stays_there() -> None:
    plan = choose_plan(Machine(16, 64 * GIB, "the reader 'x' is in no module"), COHORT)
    assert plan.kind == "threads"
    assert plan.reason.endswith("the reader 'x' is in no module")


@pytest.mark.parametrize("cores", [4, 16, 64])
@pytest.mark.parametrize("tasks", [1, 3, 5, 16, 100])
def test_threads_share_the_cores(cores: int, tasks: int) -> None:
    at_once = min(cores, tasks)
    threads = threads_of_task(cores, at_once, MOST_THREADS)
    assert threads * at_once <= cores
    assert threads == MOST_THREADS or (threads + 1) * at_once > cores, "no core is left that each could have"


# --- what the queue makes of it ---------------------------------------------------------------------------------------


def tasks_of(order: int, count: int) -> list[Task]:
    batch = Batch(JobTrace(order))
    return [Task(f"{order}/{block}", batch, len, ()) for block in range(count)]


@pytest.mark.parametrize("cores", [4, 16, 64])
def test_one_huge_slide_keeps_every_core_busy(cores: int) -> None:
    found = TaskQueue(cores, cores, MOST_THREADS)
    found.put(tasks_of(0, 3 * cores))
    taken = [found.take(worker) for worker in range(cores)]
    assert [threads for _, threads in filter(None, taken)] == [1] * cores


@pytest.mark.parametrize(("cores", "blocks", "threads"), [(16, 5, 3), (16, 8, 2), (64, 5, 4), (4, 2, 2), (4, 1, 4)])
def test_a_slide_of_few_blocks_has_several_threads_for_each(cores: int, blocks: int, threads: int) -> None:
    found = TaskQueue(cores, cores, MOST_THREADS)
    found.put(tasks_of(0, blocks))
    taken = [found.take(worker) for worker in range(blocks)]
    assert [used for _, used in filter(None, taken)] == [threads] * blocks


@pytest.mark.parametrize("cores", [4, 16, 64])
def test_many_small_slides_keep_every_core_busy(cores: int) -> None:
    found = TaskQueue(cores, cores, MOST_THREADS)
    for order in range(2 * cores):  # so many are in flight
        found.put(tasks_of(order, 1))
    taken = [found.take(worker) for worker in range(cores)]
    assert sorted(task.batch.trace.order for task, _ in filter(None, taken)) == list(range(cores))
    assert {threads for _, threads in filter(None, taken)} == {1}


def test_few_processes_use_all_cores_by_their_threads() -> None:
    """Where memory is for 4 processes on 16 cores, each has 4 threads, however many blocks wait."""
    found = TaskQueue(16, 4, MOST_THREADS)
    found.put(tasks_of(0, 100))
    assert [found.take(worker)[1] for worker in range(4)] == [4, 4, 4, 4]  # type: ignore[index]


def taken_by(found: TaskQueue, worker: int) -> Task:
    taken = found.take(worker)
    assert taken is not None
    return taken[0]


def test_a_worker_stays_with_its_slide_then_begins_another_then_helps() -> None:
    found = TaskQueue(4, 4, 1)
    found.put(tasks_of(0, 3))
    first = taken_by(found, 0)
    found.put(tasks_of(1, 2))
    assert taken_by(found, 1).batch.trace.order == 1, "a slide that nobody has begun goes before helping"
    found.done(first)
    assert taken_by(found, 0).batch.trace.order == 0, "its own slide"
    assert taken_by(found, 2).batch.trace.order == 0, "nothing is new: it helps with the first"


def test_a_task_that_is_alone_runs_beside_nothing() -> None:
    found = TaskQueue(4, 4, 4)
    (big,) = tasks_of(0, 1)
    big.is_alone = True
    found.put(tasks_of(1, 2))
    beside = taken_by(found, 0)
    found.put([big])
    assert found._next(1) is None, "it waits for what runs"
    found.done(beside)
    assert taken_by(found, 1) is big
    assert found._next(2) is None, "what waits waits for it"
    found.done(big)
    assert taken_by(found, 2).batch.trace.order == 1


def test_who_waits_gets_the_reason_of_the_end() -> None:
    found = TaskQueue(4, 4, 4)
    (task,) = tasks_of(0, 1)
    found.put([task])
    reason = ValueError("over")
    found.end(reason)
    assert task.batch.back.get() == (task, reason)
    assert found.take(0) is None
    with pytest.raises(ValueError, match="over"):
        found.put([task])


# --- the machine ------------------------------------------------------------------------------------------------------


def test_this_machine_has_cores_and_memory() -> None:
    found = this_machine()
    assert found.cores >= 1
    assert found.memory > 0


def test_a_container_s_memory_is_its_limit_without_what_is_taken(tmp_path: Path) -> None:
    assert free_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 5000\n")
    assert free_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("8000\n")
    assert free_in_container(tmp_path) == 7000
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("6000\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 500\ntotal_rss 2000\n")
    assert free_in_container(tmp_path) == 4000
