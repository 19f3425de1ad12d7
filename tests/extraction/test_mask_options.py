"""Which pieces and holes a mask has decides which patches are cut: fields of the spec, options of the shell."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from msdask.cli import main
from msdask.errors import SpecError, StoreError
from msdask.extraction.cohort import extract
from msdask.masks.tissue import tissue_mask
from msdask.sample.slides import SampleSlide
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore

AREAS = {"min_area_um2": 20_000.0, "max_hole_um2": 1e6}
SPEC = ExtractionSpec("grid", (10,), patch_size=64)
OTHER = ExtractionSpec("grid", (10,), patch_size=64, **AREAS)


def shell(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def test_extract_makes_the_mask_that_its_spec_asks_for(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    extract(small_slide.path, store, SPEC, name="plain", threads=0, progress=False)
    extract(small_slide.path, store, OTHER, name="other", threads=0, progress=False)
    slide = open_slide(small_slide.path)
    slide_id = Path(small_slide.path).name
    masks = {name: PatchStore(store)[name].open(slide_id)["mask"].to_numpy() > 0 for name in ("plain", "other")}
    np.testing.assert_array_equal(masks["plain"], tissue_mask(slide).to_numpy())
    np.testing.assert_array_equal(masks["other"], tissue_mask(slide, **AREAS).to_numpy())
    assert (masks["plain"] != masks["other"]).any()
    assert PatchStore(store)["other"].spec == OTHER


def test_a_set_made_with_other_areas_is_another_set(small_slide: SampleSlide, tmp_path: Path) -> None:
    for first, second in ((SPEC, OTHER), (OTHER, SPEC)):
        store = tmp_path / f"{first.hash[:8]}.zarr"
        extract(small_slide.path, store, first, threads=0, progress=False)
        with pytest.raises(StoreError, match=r"max_hole_um2=.*; min_area_um2="):
            extract(small_slide.path, store, second, threads=0, progress=False)


def test_specs_of_one_call_share_a_mask(small_slide: SampleSlide, tmp_path: Path) -> None:
    specs = [SPEC, ExtractionSpec("grid", (5,), patch_size=64, **AREAS)]
    with pytest.raises(SpecError, match="one mask"):
        extract(small_slide.path, tmp_path / "s.zarr", specs, threads=0, progress=False)


def test_the_same_from_a_shell(small_slide: SampleSlide, tmp_path: Path) -> None:
    options = ["--min-area-um2", "20000", "--max-hole-um2", "1e6"]
    target = tmp_path / "mask.png"
    shell("mask", str(small_slide.path), "--output", str(target), *options)
    written = cv2.imread(str(target), cv2.IMREAD_UNCHANGED) > 0
    np.testing.assert_array_equal(written, tissue_mask(open_slide(small_slide.path), **AREAS).to_numpy())
    store = tmp_path / "s.zarr"
    shell("extract", str(small_slide.path), "-o", str(store), "-m", "10", "-s", "64", "-q", *options)
    assert PatchStore(store)["grid-10x-64"].spec == OTHER
