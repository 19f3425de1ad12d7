"""What is read once of a slide: its overview, and its fingerprint while its file stays as it is."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

import dask
import fsspec
import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import msdask as ms
from msdask.cutting.lazy_patches import mean_of_tissue
from msdask.readers.tiff import TiffReader
from msdask.sample.slides import SampleSlide
from msdask.slides.overview import Overview
from msdask.slides.slide import Slide
from msdask.slides.tiled import tiled
from msdask.storage.source import LocalSource, fingerprint


def test_an_overview_gives_what_the_slide_gives_and_decodes_it_once(
    small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = Slide(small_slide.path)
    mask = ms.tissue_mask(slide)
    mean = mean_of_tissue(slide, mask.values)
    original, read = TiffReader.read_tile, []

    def counting(self: TiffReader, level: int, row: int, column: int, scale: int = 1) -> np.ndarray:
        read.append((level, row, column))
        return original(self, level, row, column, scale)

    monkeypatch.setattr(TiffReader, "read_tile", counting)
    overview = Overview(slide)
    np.testing.assert_array_equal(ms.tissue_mask(overview).values, mask.values)
    assert mean_of_tissue(overview, mask.values) == mean
    assert read
    assert len(read) == len(set(read))
    assert overview.at(mpp=16.0).shape[0] < overview.at(mpp=8.0).shape[0]


@pytest.mark.parametrize("mpp", [8.0, 4.0, 1.0, 3.7, 9.1])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_an_image_that_is_read_in_parts_is_that_of_one(
    mpp: float, scheduler: str, small_slide: SampleSlide, odd_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (small_slide.path, odd_slide.path):
        slide = Slide(path)
        expected = slide.at(mpp=mpp).compute().drop_vars(["y", "x"])
        monkeypatch.setattr("msdask.slides.slide._READ_PART", 130)
        monkeypatch.setattr("msdask.slides.slide._READ_CHUNK", 300)
        with dask.config.set(scheduler=scheduler):
            xr.testing.assert_identical(slide.read_at(mpp=mpp), expected)
        monkeypatch.undo()


def test_parts_that_end_with_tiles_decode_none_twice(small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    original, read = TiffReader.read_tile, []

    def counting(self: TiffReader, level: int, row: int, column: int, scale: int = 1) -> np.ndarray:
        read.append((level, row, column))
        return original(self, level, row, column, scale)

    monkeypatch.setattr(TiffReader, "read_tile", counting)
    monkeypatch.setattr("msdask.slides.slide._READ_PART", 256)
    Slide(small_slide.path).read_at(mpp=1.0)
    assert len(read) == len(set(read)) > 4


def test_an_image_of_strips_is_read_in_few_rows_and_each_strip_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "strips.tif"
    rgb = np.random.default_rng(0).integers(0, 256, (700, 901, 3), dtype=np.uint8)
    tifffile.imwrite(path, rgb, photometric="rgb", compression="deflate", rowsperstrip=256)
    asked: list[tuple[int, int]] = []
    original = TiffReader.read_tile

    def noting(self: TiffReader, level: int, row: int, column: int, scale: int = 1) -> np.ndarray:
        asked.append((row, column))
        return original(self, level, row, column, scale)

    monkeypatch.setattr(TiffReader, "read_tile", noting)
    monkeypatch.setattr("msdask.slides.slide._READ_PART", 100)
    monkeypatch.setattr("msdask.slides.slide._READ_CHUNK", 100)
    Slide(path, mpp=0.5).read_at(mpp=0.5)
    assert sorted(asked) == [(row, 0) for row in range(3)]


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.floats(0.3, 400), st.floats(0.3, 400)),
    st.floats(1, 500),
)
def test_parts_cover_an_image_once_and_are_no_larger_than_they_must_be(
    shape: tuple[int, int], tile: tuple[float, float], side: float
) -> None:
    parts = tiled(shape, tile, side=side)
    count = np.zeros(shape, np.int64)
    for rows, columns in parts:
        count[slice(*rows), slice(*columns)] += 1
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        assert height <= math.ceil(tile[0]) or width <= math.ceil(tile[1]) or height * width <= (1.5 * side + 1) ** 2
        assert height <= math.ceil(tile[0]) or height * width <= (side + 1) ** 2 + width
    assert (count == 1).all()


def test_an_image_on_a_server_is_read_in_a_few_requests(
    small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/overview.svs", Path(small_slide.path).read_bytes())
    slide = Slide("memory://overview.svs")
    source = slide.reader._source  # type: ignore[attr-defined]
    original, asked = source._fetch, []

    def fetch(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return original(offset, size)

    monkeypatch.setattr(source, "_fetch", fetch)
    expected = Slide(small_slide.path).read_at(mpp=1.0)
    np.testing.assert_array_equal(slide.read_at(mpp=1.0), expected)
    assert 1 <= len(asked) <= 2, "a request for each part of it"
    files.rm("/overview.svs")


def test_a_fingerprint_is_computed_again_when_bytes_were_written_and_the_time_set_back(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(small_slide.path, path)
    slide = Slide(path)
    first = slide.fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "read", None)
        assert slide.fingerprint() == first
    before, reader = os.stat(path), slide.reader
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert slide.reader is reader
    assert slide.fingerprint() != first


def test_the_fingerprint_of_a_small_file_is_that_of_its_ranges(small_slide: SampleSlide) -> None:
    """Read whole, or range by range: the digest is the same."""
    whole = fingerprint(LocalSource(small_slide.path))
    assert whole == _slow_fingerprint(LocalSource(small_slide.path))


def _slow_fingerprint(source: LocalSource) -> str:
    """What docs say: size, first KiB, first and last MiB, 64 ranges of 64 KiB."""
    size, mib, sample = source.size, 1 << 20, 64 << 10
    ranges = [(0, 1024), (0, mib), (max(0, size - mib), mib)]
    for index in range(64):
        draw = hashlib.sha256(f"msdask fingerprint 1 {size} {index}".encode()).digest()
        ranges.append((int.from_bytes(draw[:8], "big") % max(1, size - sample + 1), sample))
    digest = hashlib.sha256(f"{size}".encode())
    for offset, length in ranges:
        part = source.read(offset, length)
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
