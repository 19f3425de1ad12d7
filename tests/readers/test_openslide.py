"""The OpenSlide reader: formats that only it reads, and the same pixels as the TIFF reader on the same files."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from msdask.errors import SlideError, SpecError, TileError, UnreachableError
from msdask.extras import MissingExtraError
from msdask.readers import Reader, open_reader
from msdask.readers import openslide as openslide_reader
from msdask.sample.slides import SampleSlide
from msdask.slides.region import read_region
from msdask.slides.slide import Slide, open_slide
from tests.tools.fuzz_mutations import mutate
from tests.tools.openslide_files import write_bif, write_mrxs, write_trestle, write_vms, write_vmu
from tests.tools.reader_files import smooth_image

pytest.importorskip("openslide")

IMAGE = smooth_image(256, 384)
HALF = np.ascontiguousarray(IMAGE[::2, ::2])


def whole(reader: Reader, level: int = 0) -> NDArray[np.uint8]:
    height, width = reader.levels[level].shape
    return read_region(reader, level, 1, (0, height), (0, width))


# Formats that only OpenSlide reads


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "mrxs": ("mirax", lambda path: write_mrxs(path, [IMAGE, HALF])),
    "vmu": ("hamamatsu", lambda path: write_vmu(path, (IMAGE, HALF))),
    "bif": ("ventana", lambda path: write_bif(path, [IMAGE, HALF])),
    "tif": ("trestle", lambda path: write_trestle(path, [IMAGE, HALF])),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_lossless_slides_are_read_to_the_pixel(tmp_path: Path, kind: str) -> None:
    vendor, write = WRITERS[kind]
    path = tmp_path / f"a slide, 切片.{kind}"
    write(path)
    reader = open_reader(path)
    assert (reader.format, reader.metadata.vendor) == ("openslide", vendor)
    assert [(info.shape, info.downsample, info.dct_scales) for info in reader.levels] == [
        ((256, 384), 1, (1,)),
        ((128, 192), 2, (1,)),
    ]
    np.testing.assert_array_equal(whole(reader), IMAGE)
    np.testing.assert_array_equal(whole(reader, 1), HALF)


def test_a_vms_is_read_as_its_jpeg_is_decoded(tmp_path: Path) -> None:
    expected = write_vms(tmp_path / "a.vms", IMAGE)
    reader = open_reader(tmp_path / "a.vms")
    assert (reader.metadata.vendor, reader.metadata.objective_power) == ("hamamatsu", 20)
    assert reader.metadata.mpp == pytest.approx((0.5, 0.5))
    assert reader.associated == ("macro",)
    np.testing.assert_array_equal(whole(reader), expected)


def test_overlapping_tiles_of_a_bif_are_put_together(tmp_path: Path) -> None:
    side, overlap = 64, 8
    step = side - overlap
    scene = smooth_image(3 * step + side, 5 * step + side)
    tiles = [[scene[y : y + side, x : x + side] for x in range(0, 6 * step, step)] for y in range(0, 4 * step, step)]
    stored = np.vstack([np.hstack(row) for row in tiles])
    write_bif(tmp_path / "a.bif", [stored, np.ascontiguousarray(stored[::2, ::2])], overlap=overlap)
    reader = open_reader(tmp_path / "a.bif")
    assert reader.levels[0].shape == scene.shape[:2]
    np.testing.assert_array_equal(whole(reader), scene)


def test_a_slide_at_a_physical_scale_through_openslide(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF], mpp=0.2501)
    slide = open_slide(tmp_path / "a.mrxs")
    assert (slide.mpp, slide.mpp_used, slide.mpp_source, slide.quality) == (0.2501, 0.25, "mirax", "stated")
    assert slide.objective_power == 40
    np.testing.assert_array_equal(slide.at(magnification=20).values, HALF)
    means = HALF.reshape(64, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(slide.at(mpp=1.0).values - means).max() <= 0.5


def test_what_was_not_scanned_has_the_background_colour_of_the_slide(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF], missing=1)
    pixels = whole(open_reader(tmp_path / "a.mrxs"))
    assert (pixels[:64, :64] == (0xFF, 0xF0, 0xE0)).all()
    np.testing.assert_array_equal(pixels[64:], IMAGE[64:])


def test_a_mrxs_without_its_folder_says_so_and_is_no_jpeg(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    shutil.move(tmp_path / "a", tmp_path / "b")
    with pytest.raises(SlideError, match=r"a\.mrxs.*expected the folder 'a' with Slidedat\.ini"):
        open_reader(tmp_path / "a.mrxs")


@pytest.mark.parametrize("name", ["Slidedat.ini", "Index.dat", "Data0000.dat"])
def test_a_damaged_file_of_a_mrxs_is_a_clear_error(tmp_path: Path, name: str) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(SlideError, match=r"a\.mrxs"):
        whole(open_reader(tmp_path / "a.mrxs"))


def test_urls_are_refused_with_the_way_out() -> None:
    import fsspec

    with fsspec.open("memory://openslide/a.mrxs", "wb") as file:
        file.write(b"\xff\xd8\xff")
    with pytest.raises(SlideError, match=r"a\.mrxs.*local files only.*copy the slide"):
        open_reader("memory://openslide/a.mrxs")


def test_without_openslide_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    write_bif(tmp_path / "a.bif", [IMAGE, HALF])
    monkeypatch.setitem(sys.modules, "openslide", None)  # the import fails, though the package can be found
    with pytest.raises(MissingExtraError, match=r"a\.mrxs.*pip install .*\[openslide\]"):
        open_reader(tmp_path / "a.mrxs")
    monkeypatch.setattr("msdask.readers.registry.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a\.mrxs.*pip install .*\[openslide\]"):
        open_reader(tmp_path / "a.mrxs")
    with pytest.raises(SlideError, match=r"a\.bif.*Ventana BIF.*convert it.*pip install .*\[openslide\]"):
        open_reader(tmp_path / "a.bif")


def test_openslide_is_not_loaded_for_other_slides(small_slide: SampleSlide) -> None:
    import subprocess

    code = "import sys, msdask as ms; ms.open_slide(sys.argv[1]); sys.exit('openslide' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(small_slide.path)], timeout=120, check=False).returncode == 0


# Beside the TIFF reader


def same_facts(path: Path) -> tuple[Reader, Reader]:
    """Both readers of a file, after what they must agree on to the letter."""
    tiff, openslide = open_reader(path, backend="tiff"), open_reader(path, backend="openslide")
    assert openslide.format == "openslide"
    assert [i.shape for i in openslide.levels] == [i.shape for i in tiff.levels]
    assert [i.downsample for i in openslide.levels] == [i.downsample for i in tiff.levels]
    assert openslide.metadata.mpp == pytest.approx(tiff.metadata.mpp, rel=1e-6)
    assert openslide.metadata.mpp_source == tiff.metadata.mpp_source
    assert openslide.metadata.objective_power == tiff.metadata.objective_power
    assert openslide.metadata.vendor == tiff.metadata.vendor
    assert set(openslide.associated) == set(tiff.associated)
    return tiff, openslide


def test_cmu_small_region_is_the_same_through_both(cmu_small: Path) -> None:
    tiff, openslide = same_facts(cmu_small)
    assert openslide.levels[0].tile == tiff.levels[0].tile == (240, 240)
    np.testing.assert_array_equal(whole(openslide), whole(tiff))
    for name in tiff.associated:
        np.testing.assert_array_equal(openslide.read_associated(name), tiff.read_associated(name))


def test_a_generated_svs_is_the_same_through_both(small_slide: SampleSlide) -> None:
    tiff, openslide = same_facts(Path(small_slide.path))
    for level in range(3):
        np.testing.assert_array_equal(whole(openslide, level), whole(tiff, level))


def test_a_lossless_svs_with_odd_sides_is_the_same_through_both(odd_slide: SampleSlide) -> None:
    tiff, openslide = same_facts(Path(odd_slide.path))
    np.testing.assert_array_equal(whole(openslide), whole(tiff))
    # 375 x 500 px stand for 375.25 x 500.75: by OpenSlide's ratio of 4.0043 tiles begin between px, which it blends;
    # measured: 5 of 255 at most, 0.09 in the mean
    difference = np.abs(whole(openslide, 1).astype(int) - whole(tiff, 1))
    assert (difference.max() <= 8, difference.mean() < 0.2) == (True, True)


# The protocol


def test_eight_threads_read_what_one_does(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    reader = open_reader(tmp_path / "a.mrxs")
    requests = [(0, i // 3, i % 3) for i in range(6)] * 20 + [(1, 0, i % 2) for i in range(20)]
    serial = [reader.read_tile(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(serial, pool.map(lambda request: reader.read_tile(*request), requests), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_one_corrupt_tile_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_trestle(path, [smooth_image(512, 512)])
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[9], tif.pages[0].databytecounts[9]
    good = whole(open_reader(path))
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    reader = open_reader(path)
    for _ in range(2):
        with pytest.raises(TileError, match=r"a\.tif.*level 0, tile \(row 0, column 0\)"):
            reader.read_tile(0, 0, 0)
        np.testing.assert_array_equal(reader.read_tile(0, 1, 1), good[128:256, 128:256])


def damage(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[tile], tif.pages[0].databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)


@pytest.mark.parametrize(("change", "message"), [(os.remove, "No such file"), (lambda p: os.truncate(p, 5000), "5000")])
def test_a_tile_that_cannot_be_read_now_is_no_bad_tile(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.tif"
    write_trestle(path, [smooth_image(512, 512)])
    damage(path, 9)
    reader = open_reader(path)
    with pytest.raises(TileError):
        reader.read_tile(0, 0, 0)
    change(path)
    with pytest.raises(UnreachableError, match=rf"a\.tif.*{message}"):
        reader.read_tile(0, 0, 0)


def test_a_disk_that_fails_under_a_tile_is_found_by_reading_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    write_trestle(path, [smooth_image(512, 512)])
    damage(path, 9)
    reader = open_reader(path)

    def failing(*_: Any) -> None:
        raise UnreachableError("a.tif cannot be read now (Input/output error)")

    monkeypatch.setattr(openslide_reader, "_check_file", failing)
    with pytest.raises(UnreachableError, match="Input/output error"):
        reader.read_tile(0, 0, 0)


def test_given_memory_is_used_for_whole_tiles(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    reader = open_reader(tmp_path / "a.mrxs")
    memory = np.empty((128, 128, 3), np.uint8)
    assert reader.read_tile(0, 1, 2, out=memory) is memory
    np.testing.assert_array_equal(memory, IMAGE[128:, 256:])


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    reader = open_reader(tmp_path / "a.mrxs")
    requests: list[tuple[Any, ...]] = [(2, 0, 0), (0, 2, 0), (0, 0, 0, 2), (0, -1, 0)]
    for request in requests:
        with pytest.raises(SpecError, match="level"):
            reader.read_tile(*request)
    with pytest.raises(SpecError, match="label"):
        reader.read_associated("label")


@pytest.mark.parametrize("kind", ["mrxs", "vmu"])
def test_the_fingerprint_covers_every_file_of_the_slide_and_no_other(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one").mkdir()
    WRITERS[kind][1](tmp_path / "one" / f"a.{kind}")
    before = open_reader(tmp_path / "one" / f"a.{kind}").fingerprint()
    assert len(before) == 64
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "two" / "a").mkdir(exist_ok=True)
    (tmp_path / "two" / "a" / "Thumbs.db").write_bytes(b"x")
    assert open_reader(tmp_path / "two" / f"a.{kind}").fingerprint() == before
    data = "a/Data0000.dat" if kind == "mrxs" else "a_map.ngr"
    changed = bytearray((tmp_path / "two" / data).read_bytes())
    changed[-1] ^= 1
    (tmp_path / "two" / data).write_bytes(changed)
    assert open_reader(tmp_path / "two" / f"a.{kind}").fingerprint() != before


def test_a_slide_pickles_with_its_backend(small_slide: SampleSlide) -> None:
    slide: Slide = pickle.loads(pickle.dumps(open_slide(small_slide.path, backend="openslide")))
    assert (slide.format, slide.reader.format) == ("openslide", "openslide")
    expected = open_slide(small_slide.path, backend="openslide").at(mpp=4.0).values
    np.testing.assert_array_equal(slide.at(mpp=4.0).values, expected)


def test_a_slide_that_openslide_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb")  # strips: OpenSlide reads tiles only
    assert open_reader(path).format == "tiff"
    with pytest.raises(SlideError, match=r"a\.tif.*OpenSlide does not know"):
        open_reader(path, backend="openslide")


# Damage


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.vms", b"[Virtual Microscope Specimen]\nNoLayers=1\n", "OpenSlide"),
        ("a.vmu", b"\xef\xbb\xbf[Uncompressed Virtual Microscope Specimen]\n", "OpenSlide"),
        ("a.czi", b"ZISRAWFILE" + bytes(200), "OpenSlide"),
        ("a.svslide", b"SQLite format 3\0" + bytes(200), "OpenSlide"),
        ("a.db", b"SQLite format 3\0" + bytes(200), "no image format known here"),
    ],
)
def test_what_begins_as_a_slide_of_openslides_and_is_none(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=rf"{name}.*{message}"):
        open_reader(tmp_path / name)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")  # tifffile warns of what it finds
def test_mutations_give_pixels_or_our_errors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    WRITERS[kind][1](path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    refused = 0
    for seed in range(40):
        file = files[seed % len(files)]
        good = file.read_bytes()
        file.write_bytes(mutate(good, seed, kind="binary"))
        try:
            reader = open_reader(path)
            whole(reader)
            assert len(reader.fingerprint()) == 64
            for name in reader.associated:
                assert reader.read_associated(name).shape[2] == 3
        except SlideError:
            refused += 1
        file.write_bytes(good)
    assert refused > 0
    whole(open_reader(path))


def test_an_associated_image_of_a_huge_size_is_not_decoded(tmp_path: Path) -> None:
    write_vmu(tmp_path / "a.vmu", (IMAGE, HALF))
    macro = tmp_path / "a_macro.jpg"
    data = bytearray(macro.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 px a side
    macro.write_bytes(data)
    reader = open_reader(tmp_path / "a.vmu")
    with pytest.raises(SlideError, match="macro of 65500 x 65500 px is too large"):
        reader.read_associated("macro")
