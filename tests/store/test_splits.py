"""Splits by lists and by what is stored with the slides: one reading for training and export."""

from __future__ import annotations

from pathlib import Path

import pytest

from msdask.errors import SpecError, StoreError
from msdask.store.splits import EXTERNAL, read_partitions

KNOWN = ["a.svs", "b.tif", "c", "d.ome.tif", "e f.svs"]


def lists(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "slide"),
    [
        ("a.svs", "a.svs"),
        ("a", "a.svs"),
        ("c", "c"),
        ("c.svs", "c"),
        ("c.ome.tiff", "c"),
        ("d", "d.ome.tif"),
        ("d.ome", "d.ome.tif"),
        ("e f", "e f.svs"),
    ],
)
def test_a_name_may_have_the_ending_that_the_slide_lacks_and_lack_the_one_that_it_has(name: str, slide: str) -> None:
    (partition,), missing = read_partitions({"train": [name]}, KNOWN)
    assert partition.parts == {"train": (slide,)}
    assert missing == ()


def test_another_ending_is_another_slide(tmp_path: Path) -> None:
    (partition,), missing = read_partitions({"train": ["a.tif", "b.tif", "nobody"]}, KNOWN)
    assert partition.parts == {"train": ("b.tif",)}
    assert missing == ("a.tif", "nobody")


def test_a_name_that_may_be_several_slides_is_refused_and_a_full_name_is_not() -> None:
    with pytest.raises(StoreError, match=r"'a' may be any of \['a.svs', 'a.tif'\]: give the full name"):
        read_partitions({"train": ["a"]}, ["a.svs", "a.tif"], error=StoreError)
    (partition,), _ = read_partitions({"train": ["a"]}, ["a", "a.svs"])
    assert partition.parts == {"train": ("a",)}


def test_order_is_the_lists_and_each_slide_is_there_once() -> None:
    (partition,), _ = read_partitions({"train": ["c", "a", "c.svs", "a.svs"]}, KNOWN)
    assert partition.parts["train"] == ("c", "a.svs")


def test_a_slide_in_two_parts_is_refused_but_external_slides_may_be_anywhere() -> None:
    with pytest.raises(SpecError, match=r"slide 'a.svs' is in 'train' and in 'test'"):
        read_partitions({"train": ["a"], "test": ["a.svs"]}, KNOWN)
    (partition,), _ = read_partitions({"train": ["a"], EXTERNAL: ["a.svs"]}, KNOWN)
    assert partition.parts[EXTERNAL] == ("a.svs",)


def test_other_words_for_the_parts_are_known() -> None:
    (partition,), _ = read_partitions({"Training": ["a"], "val": ["b"], "validation": ["c"], "testing": ["d"]}, KNOWN)
    assert partition.parts == {"train": ("a.svs",), "valid": ("b.tif", "c"), "test": ("d.ome.tif",)}


def test_lists_may_have_a_header_more_columns_comments_or_all_names_in_one_line(tmp_path: Path) -> None:
    folder = lists(
        tmp_path,
        list_train="# first draw\na.svs,1\n\nb.tif,0\n",
        list_val="grade,slide_id\n3,c\n",
        list_test="d, e f\n",
    )
    (partition,), missing = read_partitions(folder, KNOWN)
    assert partition.parts == {"train": ("a.svs", "b.tif"), "valid": ("c",), "test": ("d.ome.tif", "e f.svs")}
    assert missing == ()


@pytest.mark.parametrize("inside", ["", "partitions"])
def test_a_folder_of_repeats_gives_one_partition_each(tmp_path: Path, inside: str) -> None:
    for repeat, name in enumerate("ab"):
        lists(tmp_path / inside / str(repeat), list_train=f"{name}\n")
    found, _ = read_partitions(tmp_path, KNOWN)
    assert [(p.repeat, p.parts["train"]) for p in found] == [("0", ("a.svs",)), ("1", ("b.tif",))]


def test_a_folder_without_lists_and_a_list_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none of list_train\.csv"):
        read_partitions(tmp_path, KNOWN)
    (tmp_path / "list_train.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StoreError, match=r"list_train\.csv' cannot be read"):
        read_partitions(tmp_path, KNOWN, error=StoreError)
