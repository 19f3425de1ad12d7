"""Shards: pieces in any order, the bytes that TensorStore writes, and what a failing piece leaves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from msdask.cutting.measures import MEASURES
from msdask.errors import StoreError
from msdask.spec import Codec
from msdask.storage import places
from msdask.store import layout, shards
from msdask.store.slide_arrays import SlideArrays

SIDE = 16


def make_arrays(folder: Path, codec: Codec = "raw") -> SlideArrays:
    """11 tuples of two magnifications, 6 a shard."""
    arrays = SlideArrays(str(folder / "a.svs"), codec, (11, 2), 6, SIDE)
    layout.create_shards(arrays, "image")
    return arrays


def pixels(arrays: SlideArrays, block: int) -> np.ndarray:
    rows = arrays.block(block)
    shape = (rows.stop - rows.start, arrays.shape[1], SIDE, SIDE, 3)
    return np.random.default_rng(block).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
@pytest.mark.parametrize("block", [0, 1])
def test_pieces_in_any_order_make_the_shard_that_is_written_at_once(codec: Codec, block: int, tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path, codec)
    image = pixels(arrays, block)
    path = Path(arrays.shard_path("image", block))
    shards.write_shard(arrays, "image", block, image)
    whole = path.read_bytes()
    path.unlink()
    chunks = shards.encode(arrays, "image", image)
    pieces = [(first, chunks[first : first + 4]) for first in range(0, len(chunks), 4)]
    with shards.shard_writer(arrays, "image", block) as put:
        threads = [threading.Thread(target=put, args=piece) for piece in reversed(pieces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not path.exists()
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_a_piece_is_written_when_it_comes_and_all_before_it_have(codec: Codec, tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path, codec)
    chunks = shards.encode(arrays, "image", pixels(arrays, 0))
    lengths = [sum(map(len, chunk)) for chunk in chunks]
    folder = Path(arrays.shard_path("image", 0)).parent

    def written() -> int:
        return next(folder.iterdir()).stat().st_size

    with shards.shard_writer(arrays, "image", 0) as put:
        put(0, chunks[:4])
        assert written() == sum(lengths[:4])
        put(8, chunks[8:])
        assert codec == "raw" or written() == sum(lengths[:4])
        put(4, chunks[4:8])
        assert written() == sum(lengths)


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_an_error_between_the_pieces_leaves_nothing_behind(codec: Codec, tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path, codec)
    chunks = shards.encode(arrays, "image", pixels(arrays, 0))

    def broken() -> None:
        with shards.shard_writer(arrays, "image", 0) as put:
            put(0, chunks[:3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [p for p in Path(arrays.path, "image").rglob("*") if p.is_file() and p.name != "zarr.json"] == []


def test_a_piece_that_cannot_be_written_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = make_arrays(tmp_path)
    chunks = shards.encode(arrays, "image", pixels(arrays, 0))

    def full(handle: int, parts: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with (
        pytest.raises(StoreError, match=r"cannot write '.*image/c/0.*No space left.*run again"),
        shards.shard_writer(arrays, "image", 0) as put,
    ):
        put(0, chunks)


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda handle, parts, at: original(handle, [parts[0][:3]], at))
    places.at(str(tmp_path)).write(str(tmp_path / "file"), [b"abcdef", memoryview(b"ghi"), b""])
    assert (tmp_path / "file").read_bytes() == b"abcdefghi"


def opened(arrays: SlideArrays, name: str) -> tensorstore.TensorStore:
    """An array of the slide, for TensorStore to judge."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": arrays.array_path(name)}}
    return tensorstore.open({**spec, "store_data_equal_to_fill_value": True}, open=True).result()


@pytest.mark.parametrize("block", [0, 1])
def test_tensorstore_writes_the_same_shard(block: int, tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path)
    image, path = pixels(arrays, block), Path(arrays.shard_path("image", block))
    shards.write_shard(arrays, "image", block, image)
    ours = path.read_bytes()
    path.unlink()
    opened(arrays, "image")[arrays.block(block)].write(image).result()
    assert path.read_bytes() == ours


@pytest.mark.parametrize("block", [0, 1])
def test_tensorstore_writes_the_same_rows_of_measured(block: int, tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path)
    layout.create_measured(arrays)
    rows = arrays.block(block)
    measured = np.random.default_rng(block).random((rows.stop - rows.start, 2, len(MEASURES)), np.float32)
    path = Path(arrays.array_path("measured"), "c", str(block), "0", "0")
    shards.write_measured(arrays, block, measured)
    ours = path.read_bytes()
    path.unlink()
    opened(arrays, "measured")[rows].write(measured).result()
    assert path.read_bytes() == ours


def test_blocks_count_as_written_by_their_rows_of_measured(tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path)
    layout.create_measured(arrays)
    assert shards.written_blocks(arrays).tolist() == [False, False]
    measured = np.ones((5, 2, len(MEASURES)), np.float32)
    shards.write_measured(arrays, 1, measured)
    assert shards.written_blocks(arrays).tolist() == [False, True]
    np.testing.assert_array_equal(shards.read_measured(arrays)[6:], measured)
    assert np.isnan(shards.read_measured(arrays)[:6]).all()


def test_damaged_rows_of_measured_count_as_not_written(tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path)
    layout.create_measured(arrays)
    for block, rows in ((0, 6), (1, 5)):
        shards.write_measured(arrays, block, np.ones((rows, 2, len(MEASURES)), np.float32))
    path = Path(arrays.array_path("measured"), "c", "0", "0", "0")
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert shards.written_blocks(arrays).tolist() == [False, True]


def test_a_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    arrays = make_arrays(tmp_path)
    with pytest.raises(StoreError, match=r"block 1 of image: \(6, 2, 16, 16, 3\) uint8; expected \(5, 2, 16, 16, 3\)"):
        shards.write_shard(arrays, "image", 1, pixels(arrays, 0))
