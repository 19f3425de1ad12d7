"""The bookkeeping of a cluster's workers: which job is near which, how much is out, and who is alone."""

from __future__ import annotations

import threading

import pytest

from msdask.engines.engine import JobTrace, Stopped
from msdask.engines.workers import BLOCKS_PER_THREAD, MOST_AHEAD, Workers
from tests.tools.cluster_tools import wait_until


def cluster(workers: int, *, jobs: int = 100, threads: int = 1) -> Workers:
    made = Workers(jobs)
    made.update({f"w{i}": threads for i in range(workers)})
    return made


@pytest.mark.parametrize(
    ("workers", "jobs", "spread", "in_flight"),
    [(1, 100, 1, 2), (2, 100, 2, 2), (8, 100, 2, 8), (8, 1, 8, 2), (8, 4, 4, 4), (1000, 10**6, 16, 126), (0, 5, 0, 2)],
)
def test_a_job_is_near_few_workers_and_all_workers_have_jobs(
    workers: int, jobs: int, spread: int, in_flight: int
) -> None:
    found = cluster(workers, jobs=jobs)
    assert (found.spread, found.jobs_in_flight) == (spread, in_flight)
    assert workers <= found.spread * found.jobs_in_flight


def test_jobs_are_spread_over_the_workers() -> None:
    found = cluster(6)
    traces = [JobTrace(i) for i in range(6)]
    for trace in traces:
        found.place(trace.order, trace)
    assert sorted(w for t in traces for w in t.near) == sorted(2 * [f"w{i}" for i in range(6)])
    found.job_done(traces[0])
    late = JobTrace(9)
    found.place("late", late)
    assert set(late.near) == {"w0", "w1"}


def test_blocks_out_are_bounded_by_the_threads() -> None:
    found = cluster(2, threads=2)
    trace = JobTrace()
    count = 0
    while found.place(count, trace, held=count) is not None:
        count += 1
    assert count == 2 * 2 * BLOCKS_PER_THREAD
    found.release(0)
    assert found.place("next", trace, held=count - 1) is not None


def test_without_a_worker_a_few_tasks_are_out_for_any_that_comes() -> None:
    found = cluster(0)
    trace = JobTrace()
    assert [found.place(i, trace, held=i) for i in range(BLOCKS_PER_THREAD)] == [[]] * BLOCKS_PER_THREAD
    assert found.place("more", trace, held=BLOCKS_PER_THREAD) is None
    assert found.place("no block", JobTrace(1)) == []
    found.update({"w0": 1})
    assert found.place("near", JobTrace(2)) == ["w0"]


@pytest.mark.parametrize(
    ("threads", "seconds", "most"), [(1, 0.5, 20), (2, 0.5, 40), (1, 60.0, BLOCKS_PER_THREAD), (4, 1e-6, MOST_AHEAD)]
)
def test_a_cluster_that_may_grow_sees_work_for_more(threads: int, seconds: float, most: int) -> None:
    """10 s of work for each thread, however long a block takes."""
    found = Workers(1)
    found.update({"w0": threads}, ahead=10.0)
    found.took("extract", seconds)
    trace, count = JobTrace(), 0
    while found.place(count, trace, step="extract", held=count) is not None:
        count += 1
    assert count == most


def test_more_jobs_are_in_flight_until_a_cluster_that_may_grow_sees_work_enough() -> None:
    found = cluster(1)
    steady = found.jobs_in_flight
    found.took("extract", 4.0)
    for number in range(1, 3):
        found.update({"w0": 1}, ahead=10.0)
        assert found.jobs_in_flight == steady + number
    for i in range(3):
        found.place(i, JobTrace(i), step="extract")
    found.job_done(JobTrace())
    assert found.jobs_in_flight == steady + 1
    found.release(0)
    found.job_done(JobTrace())
    assert found.jobs_in_flight == steady + 2


def test_a_job_of_a_lower_order_goes_first() -> None:
    found = cluster(1)
    holder = JobTrace(0)
    for i in range(BLOCKS_PER_THREAD):
        assert found.place(i, holder, held=i)
    came: list[int] = []
    freed = threading.Semaphore(0)

    def wait_for_room(order: int) -> None:
        found.place(f"job {order}", JobTrace(order), held=0)
        came.append(order)
        freed.release()

    threads = [threading.Thread(target=wait_for_room, args=(order,)) for order in (5, 3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(found._queue.values()) == 2)
    for i in range(2):
        found.release(i)
        assert freed.acquire(timeout=30)
    for thread in threads:
        thread.join()
    assert came == [3, 5]


def test_a_lost_worker_is_replaced_by_the_one_with_the_fewest_jobs() -> None:
    found = cluster(4)
    first, second = JobTrace(0), JobTrace(1)
    found.place(0, first)
    found.place(1, second)
    assert (first.near, second.near) == (["w0", "w1"], ["w2", "w3"])
    found.update({"w1": 1, "w2": 1, "w3": 1, "w4": 1})
    assert found.place(2, first) == ["w1", "w4"]


def test_alone_waits_until_nothing_else_is_there_and_keeps_others_away() -> None:
    found = cluster(1)
    other = JobTrace(1)
    found.place("block", other, held=0)
    began, let_go = threading.Event(), threading.Event()

    def suspect() -> None:
        with found.alone():
            began.set()
            let_go.wait(30)

    thread = threading.Thread(target=suspect)
    thread.start()
    wait_until(lambda: found._reserved == "w0")
    assert not began.is_set()
    assert found.place("second", other, held=1) is None
    found.release("block")
    assert began.wait(30)
    let_go.set()
    thread.join()
    assert found.place("third", other, held=1) == ["w0"]


def test_who_is_alone_waits_for_tasks_whose_workers_are_gone() -> None:
    found = cluster(1)
    (gone,) = found.place("stray", JobTrace()) or ()
    found.update({"tcp://other": 1})
    entered = threading.Event()

    def be_alone() -> None:
        with found.alone() as worker:
            assert worker == "tcp://other" != gone
            entered.set()

    thread = threading.Thread(target=be_alone)
    thread.start()
    assert not entered.wait(0.2)  # the scheduler may send the stray to the one worker that is left
    found.release("stray")
    assert entered.wait(5)
    thread.join()


def test_a_worker_that_died_meanwhile_is_not_the_one_to_be_alone_on() -> None:
    found = cluster(1)
    looks: list[dict[str, int]] = [{"tcp://new": 1}, {"tcp://new": 1}]
    with found.alone(lambda: found.update(looks.pop(0))) as worker:
        assert worker == "tcp://new"
    assert not looks


def test_an_ended_cluster_lets_nobody_wait() -> None:
    found = cluster(0)
    for i in range(BLOCKS_PER_THREAD):
        found.place(f"out {i}", JobTrace(), held=i)
    raised: list[BaseException] = []

    def wait_for_a_worker() -> None:
        try:
            found.place(0, JobTrace(), held=0)
        except Stopped as error:
            raised.append(error)

    thread = threading.Thread(target=wait_for_a_worker)
    thread.start()
    wait_until(lambda: bool(found._queue))
    found.end(Stopped())
    thread.join(30)
    assert len(raised) == 1
