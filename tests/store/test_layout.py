"""Columns: what Zarr reads of them, and nothing else than what was written, whatever their documents say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from msdask.cutting.measures import MEASURES
from msdask.errors import CorruptChunkError
from msdask.store import layout, shards
from msdask.store.slide_arrays import SlideArrays

RNG = np.random.default_rng(0)
COLUMNS = {
    "x0": RNG.integers(-(2**31), 2**31, (7, 3)).astype(np.int32),
    "tissue": RNG.random(7).astype(np.float32),
    "label": RNG.integers(-1, 9, (7, 1)).astype(np.int16),
    "keep": RNG.random(7) > 0.5,
    "magnification": np.array([20.0, 10.0, 5.0]),
    "mask": RNG.integers(0, 3, (40, 50)).astype(np.uint8),
    "empty": np.zeros((0, 3), np.int32),
}


def write(folder: Path, name: str) -> np.ndarray:
    values = COLUMNS[name]
    layout.create_column(folder, name, values, [f"d{i}" for i in range(values.ndim)], {"mpp": 8.0})
    return values


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_comes_back_and_zarr_reads_the_same(name: str, tmp_path: Path) -> None:
    values = write(tmp_path, name)
    dims, found, attrs = layout.read_variable(tmp_path, name)
    for read in (found, layout.read_column(tmp_path, name), np.asarray(zarr.open_array(tmp_path / name)[...])):
        np.testing.assert_array_equal(read, values)
        assert read.dtype == values.dtype
    assert (dims, attrs) == ([f"d{i}" for i in range(values.ndim)], {"mpp": 8.0})


def test_an_array_of_several_chunks_is_read_as_zarr_reads_it(tmp_path: Path) -> None:
    arrays = SlideArrays(str(tmp_path), "raw", (11, 2), 4, 16)
    layout.create_measured(arrays)
    for block in range(3):
        rows = arrays.block(block)
        values = RNG.random((rows.stop - rows.start, 2, len(MEASURES))).astype(np.float32)
        shards.write_measured(arrays, block, values)
    found = layout.read_column(tmp_path, "measured")
    np.testing.assert_array_equal(found, np.asarray(zarr.open_array(tmp_path / "measured")[...]))
    np.testing.assert_array_equal(found, shards.read_measured(arrays))
    Path(tmp_path, "measured", "c", "1", "0", "0").unlink()
    with pytest.raises(CorruptChunkError, match="measured"):
        layout.read_column(tmp_path, "measured")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [2**40, 3]),
        ("shape", [7, 2**40]),
        ("shape", [8, 3]),
        ("shape", [-7, 3]),
        ("shape", "7"),
        ("data_type", "float64"),
        ("data_type", "int16"),
        ("data_type", "O"),
        ("data_type", None),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 3]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [7, 1]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}),
        ("chunk_grid", None),
        ("codecs", []),
        ("codecs", [{"name": "bytes"}, {"name": "gzip"}, {"name": "crc32c"}]),
    ],
)
def test_a_document_that_lies_is_an_error_that_names_the_array(key: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, "x0")
    path = tmp_path / "x0" / "zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, key: value}))
    with pytest.raises(CorruptChunkError, match=r"x0' cannot be read"):
        layout.read_column(tmp_path, "x0")


def test_another_name_of_chunks_does_not_make_zeros(tmp_path: Path) -> None:
    values = write(tmp_path, "x0")
    path = tmp_path / "x0" / "zarr.json"
    document = json.loads(path.read_text())
    document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "."}}
    path.write_text(json.dumps(document))
    assert (np.asarray(zarr.open_array(tmp_path / "x0")[...]) == 0).all()
    np.testing.assert_array_equal(layout.read_column(tmp_path, "x0"), values)


def test_what_is_written_over_an_array_is_there_whole(tmp_path: Path) -> None:
    write(tmp_path, "keep")
    layout.create_column(tmp_path, "keep", ~COLUMNS["keep"], ("patch",))
    np.testing.assert_array_equal(layout.read_column(tmp_path, "keep"), ~COLUMNS["keep"])
    assert not list(tmp_path.rglob("*.part"))
