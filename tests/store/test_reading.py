"""Reading single patches: right pixels in the right place, and no damage that goes unnoticed."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.registry import register_codec

from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec
from msdask.store.codecs import Jpeg, PredictedZstd
from msdask.store.patch_set import PatchSet
from msdask.store.reading import ShardArray
from msdask.store.reading_threads import reading_pool, start
from msdask.store.slide_arrays import SlideArrays
from tests.tools.stream_tools import GRID, SIZE, TUPLES, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("reads"))


@pytest.fixture
def damaged(tmp_path: Path) -> SlideArrays:
    """One slide of its own, to break."""
    return write_cohort(tmp_path, names=(GRID,), slides=("a.svs",))[GRID].arrays("a.svs")


def read(array: ShardArray, rows: list[int], **options: object) -> np.ndarray:
    columns = options.get("columns") or range(array.arrays.shape[1])
    shape = array.arrays.chunk_shape(array.name)[2:]
    out = np.zeros((len(rows), len(list(columns)), *shape), np.uint8)  # type: ignore[call-overload]
    for future in start(array.parts(np.asarray(rows), out, **options)):  # type: ignore[arg-type]
        future.result()
    return out


@pytest.mark.parametrize("rows", [[17, 3, 3, 0, 99], list(range(40)), [], [5]])
def test_rows_come_in_the_order_asked_for(cohort: Cohort, rows: list[int]) -> None:
    array = ShardArray(cohort[TUPLES].arrays("b.svs"), "image")
    np.testing.assert_array_equal(read(array, rows), cohort.images(TUPLES)["b.svs"][rows])


def test_some_magnifications(cohort: Cohort) -> None:
    array = ShardArray(cohort[TUPLES].arrays("a.svs"), "image")
    expected = cohort.images(TUPLES)["a.svs"][[30, 2]][:, [0, 2]]
    np.testing.assert_array_equal(read(array, [30, 2], columns=[0, 2]), expected)


def test_patches_go_to_their_places(cohort: Cohort) -> None:
    array = ShardArray(cohort[GRID].arrays("a.svs"), "image")
    out = np.full((5, 1, SIZE, SIZE, 3), 9, np.uint8)
    for future in start(array.parts(np.array([7, 1]), out, places=np.array([4, 2]))):
        future.result()
    images = cohort.images(GRID)["a.svs"]
    np.testing.assert_array_equal(out[[4, 2]], images[[7, 1]])
    assert (out[[0, 1, 3]] == 9).all()


def test_label_maps(cohort: Cohort) -> None:
    patch_set = cohort[TUPLES]
    stored = patch_set.open("a.svs")["label_map"].to_numpy()
    assert len(np.unique(stored)) > 1
    np.testing.assert_array_equal(read(ShardArray(patch_set.arrays("a.svs"), "label_map"), [9, 4]), stored[[9, 4]])


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_encoded_patches_are_decoded(codec: Codec, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, codec=codec, names=(GRID,), slides=("a.svs",))
    array = ShardArray(cohort[GRID].arrays("a.svs"), "image")
    rows = [40, 1, 41, 42, 1]
    np.testing.assert_array_equal(read(array, rows), cohort.images(GRID)["a.svs"][rows])


def test_rows_that_are_not_there_are_refused(cohort: Cohort) -> None:
    array = ShardArray(cohort[GRID].arrays("a.svs"), "image")
    last = array.arrays.shape[0] - 1
    with pytest.raises(StoreError, match=f"rows 0..{last + 1} asked for, it has 0..{last}"):
        read(array, [0, last + 1])


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_a_flipped_byte_is_found_and_named(codec: Codec, tmp_path: Path) -> None:
    arrays = write_cohort(tmp_path, codec=codec, names=(GRID,), slides=("a.svs",))[GRID].arrays("a.svs")
    offset, length = ShardArray(arrays, "image").index(1)[1][3, 0].tolist()
    with open(arrays.shard_path("image", 1), "r+b") as stream:
        stream.seek(offset + length // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    array, row = ShardArray(arrays, "image"), arrays.rows + 3
    with pytest.raises(CorruptChunkError, match=rf"a.svs/image' chunk \({row}, 0\): the checksum .*msdask verify"):
        read(array, [0, row, row + 1])
    read(array, [0, row - 1, row + 1])


def test_a_damaged_shard_index_is_found(damaged: SlideArrays) -> None:
    path = Path(damaged.shard_path("image", 0))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(CorruptChunkError, match="checksum of its index"):
        read(ShardArray(damaged, "image"), [0])


def test_an_absent_shard_is_found_by_its_size(damaged: SlideArrays) -> None:
    Path(damaged.shard_path("image", 1)).unlink()
    with pytest.raises(CorruptChunkError, match=r"image/c/1/0/0/0/0' cannot be read: it is missing"):
        ShardArray(damaged, "image").check_sizes()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_shard_of_another_size_is_found_by_it(damaged: SlideArrays, size: int) -> None:
    path = Path(damaged.shard_path("image", 0))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptChunkError, match=r"image/c/0/0/0/0/0' has \d+ bytes, its 1\d chunks need \d+"):
        ShardArray(damaged, "image").check_sizes()


def test_a_shard_that_vanishes_while_reading_is_an_error(damaged: SlideArrays) -> None:
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
    array = ShardArray(cohort[GRID].arrays("a.svs"), "image")
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


def judged(patch_set: PatchSet, slide_id: str) -> np.ndarray:
    """The slide's image as zarr-python reads it."""
    for name, class_ in (("msdask.predicted_zstd", PredictedZstd), ("msdask.jpeg", Jpeg)):
        register_codec(name, class_)
    return np.asarray(zarr.open_array(store=Path(patch_set.path, slide_id, "image"), mode="r")[...])


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_blocks_and_rows_are_what_zarr_python_reads(codec: Codec, tmp_path: Path) -> None:
    patch_set = write_cohort(tmp_path, codec=codec, names=(TUPLES,), slides=("a.svs",))[TUPLES]
    array, expected = ShardArray(patch_set.arrays("a.svs"), "image"), judged(patch_set, "a.svs")
    rows = array.arrays.block(array.arrays.blocks - 1)
    np.testing.assert_array_equal(array.read_block(array.arrays.blocks - 1), expected[rows])
    np.testing.assert_array_equal(patch_set.open("a.svs")["image"].to_numpy(), expected)
    np.testing.assert_array_equal(array.read([9, 0, 9]), expected[[9, 0, 9]])


def test_blocks_and_rows_are_what_tensorstore_reads(cohort: Cohort) -> None:
    patch_set = cohort[TUPLES]
    for name in ("image", "label_map"):
        path = str(Path(patch_set.path, "a.svs", name))
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        expected = tensorstore.open(spec, open=True).result().read().result()
        array = ShardArray(patch_set.arrays("a.svs"), name)
        np.testing.assert_array_equal(
            np.concatenate([array.read_block(b) for b in range(array.arrays.blocks)]), expected
        )
        np.testing.assert_array_equal(array.read([5, 3]), expected[[5, 3]])


def test_a_block_is_read_in_the_thread_that_asks_so_that_a_forked_process_can(cohort: Cohort) -> None:
    arrays = cohort[GRID].arrays("a.svs")
    read(ShardArray(arrays, "image"), [0])  # the pool is there
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_a_block, args=(arrays, answers))
    child.start()
    try:
        assert answers.get(timeout=60) == int(ShardArray(arrays, "image").read_block(0).sum())
    finally:
        child.kill()
        child.join()


def _read_a_block(arrays: SlideArrays, answers: multiprocessing.Queue[int]) -> None:
    answers.put(int(ShardArray(arrays, "image").read_block(0).sum()))


def test_a_sound_shard_has_no_damage_and_a_broken_one_says_where(damaged: SlideArrays) -> None:
    array = ShardArray(damaged, "image")
    assert [array.damage(block) for block in range(damaged.blocks)] == [[]] * damaged.blocks
    path = Path(damaged.shard_path("image", 0))
    data = bytearray(path.read_bytes())
    for row in (1, 4):
        data[int(array.index(0)[1][row, 0, 0]) + 7] ^= 1
    path.write_bytes(data)
    assert [line.split("chunk ")[1][:6] for line in array.damage(0)] == ["(1, 0)", "(4, 0)"]
    path.unlink()
    (line,) = array.damage(0)
    assert "is missing" in line
