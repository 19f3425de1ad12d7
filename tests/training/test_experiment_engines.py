"""Experiments on worker processes, on a cluster, and after a kill: the same table as in one process."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from distributed import Client, LocalCluster

import msdask as ms
from msdask.training import ExperimentResult
from tests.tools.experiment_tools import result_files, small_config, write_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:features are those of a scalenet with random weights"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_store(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def found(store: ms.PatchStore, tmp_path_factory: pytest.TempPathFactory) -> ExperimentResult:
    return ms.experiment(small_config(store.path, tmp_path_factory.mktemp("one")), threads=1)


def test_worker_processes_give_the_same_table(store, found, tmp_path):
    result = ms.experiment(small_config(store.path, tmp_path), workers=2, threads=1)
    assert result.is_complete, result.failures
    assert result_files(tmp_path) == result_files(found.folder)


def test_a_cluster_gives_the_same_table(store, found, tmp_path):
    loopback = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, **loopback) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = ms.experiment(small_config(store.path, tmp_path), client=client, threads=1)
    assert result.is_complete, result.failures
    assert result_files(tmp_path) == result_files(found.folder)


def test_a_killed_experiment_goes_on(store, found, tmp_path):
    config = small_config(store.path, tmp_path / "out")
    toml = [f"{name} = {json.dumps(value)}" for name, value in config.items() if name != "recipe"]
    toml += ["[recipe]", *(f"{name} = {json.dumps(value)}" for name, value in config["recipe"].items())]
    (tmp_path / "small.toml").write_text("\n".join(toml), encoding="utf-8")
    command = [sys.executable, "-c", "from msdask.cli import main; main()", "experiment"]
    command += [str(tmp_path / "small.toml"), "--threads", "1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while len(list(tmp_path.glob("out/runs/*/*/done.json"))) < 3 and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    finished = set(tmp_path.glob("out/runs/*/*/done.json"))
    assert 3 <= len(finished) < 10
    times = {path: path.stat().st_mtime_ns for path in finished}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": kept: ") == len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == times
    assert result_files(tmp_path / "out") == result_files(found.folder)


def test_the_files_of_a_worker_s_run_lie_where_those_of_any_run_do(found):
    run = Path(found.folder) / "runs/single-10x-one/0"
    assert {path.name for path in run.iterdir()} == {
        *("checkpoints", "curves.png", "done.json", "hparams.json", "lists", "log.csv", "metrics.json"),
        *("model.json", "model.safetensors", "predictions.parquet"),
    }
