"""Generated slides: the same bytes for the same arguments, a pyramid that others read, masks that fit the pixels."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SpecError
from msdask.sample.slides import SampleSlide, make_cohort, make_slide, write_labels, write_masks
from msdask.sample.svs import Compression, Subsampling
from msdask.sample.texture import TissueTexture


def levels(path: Path) -> list[NDArray[np.uint8]]:
    """All levels of a pyramid as tifffile reads them."""
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def at_mask_resolution(pixels: NDArray[np.uint8], sample: SampleSlide) -> NDArray[np.uint8]:
    return cv2.resize(pixels, sample.mask.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)


def test_equal_arguments_give_equal_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    one, two = (
        make_slide(tmp_path / f"{threads}.svs", size=(700, 900), seed=7, levels=(1, 4), threads=threads)
        for threads in (1, 3)
    )
    assert digest(one.path) == digest(two.path)
    np.testing.assert_array_equal(one.mask, two.mask)


def test_another_seed_gives_another_slide(tmp_path: Path) -> None:
    one, two = (make_slide(tmp_path / f"{seed}.svs", size=(700, 900), seed=seed, levels=(1, 4)) for seed in (1, 2))
    assert digest(one.path) != digest(two.path)
    assert (one.mask != two.mask).any()


def test_levels_have_floor_sizes_and_aperio_metadata(small_slide: SampleSlide) -> None:
    with tifffile.TiffFile(small_slide.path) as tiff:
        assert tiff.is_svs
        assert [level.shape for level in tiff.series[0].levels] == [(2304, 3072, 3), (576, 768, 3), (144, 192, 3)]
        assert [series.name for series in tiff.series] == ["Baseline", "Thumbnail", "Label", "Macro"]
        assert tiff.pages[0].tile == (256, 256)
        assert not tiff.pages[1].is_tiled  # the thumbnail, where Aperio has it
        description = tiff.pages[0].description
    assert "|AppMag = 40|MPP = 0.25" in description


def test_levels_are_exact_area_means_where_the_tiles_are_lossless(odd_slide: SampleSlide) -> None:
    finest, coarser = levels(odd_slide.path)
    assert finest.shape == (1501, 2003, 3)
    assert coarser.shape == (375, 500, 3)
    means = finest[:1500, :2000].reshape(375, 4, 500, 4, 3).mean(axis=(1, 3))
    assert np.abs(coarser - means).max() <= 0.5


def test_an_odd_mpp_is_stated_and_a_missing_one_is_not(odd_slide: SampleSlide, scaleless_slide: SampleSlide) -> None:
    with tifffile.TiffFile(odd_slide.path) as odd, tifffile.TiffFile(scaleless_slide.path) as scaleless:
        assert "MPP = 0.2263" in odd.pages[0].description
        assert "MPP" not in scaleless.pages[0].description
        assert "AppMag" not in scaleless.pages[0].description


@pytest.mark.parametrize("compression", get_args(Compression))
def test_each_compression_reads_back_as_the_same_picture(tmp_path: Path, compression: Compression) -> None:
    size = (300, 400)
    path = make_slide(tmp_path / "a.svs", size=size, levels=(1, 4), compression=compression).path
    exact = make_slide(tmp_path / "b.svs", size=size, levels=(1, 4), compression="none").path
    error = levels(path)[0].astype(float) - levels(exact)[0]
    assert np.sqrt((error**2).mean()) < (8 if compression == "jpeg" else 1e-9)


@pytest.mark.parametrize("subsampling", get_args(Subsampling))
def test_openslide_and_tifffile_decode_the_same_pixels(tmp_path: Path, subsampling: Subsampling) -> None:
    openslide = pytest.importorskip("openslide")
    sample = make_slide(tmp_path / "a.svs", size=(600, 1100), mpp=0.5, levels=(1, 4), subsampling=subsampling)
    pixels = levels(sample.path)
    with openslide.OpenSlide(sample.path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert float(slide.properties["openslide.objective-power"]) == 20
        assert slide.level_dimensions == ((1100, 600), (275, 150))
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        for level, (width, height) in enumerate(slide.level_dimensions):
            read = np.asarray(slide.read_region((0, 0), level, (width, height)).convert("RGB"))
            assert np.abs(read.astype(int) - pixels[level]).max() <= 2


def test_the_mask_lies_on_what_is_dark(small_slide: SampleSlide) -> None:
    gray = at_mask_resolution(levels(small_slide.path)[1], small_slide).mean(axis=-1)
    inside, outside = gray[small_slide.mask], gray[~small_slide.mask]
    assert outside.mean() - inside.mean() > 50
    # A threshold between the two finds the mask again, but for px on its edge: a shift by one px would show.
    found = gray < (inside.mean() + outside.mean()) / 2 + 20
    agreement = (found == small_slide.mask).mean()
    assert agreement > 0.95
    assert agreement > (np.roll(found, 2, axis=0) == small_slide.mask).mean()
    assert agreement > (np.roll(found, 2, axis=1) == small_slide.mask).mean()


def test_half_of_the_slide_is_tissue_when_asked(small_slide: SampleSlide) -> None:
    assert small_slide.mask.shape == (72, 96)
    assert small_slide.mask.mean() == pytest.approx(0.5, abs=0.01)


def test_labels_are_the_class_values_inside_the_mask_and_zero_outside(small_slide: SampleSlide) -> None:
    assert small_slide.values == (50, 100, 150)
    assert len(small_slide.classes) == 3
    assert set(np.unique(small_slide.labels[small_slide.mask])) == {50, 100, 150}
    assert not small_slide.labels[~small_slide.mask].any()


def test_classes_differ_in_colour(small_slide: SampleSlide) -> None:
    pixels = at_mask_resolution(levels(small_slide.path)[1], small_slide)
    colours = [pixels[small_slide.labels == value].mean(axis=0) for value in small_slide.values]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(colours[i] - colours[j]).max() > 8


def test_copies_lie_left_and_right_of_empty_glass(twin_slide: SampleSlide) -> None:
    mask = twin_slide.mask
    middle = mask.shape[1] // 2
    assert not mask[:, middle - 10 : middle + 10].any()
    left, right = mask[:, :middle].sum(), mask[:, middle:].sum()
    assert left > right > 0.5 * left


def test_pen_and_dark_edge_are_in_the_picture_and_not_in_the_mask(tmp_path: Path) -> None:
    options = {"size": (1600, 2000), "seed": 5, "levels": (1, 4), "tissue_fraction": 0.9}
    plain = make_slide(tmp_path / "plain.svs", **options)
    spoilt = make_slide(tmp_path / "spoilt.svs", **options, pen=True, dark_edge=True)
    before, after = (at_mask_resolution(levels(s.path)[1], s).astype(int) for s in (plain, spoilt))
    ink = (before - after)[..., 0] > 60
    assert ink.any()
    assert not spoilt.mask[ink].any()
    assert after[0].mean() < 120
    assert not spoilt.mask[0].any()


def test_a_slide_without_tissue_is_bare_glass(tmp_path: Path) -> None:
    sample = make_slide(tmp_path / "glass.svs", size=(300, 400), levels=(1,), tissue_fraction=0)
    assert not sample.mask.any()
    assert not sample.labels.any()
    assert levels(sample.path)[0].min() > 225


def test_a_tile_of_texture_is_the_same_wherever_it_is_cut() -> None:
    texture = TissueTexture((2000, 2000), classes=1, mpp=0.5, seed=1)
    whole = texture.tile(0, 512, 512, 512)
    np.testing.assert_array_equal(whole[100:356, 40:296], texture.tile(0, 612, 552, 256))


def test_masks_and_labels_are_written_as_they_are(small_slide: SampleSlide, tmp_path: Path) -> None:
    histoqc = write_masks(small_slide, tmp_path / "masks")
    plain = write_masks(small_slide, tmp_path / "plain", layout="png")
    labels = write_labels(small_slide, tmp_path / "labels")
    assert histoqc == tmp_path / "masks" / "small.svs" / "small.svs_mask_use.png"
    assert plain == tmp_path / "plain" / "small.png"
    for path in (histoqc, plain):
        np.testing.assert_array_equal(np.asarray(Image.open(path)) == 255, small_slide.mask)
    np.testing.assert_array_equal(np.asarray(Image.open(labels)), small_slide.labels)


def test_a_cohort_has_a_table_slides_masks_and_labels(tmp_path: Path) -> None:
    table = make_cohort(tmp_path, n=2, size=(800, 1600))
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["slide_id"] for row in rows] == ["sample-1", "sample-2"]
    assert [row["split"] for row in rows] == ["train", "valid"]
    for row in rows:
        name = Path(row["path"]).name
        assert Path(row["path"]).is_file()
        assert (tmp_path / "masks" / name / f"{name}_mask_use.png").is_file()
        assert (tmp_path / "labels" / f"{row['slide_id']}.png").is_file()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"size": (0, 10)}, "size"),
        ({"mpp": 0.0}, "mpp"),
        ({"classes": 9}, "classes"),
        ({"levels": (1, 3, 4)}, "levels"),
        ({"levels": (1, 4096)}, "size"),
        ({"tile": 100}, "tile"),
        ({"quality": 0}, "quality"),
        ({"compression": "gif"}, "compression"),
        ({"subsampling": "4:1:1"}, "subsampling"),
        ({"tissue_fraction": 1.5}, "tissue_fraction"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(tmp_path: Path, wrong: dict[str, object], named: str) -> None:
    with pytest.raises(SpecError, match=f"^{named}="):
        make_slide(tmp_path / "a.svs", **({"size": (300, 400)} | wrong))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_height(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, resource; from msdask.sample.slides import make_slide; "
        "make_slide(sys.argv[1], size=(int(sys.argv[2]), 3072), threads=2); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    low, high = (
        int(
            subprocess.run(
                [sys.executable, "-c", code, tmp_path / "a.svs", str(h)], check=True, capture_output=True
            ).stdout
        )
        for h in (2048, 8192)
    )
    assert high < 1.2 * low
