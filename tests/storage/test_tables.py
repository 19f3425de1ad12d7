"""CSVs as people and programs write them: one set of rules for all that msdask reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from msdask.errors import SlideError, SpecError
from msdask.storage.tables import read_table, write_table


def table(folder: Path, text: str, *keys: str, encoding: str = "utf-8"):
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return read_table(path, *(keys or ("path",)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_header_is_known_by_a_column_in_any_case(tmp_path: Path, encoding: str, ending: str) -> None:
    found = table(tmp_path, ending.join(["Split, PATH ", 'train," ß, 1.svs"', ""]), encoding=encoding)
    assert found.header == ("split", "path")
    assert found.rows == (("train", "ß, 1.svs"),)
    assert found.column("path") == ["ß, 1.svs"]
    assert found.records() == [{"split": "train", "path": "ß, 1.svs"}]


def test_without_a_header_the_first_column_is_taken(tmp_path: Path) -> None:
    found = table(tmp_path, "a.svs,1\nb.svs\n")
    assert found.header == ()
    assert found.rows == (("a.svs", "1"), ("b.svs",))
    assert found.column("path") == ["a.svs", "b.svs"]


def test_the_first_known_column_is_taken(tmp_path: Path) -> None:
    found = table(tmp_path, "path,slide_id\na.svs,a\n", "slide_id", "path")
    assert found.column("slide_id", "path") == ["a"]


def test_blank_lines_and_comments_are_nothing_and_lines_are_counted_as_in_an_editor(tmp_path: Path) -> None:
    found = table(tmp_path, "\n# made by hand, in May\npath\n , \n#\na.svs\n#1.svs\n")
    assert found.rows == (("a.svs",), ("#1.svs",))
    assert found.lines == (6, 7)


def test_a_column_of_numbers_named_by_a_hash_is_no_comment(tmp_path: Path) -> None:
    assert table(tmp_path, "#,path\n1,a.svs\n").records() == [{"#": "1", "path": "a.svs"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na.svs,x\n\nb.svs\n", r"t\.csv' line 4: 1 cells, the header has 2"),
        ("path,split,split\na.svs,x,y\n", r"columns \['split'\] twice"),
        ("\npath;split\na.svs;x\n", r"line 2: 'path;split'; expected columns separated by commas"),
        ("path\tsplit\na.svs\tx\n", "separated by commas"),
    ],
)
def test_what_makes_no_sense_is_refused_naming_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        table(tmp_path, text)


def test_a_file_that_cannot_be_read_is_an_error_of_the_callers_class(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"t\.csv' cannot be read as a CSV in UTF-8"):
        table(tmp_path, "ß.svs\n", encoding="latin-1")
    with pytest.raises(SlideError, match=r"gone\.csv' cannot be read"):
        read_table(tmp_path / "gone.csv", error=SlideError)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    rows = [("a, b.svs", "1"), ('say "x".svs', "2"), ("切.svs", "3")]
    assert write_table(tmp_path / "new" / "t.csv", rows, header=("path", "n")) == 3
    assert read_table(tmp_path / "new" / "t.csv", "path").rows == tuple(rows)
    assert write_table(tmp_path / "t.csv", []) == 0
    assert read_table(tmp_path / "t.csv", "path").rows == ()


def test_rows_that_fail_in_the_middle_leave_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, [("old",)])
    with pytest.raises(ZeroDivisionError):
        write_table(path, (((1 // (2 - i)),) for i in range(5)))
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    "text",
    [
        "split;x,path\na,b\n",
        "x,path\tsplit\na,b\n",
        '"path";"split"\na;b\n',
        "file;split\na;b\n",
        "sep=;\nfile;what\n",
    ],
)
def test_another_separator_is_seen_anywhere_in_the_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"t\.csv' line 1: .*; expected columns separated by commas"):
        read_table(path, "path", columns=("split",))


def test_a_path_with_a_semicolon_in_a_list_without_header_is_a_path(tmp_path: Path) -> None:
    assert table(tmp_path, "/slides;old/a.svs\n/b.svs\n").rows == (("/slides;old/a.svs",), ("/b.svs",))
