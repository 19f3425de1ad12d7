"""Label masks: the value table, unknown values, palette and 16-bit files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import MaskError, SpecError
from msdask.masks.labels import read_label_mask

COLON = [50, 100, 150, 200, 250]


@dataclass
class SlideOfShape:
    shape: tuple[int, int]
    path: str = "folder/a.svs"
    name: str = "a.svs"


def write(path: Path, values: NDArray[Any]) -> Path:
    """A TIFF or PNG that holds the values as they are."""
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, photometric="minisblack")
    return path


def naive(stored: NDArray[Any], table: Mapping[int, int]) -> NDArray[np.int64]:
    """Pixel by pixel: class + 1, 0 for 0 and for class -1."""
    out = np.zeros(stored.shape, np.int64)
    for y in range(stored.shape[0]):
        for x in range(stored.shape[1]):
            value = int(stored[y, x])
            out[y, x] = table[value] + 1 if value in table else 0
    return out


def random_values(values: Sequence[int], dtype: type = np.uint8, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array(values), (24, 32)).astype(dtype)
    mask.flat[: len(values)] = values  # every value occurs
    return mask


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_the_colon_masks_of_the_paper(tmp_path: Path, ending: str) -> None:
    stored = random_values([0, *COLON])
    path = write(tmp_path / f"colon mask.{ending}", stored)
    names = ["cancer", "high-grade", "low-grade", "hyperplastic", "normal"]
    labels = read_label_mask(path, values=COLON, classes=names, slide=SlideOfShape((2400, 3200)))
    np.testing.assert_array_equal(labels, stored // 50)
    assert labels.dims == ("y", "x")
    assert labels.dtype == np.uint8
    assert labels.attrs == {"classes": tuple(names), "source": str(path), "slide_shape": (2400, 3200)}


def test_a_sequence_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", random_values([0, *COLON]))
    by_position = read_label_mask(path, values=COLON)
    by_value = read_label_mask(path, values={value: k for k, value in enumerate(COLON)})
    np.testing.assert_array_equal(by_position, by_value)
    assert by_position.attrs["classes"] == by_value.attrs["classes"] == ("0", "1", "2", "3", "4")


@given(data=st.data(), dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.uint32]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_naive_loop(tmp_path: Path, data: st.DataObject, dtype: type) -> None:
    largest = int(np.iinfo(dtype).max)
    values = data.draw(st.lists(st.integers(1, largest), min_size=1, max_size=12, unique=True))
    table = {value: data.draw(st.integers(-1, 5)) for value in values} | {values[0]: 0}
    if data.draw(st.booleans()):
        table[0] = data.draw(st.integers(-1, 5))
    stored = random_values([0, *values], dtype)
    labels = read_label_mask(write(tmp_path / "a.tif", stored), values=table)
    np.testing.assert_array_equal(labels, naive(stored, table))


def test_zero_is_unlabeled_unless_the_table_has_it(tmp_path: Path) -> None:
    stored = random_values([0, 10])
    path = write(tmp_path / "a.png", stored)
    np.testing.assert_array_equal(read_label_mask(path, values={10: 0}), stored // 10)
    np.testing.assert_array_equal(read_label_mask(path, values=[0, 10]), stored // 10 + 1)


def test_class_minus_one_is_unlabeled(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", random_values([0, 10, 255]))
    labels = read_label_mask(path, values={10: 0, 255: -1})
    assert np.unique(labels).tolist() == [0, 1]
    assert labels.attrs["classes"] == ("0",)


def test_two_values_may_mean_one_class(tmp_path: Path) -> None:
    stored = random_values([0, 10, 20])
    np.testing.assert_array_equal(read_label_mask(write(tmp_path / "a.png", stored), values={10: 0, 20: 0}), stored > 0)


def test_unknown_values_are_listed_with_those_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "slide 7.png", random_values([0, 50, 77, 100, 151]))
    with pytest.raises(MaskError) as error:
        read_label_mask(path, values=COLON)
    for part in (
        "slide 7.png",
        "unknown values 77, 151",
        "found 0, 50, 77, 100, 151",
        "expected 0, 50, 100, 150, 200, 250",
    ):
        assert part in str(error.value)


def test_a_value_of_the_table_need_not_occur(tmp_path: Path) -> None:
    labels = read_label_mask(write(tmp_path / "a.png", random_values([0, 250])), values=COLON)
    assert np.unique(labels).tolist() == [0, 5]
    assert len(labels.attrs["classes"]) == 5


def test_palette_images_give_their_indices(tmp_path: Path) -> None:
    stored = random_values([0, 1, 2, 3])
    image = Image.fromarray(stored).convert("P")
    image.putdata(stored.ravel().tolist())
    image.putpalette([255, 255, 255, 200, 0, 0, 0, 200, 0, 0, 0, 200] + [9] * 756)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_mask(tmp_path / "palette.png", values=None), stored)


def test_sixteen_bits_keep_their_values(tmp_path: Path) -> None:
    stored = random_values([0, 1000, 1256, 65535], np.uint16)
    table = {1000: 0, 1256: 1, 65535: 2}
    for name in ("a.png", "a.tif"):
        labels = read_label_mask(write(tmp_path / name, stored), values=table)
        np.testing.assert_array_equal(labels, naive(stored, table))
        assert labels.dtype == np.uint8


def test_labels_of_three_hundred_classes_are_sixteen_bits(tmp_path: Path) -> None:
    stored = random_values(range(301), np.uint16)
    labels = read_label_mask(write(tmp_path / "a.tif", stored), values=list(range(1, 301)))
    np.testing.assert_array_equal(labels, stored)
    assert labels.dtype == np.uint16
    few = read_label_mask(write(tmp_path / "b.png", random_values(range(255))), values=list(range(1, 255)))
    assert few.dtype == np.uint8
    assert few.max() == 254


def test_without_a_table_the_mask_holds_labels_as_they_are(tmp_path: Path) -> None:
    stored = random_values([0, 1, 2, 3])
    labels = read_label_mask(write(tmp_path / "a.png", stored), values=None)
    np.testing.assert_array_equal(labels, stored)
    assert labels.attrs["classes"] == ("0", "1", "2")


@pytest.mark.parametrize("values", [[0, 50, 100], [0, 2], [0, 1, 3]])
def test_without_a_table_gaps_are_refused(tmp_path: Path, values: list[int]) -> None:
    path = write(tmp_path / "a.png", random_values(values))
    listed = ", ".join(map(str, values))
    with pytest.raises(MaskError, match=rf"a\.png.*values {listed}; expected 0 = unlabeled.*values=.*classes="):
        read_label_mask(path, values=None)


def test_without_a_table_named_classes_need_not_all_occur(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", random_values([0, 1, 3]))
    labels = read_label_mask(path, values=None, classes=["a", "b", "c"])
    assert np.unique(labels).tolist() == [0, 1, 3]
    assert labels.attrs["classes"] == ("a", "b", "c")
    with pytest.raises(MaskError, match=r"values 0, 1, 3; expected 0 to 2"):
        read_label_mask(path, values=None, classes=["a", "b"])


def test_negative_values_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", random_values([-1, 0, 1], np.int16))
    with pytest.raises(MaskError, match=r"values -1, 0, 1"):
        read_label_mask(path, values=None)
    np.testing.assert_array_equal(np.unique(read_label_mask(path, values={1: 0, -1: 1})), [0, 1, 2])


def test_a_mask_without_a_label_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.zeros((4, 6), np.uint8))
    assert not read_label_mask(path, values=COLON).any()
    assert read_label_mask(path, values=None).attrs["classes"] == ()


def test_a_missing_mask_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"gone\.png.*no such file"):
        read_label_mask(tmp_path / "gone.png", values=COLON)
    with pytest.raises(MaskError, match="is a folder"):
        read_label_mask(tmp_path, values=COLON)


def test_colors_are_no_labels(tmp_path: Path) -> None:
    colors = np.zeros((20, 30, 3), np.uint8)
    colors[:, 10:] = (200, 30, 40)
    Image.fromarray(colors).save(tmp_path / "overlay.png")
    with pytest.raises(MaskError, match=r"overlay\.png"):
        read_label_mask(tmp_path / "overlay.png", values=COLON)


def test_other_proportions_are_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", random_values([0, 50]))
    with pytest.raises(MaskError, match=r"32 x 24 px.*1000 x 1000 px"):
        read_label_mask(path, values=COLON, slide=SlideOfShape((1000, 1000)))


@pytest.mark.parametrize(
    ("values", "classes", "said"),
    [
        ([50, 50], None, "appears twice"),
        ({50: -2}, None, "class from 0"),
        ({50: 0.5}, None, "class from 0"),
        ({"50": 0}, None, "whole mask value"),
        ({50: True}, None, "class from 0"),
        ([], None, "no class"),
        ({255: -1}, None, "no class"),
        ([50, 100], ["a"], "1 names for 2 classes"),
        ([50, 100], ["a", "a"], "appears twice"),
        ([50, 100], "ab", "list of names"),
        (None, [], "0 names"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, values: Any, classes: Any, said: str) -> None:
    path = write(tmp_path / "a.png", random_values([0, 50]))
    with pytest.raises(SpecError, match=said):
        read_label_mask(path, values=values, classes=classes)
