"""Slide: lazy, picklable, safe in threads, and at any scale the exact area mean of the level that it reads."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.errors import MissingScaleError, SlideError, SpecError, TileError
from msdask.readers.tiff import TiffReader
from msdask.sample.slides import SampleSlide
from msdask.slides.slide import Slide, open_slide

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """(level, row, column, scale) of every tile that is decoded from here on."""
    calls: list[tuple[int, int, int, int]] = []
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


@pytest.fixture
def slide(small_slide: SampleSlide) -> Slide:
    return open_slide(small_slide.path)


def stored_level(path: Path, level: int) -> NDArray[np.uint8]:
    """A level decoded whole by tifffile."""
    with tifffile.TiffFile(path) as tif:
        return np.asarray(tif.series[0].levels[level].asarray())


def naive_area_mean(level: NDArray[np.uint8], ratio: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Mean of `level` over squares of `ratio` px, from the share of every px in every square."""

    def shares(count: int, size: int) -> NDArray[np.float64]:
        out = np.zeros((count, size))
        for i in range(count):
            for j in range(int(i * ratio), min(size, int(np.ceil((i + 1) * ratio - 1e-9)))):
                out[i, j] = min(j + 1, (i + 1) * ratio) - max(j, i * ratio)
            if not out[i].any():
                out[i, size - 1] = 1
        return out / out.sum(1, keepdims=True)

    rows, columns = shares(shape[0], level.shape[0]), shares(shape[1], level.shape[1])
    return np.stack([rows @ level[..., c].astype(float) @ columns.T for c in range(3)], axis=-1)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_nothing_is_decoded_until_pixels_are_asked_for(small_slide: SampleSlide, decoded: list[Any]) -> None:
    slide = open_slide(small_slide.path)
    repr(slide)
    slide.properties, slide.associated, slide.fingerprint()
    slide.levels, slide.at(magnification=15), slide.at(mpp=8.0), slide.to_datatree()
    repr(slide.at(magnification=10))
    pickle.loads(pickle.dumps(slide))
    assert decoded == []
    slide.levels[2][:1, :1].compute()
    assert decoded


def test_what_is_known_of_a_slide(slide: Slide, small_slide: SampleSlide) -> None:
    assert slide.path == str(small_slide.path)
    assert slide.name == "small.svs"
    assert slide.shape == small_slide.shape
    assert (slide.mpp, slide.mpp_used, slide.quality, slide.warnings) == (0.25, 0.25, "stated", ())
    assert slide.magnification == 40
    assert [info.downsample for info in slide.level_infos] == [1, 4, 16]
    assert {"label", "macro", "thumbnail"} <= set(slide.associated)
    assert slide.associated_image("label").dtype == np.uint8
    with pytest.raises(SpecError, match=r"no associated image 'stain'.*label"):
        slide.associated_image("stain")


def test_repr_says_size_scale_and_levels(slide: Slide, scaleless_slide: SampleSlide) -> None:
    assert repr(slide).startswith("<Slide 'small.svs': 3072 x 2304 px, 0.25 µm/px (40x, ")
    assert "levels 1, 4, 16" in repr(slide)
    assert "no scale" in repr(open_slide(scaleless_slide.path))


def test_html_shows_name_scale_levels_and_a_picture(slide: Slide, scaleless_slide: SampleSlide) -> None:
    html = slide._repr_html_()
    for part in ("small.svs", "3,072 x 2,304 px", "0.25 µm/px", "data:image/jpeg;base64,", "768 x 576"):
        assert part in html
    assert "no resolution in the file" in open_slide(scaleless_slide.path)._repr_html_()


def test_html_escapes_the_file_name(small_slide: SampleSlide, tmp_path: Path) -> None:
    path = tmp_path / "<b>&x.svs"
    shutil.copy(small_slide.path, path)
    html = open_slide(path)._repr_html_()
    assert "&lt;b&gt;&amp;x.svs" in html
    assert "<b>" not in html


def test_html_of_a_slide_whose_file_is_gone_still_says_what_is_known(small_slide: SampleSlide, tmp_path: Path) -> None:
    path = tmp_path / "gone.svs"
    shutil.copy(small_slide.path, path)
    slide = pickle.loads(pickle.dumps(open_slide(path)))
    path.unlink()
    assert "3,072 x 2,304 px" in slide._repr_html_()


def test_spaces_and_unicode_in_names(small_slide: SampleSlide, tmp_path: Path) -> None:
    path = tmp_path / "ein Schnitt – ß 切片.svs"
    shutil.copy(small_slide.path, path)
    slide = open_slide(path)
    assert slide.name == path.name
    assert slide.thumbnail(64).shape == (48, 64, 3)


def test_a_file_that_was_replaced_is_opened_anew(
    odd_slide: SampleSlide, small_slide: SampleSlide, tmp_path: Path
) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(small_slide.path, path)
    before = open_slide(path).fingerprint()
    shutil.copy(odd_slide.path, path)
    slide = open_slide(path)
    assert slide.shape == odd_slide.shape
    assert slide.fingerprint() != before


def test_lazy_arrays_of_a_replaced_file_have_other_names(small_slide: SampleSlide, tmp_path: Path) -> None:
    # A cluster keeps results by name: the same name for other pixels would give it the old ones.
    path = tmp_path / "a.svs"
    shutil.copy(small_slide.path, path)
    before = open_slide(path).levels[2]
    data = bytearray(path.read_bytes())
    path.write_bytes(data + b"\0\0")
    assert open_slide(path).levels[2].name != before.name


# --- scale ------------------------------------------------------------------------------------------------------------


def test_a_slide_without_scale_refuses_physical_requests_with_the_ways_out(scaleless_slide: SampleSlide) -> None:
    slide = open_slide(scaleless_slide.path)
    assert slide.mpp is None
    for ask in (lambda: slide.mpp_used, lambda: slide.magnification, lambda: slide.at(magnification=10)):
        with pytest.raises(MissingScaleError, match=r"scaleless\.svs.*pass mpp=.*magnification=.*scale detector"):
            ask()
    assert slide.thumbnail(100).shape == (80, 100, 3)
    assert slide.levels[0].shape == (1024, 1280, 3)
    assert "level_0" in slide.to_datatree().children
    assert open_slide(scaleless_slide.path, mpp=0.25).at(magnification=10).shape == (256, 320, 3)
    assert open_slide(scaleless_slide.path, magnification=40).mpp == 0.25


def test_what_is_doubtful_is_warned_of_at_the_callers_line_or_raised(tmp_path: Path) -> None:
    path = tmp_path / "mm.tif"
    tifffile.imwrite(
        path,
        np.zeros((64, 64, 3), np.uint8),
        tile=(32, 32),
        photometric="rgb",
        resolution=(40_000, 39_000),
        resolutionunit="CENTIMETER",
    )
    with pytest.warns(UserWarning, match="x and y differ") as caught:
        slide = open_slide(path)
    assert caught[0].filename == __file__
    assert slide.quality == "anisotropic"
    with pytest.raises(MissingScaleError, match="x and y differ"):
        open_slide(path, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_slide(path, mpp=0.25).quality == "user"


def test_cmu_is_a_20x_slide(cmu_small: Path) -> None:
    slide = open_slide(cmu_small)
    assert slide.shape == (2967, 2220)
    assert slide.mpp == pytest.approx(0.499)
    assert (slide.mpp_used, slide.magnification) == (0.5, 20)
    assert open_slide(cmu_small, tolerance=0).mpp_used == pytest.approx(0.499)
    assert slide.at(magnification=10).shape == (1484, 1110, 3)
    full = stored_level(cmu_small, 0)
    np.testing.assert_array_equal(slide.at(magnification=20).to_numpy(), full)
    assert set(slide.associated) == {"label", "macro", "thumbnail"}


def test_a_monuseg_crop_has_no_scale_until_it_is_given(data_dir: Path) -> None:
    path = sorted((data_dir / "monuseg" / "images").glob("*.tif"))[0]
    slide = open_slide(path)
    with pytest.raises(MissingScaleError, match="no resolution in the file"):
        slide.at(magnification=10)
    given = open_slide(path, mpp=0.25)
    assert given.at(magnification=10).shape == (250, 250, 3)
    np.testing.assert_array_equal(given.levels[0].compute(), tifffile.imread(path))


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
def test_levels_are_the_stored_pixels(slide: Slide, small_slide: SampleSlide, level: int) -> None:
    np.testing.assert_array_equal(slide.levels[level].compute(), stored_level(small_slide.path, level))


@pytest.mark.parametrize(
    ("mpp", "level", "ratio"),
    [(0.5, 0, 0.5 / 0.2263), (0.6789, 0, 3.0), (0.9052, 1, 1.0), (1.0, 1, 1.0 / 0.9052), (8.0, 1, 8 / 0.9052)],
)
def test_at_is_the_exact_area_mean_of_its_level(odd_slide: SampleSlide, mpp: float, level: int, ratio: float) -> None:
    slide = open_slide(odd_slide.path)
    image = slide.at(mpp=mpp)
    assert image.dims == ("y", "x", "channel")
    assert image.attrs["mpp"] == mpp
    assert image.attrs["level"] == level
    assert image.shape[:2] == tuple(round(n / (mpp / 0.2263)) for n in odd_slide.shape)
    expected = naive_area_mean(stored_level(odd_slide.path, level), ratio, image.shape[:2])
    difference = np.abs(image.to_numpy() - expected)
    assert difference.max() <= 0.5 + 1e-6


def test_at_has_coordinates_in_level_0_px(odd_slide: SampleSlide) -> None:
    image = open_slide(odd_slide.path).at(mpp=0.2263 * 4)
    np.testing.assert_allclose(image["x"][:2], [2.0, 6.0])
    assert image["x"].attrs["units"] == "level-0 px"


@pytest.mark.parametrize("mpp", [0.4526, 0.5, 0.9052, 1.3])
def test_at_does_not_depend_on_chunks(odd_slide: SampleSlide, mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_slide(odd_slide.path).at(mpp=mpp)
    monkeypatch.setattr("msdask.slides.slide._READ_CHUNK", 311)
    cut = open_slide(odd_slide.path).at(mpp=mpp)
    assert cut.data.numblocks > whole.data.numblocks
    np.testing.assert_array_equal(whole.to_numpy(), cut.to_numpy())
    part = cut[137:201, 53:99]
    np.testing.assert_array_equal(part.to_numpy(), whole.to_numpy()[137:201, 53:99])


def test_at_uses_the_decoders_own_reduction_of_jpeg_tiles(
    slide: Slide, decoded: list[Any], small_slide: SampleSlide
) -> None:
    image = slide.at(magnification=20)
    assert (image.attrs["level"], image.attrs["dct_scale"]) == (0, 2)
    pixels = image.to_numpy()
    assert {call[3] for call in decoded} == {2}
    expected = naive_area_mean(stored_level(small_slide.path, 0), 2.0, image.shape[:2])
    assert 10 * np.log10(255**2 / ((pixels - expected) ** 2).mean()) >= 40


def test_at_does_not_average_twice(slide: Slide, small_slide: SampleSlide) -> None:
    image = slide.at(magnification=15)
    assert (image.attrs["level"], image.attrs["dct_scale"]) == (0, 1)
    expected = naive_area_mean(stored_level(small_slide.path, 0), 8 / 3, image.shape[:2])
    assert 10 * np.log10(255**2 / ((image.to_numpy() - expected) ** 2).mean()) >= 55


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"magnification": 10, "mpp": 1.0},
        {"mpp": 0.0},
        {"mpp": -1},
        {"magnification": 0},
        {"mpp": float("nan")},
        {"magnification": 80},
    ],
)
def test_at_refuses_senseless_scales(slide: Slide, request_: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        slide.at(**request_)


def test_at_gives_level_0_where_upsampling_is_allowed_and_says_so(slide: Slide) -> None:
    image = slide.at(magnification=80, allow_upsampling=True)
    assert image.shape == (*slide.shape, 3)
    assert image.attrs["mpp"] == 0.25


@pytest.mark.parametrize(("size", "shape"), [(1024, (768, 1024)), (100, (75, 100)), (5000, (2304, 3072)), (1, (1, 1))])
def test_thumbnail_fits(slide: Slide, size: int, shape: tuple[int, int]) -> None:
    thumbnail = slide.thumbnail(size)
    assert thumbnail.shape == (*shape, 3)
    assert thumbnail.dtype == np.uint8


def test_the_datatree_has_a_group_a_level(slide: Slide, small_slide: SampleSlide) -> None:
    tree = slide.to_datatree()
    assert list(tree.children) == ["level_0", "level_1", "level_2"]
    assert tree.attrs["mpp"] == 0.25
    assert tree["level_1"].attrs["mpp"] == 1.0
    np.testing.assert_array_equal(tree["level_2/image"].to_numpy(), stored_level(small_slide.path, 2))


# --- processes and threads --------------------------------------------------------------------------------------------


def test_a_slide_pickles_small_and_keeps_what_the_user_said(odd_slide: SampleSlide) -> None:
    data = pickle.dumps(open_slide(odd_slide.path, mpp=0.5))
    assert len(data) < 20_000
    again = pickle.loads(data)
    assert (again.mpp, again.shape) == (0.5, odd_slide.shape)
    np.testing.assert_array_equal(again.thumbnail(64), open_slide(odd_slide.path).thumbnail(64))


def test_a_lazy_array_is_the_same_in_another_process(slide: Slide, tmp_path: Path) -> None:
    image = slide.at(magnification=5)
    (tmp_path / "image.pickle").write_bytes(pickle.dumps(image))
    code = "import pickle, sys, numpy as np; np.save(sys.argv[2], pickle.load(open(sys.argv[1], 'rb')).to_numpy())"
    arguments = [sys.executable, "-c", code, str(tmp_path / "image.pickle"), str(tmp_path / "out.npy")]
    subprocess.run(arguments, check=True, cwd=REPOSITORY, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), image.to_numpy())


def test_threads_read_what_one_thread_reads(small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    image = slide.at(magnification=15)[:900, :900]
    with dask.config.set(scheduler="synchronous"):
        alone = image.to_numpy()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: image.data.compute(scheduler="threads", num_workers=4), range(4)))
    for result in results:
        np.testing.assert_array_equal(result, alone)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(small_slide: SampleSlide, tmp_path: Path) -> Path:
    """The small slide with tile (3, 4) of level 0 overwritten."""
    path = tmp_path / "damaged.svs"
    shutil.copy(small_slide.path, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        index = 3 * -(-page.imagewidth // page.tilewidth) + 4
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
    return path


def test_a_corrupt_tile_is_named_and_the_rest_can_be_read(damaged: Path) -> None:
    slide = open_slide(damaged)
    with pytest.raises(TileError, match=r"damaged\.svs.*level 0.*row 3.*column 4"):
        slide.levels[0].compute()
    assert slide.levels[1].compute().shape == (576, 768, 3)
    assert slide.at(magnification=40)[: 3 * 256].data.rechunk().shape


@pytest.mark.parametrize("content", [b"", b"II*\0", b"no slide at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_slide_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "no.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"no\.svs"):
        open_slide(path)


def test_a_missing_file_and_an_unknown_backend_are_refused(tmp_path: Path, small_slide: SampleSlide) -> None:
    with pytest.raises(SlideError, match=r"absent\.svs"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(SpecError, match="backend 'quick'"):
        open_slide(small_slide.path, backend="quick")
