"""The slides of a cohort: CSVs of every kind, folders, lists, and what is refused before any work begins."""

from __future__ import annotations

import datetime
import json
import warnings
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


def test_an_emptied_cell_is_known_from_a_column_that_is_not_there(tmp_path: Path) -> None:
    first, second = read_slides(csv(tmp_path, "path,split,patient\n/a.svs,train,\n/b.svs,,P2\n"))
    assert first.cohort == {"split": "train", "patient": None}
    assert (second.cohort, second.facts) == ({"split": None, "patient": "P2"}, {"patient": "P2"})
    (only,) = read_slides([{"path": "/a.svs", "split": None}])
    assert (only.cohort, only.facts) == ({"split": None}, {})


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
    assert (first.mpp, first.facts) == (0.25, {"split": "train", "grade": 3})
    assert (second.mpp, second.facts) == (None, {"label": "tumour"})
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
        ("file;split\n/a.svs;train\n", "'file;split'; expected columns separated by commas"),
        ("center,path;split\nA,/a.svs;train\n", "'path;split'; expected columns separated by commas"),
        ("path,split;patient\n/a.svs,train;P1\n", "'split;patient'; expected columns separated by commas"),
        ("sep=;\npath;split\n/a.svs;train\n", "expected columns separated by commas"),
        ("path,mpp\n/a.svs,inf\n", r"'/a\.svs': mpp is 'inf', expected a number"),
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


@pytest.mark.parametrize("word", ["NaN", "NA", "nan", "<NA>", "NaT", "null", "#N/A", "None"])
def test_what_programs_write_for_nothing_is_an_empty_cell_and_said_once_a_column(word: str, tmp_path: Path) -> None:
    lines = [f"/a.svs,{word},{word},{word}", f"/b.svs,{word},{word},", "/c.svs,0.25,train,/m.png"]
    path = csv(tmp_path, "\n".join(["path,mpp,split,mask", *lines]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first, second, third = read_slides(path)
    assert (
        (first.mpp, first.mask, first.cohort)
        == (second.mpp, second.mask, second.cohort)
        == (None, None, {"split": None})
    )
    assert (third.mpp, third.mask, third.cohort) == (0.25, "/m.png", {"split": "train"})
    assert sorted(str(w.message) for w in said) == [
        f"column 'mask' of the slides' table: read as empty in 1 cell, such as {word!r}",
        f"column 'mpp' of the slides' table: read as empty in 2 cells, such as {word!r}",
        f"column 'split' of the slides' table: read as empty in 2 cells, such as {word!r}",
    ]


@pytest.mark.parametrize(
    ("values", "facts", "said"),
    [
        (pd.to_datetime(["2020-01-01", "2021-02-03"]), ["2020-01-01", "2021-02-03"], "kept as text, in 2 cells"),
        ([pd.Timestamp("2020-01-01 10:30"), pd.NaT], ["2020-01-01T10:30:00", None], "kept as text, in 1 cell,"),
        ([np.datetime64("2020-01-01"), datetime.date(2020, 1, 2)], ["2020-01-01", "2020-01-02"], "a date or time"),
        (pd.to_timedelta([1, 2], "D"), ["1 days 00:00:00", "2 days 00:00:00"], "a date or time"),
        ([np.inf, 1.5], ["inf", 1.5], "infinite, so kept as text, in 1 cell, such as 'inf'"),
        ([pd.NaT, pd.NaT], [None, None], None),
        ([np.float32(0.5), np.int16(3)], [0.5, 3], None),
        (pd.array([True, pd.NA], dtype="boolean"), [True, None], None),
        (pd.Categorical(["a", None]), ["a", None], None),
        ([" train ", "  "], ["train", None], None),
    ],
)
def test_facts_are_what_json_can_hold(values: Any, facts: list[Any], said: str | None) -> None:
    frame = pd.DataFrame({"path": ["/a.svs", "/b.svs"], "x": values})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        rows = read_slides(frame)
    assert [row.cohort["x"] for row in rows] == facts
    assert json.loads(json.dumps([row.facts for row in rows], allow_nan=False)) == [row.facts for row in rows]
    assert [said in str(w.message) and "'x'" in str(w.message) for w in heard if said] == [True] * (said is not None)
    assert said is not None or not heard


@pytest.mark.parametrize("value", [np.arange(2), ["a"], {"a": 1}, b"x", 1j, {1}])
def test_a_cell_that_is_no_fact_is_refused_before_work_with_slide_and_column(value: Any) -> None:
    match = rf"slide '/a\.svs': column 'x' holds a value of type {type(value).__name__}"
    with pytest.raises(SpecError, match=match):
        read_slides([{"path": "/a.svs", "x": value}])
    with pytest.raises(SpecError, match=match):
        read_slides([SlideRow("/a.svs", "a", cohort={"x": value})])


@pytest.mark.parametrize(
    ("column", "near"),
    [
        ("slideid", "slide_id"),
        ("splt", "split"),
        ("Slide ID", "slide_id"),
        ("masks", "mask"),
        ("magnificaton", "magnification"),
    ],
)
def test_a_misspelt_column_is_said_with_the_nearest_known_name(column: str, near: str, tmp_path: Path) -> None:
    for given in (csv(tmp_path, f"path,{column}\n/a.svs,1\n"), pd.DataFrame({"path": ["/a.svs"], column: ["1"]})):
        with pytest.warns(UserWarning, match=f"(?i)column '{column}'.*if it means '{near}', name it so") as said:
            (row,) = read_slides(given)
        assert len(said) == 1
        assert list(row.facts.values()) == ["1"]


def test_columns_of_ones_own_are_nothing_to_say_of(tmp_path: Path) -> None:
    names = "path,patient_id,center,grade,patch,split,splits_of,age,sex,site,stage,mpp,tma"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_slides(csv(tmp_path, f"{names}\n/a.svs{',1' * names.count(',')}\n"))


def test_the_case_of_known_names_does_not_matter_in_frames_either() -> None:
    frame = pd.DataFrame({"Path": ["/a.svs"], "SPLIT": ["train"], "Grade": [3]})
    assert read_slides(frame) == [SlideRow("/a.svs", "a.svs", cohort={"split": "train", "Grade": 3})]
    with pytest.raises(SpecError, match="'split' twice"):
        read_slides(pd.DataFrame([["/a.svs", "x", "y"]], columns=["path", "split", "Split"]))
    with pytest.raises(SlideError, match="expected one named 'path'; 'pth' looks like it"):
        read_slides(pd.DataFrame({"pth": ["/a.svs"]}))
