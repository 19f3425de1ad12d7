"""Patches: equal to a naive reading, whatever block they stand in; each tile decoded once; padding exactly outside."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msdask.cutting import cutter as cutting
from msdask.cutting.cutter import Cutter
from msdask.cutting.lazy_patches import block_rows, patches, planned
from msdask.errors import SpecError, TileError, UnreachableError
from msdask.readers.tiff import TiffReader
from msdask.sample.slides import SampleSlide, make_slide
from msdask.selection.select import centroids, grid
from msdask.slides.slide import Slide, open_slide

TileCall = tuple[int, int, int, int]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[TileCall]:
    """(level, row, column, scale) of every tile that is decoded from here on."""
    calls: list[TileCall] = []
    lock = threading.Lock()
    original = TiffReader.read_tile

    def counting(
        self: TiffReader, level: int, row: int, column: int, scale: int = 1, **options: Any
    ) -> NDArray[np.uint8]:
        with lock:
            calls.append((level, row, column, scale))
        return original(self, level, row, column, scale, **options)

    monkeypatch.setattr(TiffReader, "read_tile", counting)
    return calls


def stored_level(path: Path, level: int) -> NDArray[np.uint8]:
    """A level decoded whole by tifffile."""
    with tifffile.TiffFile(path) as tif:
        return np.asarray(tif.series[0].levels[level].asarray())


def half_away(value: float) -> int:
    return int(np.copysign(np.floor(abs(value) + 0.5), value))


def shares(start: float, count: int, ratio: float, size: int) -> NDArray[np.float64]:
    """(count, size): share of every px of a level in every output px; beyond its edges the edge px counts."""
    out = np.zeros((count, size))
    for i in range(count):
        low, high = start + i * ratio, start + (i + 1) * ratio
        for j in range(int(np.floor(low)), int(np.ceil(high - 1e-9))):
            out[i, min(max(j, 0), size - 1)] += min(j + 1, high) - max(j, low)
    return out / ratio


def naive_patches(slide: Slide, data: xr.Dataset, m: int) -> NDArray[np.float64]:
    """(patch, y, x, 3): exact area means of the level that is read, from whole levels, one matrix product a patch."""
    plan = data.attrs["reads"][m]
    level = stored_level(Path(slide.path), plan["level"])
    size, scale = data.attrs["spec"]["patch_size"], plan["dct_scale"]
    ratio = plan["ratio"] * scale
    out = []
    for x0, y0 in zip(data["x0"][:, m].values, data["y0"][:, m].values, strict=True):
        x, y = (half_away(v / plan["step"]) * scale for v in (x0, y0))
        rows, columns = shares(y, size, ratio, level.shape[0]), shares(x, size, ratio, level.shape[1])
        inner = np.ix_(rows.any(0), columns.any(0))
        out.append(
            np.einsum("ai,ijc,bj->abc", rows[:, rows.any(0)], level[inner], columns[:, columns.any(0)], optimize=True)
        )
    return np.stack(out)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-12)))


def some(table: xr.Dataset, count: int, seed: int = 0) -> xr.Dataset:
    """A few patches of a selection, in their order."""
    rows = np.sort(np.random.default_rng(seed).permutation(table.sizes["patch"])[:count])
    return table.isel(patch=rows)


def inside_only(slide: Slide, table: xr.Dataset) -> xr.Dataset:
    """The tuples of which no context leaves the slide."""
    height, width = slide.shape
    sides = np.array(table.attrs["footprint"])
    fits = (table["x0"] >= 0) & (table["y0"] >= 0) & (table["x0"] + sides <= width) & (table["y0"] + sides <= height)
    return table.isel(patch=np.flatnonzero(fits.all("magnification").values))


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("magnification", "level"), [(40, 0), (10, 1), (2.5, 2)])
def test_where_a_level_has_the_scale_its_pixels_are_taken_as_they_are(
    magnification: float, level: int, small_slide: SampleSlide
) -> None:
    slide = open_slide(small_slide.path)
    data = patches(slide, some(grid(slide, magnification=magnification, patch_size=48), 40))
    assert data.attrs["reads"][0] == {
        "level": level,
        "dct_scale": 1,
        "step": 4.0**level,
        "ratio": 1.0,
        "upsampled": False,
    }
    image, whole = data["image"].to_numpy(), stored_level(small_slide.path, level)
    for i, (x0, y0) in enumerate(zip(data["x0"][:, 0].values, data["y0"][:, 0].values, strict=True)):
        x, y = x0 // 4**level, y0 // 4**level
        np.testing.assert_array_equal(image[i, 0], whole[y : y + 48, x : x + 48])


@pytest.mark.parametrize("magnification", [20, 15, 30, 5, 3])
def test_jpeg_patches_are_near_the_exact_area_mean(magnification: float, small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    data = patches(slide, some(grid(slide, magnification=magnification, patch_size=64), 12))
    assert psnr(data["image"].to_numpy()[:, 0], naive_patches(slide, data, 0)) >= 40


@pytest.mark.parametrize("magnification", [20, 15, 40, 10, 5, 7.3])
def test_lossless_patches_of_an_odd_slide_are_the_area_mean(magnification: float, odd_slide: SampleSlide) -> None:
    slide = open_slide(odd_slide.path)
    table = some(grid(slide, magnification=magnification, patch_size=32, stride=29), 12)
    data = patches(slide, table)
    difference = np.abs(data["image"].to_numpy()[:, 0] - naive_patches(slide, data, 0))
    assert difference.max() <= 1.01  # cv2 sums in float32


def test_the_decoders_reduction_is_used_unless_it_is_switched_off(small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    table = some(grid(slide, magnification=20, patch_size=64), 6)
    scaled, exact, finest = (
        patches(slide, table),
        patches(slide, table, decode="exact"),
        patches(slide, some(grid(slide, magnification=10, patch_size=64), 6), source="finest", decode="exact"),
    )
    assert scaled.attrs["reads"][0]["dct_scale"] == 2
    assert exact.attrs["reads"][0]["dct_scale"] == 1
    assert (finest.attrs["reads"][0]["level"], finest.attrs["reads"][0]["ratio"]) == (0, 4.0)
    for data in (exact, finest):
        assert np.abs(data["image"].to_numpy()[:, 0] - naive_patches(slide, data, 0)).max() <= 1.01
    assert exact.attrs["spec"]["decode"] == "exact"


def test_a_real_slide(cmu_small: Path) -> None:
    slide = open_slide(cmu_small)
    data = patches(slide, some(centroids(slide, magnifications=[20, 10, 5], patch_size=96), 20))
    inside = patches(slide, some(inside_only(slide, centroids(slide, magnifications=[20, 10, 5], patch_size=96)), 8))
    assert data["image"].to_numpy().shape == (20, 3, 96, 96, 3)
    for m in range(3):
        assert psnr(inside["image"].to_numpy()[:, m], naive_patches(slide, inside, m)) >= 40


# --- independence of blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["small_slide", "odd_slide"])
@pytest.mark.parametrize("magnifications", [[15], [20], [20, 10, 5], [15, 7.5, 3]])
def test_a_patch_has_the_same_pixels_in_every_block(
    fixture: str, magnifications: list[float], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(request.getfixturevalue(fixture).path)
    table = some(centroids(slide, magnifications=magnifications, patch_size=40), 60)
    whole = patches(slide, table)["image"].to_numpy()
    monkeypatch.setattr("msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK", 5)
    cut = patches(slide, table)["image"]
    assert len(cut.chunks[0]) >= 12
    np.testing.assert_array_equal(cut.to_numpy(), whole)
    order = np.random.default_rng(1).permutation(table.sizes["patch"])
    np.testing.assert_array_equal(patches(slide, table.isel(patch=order))["image"].to_numpy(), whole[order])
    single = patches(slide, table.isel(patch=[17]))["image"].to_numpy()
    np.testing.assert_array_equal(single[0], whole[17])


def test_the_same_place_in_another_selection_has_the_same_pixels(odd_slide: SampleSlide) -> None:
    slide = open_slide(odd_slide.path)
    tuples = centroids(slide, magnifications=[15, 5], patch_size=40)
    alone = grid(slide, magnification=15, patch_size=40)
    np.testing.assert_array_equal(tuples["x0"][:, 0], alone["x0"][:, 0])
    np.testing.assert_array_equal(
        patches(slide, tuples)["image"].to_numpy()[:, :1], patches(slide, alone)["image"].to_numpy()
    )


# --- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnifications", [[40], [15], [10], [40, 10], [20, 10, 5]])
def test_each_tile_is_decoded_once_a_block_and_only_those_that_are_needed(
    magnifications: list[float], small_slide: SampleSlide, decoded: list[TileCall]
) -> None:
    slide = open_slide(small_slide.path)
    table = centroids(slide, magnifications=magnifications, patch_size=64)
    data = patches(slide, table)
    for block in range(len(data["image"].chunks[0])):
        decoded.clear()
        data["image"].data.blocks[block].compute(scheduler="synchronous")
        assert len(decoded) == len(set(decoded))
        assert decoded


def test_magnifications_that_read_the_same_level_share_its_tiles(
    odd_slide: SampleSlide, decoded: list[TileCall]
) -> None:
    slide = open_slide(odd_slide.path)
    data = patches(slide, some(centroids(slide, magnifications=[40, 20], patch_size=64), 50))
    assert [plan["level"] for plan in data.attrs["reads"]] == [0, 0]
    data["image"].data.blocks[0].compute(scheduler="synchronous")
    assert len(decoded) == len(set(decoded))


def test_tiles_are_dropped_after_their_last_use(small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(small_slide.path)
    table = grid(slide, magnification=40, patch_size=64)
    held: list[int] = []
    original = cutting._Level.load

    def watching(self: Any, row: int, column: int) -> NDArray[np.uint8]:
        tile = original(self, row, column)
        held.append(len(self.tiles))
        return tile

    monkeypatch.setattr(cutting._Level, "load", watching)
    reader, facts = planned(slide, table)
    reader.cut(slide.reader, facts["x0"].values, facts["y0"].values)
    # Tiles of 256 px hold 16 whole patches of 64 px, in Morton order: one tile at a time.
    assert len(held) == 9 * 12
    assert max(held) == 1


def test_morton_order_keeps_a_block_compact(small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    data = patches(slide, grid(slide, magnification=40, patch_size=32))
    first = data.isel(patch=slice(0, data["image"].chunks[0][0]))
    width, height = (int(first[n].max() - first[n].min()) + 32 for n in ("x0", "y0"))
    assert width * height <= 2.1 * first.sizes["patch"] * 32**2


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["small_slide", "odd_slide"])
@pytest.mark.parametrize("pad", [255, 0])
def test_contexts_are_padded_exactly_outside_the_slide(fixture: str, pad: int, request: pytest.FixtureRequest) -> None:
    slide = open_slide(request.getfixturevalue(fixture).path)
    magnifications, size = (
        ([10, 2.5], 64) if fixture == "small_slide" else ([44.189129474149355 / 4, 44.189129474149355 / 16], 60)
    )
    data = patches(slide, centroids(slide, magnifications=magnifications, patch_size=size), pad=pad)
    image = data["image"].to_numpy()
    plan = data.attrs["reads"][1]
    level = stored_level(Path(slide.path), plan["level"])
    height, width = slide.shape
    padded = 0
    for i in range(len(image)):
        origin_x, origin_y = (half_away(float(data[n][i, 1]) / plan["step"]) for n in ("x0", "y0"))
        ratio = plan["ratio"]
        # left edge of every output px, in px that are read: outside where the whole of it lies outside
        x = origin_x + np.arange(size + 1) * ratio
        y = origin_y + np.arange(size + 1) * ratio
        is_out_x = (x[1:] <= 0) | (x[:-1] >= np.ceil(width / plan["step"] - 1e-6))
        is_out_y = (y[1:] <= 0) | (y[:-1] >= np.ceil(height / plan["step"] - 1e-6))
        outside = is_out_y[:, None] | is_out_x[None, :]
        assert (image[i, 1][outside] == pad).all()
        padded += int(outside.sum())
        if ratio == 1.0:
            rows = np.clip(origin_y + np.arange(size), 0, level.shape[0] - 1)
            columns = np.clip(origin_x + np.arange(size), 0, level.shape[1] - 1)
            expected = np.where(outside[..., None], pad, level[np.ix_(rows, columns)])
            np.testing.assert_array_equal(image[i, 1], expected)
    assert padded > 0


@pytest.fixture(scope="module")
def ragged_slide(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    """2 px more than 16 x its coarsest level on each side: 1026 x 1282 px, levels 1, 4, 16, lossless."""
    folder = tmp_path_factory.mktemp("ragged")
    return make_slide(
        folder / "ragged.svs", size=(1026, 1282), seed=5, compression="deflate", associated=False, tissue_fraction=1.0
    )


def test_inside_the_slide_but_beyond_a_levels_floor_size_the_edge_is_replicated(ragged_slide: SampleSlide) -> None:
    slide = open_slide(ragged_slide.path)
    assert [info.shape for info in slide.level_infos] == [(1026, 1282), (256, 320), (64, 80)]
    # A patch of 80 px of 16 that ends with the slide: px 79 of 80 covers level-0 px 1280 .. 1282 of the slide's last 2.
    table = grid(slide, magnification=2.5, patch_size=16, start=(1282 - 256, 1026 - 256))
    last = table.isel(patch=[int((table["x0"] + table["y0"])[:, 0].values.argmax())])
    assert (last["x0"].item(), last["y0"].item()) == (1026, 770)
    level = stored_level(ragged_slide.path, 2)
    image = patches(slide, last)["image"].to_numpy()[0, 0]
    np.testing.assert_array_equal(image, level[48:64, 64:80])
    contexts = centroids(slide, magnifications=[10, 2.5], patch_size=16)
    corner = contexts.isel(patch=[int((contexts["x0"] + contexts["y0"])[:, 0].values.argmax())])
    image = patches(slide, corner)["image"].to_numpy()[0, 1]
    x, y = (half_away(corner[n][0, 1].item() / 16) for n in ("x0", "y0"))
    assert x + 16 > 81
    assert y + 16 > 65
    columns, rows = 81 - x, 65 - y
    np.testing.assert_array_equal(image[: rows - 1, columns - 1], level[y:64, 79])  # replicated: the slide goes on
    np.testing.assert_array_equal(image[rows - 1, : columns - 1], level[63, x:80])
    assert (image[rows:] == 255).all()
    assert (image[:, columns:] == 255).all()


def test_a_slide_smaller_than_a_patch_gives_an_empty_set(ragged_slide: SampleSlide) -> None:
    slide = open_slide(ragged_slide.path)
    data = patches(slide, grid(slide, magnification=2.5, patch_size=224))
    assert data["image"].shape == (0, 1, 224, 224, 3)
    assert data["image"].to_numpy().shape == (0, 1, 224, 224, 3)


def test_enlarging_is_refused_unless_asked_and_then_said(ragged_slide: SampleSlide) -> None:
    slide = open_slide(ragged_slide.path)
    with pytest.raises(SpecError, match="allow_upsampling=True"):
        grid(slide, magnification=80, patch_size=64)
    data = patches(slide, some(grid(slide, magnification=80, patch_size=64, allow_upsampling=True), 5))
    assert data.attrs["reads"][0] == {"level": 0, "dct_scale": 1, "step": 1.0, "ratio": 0.5, "upsampled": True}
    image = data["image"].to_numpy()[:, 0]
    level = stored_level(ragged_slide.path, 0)
    for i, (x, y) in enumerate(zip(data["x0"][:, 0].values, data["y0"][:, 0].values, strict=True)):
        back = image[i].reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert psnr(back, level[y : y + 32, x : x + 32]) >= 25


# --- bad tiles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(small_slide: SampleSlide, tmp_path: Path) -> Path:
    """The small slide with tile (3, 4) of level 0 overwritten."""
    path = tmp_path / "damaged.svs"
    shutil.copy(small_slide.path, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[0].pages[0]
        index = 3 * -(-page.imagewidth // page.tilewidth) + 4
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
    return path


def test_a_bad_tile_raises_naming_file_level_and_tile(damaged: Path) -> None:
    slide = open_slide(damaged)
    with pytest.raises(TileError, match=r"damaged\.svs.*level 0.*row 3.*column 4"):
        patches(slide, grid(slide, magnification=40, patch_size=128))["image"].compute()
    assert patches(slide, grid(slide, magnification=10, patch_size=64))["image"].compute().sizes["patch"] == 108


@pytest.mark.parametrize(("magnification", "size"), [(40, 100), (20, 64), (15, 50)])
def test_a_bad_tile_is_filled_white_and_its_share_recorded(
    magnification: float, size: int, damaged: Path, small_slide: SampleSlide
) -> None:
    slide, sound = open_slide(damaged), open_slide(small_slide.path)
    table = grid(sound, magnification=magnification, patch_size=size)
    data, expected = patches(slide, table, on_bad_tile="fill"), patches(sound, table)["image"].to_numpy()
    image, filled = data["image"].to_numpy(), data["filled"].to_numpy()
    assert filled.dtype == np.float32
    side = table.attrs["footprint"][0]
    for i in range(len(image)):
        x, y = float(table["x0"][i, 0]), float(table["y0"][i, 0])
        width = max(0.0, min(x + side, 1280) - max(x, 1024))
        height = max(0.0, min(y + side, 1024) - max(y, 768))
        assert filled[i, 0] == pytest.approx(width * height / side**2, abs=0.06)
        if filled[i, 0] == 0:
            np.testing.assert_array_equal(image[i], expected[i])
        elif width * height >= side**2 - 1e-6:
            assert (image[i] == 255).all()
    assert (filled > 0).any()


@pytest.fixture(params=["the disk fails", "permission", "cut while open"])
def unreadable(request: pytest.FixtureRequest, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same slide, where that tile cannot be read, whatever there is."""
    with tifffile.TiffFile(damaged) as tif:
        page = tif.series[0].levels[0].pages[0]
        offset = page.dataoffsets[3 * -(-page.imagewidth // page.tilewidth) + 4]
    original, errors = os.pread, {"the disk fails": errno.EIO, "permission": errno.EACCES}

    def pread(descriptor: int, size: int, at: int) -> bytes:
        if not at <= offset < at + size or size > 100_000:
            return original(descriptor, size, at)
        if request.param in errors:
            raise OSError(errors[request.param], os.strerror(errors[request.param]))
        return original(descriptor, offset - at, at)

    monkeypatch.setattr("os.pread", pread)
    return damaged


@pytest.mark.parametrize("on_bad_tile", ["raise", "fill"])
def test_a_tile_that_cannot_be_read_now_is_an_error_and_never_filled(on_bad_tile: Any, unreadable: Path) -> None:
    slide = open_slide(unreadable)
    table = grid(slide, magnification=40, patch_size=128)
    message = r"damaged\.svs.*level 0, tile \(row 3, column 4\).*(cannot be read now|cut short)"
    with pytest.raises(UnreachableError, match=message):
        patches(slide, table, on_bad_tile=on_bad_tile)["image"].compute(scheduler="synchronous")
    with pytest.raises(UnreachableError):
        slide.with_bad_tiles(on_bad_tile).levels[0].compute(scheduler="synchronous")


# --- laziness ---------------------------------------------------------------------------------------------------------


def test_patches_are_lazy_and_one_task_a_block(small_slide: SampleSlide, decoded: list[TileCall]) -> None:
    slide = open_slide(small_slide.path)
    table = grid(slide, magnification=40, patch_size=32)
    data = patches(slide, table)
    repr(data)
    assert decoded == []
    blocks_ = -(-table.sizes["patch"] // 256)
    assert len(data["image"].chunks[0]) == blocks_
    assert len(dict(data["image"].data.__dask_graph__())) <= blocks_ + 2
    assert data["image"].chunks[1:] == ((1,), (32,), (32,), (3,))


@given(count=st.integers(0, 5000), magnifications=st.integers(1, 8), size=st.integers(1, 2048))
def test_blocks_are_bounded_and_even(count: int, magnifications: int, size: int) -> None:
    rows = block_rows(count, magnifications, size)
    assert rows >= 1
    assert rows == 1 or rows * magnifications <= 256
    assert rows == 1 or rows * magnifications * size * size * 3 <= 64 * 2**20
    if count:
        most = max(1, min(256 // magnifications, 64 * 2**20 // (magnifications * size * size * 3)))
        assert -(-count // rows) == -(-count // most)  # no more shards than needed


def test_a_selection_of_another_slide_is_refused(small_slide: SampleSlide, odd_slide: SampleSlide) -> None:
    table = grid(open_slide(small_slide.path), magnification=10, patch_size=64)
    with pytest.raises(SpecError, match=r"odd\.svs.*2003 x 1501.*3072 x 2304"):
        patches(open_slide(odd_slide.path), table)


def test_a_selection_at_another_scale_is_refused(small_slide: SampleSlide) -> None:
    table = grid(open_slide(small_slide.path), magnification=10, patch_size=64)
    with pytest.raises(SpecError, match=r"0\.5 um/px.*0\.25 um/px"):
        patches(open_slide(small_slide.path, mpp=0.5), table)


# --- the copy of slices, on made-up readers ---------------------------------------------------------------------------


class ArrayReader:
    """A level of an array in tiles, whose edge tiles are padded with a value that must never be seen."""

    def __init__(self, level: NDArray[np.uint8], tile: tuple[int, int]) -> None:
        from msdask.readers.base import LevelInfo

        self.level, self.tile = level, tile
        self.levels = (LevelInfo(level.shape[:2], tile),)

    def read_tile(self, level: int, row: int, column: int, scale: int = 1, *, out: Any = None) -> NDArray[np.uint8]:
        height, width = self.tile
        tile = np.full((height, width, 3), 123, np.uint8)
        part = self.level[row * height : (row + 1) * height, column * width : (column + 1) * width]
        tile[: part.shape[0], : part.shape[1]] = part
        return tile


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.integers(1, 30),
    origins=st.lists(st.tuples(st.integers(-40, 80), st.integers(-40, 80)), min_size=1, max_size=5),
)
def test_any_patch_of_any_tiling_is_its_slice_padded_with_white(
    height: int, width: int, tile: tuple[int, int], size: int, origins: list[tuple[int, int]]
) -> None:
    from msdask.scale import ReadPlan

    level = np.random.default_rng(height * 61 + width).integers(0, 100, (height, width, 3), dtype=np.uint8)
    reader = Cutter((ReadPlan(0, 1, 1.0, 1.0),), (float(size),), size)
    x0, y0 = (np.array(v, np.int32)[:, None] for v in zip(*origins, strict=True))
    image, filled = reader.cut(ArrayReader(level, tile), x0, y0)  # type: ignore[arg-type]
    canvas = np.full((height + 300, width + 300, 3), 255, np.uint8)
    canvas[100 : 100 + height, 100 : 100 + width] = level
    for i, (x, y) in enumerate(origins):
        expected = canvas[100 + y : 100 + y + size, 100 + x : 100 + x + size].copy()
        # what leaves the slide by no more than the rounding of origins is replicated
        if x >= 0 and x + size == width + 1:
            expected[:, -1] = expected[:, -2] if size > 1 else expected[:, -1]
        if y >= 0 and y + size == height + 1:
            expected[-1] = expected[-2] if size > 1 else expected[-1]
        if size > 1 or (x + size <= width and y + size <= height):
            np.testing.assert_array_equal(image[i, 0], expected)
    assert not filled.any()
