"""A slide's blocks: the same bytes in however many parts and however few patches in hand, and what a failure leaves."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from msdask.cutting.cutter import Cutter
from msdask.cutting.lazy_patches import patches
from msdask.cutting.measures import column, measure
from msdask.engines.threads import ThreadEngine
from msdask.extraction.slide_job import BlockJob, begin_set, run_block
from msdask.sample.slides import SampleSlide
from msdask.selection.select import centroids, grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec
from msdask.store import blocks, layout, shards
from tests.tools.store_tools import target


@pytest.mark.parametrize(
    ("blocks", "threads", "parts"), [(1, 1, 1), (1, 2, 16), (3, 2, 16), (11, 2, 5), (32, 2, 2), (42, 2, 1), (0, 4, 32)]
)
def test_few_blocks_are_cut_into_parts(blocks: int, threads: int, parts: int) -> None:
    engine = ThreadEngine(threads)
    assert engine._parts(blocks) == parts
    engine.close()


@pytest.fixture
def job(small_slide: SampleSlide, tmp_path: Path) -> BlockJob:
    slide = open_slide(small_slide.path)
    return begin_set(slide, grid(slide, magnification=20, patch_size=64, min_tissue=0), target(tmp_path))


def test_no_part_is_still_running_when_a_block_has_failed(job: BlockJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = layout.read_column(job.arrays.path, "x0")[0], layout.read_column(job.arrays.path, "y0")[0]
    is_at_work, done = threading.Event(), list[int]()

    def cut(self: Cutter, reader: Any, x0: Any, y0: Any, **options: Any) -> Any:
        if (x0[0], y0[0]) == first:
            assert is_at_work.wait(10)
            raise RuntimeError("broken")
        is_at_work.set()
        time.sleep(0.3)
        done.append(len(x0))
        raise RuntimeError("late")

    monkeypatch.setattr(Cutter, "cut", cut)
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(RuntimeError, match="broken"):
            run_block(job, 0, pool=pool, parts=2)
        assert done, "it came back while the other part was reading into its memory"


def test_threads_switch_quickly_while_a_block_is_cut(job: BlockJob, monkeypatch: pytest.MonkeyPatch) -> None:
    before, meanwhile, original = sys.getswitchinterval(), set[float](), Cutter.cut

    def cut(self: Cutter, *arguments: Any, **options: Any) -> Any:
        meanwhile.add(round(sys.getswitchinterval(), 6))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Cutter, "cut", cut)
    run_block(job, job.todo[0])
    assert meanwhile == {0.0005}
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("parts", [1, 4])
def test_nothing_that_was_read_ahead_is_left_over(small_slide: SampleSlide, parts: int, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe(f"/ahead-{parts}.svs", small_slide.path.read_bytes())
    slide = open_slide(f"memory://ahead-{parts}.svs")
    table = grid(slide, magnification=40, patch_size=64, min_tissue=0)
    job = begin_set(slide, table, target(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        for block in job.todo:
            run_block(job, block, pool=pool, parts=parts)
    assert slide.reader._source._held_bytes == 0  # type: ignore[attr-defined]
    files.rm(f"/ahead-{parts}.svs")


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
@pytest.mark.parametrize(("in_hand", "parts"), [(1, 1), (5, 1), (5, 3), (1000, 1)])
def test_a_block_is_the_same_however_few_patches_a_thread_has_in_hand(
    codec: Codec, in_hand: int, parts: int, small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(small_slide.path)
    table = centroids(slide, magnifications=(20, 10), patch_size=32, min_tissue=0).isel(patch=slice(0, 43))
    image = patches(slide, table)["image"].to_numpy()
    job = begin_set(slide, table, target(tmp_path), codec=codec)
    monkeypatch.setattr(blocks, "IN_HAND_BYTES", in_hand * image[0].nbytes)
    (block,) = job.todo
    with ThreadPoolExecutor(2) as pool:
        assert run_block(job, block, pool=pool, parts=parts) == len(image)
    written = Path(job.arrays.shard_path("image", block)).read_bytes()
    shards.write_shard(job.arrays, "image", block, image)
    assert written == Path(job.arrays.shard_path("image", block)).read_bytes()
    np.testing.assert_array_equal(layout.read_column(job.arrays.path, "measured"), measure(image))


def test_the_filled_share_is_stored_however_few_patches_a_thread_has_in_hand(
    job: BlockJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Cutter.cut

    def cut(self: Cutter, *args: Any, **options: Any) -> Any:
        image, filled = original(self, *args, **options)
        return image, np.linspace(0, 1, filled.size, dtype=np.float32).reshape(filled.shape)

    monkeypatch.setattr(Cutter, "cut", cut)
    monkeypatch.setattr(blocks, "IN_HAND_BYTES", 3 * 64 * 64 * 3)
    counts = [run_block(job, block) for block in job.todo]
    stored = column(layout.read_column(job.arrays.path, "measured"), "filled").ravel()
    expected = [np.linspace(0, 1, count, dtype=np.float32) for count in counts]
    np.testing.assert_array_equal(stored, np.concatenate(expected))
