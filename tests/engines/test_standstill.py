"""A cluster that does nothing: it is said why, once, and a run ends when it was waited for long enough."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, SpecCluster

from msdask.engines import cluster_task, dask_cluster, standstill
from msdask.engines.dask_cluster import ClusterEngine
from msdask.engines.growth import asks_for_workers
from msdask.engines.standstill import PATIENCE, QUEUE_PATIENCE, Standstill, cluster_state, longest_wait
from msdask.errors import MsdaskError, SpecError
from msdask.extraction.cohort import extract
from msdask.progress.events import Event, Waiting
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from tests.tools.cluster_tools import Processes, wait_until

SPEC = ExtractionSpec("grid", (10.0,), patch_size=64)


# --- when it is said, and when it ends --------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_said_after_15_seconds_once_for_each_reason_and_ends_in_time() -> None:
    clock = Clock()
    still = Standstill(clock)
    said = []
    for second, why in enumerate(["no workers"] * 30 + ["all paused"] * 40):
        clock.now = 100.0 + second
        if what := still.seen(why, 0, 60.0):
            said.append((second, what))
    assert said[:3] == [(16, "say"), (30, "say"), (61, "end")]


def test_what_comes_back_or_can_come_back_begins_anew() -> None:
    clock = Clock()
    still = Standstill(clock)
    still.seen("", 0, 60.0)
    clock.now += 1000  # one long task
    assert still.seen("no workers", 0, 60.0) == ""
    clock.now += 20
    assert still.seen("no workers", 0, 60.0) == "say"
    assert still.quiet > 1000
    clock.now += 50
    assert still.seen("no workers", 1, 60.0) == "over"
    assert still.quiet == 0
    clock.now += 14
    assert still.seen("no workers", 1, 60.0) == ""
    clock.now += 100
    assert still.seen("", 1, 60.0) == ""
    assert still.seen("no workers", 1, 60.0) == ""


# --- how long ---------------------------------------------------------------------------------------------------------


class Queue(SpecCluster):
    """A cluster whose workers wait in a queue."""


class FakeClient:
    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster


def queue(*names: str, adapts: bool = False) -> Any:
    made = Queue.__new__(Queue)
    made.worker_spec = {name: {} for name in names}
    made._adaptive = object() if adapts else None
    return made


@pytest.mark.parametrize(
    ("cluster", "asks"),
    [
        (None, False),
        (LocalCluster.__new__(LocalCluster), False),
        (queue(), False),
        (queue("job 1"), True),
        (queue(adapts=True), True),
        (type("Operator", (), {"plan": set()})(), True),
    ],
    ids=["address", "local", "nothing asked", "asked", "adapts", "orchestrator"],
)
def test_who_brings_workers_is_waited_for_a_day(cluster: Any, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = FakeClient(cluster)
    assert asks_for_workers(client) == asks
    assert longest_wait(client) == (QUEUE_PATIENCE if asks else PATIENCE)
    monkeypatch.setenv("MSDASK_PATIENCE", "42")
    assert longest_wait(client) == 42
    monkeypatch.setenv("MSDASK_PATIENCE", "ten")
    with pytest.raises(SpecError, match="MSDASK_PATIENCE='ten'"):
        longest_wait(client)


# --- on clusters ------------------------------------------------------------------------------------------------------


@contextmanager
def workers(count: int) -> Iterator[tuple[LocalCluster, Client]]:
    """A cluster of threads of this process."""
    loopback = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": ":0"}
    with (
        LocalCluster(n_workers=count, threads_per_worker=1, processes=False, memory_limit=0, **loopback) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def pause(client: Client) -> None:
    """All workers take nothing any more, as where their memory is full."""

    def paused(dask_worker: Any) -> None:
        from distributed.core import Status

        dask_worker.status = Status.paused

    client.run(paused)
    wait_until(lambda: cluster_state(client).workers == {})


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are tenths."""
    for module in (standstill, dask_cluster):
        monkeypatch.setattr(module, "SAY_AFTER", 0.5)
    for module in (cluster_task, dask_cluster):
        monkeypatch.setattr(module, "LOOK", 0.05)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("is_paused", "why"),
    [
        (False, "it has no workers, and none are known"),
        (True, "all its workers are paused, 2 of 2, since their memory"),
    ],
    ids=["no workers", "all paused"],
)
def test_a_cluster_that_does_nothing_ends_the_run(
    is_paused: bool, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_slide(tmp_path / "a.svs", size=(512, 512)).path
    monkeypatch.setenv("MSDASK_PATIENCE", "2")
    events: list[Event] = []
    with workers(2 if is_paused else 0) as (_, client), caplog.at_level(logging.WARNING, "msdask.engines"):
        if is_paused:
            pause(client)
        report = extract(
            [path, path.with_name("b.svs")],
            tmp_path / "s.zarr",
            SPEC,
            client=client,
            progress=False,
            listeners=[events.append],
        )
    assert set(report.failures) == {"a.svs", "b.svs"}
    for reason in report.failures.values():
        assert f"the cluster does nothing for 2 s: {why}" in reason
        assert "MSDASK_PATIENCE=2 s are over" in reason
    (said,) = [event.reason for event in events if isinstance(event, Waiting)]
    assert why in said
    assert "it is waited for, 2 s at most (MSDASK_PATIENCE)" in said
    assert [record.message for record in caplog.records if record.name == "msdask.engines"] == [said]


@pytest.mark.usefixtures("_quick")
def test_a_run_goes_on_when_workers_come(tmp_path: Path) -> None:
    path = make_slide(tmp_path / "a.svs", size=(512, 512)).path
    told: list[str] = []
    with workers(0) as (cluster, client):

        def listen(event: Event) -> None:
            if isinstance(event, Waiting):
                told.append(event.reason)
                if event.reason:
                    cluster.scale(1)

        report = extract([path], tmp_path / "s.zarr", SPEC, client=client, progress=False, listeners=[listen])
    assert report.is_complete
    assert len(told) >= 2
    assert "it has no workers" in told[0]
    assert told[1] == ""


_begun, _go_on = threading.Event(), threading.Event()


def hold() -> None:
    """Be at work until the test lets go; workers are threads of this process."""
    _begun.set()
    _go_on.wait(60)


@pytest.mark.usefixtures("_quick")
def test_what_lies_on_a_paused_worker_is_said_although_another_one_could_work() -> None:
    told: list[str] = []
    with workers(1) as (cluster, client):
        engine = ClusterEngine(client, jobs=1, patience=2)

        def work() -> None:
            with engine.job(0) as trace:
                trace.waits = told.append
                with pytest.raises(MsdaskError, match="what is left lies on workers that are paused"):
                    engine.call("step: x", trace, hold)

        thread = threading.Thread(target=work)
        thread.start()
        assert _begun.wait(30)
        pause(client)
        cluster.scale(2)
        thread.join(60)
        _go_on.set()
        assert not thread.is_alive()
        engine.close()
    assert "what is left lies on workers that are paused" in told[-1]


@pytest.mark.slow
def test_a_scheduler_that_is_started_again_is_given_the_work_anew(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    told: list[str] = []
    try:
        engine = ClusterEngine(processes.client, jobs=1)
        came: list[int] = []

        def work() -> None:
            with engine.job(0) as trace:
                trace.waits = told.append
                came.append(engine.call("step: x", trace, int, "7"))

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: bool(engine._out))
        processes.restart_scheduler()
        processes.add_worker()
        thread.join(90)
        assert came == [7]
        engine.close()
    finally:
        processes.close()
