"""Reading single patches: right pixels in the right place, and no damage that goes unnoticed."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec
from msdask.store.layout import SlideTarget
from msdask.store.random_reads import ShardArray, reading_pool
from msdask.store.shards import shard_index
from tests.tools.stream_tools import GRID, SIZE, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("reads"))


@pytest.fixture
def damaged(tmp_path: Path) -> SlideTarget:
    """One slide of its own, to break."""
    return write_cohort(tmp_path, names=(GRID,), slides=("a.svs",))[GRID].target("a.svs")


def read(array: ShardArray, rows: list[int], **options: object) -> np.ndarray:
    columns = options.get("columns") or range(array.target.shape[1])
    shape = array.target.chunk_shape(array.name)[2:]
    out = np.zeros((len(rows), len(list(columns)), *shape), np.uint8)  # type: ignore[call-overload]
    for future in array.begin(np.asarray(rows), out, **options):  # type: ignore[arg-type]
        future.result()
    return out


@pytest.mark.parametrize("rows", [[17, 3, 3, 0, 99], list(range(40)), [], [5]])
def test_rows_come_in_the_order_asked_for(cohort: Cohort, rows: list[int]) -> None:
    array = ShardArray(cohort[TUPLES].target("b.svs"), "image")
    np.testing.assert_array_equal(read(array, rows), cohort.images(TUPLES)["b.svs"][rows])


def test_some_magnifications(cohort: Cohort) -> None:
    array = ShardArray(cohort[TUPLES].target("a.svs"), "image")
    expected = cohort.images(TUPLES)["a.svs"][[30, 2]][:, [0, 2]]
    np.testing.assert_array_equal(read(array, [30, 2], columns=[0, 2]), expected)


def test_patches_go_to_their_places(cohort: Cohort) -> None:
    array = ShardArray(cohort[GRID].target("a.svs"), "image")
    out = np.full((5, 1, SIZE, SIZE, 3), 9, np.uint8)
    for future in array.begin(np.array([7, 1]), out, places=np.array([4, 2])):
        future.result()
    images = cohort.images(GRID)["a.svs"]
    np.testing.assert_array_equal(out[[4, 2]], images[[7, 1]])
    assert (out[[0, 1, 3]] == 9).all()


def test_label_maps(cohort: Cohort) -> None:
    patch_set = cohort[TUPLES]
    stored = patch_set.open("a.svs")["label_map"].to_numpy()
    assert len(np.unique(stored)) > 1
    np.testing.assert_array_equal(read(ShardArray(patch_set.target("a.svs"), "label_map"), [9, 4]), stored[[9, 4]])


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_encoded_patches_are_decoded(codec: Codec, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, codec=codec, names=(GRID,), slides=("a.svs",))
    array = ShardArray(cohort[GRID].target("a.svs"), "image")
    rows = [40, 1, 41, 42, 1]
    np.testing.assert_array_equal(read(array, rows), cohort.images(GRID)["a.svs"][rows])


def test_rows_that_are_not_there_are_refused(cohort: Cohort) -> None:
    array = ShardArray(cohort[GRID].target("a.svs"), "image")
    last = array.target.shape[0] - 1
    with pytest.raises(StoreError, match=f"rows 0..{last + 1} asked for, it has 0..{last}"):
        read(array, [0, last + 1])


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_a_flipped_byte_is_found_and_named(codec: Codec, tmp_path: Path) -> None:
    target = write_cohort(tmp_path, codec=codec, names=(GRID,), slides=("a.svs",))[GRID].target("a.svs")
    offset, length = shard_index(target, "image", 1)[1][3, 0].tolist()
    with open(target.shard_path("image", 1), "r+b") as stream:
        stream.seek(offset + length // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    array, row = ShardArray(target, "image"), target.rows + 3
    with pytest.raises(CorruptChunkError, match=rf"a.svs/image' chunk \({row}, 0\): the checksum .*msdask verify"):
        read(array, [0, row, row + 1])
    read(array, [0, row - 1, row + 1])


def test_a_damaged_shard_index_is_found(damaged: SlideTarget) -> None:
    path = Path(damaged.shard_path("image", 0))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(CorruptChunkError, match="checksum of its index"):
        read(ShardArray(damaged, "image"), [0])


def test_an_absent_shard_is_found_when_the_array_is_opened(damaged: SlideTarget) -> None:
    Path(damaged.shard_path("image", 1)).unlink()
    with pytest.raises(CorruptChunkError, match=r"image/c/1/0/0/0/0' is missing"):
        ShardArray(damaged, "image")


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_shard_of_another_size_is_found_when_the_array_is_opened(damaged: SlideTarget, size: int) -> None:
    path = Path(damaged.shard_path("image", 0))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptChunkError, match=r"image/c/0/0/0/0/0' has \d+ bytes, its 1\d chunks need \d+"):
        ShardArray(damaged, "image")


def test_a_shard_that_vanishes_while_reading_is_an_error(damaged: SlideTarget) -> None:
    array = ShardArray(damaged, "image")
    read(array, [0])
    Path(damaged.shard_path("image", 0)).unlink()
    with pytest.raises(CorruptChunkError, match="cannot be read"):
        read(array, [0])


def _try_to_read(array: ShardArray, answers: multiprocessing.Queue[str]) -> None:
    try:
        read(array, [0])
        answers.put("read")
    except StoreError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_after_a_read_says_why_instead_of_hanging(cohort: Cohort) -> None:
    array = ShardArray(cohort[GRID].target("a.svs"), "image")
    read(array, [0])
    assert reading_pool() is reading_pool()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_try_to_read, args=(array, answers))
    child.start()
    try:
        answer = answers.get(timeout=60)
    finally:
        child.kill()
        child.join()
    assert "forked from one that had begun to read" in answer
    assert "forkserver" in answer
