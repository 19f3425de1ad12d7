"""Requests to servers that fail for a while: repeated by one policy, not believed when cut short, said in one line."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from msdask.errors import StoreError
from msdask.storage import locks, places
from msdask.storage.locks import slide_lock
from msdask.storage.patience import PassingError, patience, persist
from msdask.storage.ranges import ObjectSource
from tests.tools.s3_faults import FaultyServer, faulty_server, first, until
from tests.tools.s3_server import get, place_of, put, s3_server


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def server(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy that all of msdask's requests go through."""
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as (state, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield state


@pytest.fixture
def place(server: FaultyServer, request: pytest.FixtureRequest) -> str:
    return place_of(request)


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_request_is_repeated_until_it_is_answered() -> None:
    answers = iter([PassingError("busy"), PassingError("busy"), 7])

    def request() -> int:
        answer = next(answers)
        if isinstance(answer, PassingError):
            raise answer
        return answer

    assert persist("a server", request) == 7


def test_what_is_said_for_good_is_not_asked_again() -> None:
    asked = []

    def request() -> None:
        asked.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        persist("a server", request)
    assert len(asked) == 1


def test_patience_ends_and_says_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")

    def request() -> None:
        raise PassingError("503 SlowDown")

    with pytest.raises(PassingError, match=r"503 SlowDown; tried for 0 s \(MSDASK_PATIENCE\)"):
        persist("a server", request)


def test_patience_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == 180
    monkeypatch.setenv("MSDASK_PATIENCE", "5")
    assert patience() == 5
    monkeypatch.setenv("MSDASK_PATIENCE", "long")
    with pytest.raises(OSError, match="expected seconds"):
        patience()


def test_many_who_wait_say_it_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("msdask.storage.patience._QUIET", 0.1)
    monkeypatch.setenv("MSDASK_PATIENCE", "0.5")

    def wait() -> None:
        with pytest.raises(PassingError):
            persist("s3://one-line", _busy)

    with caplog.at_level(logging.WARNING, "msdask.storage"):
        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [record.getMessage() for record in caplog.records if "one-line" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("waiting for s3://one-line: 503")
    assert lines[0].endswith("giving up after 0.5 s)")


def _busy() -> None:
    raise PassingError("503")


# --- object storage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["busy", "reset", "half"])
@pytest.mark.parametrize("step", ["read", "read_end", "size", "folders"])
def test_every_read_outlives_a_few_faults(client: Any, server: FaultyServer, place: str, fault: Any, step: str) -> None:
    if step in ("size", "folders") and fault == "half":
        pytest.skip("an answer without a body, or one that is parsed whole")
    put(client, f"{place}/folder/object", b"0123456789" * 100)
    storage = places.at(place)
    server.rule = first(3, fault)
    answers = {
        "read": lambda: storage.read(f"{place}/folder/object") == b"0123456789" * 100,
        "read_end": lambda: storage.read_end(f"{place}/folder/object", 10) == (b"0123456789", 1000),
        "size": lambda: storage.size(f"{place}/folder/object") == 1000,
        "folders": lambda: storage.folders(place) == ["folder"],
    }
    assert answers[step]()
    assert server.faults == 3


@pytest.mark.parametrize("fault", ["busy", "reset", "lost"])
def test_every_write_outlives_a_few_faults(client: Any, server: FaultyServer, place: str, fault: Any) -> None:
    server.rule = first(3, fault, method="PUT")
    places.at(place).write(f"{place}/object", [b"whole"])
    assert get(client, f"{place}/object") == b"whole"
    server.rule = first(2, fault, method="POST")
    places.at(place).remove_tree(place)


def test_a_server_that_is_busy_for_three_seconds_costs_three_seconds(
    client: Any, server: FaultyServer, place: str
) -> None:
    put(client, f"{place}/object", b"x")
    server.rule = until(3.0, "busy")
    assert places.at(place).read(f"{place}/object") == b"x"


def test_no_permission_is_an_answer_and_names_what_to_set(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/object", b"x")
    server.rule = first(1, "denied")
    with pytest.raises(PermissionError, match=r"access denied.*AWS_ACCESS_KEY_ID"):
        places.at(place).read(f"{place}/object")
    assert len(server.requests) <= 2


def test_an_empty_object_is_read_as_nothing(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/empty", b"")
    assert places.at(place).read(f"{place}/empty") == b""
    assert places.at(place).read_end(f"{place}/empty", 10) == (b"", 0)


def test_a_slide_that_is_replaced_between_two_reads_is_an_error(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/a.svs", b"old" * 1000)
    source = ObjectSource(f"{place}/a.svs")
    assert source.read(0, 3) == b"old"
    put(client, f"{place}/a.svs", b"new" * 1000)
    with pytest.raises(OSError, match="was replaced while it was read"):
        source.read(3, 3)


def test_a_range_that_comes_short_is_asked_for_again(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/a.svs", bytes(range(256)) * 100)
    source = ObjectSource(f"{place}/a.svs")
    server.rule = first(3, "half", method="GET")
    assert source.read(256, 1000) == (bytes(range(256)) * 100)[256:1256]
    assert server.faults == 3


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_whose_first_answer_was_lost_is_ones_own(client: Any, server: FaultyServer, place: str) -> None:
    server.rule = first(1, "lost", method="PUT", part=".lock")
    with slide_lock(f"{place}/s.zarr", "set", "a") as lock:
        lock.check()


def test_a_server_that_hangs_for_one_lock_does_not_cost_another(
    client: Any, server: FaultyServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdask.storage.buckets._QUICK_TIMEOUT", "2s")
    store = f"{place}/s.zarr"
    with slide_lock(store, "set", "b", stale_after=2.0):
        hanging = slide_lock(store, "set", "a", stale_after=2.0)
        hanging.__enter__()
        server.rule = first(1, "hang", method="PUT", part="a.lock")
        state = places.at(store).state(f"{store}.locks/set/b.lock")
        deadline = time.monotonic() + 30
        while not any(fault == "hang" for _, _, fault in server.requests):
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        begun = len(server.requests)
        while sum("b.lock" in path and method == "PUT" for method, path, _ in server.requests[begun:]) < 2:
            assert time.monotonic() < deadline, "the other lock was not renewed"
            threading.Event().wait(0.05)
        assert places.at(store).state(f"{store}.locks/set/b.lock") != state
        server.ended.set()
        with suppress(StoreError):  # it may count as lost: it could not be renewed for longer than it is believed
            hanging.__exit__(None, None, None)


def test_locks_are_renewed_by_requests_that_end_before_a_lock_grows_old() -> None:
    from msdask.storage import buckets

    assert float(buckets._QUICK_TIMEOUT.removesuffix("s")) < locks.STALE_AFTER / 4
