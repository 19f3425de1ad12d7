"""Blocks in parts: shards written in pieces, the memory that tiles are decoded into, what a failing part leaves."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdask.cutting.block_reader import PatchReader
from msdask.cutting.lazy_patches import patches
from msdask.cutting.measures import measure
from msdask.cutting.tile_cache import TileMemory, thread_memory
from msdask.engines.threads import ThreadEngine
from msdask.errors import StoreError
from msdask.extraction import slide_job as slidejob
from msdask.extraction.slide_job import BlockJob, begin_set, read_block, run_block
from msdask.sample.slides import SampleSlide
from msdask.selection.select import centroids, grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec
from msdask.storage import places
from msdask.store import layout, shards
from msdask.store.layout import SlideTarget

SIDE = 16


def make_target(folder: Path, codec: Codec = "raw") -> SlideTarget:
    """11 tuples of two magnifications, 6 a shard."""
    target = SlideTarget(str(folder / "a.svs"), codec, (11, 2), 6, SIDE)
    layout.create_shards(target, "image")
    return target


def pixels(target: SlideTarget, block: int) -> np.ndarray:
    rows = target.block(block)
    shape = (rows.stop - rows.start, target.shape[1], SIDE, SIDE, 3)
    return np.random.default_rng(block).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
@pytest.mark.parametrize("block", [0, 1])
def test_pieces_in_any_order_make_the_shard_that_is_written_at_once(codec: Codec, block: int, tmp_path: Path) -> None:
    target = make_target(tmp_path, codec)
    image = pixels(target, block)
    path = Path(target.shard_path("image", block))
    shards.write_block(target, "image", block, image)
    whole = path.read_bytes()
    path.unlink()
    chunks = shards.encode(target, "image", image)
    pieces = [(first, chunks[first : first + 4]) for first in range(0, len(chunks), 4)]
    with shards.placed_chunks(target, "image", block) as put:
        threads = [threading.Thread(target=put, args=piece) for piece in reversed(pieces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not path.exists()
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_an_error_between_the_pieces_leaves_nothing_behind(codec: Codec, tmp_path: Path) -> None:
    target = make_target(tmp_path, codec)
    chunks = shards.encode(target, "image", pixels(target, 0))

    def broken() -> None:
        with shards.placed_chunks(target, "image", 0) as put:
            put(0, chunks[:3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [p for p in Path(target.path, "image").rglob("*") if p.is_file() and p.name != "zarr.json"] == []


def test_a_piece_that_cannot_be_written_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target(tmp_path)
    chunks = shards.encode(target, "image", pixels(target, 0))

    def full(handle: int, parts: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places.os, "pwritev", full)
    with (
        pytest.raises(StoreError, match=r"cannot write '.*image/c/0.*No space left.*run again"),
        shards.placed_chunks(target, "image", 0) as put,
    ):
        put(0, chunks)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.pwritev
    monkeypatch.setattr(places.os, "pwritev", lambda handle, parts, at: original(handle, [parts[0][:3]], at))
    places.at(str(tmp_path)).write(str(tmp_path / "file"), [b"abcdef", memoryview(b"ghi"), b""])
    assert (tmp_path / "file").read_bytes() == b"abcdefghi"


@pytest.mark.parametrize(
    ("blocks", "threads", "parts"), [(1, 1, 1), (1, 2, 8), (3, 2, 8), (11, 2, 3), (32, 2, 1), (0, 4, 16)]
)
def test_few_blocks_are_cut_into_parts(blocks: int, threads: int, parts: int) -> None:
    engine = ThreadEngine(threads)
    assert engine._parts(blocks) == parts
    engine.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=60))
def test_tile_memory_never_hands_out_what_is_in_use_and_keeps_its_budget(steps: list[tuple[bool, int]]) -> None:
    memory, used = TileMemory(300), list[np.ndarray]()
    for takes, size in steps:
        if takes or not used:
            tile = memory.take((size, size, 3))
            assert tile.shape == (size, size, 3)
            assert not any(np.shares_memory(tile, other) for other in used)
            used.append(tile)
        else:
            memory.give(used.pop(size % len(used)))
        held = [tile for free in memory._free.values() for tile in free]
        assert sum(tile.nbytes for tile in held) == memory._bytes <= 300


def test_each_thread_has_its_own_tile_memory() -> None:
    found: list[TileMemory] = []
    thread = threading.Thread(target=lambda: found.append(thread_memory()))
    thread.start()
    thread.join()
    assert found[0] is not thread_memory()
    assert thread_memory() is thread_memory()


@pytest.fixture
def job(small_slide: SampleSlide, tmp_path: Path) -> BlockJob:
    slide = open_slide(small_slide.path)
    return begin_set(slide, grid(slide, magnification=20, patch_size=64, min_tissue=0), str(tmp_path / "s"))


def test_no_part_is_still_running_when_a_block_has_failed(job: BlockJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = layout.read_column(job.target.path, "x0")[0], layout.read_column(job.target.path, "y0")[0]
    is_at_work, done = threading.Event(), list[int]()

    def read(self: PatchReader, reader: Any, x0: Any, y0: Any, **options: Any) -> Any:
        if (x0[0], y0[0]) == first:
            assert is_at_work.wait(10)
            raise RuntimeError("broken")
        is_at_work.set()
        time.sleep(0.3)
        done.append(len(x0))
        raise RuntimeError("late")

    monkeypatch.setattr(PatchReader, "read", read)
    with ThreadPoolExecutor(2) as readers:
        with pytest.raises(RuntimeError, match="broken"):
            run_block(job, 0, readers=readers, parts=2)
        assert done, "it came back while the other part was reading into its memory"


@pytest.mark.parametrize("parts", [1, 4])
def test_nothing_that_was_read_ahead_is_left_over(small_slide: SampleSlide, parts: int, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe(f"/ahead-{parts}.svs", small_slide.path.read_bytes())
    slide = open_slide(f"memory://ahead-{parts}.svs")
    table = grid(slide, magnification=40, patch_size=64, min_tissue=0)
    job = begin_set(slide, table, str(tmp_path / "s"))
    with ThreadPoolExecutor(2) as readers:
        for block in job.todo:
            run_block(job, block, readers=readers, parts=parts)
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
    job = begin_set(slide, table, str(tmp_path / "s"), codec=codec)
    monkeypatch.setattr(slidejob, "IN_HAND_BYTES", in_hand * image[0].nbytes)
    (block,) = job.todo
    with ThreadPoolExecutor(2) as readers:
        assert run_block(job, block, readers=readers, parts=parts) == len(image)
        chunks, measured = read_block(job, block, readers=readers, parts=parts)
    written = Path(job.target.shard_path("image", block)).read_bytes()
    shards.write_block(job.target, "image", block, image)
    assert written == Path(job.target.shard_path("image", block)).read_bytes()
    assert [(bytes(data), crc) for data, crc in chunks] == [
        (bytes(data), crc) for data, crc in shards.encode(job.target, "image", image)
    ]
    np.testing.assert_array_equal(measured, measure(image))
    np.testing.assert_array_equal(layout.read_column(job.target.path, "measured"), measured)


def test_the_filled_share_is_stored_however_few_patches_a_thread_has_in_hand(
    job: BlockJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PatchReader.read

    def read(self: PatchReader, *args: Any, **options: Any) -> Any:
        image, filled = original(self, *args, **options)
        return image, np.linspace(0, 1, filled.size, dtype=np.float32).reshape(filled.shape)

    monkeypatch.setattr(PatchReader, "read", read)
    monkeypatch.setattr(slidejob, "IN_HAND_BYTES", 3 * 64 * 64 * 3)
    counts = [run_block(job, block) for block in job.todo]
    stored = layout.read_column(job.target.path, "measured")[..., 2].ravel()
    expected = [np.linspace(0, 1, count, dtype=np.float32) for count in counts]
    np.testing.assert_array_equal(stored, np.concatenate(expected))
