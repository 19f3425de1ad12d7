"""What a scale detector learns from: a store's grid sets, or images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pytorch_lightning")

from msdask.data import ScaleAugment, ScaleRange
from msdask.errors import SpecError
from msdask.training import ScaleSource
from tests.tools.scale_tools import textured_image
from tests.tools.stream_tools import COARSE, GRID, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("source"), names=(GRID, COARSE))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["path,mpp,split"]
    for i, split in enumerate(("train", "train", "valid", "test")):
        Image.fromarray(textured_image(i)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,0.25,{split}")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "images.csv"


def test_images_are_split_by_the_column_of_their_table(table: Path) -> None:
    source = ScaleSource(table)
    split = source.split()
    assert (split.train, split.valid, split.test) == (("0.png", "1.png"), ("2.png",), ("3.png",))
    assert source.magnifications == [5, 8, 10, 15, 20, 30, 40]


def test_images_are_learnt_from_beyond_what_is_to_be_recognized(table: Path) -> None:
    dataset, enlarge = ScaleSource(table, magnifications=[10, 20], patch_size=48).training(["0.png"], mosaic=0.25)
    assert enlarge is None
    assert isinstance(dataset.scale, ScaleRange)
    assert (dataset.scale.lowest, dataset.scale.highest) == (pytest.approx(10 / 1.8), 30)
    assert dataset.scale.mosaic == 0.25
    assert dataset.patch_size == 48
    assert dataset.slide_ids == ["0.png"]


def test_images_are_measured_at_the_nominal_magnifications_in_order(table: Path) -> None:
    source = ScaleSource(table, magnifications=[40, 20, 10], crop=64)
    batches = list(source.measured(["2.png", "3.png"], batch_size=7))
    found = np.concatenate([b["magnification"].flatten().numpy() for b in batches])
    assert sorted(found.tolist()) == [10.0] * 8 + [20.0] * 8 + [40.0] * 8
    assert batches[0]["image"].shape[-1] == 64


def test_images_have_no_other_scales_than_a_range_of_them(table: Path) -> None:
    with pytest.raises(SpecError, match=r"'enlarge'.*with images 'range'"):
        ScaleSource(table).training(["0.png"], "enlarge")


@pytest.mark.parametrize(
    ("draws", "read", "enlarge"),
    [
        (None, None, ScaleAugment),
        ("enlarge", None, ScaleAugment),
        ("exact", ScaleAugment, None),
        ("range", ScaleRange, None),
        ("none", None, None),
    ],
)
def test_a_store_has_other_scales_in_four_ways(cohort: Cohort, draws, read, enlarge) -> None:
    source = ScaleSource(cohort.store.path)
    assert source.magnifications == [10, 20]
    dataset, enlarging = source.training(["a.svs"], draws)
    assert dataset.scale is None if read is None else isinstance(dataset.scale, read)
    assert enlarging is None if enlarge is None else isinstance(enlarging, enlarge)
    batch = dataset.__getitems__([0, len(dataset) - 1])
    assert batch["image"].float().std() > 0


def test_a_stores_slides_are_split_as_they_were_extracted(cohort: Cohort) -> None:
    source = ScaleSource(cohort.store.path)
    assert source.stored_split() == {"train": ["a.svs", "b.svs"], "valid": [], "test": ["c.svs"]}
    with pytest.raises(SpecError, match="none for training or validation"):
        source.split()
    assert source.split(ratios=(1, 1, 1)).valid
