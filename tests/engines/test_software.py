"""Workers that run another msdask than the client: refused, by name, before any work where they are there already."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import msdask
from msdask.engines import at_work as at_work_module
from msdask.engines import software as software_module
from msdask.engines.dask_cluster import ClusterEngine
from msdask.engines.software import OtherSoftwareError, Software, other_workers, software
from msdask.extraction.cohort import extract
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from tests.tools.cluster_tools import Processes
from tests.tools.engine_tools import marked_block

OTHER = Software("0.0.9", "f" * 64)


def names(client: Client) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


@pytest.fixture
def client() -> Iterator[Client]:
    """Two workers that are threads of this process."""
    loopback = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": ":0"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, **loopback) as cluster,
        Client(cluster, set_as_default=False) as found,
    ):
        yield found


@contextmanager
def imported(folder: Path | str) -> Iterator[None]:
    """Look for the package in another place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            software_module,
            "files",
            lambda name: zipfile.Path(folder, "msdask/") if str(folder).endswith(".zip") else Path(folder, name),
        )
        software.cache_clear()
        yield
    software.cache_clear()


def test_what_a_package_is_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    here = software()
    assert here.version == msdask.__version__
    shutil.copytree(
        Path(msdask.__file__).parent, tmp_path / "msdask", ignore=shutil.ignore_patterns("__pycache__", "*.json")
    )
    with imported(tmp_path):
        assert software() == here
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "msdask")
    with imported(archive):
        assert software() == here
    file = tmp_path / "msdask" / "cutting" / "cutter.py"
    file.write_text(file.read_text() + "\n# another pixel\n")
    with imported(tmp_path):
        assert software().version == here.version
        assert software().source != here.source
    assert software() is software()


def test_other_workers_are_an_error_before_any_work(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_slide(tmp_path / "a.svs", size=(512, 512)).path
    first, second = names(client)
    monkeypatch.setattr(software_module, "_answers", lambda client: {first: software(), second: OTHER})
    with pytest.raises(OtherSoftwareError, match=rf"msdask {software().version} .*0\.0\.9 \(ffffffff\) on {second}"):
        extract([path], tmp_path / "s.zarr", ExtractionSpec("grid", (10.0,)), client=client, progress=False)


def test_workers_that_cannot_be_asked_are_not_blamed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = names(client)
    monkeypatch.setattr(software_module, "_answers", lambda client: {first: software(), second: OSError("gone")})
    assert other_workers(client) == {}
    monkeypatch.setattr(software_module, "_answers", lambda client: {first: AttributeError("no such question")})
    assert other_workers(client) == {first: f"{msdask.__version__} (no such question)"}


def test_the_error_travels_and_names_few_workers() -> None:
    others = {f"tcp://{i}": str(OTHER) for i in range(9)}
    error = pickle.loads(pickle.dumps(OtherSoftwareError(others, Software("1", "a" * 64))))
    assert error.others == others
    assert "runs msdask 1 (aaaaaaaa)" in str(error)
    assert "0.0.9 (ffffffff) on tcp://0, tcp://1, tcp://2 and 6 more" in str(error)


def other_on(monkeypatch: pytest.MonkeyPatch, workers: set[str]) -> None:
    """These workers come later, with another msdask."""
    from distributed import get_worker

    own = software()

    def found() -> Software:
        try:
            return OTHER if get_worker().address in workers else own
        except ValueError:  # the client
            return own

    monkeypatch.setattr(at_work_module, "software", found)


def test_a_worker_that_comes_with_another_msdask_gets_no_work(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = names(client)
    engine = ClusterEngine(client, jobs=1)
    other_on(monkeypatch, {second})
    told: list[str] = []
    done: list[Any] = []
    with engine.job(0) as trace:
        trace.warn = told.append
        engine.run("extract: job", trace, marked_block, tmp_path, range(20), lambda *block: done.append(block))
    engine.close()
    assert sorted(done) == [(block, 10 * block) for block in range(20)]
    assert trace.workers == {first}
    assert trace.tries == 1
    (line,) = told
    assert "a worker that has come gets no work" in line
    assert f"0.0.9 (ffffffff) on {second}" in line


def test_nothing_is_tried_for_ever_where_all_workers_are_others(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = ClusterEngine(client, jobs=1)
    other_on(monkeypatch, set(names(client)))
    for _ in range(2):
        with pytest.raises(OtherSoftwareError, match=r"0\.0\.9"), engine.job(0) as trace:
            engine.run("extract: job", trace, marked_block, tmp_path, range(20), lambda *block: None)
    engine.close()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A place with another msdask, of the same version."""
    shutil.copytree(Path(msdask.__file__).parent, tmp_path / "other" / "msdask")
    file = tmp_path / "other" / "msdask" / "cutting" / "cutter.py"
    file.write_text(file.read_text() + "\n# another pixel\n")
    return tmp_path / "other"


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True], ids=["other source", "too old to know the question"])
def test_worker_processes_with_another_checkout_are_refused(is_old: bool, other: Path, tmp_path: Path) -> None:
    path = make_slide(tmp_path / "a.svs", size=(512, 512)).path
    if is_old:
        (other / "msdask" / "engines" / "software.py").unlink()
    spec, processes = ExtractionSpec("grid", (10.0,), patch_size=64), Processes(tmp_path)
    try:
        processes.add_worker(source=other)
        processes.wait()
        said = rf"{msdask.__version__} \({'ModuleNotFoundError' if is_old else ''}.*on tcp://127"
        with pytest.raises(OtherSoftwareError, match=said):
            extract([path], tmp_path / "s.zarr", spec, client=processes.client, progress=False)
        assert not list((tmp_path / "s.zarr").glob("*/a.svs"))
    finally:
        processes.close()


@pytest.mark.slow
def test_a_worker_process_that_comes_too_old_is_refused(other: Path, tmp_path: Path) -> None:
    (other / "msdask" / "engines" / "software.py").unlink()
    processes = Processes(tmp_path)
    told: list[str] = []
    try:
        engine = ClusterEngine(processes.client, jobs=1)  # no worker yet
        processes.add_worker(source=other)
        with engine.job(0) as trace:
            trace.warn = told.append
            with pytest.raises(OtherSoftwareError, match="ModuleNotFoundError"):
                engine.call("step: x", trace, int, "7")
        engine.close()
    finally:
        processes.close()
    assert len(told) == 1
