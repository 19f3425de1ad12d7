"""The slides of a cohort: CSVs of every kind, folders, lists, and what is refused before any work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from msdask.errors import SlideError, SpecError, StoreError
from msdask.extraction.slide_table import SlideRow, read_slides


def csv(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = folder / "slides.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_the_seeds_list_has_one_path_a_line_and_no_header(tmp_path: Path) -> None:
    rows = read_slides(csv(tmp_path, "/data/a.svs\n/data/b.svs\n"))
    assert [(r.path, r.slide_id, r.mask, r.mpp, r.cohort) for r in rows] == [
        ("/data/a.svs", "a.svs", None, None, {}),
        ("/data/b.svs", "b.svs", None, None, {}),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_with_columns_in_any_order_case_and_coding(ending: str, encoding: str, tmp_path: Path) -> None:
    lines = [
        "Patient,PATH, slide_id ,mask,mpp,split,magnification",
        'P 1," /d/a, 1.svs",a,/m/a.png,0.25,train,',
        "P2,/d/ß 切.svs,b,,,valid,40",
    ]
    first, second = read_slides(csv(tmp_path, ending.join(lines) + ending, encoding=encoding))
    assert first == SlideRow("/d/a, 1.svs", "a", "/m/a.png", 0.25, None, {"patient": "P 1", "split": "train"})
    assert second == SlideRow("/d/ß 切.svs", "b", None, None, 40.0, {"patient": "P2", "split": "valid"})


def test_empty_lines_and_spaces_around_cells_are_nothing(tmp_path: Path) -> None:
    rows = read_slides(csv(tmp_path, "\n  path , split\n\n/a.svs , train \n , \n"))
    assert rows == [SlideRow("/a.svs", "a.svs", cohort={"split": "train"})]


def test_relative_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    (row,) = read_slides(csv(tmp_path, "path,mask\nslides/a.svs,../masks/a.png\n"))
    assert row.path == str(tmp_path / "slides" / "a.svs")
    assert row.mask == str(tmp_path.parent / "masks" / "a.png")


def test_urls_are_left_as_they_are(tmp_path: Path) -> None:
    (row,) = read_slides(csv(tmp_path, "s3://bucket/a b.svs\n"))
    assert (row.path, row.slide_id) == ("s3://bucket/a b.svs", "a b.svs")
    assert read_slides("https://host/c.svs")[0].path == "https://host/c.svs"


def test_a_folder_gives_its_files_in_order_without_tables_and_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.svs", "a.tif", "c.ndpi", "slides.csv", "notes.txt", ".hidden.svs", "x.xml"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert [r.slide_id for r in read_slides(tmp_path)] == ["a.tif", "b.svs", "c.ndpi"]


def test_one_slide_lists_mappings_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    assert read_slides(path)[0].slide_id == "a.svs"
    assert [r.slide_id for r in read_slides([path, str(tmp_path / "b.svs")])] == ["a.svs", "b.svs"]
    assert read_slides([{"path": path, "slide_id": "z", "mpp": "0.5"}])[0].mpp == 0.5
    given = SlideRow("/x.svs", "x")
    assert read_slides([given]) == [given]


def test_a_frame_with_gaps_of_every_kind() -> None:
    frame = pd.DataFrame(
        {
            "path": ["/a.svs", "/b.svs"],
            "mpp": [0.25, np.nan],
            "split": pd.array(["train", pd.NA], dtype="string"),
            "grade": pd.array([3, pd.NA], dtype="Int64"),
            "label": [None, "tumour"],
        }
    )
    first, second = read_slides(frame)
    assert (first.mpp, first.cohort) == (0.25, {"split": "train", "grade": 3})
    assert (second.mpp, second.cohort) == (None, {"label": "tumour"})
    assert type(first.cohort["grade"]) is int


def test_two_slides_of_one_name_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = csv(tmp_path, "/one/a.svs\n/two/a.svs\n/b.svs\n")
    with pytest.raises(SpecError, match=r"'a\.svs' for .*/one/a\.svs.*/two/a\.svs.*column 'slide_id'"):
        read_slides(path)
    rows = read_slides(csv(tmp_path, "path,slide_id\n/one/a.svs,a1\n/two/a.svs,a2\n"))
    assert [r.slide_id for r in rows] == ["a1", "a2"]


@pytest.mark.parametrize("slide_id", ["../a", "/a", "a/b", "_a", ".a", "x" * 201])
def test_ids_that_could_leave_the_store_are_refused(slide_id: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="column 'slide_id'"):
        read_slides(csv(tmp_path, f"path,slide_id\n/a.svs,{slide_id}\n"))
    with pytest.raises(StoreError, match="column 'slide_id'"):
        read_slides([SlideRow("/a.svs", slide_id)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("path\n", "no slides"),
        ("file,split\n/a.svs,train\n", r"columns \['file', 'split'\]: expected one named 'path'"),
        ("path,split\n/a.svs\n", "line 2: 1 cells, the header has 2"),
        ("path,split\n\n/a.svs,x\n/b.svs,x,y\n", "line 4: 3 cells, the header has 2"),
        ("path,mpp\n/a.svs,quarter\n", r"'/a\.svs': mpp is 'quarter', expected a number"),
        ("path,split\n,train\n", "has no path"),
        ("path,split,split\n/a.svs,x,y\n", "twice"),
        ("path;split\n/a.svs;train\n", "comma"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((SlideError, SpecError), match=message):
        read_slides(csv(tmp_path, text))


def test_a_table_in_another_coding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="UTF-8"):
        read_slides(csv(tmp_path, "/ß.svs\n", encoding="latin-1"))


@pytest.mark.parametrize("slides", [[], pd.DataFrame({"path": []})])
def test_no_slides_are_refused(slides: Any) -> None:
    with pytest.raises(SlideError, match="no slides"):
        read_slides(slides)


def test_a_path_that_does_not_exist_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"absent\.csv' does not exist"):
        read_slides(tmp_path / "absent.csv")
    with pytest.raises(SlideError, match="no slides"):
        read_slides(tmp_path)
