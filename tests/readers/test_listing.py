"""Which things in a folder are slides: one answer for cohorts and for the scale detector."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from msdask.errors import SlideError, SpecError, UnreachableError
from msdask.extraction.cohort import extract
from msdask.extraction.slide_table import read_slides
from msdask.inference.scale import listed_paths
from msdask.readers import is_slide, slides_in
from msdask.sample.slides import SampleSlide
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore
from tests.tools.openslide_files import write_mrxs, write_vmu
from tests.tools.reader_files import smooth_image

IMAGE = smooth_image(128, 128)
HALF = np.ascontiguousarray(IMAGE[::2, ::2])


def names(folder: Path) -> list[str]:
    """Of what is found, relative to the folder; the cohort and the scale detector find the same."""
    found = slides_in(folder)
    assert [row.path for row in read_slides(folder)] == found
    assert listed_paths(folder) == found
    return [os.path.relpath(path, folder) for path in found]


def clutter(folder: Path) -> None:
    """What lies beside slides in real folders."""
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (folder / "README").write_text("These are slides.")
    (folder / "cohort.xlsx").write_bytes(b"PK\x03\x04" + bytes(600))
    (folder / "cohort.csv").write_text("path\na.svs\n")
    (folder / "annotation.xml").write_text("<Annotations/>")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._a.svs").write_bytes(b"\0\5\x16\7")
    (folder / "empty").write_bytes(b"")


def test_tables_notes_and_hidden_files_are_no_slides(tmp_path: Path, small_slide: SampleSlide) -> None:
    clutter(tmp_path)
    shutil.copy(small_slide.path, tmp_path / "b.svs")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "masks" / "b.png")
    assert names(tmp_path) == ["a.png", "b.svs"]


def test_the_content_decides_where_the_ending_says_nothing(tmp_path: Path) -> None:
    with (tmp_path / "slide").open("wb") as file:
        tifffile.imwrite(file, IMAGE, photometric="rgb")
    (tmp_path / "scan.dat").write_bytes((tmp_path / "slide").read_bytes())
    assert names(tmp_path) == ["scan.dat", "slide"]


def test_a_file_with_a_slides_ending_is_a_slide_even_if_it_cannot_be_opened(
    tmp_path: Path, small_slide: SampleSlide
) -> None:
    whole = Path(small_slide.path).read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[:100])
    (tmp_path / "empty.NDPI").write_bytes(b"")
    (tmp_path / "text.tif").write_text("no slide")
    assert names(tmp_path) == ["cut.svs", "empty.NDPI", "text.tif"]
    for name in names(tmp_path):
        with pytest.raises(SlideError, match=name):
            open_slide(tmp_path / name)


def test_a_cohort_from_a_real_folder_fails_only_where_a_slide_is_damaged(
    tmp_path: Path, small_slide: SampleSlide
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    clutter(folder)
    shutil.copy(small_slide.path, folder / "a.svs")
    pytest.importorskip("openslide")
    write_mrxs(folder / "b.mrxs", [smooth_image(256, 256), smooth_image(128, 128)])
    (folder / "cut.svs").write_bytes(Path(small_slide.path).read_bytes()[:100])
    spec = ExtractionSpec("grid", (10.0,), 32, min_tissue=0.0)
    report = extract(folder, tmp_path / "s.zarr", spec, threads=2, progress=False)
    assert set(report.failures) == {"cut.svs"}
    assert PatchStore(tmp_path / "s.zarr")["grid-10x-32"].slides == ["a.svs", "b.mrxs"]


def test_a_link_that_leads_nowhere_is_no_slide_unless_it_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.svs").symlink_to(tmp_path / "gone.svs")
    (tmp_path / "notes").symlink_to(tmp_path / "gone")
    assert names(tmp_path) == ["a.svs"]


def test_the_other_files_of_a_slide_are_no_slides(tmp_path: Path) -> None:
    write_mrxs(tmp_path / "a.mrxs", [IMAGE, HALF])
    write_vmu(tmp_path / "b.vmu", (IMAGE, HALF))
    assert (tmp_path / "b_macro.jpg").exists()
    assert (tmp_path / "a" / "Slidedat.ini").exists()
    assert names(tmp_path) == ["a.mrxs", "b.vmu"]


def test_a_folder_of_one_folder_a_slide(tmp_path: Path, small_slide: SampleSlide) -> None:
    for case in ("case 2", "case 1"):
        (tmp_path / case).mkdir()
        shutil.copy(small_slide.path, tmp_path / case / f"{case}.svs")
        clutter(tmp_path / case)
    (tmp_path / "case 3").mkdir()
    write_mrxs(tmp_path / "case 3" / "c.mrxs", [IMAGE, HALF])
    (tmp_path / "logs").mkdir()
    clutter(tmp_path)
    assert names(tmp_path) == ["case 1/case 1.svs", "case 2/case 2.svs", "case 3/c.mrxs"]


def test_folders_of_several_slides_are_not_mixed(tmp_path: Path) -> None:
    for folder in ("masks", "slides"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png", "c.png"):
            Image.fromarray(IMAGE).save(tmp_path / folder / name)
    for ask in (slides_in, read_slides, listed_paths):
        with pytest.raises(SpecError, match=r"3 in 'masks', 3 in 'slides'.*give one of these folders"):
            ask(tmp_path)


def test_a_folder_without_a_slide_says_what_was_found(tmp_path: Path) -> None:
    for ask in (slides_in, read_slides, listed_paths):
        with pytest.raises(SlideError, match=r"no slides in .*: found nothing; expected"):
            ask(tmp_path)
    clutter(tmp_path)
    (tmp_path / "logs").mkdir()
    for ask in (slides_in, read_slides, listed_paths):
        with pytest.raises(SlideError, match=r"found 1 folder \('logs'\) and 8 files \('\.DS_Store', .*, \.\.\.\)"):
            ask(tmp_path)


def test_what_cannot_be_read_now_is_not_left_out_of_a_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (tmp_path / "no ending").write_bytes(b"x" * 2000)
    reason = [errno.EIO]

    def failing(*_: object) -> bytes:
        raise OSError(reason[0], os.strerror(reason[0]))

    monkeypatch.setattr("os.pread", failing)
    with pytest.raises(UnreachableError, match=r"no ending.*Input/output error"):
        slides_in(tmp_path)
    reason[0] = errno.EACCES  # somebody else's file
    assert names(tmp_path) == ["a.png"]


def test_one_slide_is_told_from_a_folder_of_slides(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    assert is_slide(tmp_path / "a.png")
    assert not is_slide(tmp_path)
    assert not is_slide(tmp_path / "absent")
