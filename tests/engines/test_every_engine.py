"""Every engine against the plain one: same results, errors, events, outcomes and bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from msdask.engines.engine import Engine, Stopped
from msdask.engines.open_engine import open_engine
from msdask.engines.plain import PlainEngine
from msdask.errors import SlideError
from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.progress.events import BlockWritten, Event, RunBegun, SlideDone, Warned
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.cluster_tools import faulty_cluster
from tests.tools.engine_tools import check_order, per_slide, ran, refused
from tests.tools.process_tools import use_faulty_processes
from tests.tools.store_tools import copy_store, grid_specs, noted_source, tree, use_small_blocks

SPECS = grid_specs(ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.3), [20, 10])
ENGINES = ("threads 1", "threads 4", "processes 2", "processes 1", "cluster")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes, with blocks as small as here."""
    with faulty_cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good slides, one that is cut short, and one whose resolution is doubtful."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "a.svs", size=(1280, 1536), seed=20)
    shutil.copy(folder / "a.svs", folder / "b.svs")
    shutil.copy(folder / "a.svs", folder / "c.svs")
    os.truncate(folder / "c.svs", 3000)
    make_slide(folder / "d.svs", size=(1024, 1280), seed=21, mpp=0.31)
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    use_faulty_processes(monkeypatch)


def options(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What chooses an engine; only what needs the cluster starts it."""
    if name == "cluster":
        return {"client": request.getfixturevalue("client")}
    if name.startswith("processes"):
        return {"workers": int(name.split()[1])}
    return {"threads": 0 if name == "plain" else int(name.split()[1])}


def opened(name: str, request: pytest.FixtureRequest) -> AbstractContextManager[Engine]:
    return open_engine(**options(name, request), jobs=1)


# --- the seam ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", *ENGINES])
def test_a_call_gives_what_the_function_gives(name: str, request: pytest.FixtureRequest) -> None:
    with opened(name, request) as engine, engine.job(0) as trace:
        assert engine.call("step: x", trace, divmod, 17, 5) == (3, 2)
        assert engine.call("step: x", trace, sorted, [2, 1, 3], reverse=True) == [3, 2, 1]


@pytest.mark.parametrize("name", ["plain", *ENGINES])
def test_a_call_raises_what_the_function_raises(name: str, request: pytest.FixtureRequest) -> None:
    with opened(name, request) as engine, engine.job(0) as trace:
        with pytest.raises(SlideError, match=r"^no such slide$"):
            engine.call("step: x", trace, refused, "no such slide")
        with pytest.raises(ZeroDivisionError):
            engine.call("step: x", trace, divmod, 1, 0)
        assert engine.call("step: x", trace, int, "7") == 7
        assert trace.tries == 1


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("name", ENGINES)
def test_every_block_is_done_and_told_once(
    count: int, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected = ran(PlainEngine(), tmp_path / "plain", range(count))
    with opened(name, request) as engine:
        assert ran(engine, tmp_path / "other", range(count)) == expected
    assert expected == ([(block, 10 * block) for block in range(count)], None)
    assert tree(tmp_path / "other") == tree(tmp_path / "plain")


@pytest.mark.parametrize("name", ["plain", *ENGINES])
def test_a_failing_block_ends_the_run_with_its_error(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with opened(name, request) as engine:
        told, failure = ran(engine, tmp_path / name / "bad", range(200))
    assert isinstance(failure, SlideError)
    assert str(failure) == "'bad': block 3 is not there"
    blocks = sorted(int(file.name) for file in (tmp_path / name / "bad").iterdir())
    assert told == [(block, 10 * block) for block in blocks], "what is told is what was done, and nothing runs any more"
    assert 3 not in blocks
    assert len(blocks) < 199


@pytest.mark.parametrize("name", ["plain", *ENGINES])
def test_an_engine_that_was_stopped_begins_nothing(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with opened(name, request) as engine:
        engine.stop()
        with pytest.raises(Stopped):
            ran(engine, tmp_path / "job", range(5))
        with pytest.raises(Stopped), engine.job(1) as trace:
            engine.call("step: x", trace, int)
    assert not list((tmp_path / "job").iterdir())


# --- whole runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What is to be the same for all engines."""

    events: list[Event]
    failures: dict[str, str]
    bytes: dict[str, str]


def extracted(slides: Path, store: Path, **options: Any) -> Run:
    events: list[Event] = []
    report = extract(slides, store, SPECS, progress=False, listeners=[events.append], **options)
    check_order(events)
    return Run(events, report.failures, tree(store))


@pytest.fixture(scope="module")
def plain(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A store that the plain engine has written, and its run."""
    store = tmp_path_factory.mktemp("plain") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        return store, extracted(slides, store, threads=0)


def test_the_plain_run_tells_of_every_slide_and_block(slides: Path, plain: tuple[Path, Run]) -> None:
    store, run = plain
    assert run.events[0] == RunBegun("extract", str(store), ("grid-10x-64", "grid-20x-64"), 4)
    states = {e.slide_id: [o.state for o in e.outcomes] for e in run.events if isinstance(e, SlideDone)}
    assert states == {s: ["failed" if s == "c.svs" else "complete"] * 2 for s in ("a.svs", "b.svs", "c.svs", "d.svs")}
    written = [(e.set_name, e.slide_id, e.block) for e in run.events if isinstance(e, BlockWritten)]
    assert len(written) == len(set(written)) > 20
    opened_store = PatchStore(store)
    patches = sum(len(opened_store[name].table()) for name in opened_store)
    assert sum(e.patches for e in run.events if isinstance(e, BlockWritten)) == patches
    assert any(e.slide_id == "d.svs" and "0.31" in e.message for e in run.events if isinstance(e, Warned))


@pytest.mark.parametrize("name", ENGINES)
def test_a_cohort_has_the_events_outcomes_and_bytes_of_the_plain_run(
    name: str, request: pytest.FixtureRequest, slides: Path, plain: tuple[Path, Run], tmp_path: Path
) -> None:
    _, expected = plain
    run = extracted(slides, tmp_path / "s.zarr", **options(name, request))
    assert run.bytes == expected.bytes
    assert run.failures == expected.failures
    assert per_slide(run.events) == per_slide(expected.events)


@pytest.mark.parametrize("name", ENGINES)
def test_a_rerun_has_the_events_of_the_plain_rerun(
    name: str, request: pytest.FixtureRequest, slides: Path, plain: tuple[Path, Run], tmp_path: Path
) -> None:
    copy_store(plain[0], tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "grid-20x-64" / "b.svs")
    copy_store(tmp_path / "s.zarr", tmp_path / "t.zarr")
    expected = extracted(slides, tmp_path / "s.zarr", threads=0)
    run = extracted(slides, tmp_path / "t.zarr", **options(name, request))
    assert run.bytes == expected.bytes == plain[1].bytes
    assert per_slide(run.events) == per_slide(expected.events)


@pytest.mark.parametrize("name", ENGINES)
def test_a_repair_has_the_events_outcomes_and_bytes_of_the_plain_repair(
    name: str, request: pytest.FixtureRequest, plain: tuple[Path, Run], tmp_path: Path
) -> None:
    runs = []
    for which in ("plain", name):
        store = tmp_path / which / "s.zarr"
        copy_store(plain[0], store)
        (store / "grid-20x-64" / "a.svs" / "image" / "c" / "2" / "0" / "0" / "0" / "0").unlink()
        noted_source(store, "grid-10x-64", "b.svs").write_text('{"slide": "/nowhere/b.svs", "masks": {}}')
        (store / "grid-10x-64" / "b.svs" / "zarr.json").write_text("{}")
        (store / "grid-10x-64" / "d.svs" / "tissue" / "zarr.json").unlink()
        events: list[Event] = []
        report = repair(store, progress=False, listeners=[events.append], **options(which, request))
        check_order(events)
        failures = {key: reason.replace(str(store), "") for key, reason in report.failures.items()}
        states = {(o.set_name, o.slide_id): o.state for o in report.repairs}
        runs.append((states, failures, per_slide(events, store), tree(store)))
    assert runs[1] == runs[0]
    assert runs[0][0] == {
        ("grid-20x-64", "a.svs"): "mended",
        ("grid-10x-64", "b.svs"): "failed",
        ("grid-10x-64", "d.svs"): "renewed",
    }


@pytest.mark.parametrize("name", ["plain", *ENGINES])
def test_what_an_interrupted_run_leaves_is_finished_by_the_same_call(
    name: str, request: pytest.FixtureRequest, slides: Path, plain: tuple[Path, Run], tmp_path: Path
) -> None:
    told: list[Event] = []

    def interrupt(event: Event) -> None:
        told.append(event)
        if sum(isinstance(e, BlockWritten) for e in told) == 5:
            raise KeyboardInterrupt

    chosen = options(name, request)
    with pytest.raises(KeyboardInterrupt):
        extract(slides, tmp_path / "s.zarr", SPECS, progress=False, listeners=[interrupt], **chosen)
    assert extracted(slides, tmp_path / "s.zarr", **chosen).bytes == plain[1].bytes


@pytest.mark.parametrize("name", ["processes 2", "cluster"])
def test_a_worker_that_is_lost_is_told_of(
    name: str, request: pytest.FixtureRequest, slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(slides / "a.svs", tmp_path / "slides" / "once.svs")
    events: list[Event] = []
    chosen = options(name, request)
    extract(tmp_path / "slides", tmp_path / "s.zarr", SPECS[1], progress=False, listeners=[events.append], **chosen)
    check_order(events)
    (warned,) = (e for e in events if isinstance(e, Warned))
    assert warned.slide_id == "once.svs"
    assert "'extract: grid-10x-64/once.svs/1' was lost with its worker" in warned.message
    assert "try 2 of 3" in warned.message
