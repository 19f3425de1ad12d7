"""What msdask computes for itself stays in this process, whatever dask's default is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import cv2
import dask
import pytest
from distributed import Client, LocalCluster

from msdask import plots
from msdask.computing import Beside, ahead, in_process, opencv_threads, quick_switches, side_by_side
from msdask.cutting.lazy_patches import mean_of_tissue, patches
from msdask.extraction.cohort import extract
from msdask.masks.tissue import tissue_mask
from msdask.report.run import report_run
from msdask.sample.slides import make_slide
from msdask.selection.select import grid
from msdask.slides.slide import Slide, open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore

SPEC = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slide(tmp_path_factory.mktemp("slide") / "a.svs", size=(1024, 1280), seed=3).path


@pytest.fixture
def _no_default(path: Path) -> Iterator[None]:
    """Whoever computes with dask's default scheduler is told of it."""

    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise AssertionError("computed with dask's default scheduler")

    with dask.config.set(scheduler=refuse):
        yield


def reported(slide: Slide, folder: Path) -> None:
    report = extract([slide.path], folder / "s.zarr", SPEC, threads=2, progress=False)
    assert report.is_complete, report.failures
    report_run(folder / "report.html", report)


def shown(slide: Slide, folder: Path) -> None:
    extract([slide.path], folder / "s.zarr", SPEC, threads=0, progress=False)
    plots.patches(PatchStore(folder / "s.zarr")[SPEC.name].open("a.svs"), n=2)


def drawn(slide: Slide, folder: Path) -> None:
    plots.patches(patches(slide, grid(slide, magnification=10, patch_size=64)), n=2)


WORK = {
    "mask": lambda slide, folder: tissue_mask(slide),
    "thumbnail": lambda slide, folder: slide.thumbnail(64),
    "mean": lambda slide, folder: mean_of_tissue(slide, None),
    "pyramid": lambda slide, folder: plots.pyramid(slide),
    "lazy patches": drawn,
    "stored patches": shown,
    "extraction and report": reported,
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
@pytest.mark.usefixtures("_no_default")
def test_nothing_is_computed_with_the_default_scheduler(work: Any, path: Path, tmp_path: Path) -> None:
    work(open_slide(path), tmp_path)


@pytest.mark.parametrize(
    ("chosen", "own"),
    [(None, "threads"), ("dask.distributed", "threads"), ("Sync", "synchronous"), (min, "threads")],
)
def test_one_thread_is_enough_where_dask_was_told_so(chosen: Any, own: str) -> None:
    with dask.config.set(scheduler=chosen):
        assert in_process() == own


def test_threads_need_no_worker_of_a_client_that_is_alive(path: Path, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, processes=False, host="127.0.0.1", protocol="tcp", dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        done: list[bool] = []
        run = threading.Thread(
            target=lambda: done.append(extract([path], tmp_path / "s.zarr", SPEC, progress=False).is_complete),
            daemon=True,
        )
        run.start()
        run.join(60)
    assert done == [True]


@pytest.mark.parametrize(("settings", "threads"), [({"num_workers": 3}, 3), ({"scheduler": "sync"}, 1)])
def test_side_by_side_keeps_the_order_and_uses_the_threads_of_dask(settings: dict[str, Any], threads: int) -> None:
    meeting = threading.Barrier(threads)

    def one(item: int) -> tuple[int, int]:
        meeting.wait(60)  # all threads are at work at once
        return item, threading.get_ident()

    with dask.config.set(settings):
        found = side_by_side(one, range(3))
    assert [item for item, _ in found] == [0, 1, 2]
    assert len({thread for _, thread in found}) == threads


@pytest.mark.parametrize(
    ("settings", "during"),
    [
        ({"num_workers": 3, "scheduler": "threads"}, 3),
        ({"num_workers": 1}, 2),
        ({"num_workers": 3, "scheduler": "sync"}, 2),
        ({"num_workers": None}, 2),
    ],
)
def test_opencv_has_more_threads_meanwhile_only_where_dask_was_given_more(
    settings: dict[str, Any], during: int
) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        with dask.config.set(settings), opencv_threads():
            assert cv2.getNumThreads() == during
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize(("own", "meanwhile"), [(0.005, 0.0005), (0.0001, 0.0001)])
def test_threads_switch_more_often_until_the_last_block_has_ended(
    own: float, meanwhile: float, switch_seconds: None
) -> None:
    sys.setswitchinterval(own)
    first, second = quick_switches(), quick_switches()
    with first:
        second.__enter__()
        assert sys.getswitchinterval() == pytest.approx(meanwhile, abs=2e-6)
    assert sys.getswitchinterval() == pytest.approx(meanwhile, abs=2e-6), "the other one has not ended"
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(own, abs=2e-6)
    with pytest.raises(ZeroDivisionError), quick_switches():
        _ = 1 / 0
    assert sys.getswitchinterval() == pytest.approx(own, abs=2e-6)


@pytest.fixture
def switch_seconds() -> Iterator[None]:
    """Python's switch interval as it was, after the test."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_side_by_side_raises_the_first_error() -> None:
    def fail(item: int) -> int:
        raise ValueError(item)

    with dask.config.set(num_workers=2), pytest.raises(ValueError, match="0"):
        side_by_side(fail, range(4))


def test_calls_beside_are_made_in_order_and_their_first_error_goes_before_one_of_the_block() -> None:
    made: list[int] = []
    seen: set[int] = set()

    def call(item: int) -> None:
        seen.add(threading.get_ident())
        if item == 3:
            raise ValueError(item)
        made.append(item)

    def run(items: range, most: int = 2) -> None:
        with Beside(most) as thread:
            for item in items:
                thread.call(call, item)
            raise KeyError("later")

    with pytest.raises(ValueError, match="3"):
        run(range(6), most=9)
    assert made == [0, 1, 2, 4, 5]
    with dask.config.set(scheduler="sync"), Beside() as thread:
        thread.call(call, 6)
    assert made[-1] == 6
    assert len(seen) == 2
    with pytest.raises(KeyError, match="later"):
        run(range(7, 8))
    assert made[-1] == 7


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_items_made_ahead_keep_their_order_and_an_error_its_place(scheduler: str) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("sixth")

    found: list[int] = []
    with dask.config.set(scheduler=scheduler), pytest.raises(ValueError, match="sixth"):
        found.extend(ahead(items()))
    assert found == list(range(5))
