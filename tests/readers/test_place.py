"""A place: what readers may ask of a path or URL, looked up once and only when asked."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from msdask.errors import SlideError, UnreachableError
from msdask.readers.listing import slides_in
from msdask.readers.place import HEAD_BYTES, Place
from msdask.storage import source


def test_a_file_has_a_name_first_bytes_and_a_size(tmp_path: Path) -> None:
    (tmp_path / "Slide 1.TAR.SVS").write_bytes(bytes(range(256)) * 8)
    place = Place(tmp_path / "Slide 1.TAR.SVS")
    assert (place.name, place.stem, place.ending) == ("Slide 1.TAR.SVS", "Slide 1.TAR", ".svs")
    assert (place.is_url, place.is_folder, place.names, place.size) == (False, False, (), 2048)
    assert place.head == (bytes(range(256)) * 8)[:HEAD_BYTES]


def test_a_folder_has_names_and_no_bytes(tmp_path: Path) -> None:
    for name in ("b", "a.dat"):
        (tmp_path / name).write_bytes(b"x")
    place = Place(tmp_path)
    assert (place.is_folder, place.head, place.names, place.size) == (True, b"", ("a.dat", "b"), None)
    assert place.inside("b").head == b"x"
    assert place.inside("b").beside("a.dat").path == str(tmp_path / "a.dat")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.listdir", denied)
    with pytest.raises(UnreachableError, match=r"cannot be listed now .*Permission denied.*check its permissions"):
        slides_in(tmp_path)


def test_folders_behind_urls_have_names_too() -> None:
    for name in ("0/c/0", ".zattrs"):
        with fsspec.open(f"memory://places/slide.zarr/{name}", "wb") as file:
            file.write(b"x")
    place = Place("memory://places/slide.zarr/")
    assert (place.name, place.ending, place.is_folder, place.names) == ("slide.zarr", ".zarr", True, (".zattrs", "0"))
    assert place.head == b""
    assert place.inside("0").is_folder
    with place.inside(".zattrs") as file:
        assert (file.head, file.size, file.is_folder) == (b"x", 1, False)
    assert place.beside("other.svs").path == "memory://places/other.svs"


def test_a_file_is_opened_once_for_its_first_bytes_and_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    opened = []
    original = source.open_source
    monkeypatch.setattr(source, "open_source", lambda *a: opened.append(a) or original(*a))
    with Place(tmp_path / "a") as place:
        assert (place.head, place.head) == (b"abc", b"abc")
        taken = place.open()
    assert len(opened) == 1
    assert taken.read(1, 2) == b"bc"  # whoever took it closes it
    taken.close()


def test_what_no_reader_took_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with Place(tmp_path / "a") as place:
        assert place.head == b"abc"
        held = place._source
    assert held is not None
    with pytest.raises(UnreachableError, match="closed"):
        held.read(0, 1)


def test_nothing_and_an_empty_file_are_errors_only_when_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    absent, empty = Place(tmp_path / "absent.svs"), Place(tmp_path / "empty.svs")
    assert (absent.is_folder, absent.size, empty.size) == (False, None, 0)
    with pytest.raises(SlideError, match="no such file"):
        _ = absent.head
    with pytest.raises(SlideError, match="empty"):
        _ = empty.head
    with pytest.raises(SlideError, match="as text"):
        Place(b"a.svs")  # type: ignore[arg-type]
