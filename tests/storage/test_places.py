"""Folders and buckets behind one protocol: what is written in pieces, read in parts, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from msdask.errors import StoreError
from msdask.storage import places
from tests.tools.s3_server import place_of, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A place of its own for each test."""
    if request.param == "folder":
        return str(tmp_path_factory.mktemp("place"))
    request.getfixturevalue("server")
    return place_of(request)


def test_pieces_in_any_order_make_one_file(place: str) -> None:
    path = places.join(place, "a", "file")
    with places.at(path).placed(path, 9) as put_at:
        put_at(6, [b"ghi"])
        memory = bytearray(b"abc")
        put_at(0, [memoryview(memory), b"", b"def"])
        memory[:] = b"xyz"  # it may be used again at once
        with pytest.raises(FileNotFoundError):
            places.at(path).size(path)
    assert places.at(path).read(path) == b"abcdefghi"


def test_an_error_between_the_pieces_leaves_nothing(place: str) -> None:
    path = places.join(place, "a", "file")

    def broken() -> None:
        with places.at(path).placed(path, 6) as put_at:
            put_at(0, [b"abc"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert places.at(place).size_below(place) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_an_open_file_is_read_at_any_place(whole: bool, place: str) -> None:
    path = places.join(place, "file")
    places.at(path).write(path, [b"abcdefghij"])
    with places.at(path).opened(path, whole=whole) as file:
        assert file.read_end(4) == (b"ghij", 10)
        assert file.read_end(40) == (b"abcdefghij", 10)
        parts = [memoryview(bytearray(n)) for n in (3, 0, 2)]
        assert file.read_into(1, parts) == 5
        assert [bytes(part) for part in parts] == [b"bcd", b"", b"ef"]
        short = memoryview(bytearray(8))
        assert file.read_into(6, [short]) == 4
        assert bytes(short) == b"ghij\0\0\0\0"


@pytest.mark.parametrize("whole", [False, True])
def test_an_empty_and_a_missing_file(whole: bool, place: str) -> None:
    path = places.join(place, "file")

    def end() -> tuple[bytes, int]:
        with places.at(path).opened(path, whole=whole) as file:
            return file.read_end(4)

    with pytest.raises(FileNotFoundError):
        end()
    places.at(path).write(path, [b""])
    assert end() == (b"", 0)


def test_what_lies_below_a_place_is_counted(place: str) -> None:
    storage = places.at(place)
    assert storage.size_below(places.join(place, "nothing")) == 0
    storage.write(places.join(place, "a", "one"), [b"12345"])
    storage.write(places.join(place, "a", "b", "two"), [b"678"])
    assert storage.size_below(places.join(place, "a")) == 8


def test_a_place_is_taken_where_something_lies(place: str) -> None:
    storage = places.at(place)
    assert not storage.is_taken(places.join(place, "a"))
    storage.write(places.join(place, "a", "one"), [b"1"])
    assert storage.is_taken(places.join(place, "a"))
    assert not storage.is_taken(places.join(place, "b"))


def test_a_whole_bucket_is_no_place_for_a_store() -> None:
    with pytest.raises(StoreError, match="'s3://bucket' is a whole bucket: give a place in it"):
        places.location("s3://bucket/")


def test_many_small_things_are_asked_for_in_order(place: str) -> None:
    assert places.gather(place, lambda n: n * n, range(40)) == [n * n for n in range(40)]
