"""Listeners: told of everything, one event at a time, and never able to lose a run."""

from __future__ import annotations

import shutil
import threading
import time
import warnings
from pathlib import Path

import pytest

import msdask as ms
from msdask.exports.images import export
from msdask.extraction.cohort import extract
from msdask.progress.events import BlockWritten, Event, Listeners, RunBegun, RunDone, SlideBegun, SlideDone
from msdask.sample.slides import SampleSlide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.engine_tools import check_order
from tests.tools.store_tools import tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, min_tissue=0.3)
EVENT = SlideBegun("a.svs", ("grid",))


def broken(event: Event) -> None:
    raise ZeroDivisionError(f"at {type(event).__name__}")


def test_every_listener_is_told_of_every_event() -> None:
    first: list[Event] = []
    second: list[Event] = []
    tell = Listeners((first.append, second.append))
    tell(EVENT)
    tell(RunDone())
    assert first == second == [EVENT, RunDone()]


def test_an_error_of_a_listener_is_one_warning_and_the_others_are_told() -> None:
    told: list[Event] = []
    calls: list[Event] = []

    def failing(event: Event) -> None:
        calls.append(event)
        broken(event)

    tell = Listeners((failing, told.append))
    with pytest.warns(UserWarning, match=r"failing.* raised ZeroDivisionError: at SlideBegun.*the run goes on") as seen:
        tell(EVENT)
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        tell(EVENT)
        tell(EVENT)
    assert (len(seen), later) == (1, [])
    assert told == calls == [EVENT] * 3


def test_every_broken_listener_has_a_warning_of_its_own() -> None:
    with pytest.warns(UserWarning, match="the listener") as seen:
        Listeners((broken, lambda event: broken(event)))(EVENT)
    assert len(seen) == 2


def test_an_error_of_a_listener_ends_nothing_where_warnings_are_errors() -> None:
    told: list[Event] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Listeners((broken, told.append))(EVENT)
    assert told == [EVENT]


def test_listeners_are_told_of_one_event_at_a_time() -> None:
    inside: list[int] = []

    def slow(event: Event) -> None:
        inside.append(1)
        time.sleep(0.001)
        assert len(inside) == 1
        inside.clear()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell = Listeners((slow,))
        threads = [threading.Thread(target=lambda: [tell(EVENT) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not tell._reported


def test_a_run_whose_listener_fails_is_complete(small_slide: SampleSlide, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="at RunBegun") as seen:
        report = extract([small_slide.path], tmp_path / "s.zarr", GRID, progress=False, listeners=[broken])
    assert len([w for w in seen if "listener" in str(w.message)]) == 1
    assert report.is_complete
    extract([small_slide.path], tmp_path / "t.zarr", GRID, progress=False)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


def test_a_progress_bar_that_fails_loses_nothing(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdask.progress.bar.Progress._show", lambda self: 1 / 0)
    with pytest.warns(UserWarning, match=r"Progress.* raised ZeroDivisionError"):
        assert extract([small_slide.path], tmp_path / "s.zarr", GRID).is_complete


def test_an_export_tells_of_every_slide_and_block(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_blocks(monkeypatch)
    (tmp_path / "slides").mkdir()
    for name in ("a.svs", "b.svs"):
        shutil.copy(small_slide.path, tmp_path / "slides" / name)
    extract(tmp_path / "slides", tmp_path / "s.zarr", GRID, progress=False)
    (tmp_path / "s.zarr" / GRID.name / "b.svs" / "image" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    events: list[Event] = []
    summary = export(tmp_path / "s.zarr", tmp_path / "png", listeners=[events.append])
    check_order(events)
    assert events[0] == RunBegun("export", str(tmp_path / "s.zarr"), (GRID.name,), 2)
    assert [o.state for e in events if isinstance(e, SlideDone) for o in e.outcomes] == ["exported", "failed"]
    written = [e for e in events if isinstance(e, BlockWritten)]
    assert {e.slide_id for e in written} == {"a.svs"}
    kept = int(PatchStore(tmp_path / "s.zarr")[GRID.name].open("a.svs")["keep"].sum())
    assert sum(e.patches for e in written) == summary.patches == kept > 16


def test_the_events_are_public() -> None:
    assert ms.events.SlideDone is SlideDone
    assert "events" in dir(ms)
    with pytest.raises(AttributeError):
        EVENT.slide_id = "b.svs"  # type: ignore[misc]
