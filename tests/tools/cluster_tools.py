"""What the tests of clusters share: worker processes with faults built in, and real `dask` processes on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import psutil
from distributed import Client, LocalCluster

REPOSITORY = Path(__file__).resolve().parents[2]

FAULTS = Path(__file__).with_name("faults.py")
"""The module that workers load at their start."""


@contextmanager
def faulty_cluster(workers: int) -> Iterator[Client]:
    """A local cluster of single-threaded worker processes, which have the faults built in."""
    settings = {
        "distributed.worker.preload": [str(FAULTS)],
        # Each loss comes straight back to the engine, which counts the tries.
        "distributed.scheduler.allowed-failures": 0,
        # Where a worker dies, comes back and dies again, its nanny must not be ended for it.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    loopback = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, **loopback) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def wait_until(fact: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Look until something is so; raises when it never is."""
    end = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(0.01)


def _flat(options: dict[str, str]) -> list[str]:
    return [part for option in options.items() for part in option]


class Processes:
    """A `dask scheduler` and some `dask worker`s: each a nanny with one single-threaded worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._preload = FAULTS
        self._stack = ExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        options = {"--host": "127.0.0.1", "--port": "0", "--dashboard-address": "127.0.0.1:0"}
        self.scheduler = self._start("scheduler", *_flat(options), "--scheduler-file", str(file))
        wait_until(lambda: file.exists() and file.stat().st_size > 0)
        self.scheduler_file = str(file)
        self.client = self._stack.enter_context(Client(scheduler_file=self.scheduler_file, set_as_default=False))
        self.address = self.client.scheduler.address

    def _start(self, *arguments: str, source: Path = REPOSITORY) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3",
        }
        log = self._stack.enter_context((self._folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb"))
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self._folder)

    def add_worker(self, *, source: Path | None = None) -> None:
        """Start one; `wait` waits for it. With `source`, it finds msdask there, and has no faults."""
        options = {"--host": "127.0.0.1", "--nthreads": "1", "--memory-limit": "0"}
        options |= {"--preload": str(self._preload)} if source is None else {}
        arguments = ("worker", self.address, "--no-dashboard", *_flat(options))
        self.workers.append(self._start(*arguments, source=source or REPOSITORY))

    def restart_scheduler(self) -> None:
        """End the scheduler with SIGKILL, and start another one at its address."""
        self.scheduler.kill()
        self.scheduler.wait()
        address, port = self.address.rpartition("/")[2].split(":")
        self.scheduler = self._start(
            "scheduler", "--host", address, "--port", port, "--dashboard-address", "127.0.0.1:0"
        )

    def wait(self) -> None:
        """Until there are as many workers as nannies."""
        alive = sum(w.poll() is None for w in self.workers)
        wait_until(lambda: len(self.client.scheduler_info(n_workers=-1)["workers"]) == alive)

    def kill(self, which: int, *, nanny: bool) -> None:
        """End a nanny, or its worker, with SIGKILL."""
        process = self.workers[which]
        if nanny:
            process.kill()
            process.wait()
            del self.workers[which]
            return
        for child in psutil.Process(process.pid).children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()

    def close(self) -> None:
        """End everything."""
        self._stack.close()
        for process in (*self.workers, self.scheduler):
            process.terminate()
        for process in (*self.workers, self.scheduler):
            process.wait(30)


@contextmanager
def dask_processes(folder: Path, workers: int) -> Iterator[Processes]:
    """A cluster of real processes over TCP on loopback."""
    processes = Processes(folder)
    try:
        for _ in range(workers):
            processes.add_worker()
        processes.wait()
        yield processes
    finally:
        processes.close()
