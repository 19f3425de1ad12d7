"""Requests to servers that fail for a while: repeated by one policy, not believed when cut short, said in one line."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import zarr

from msdask.errors import SpecError, StoreError, UnreachableError
from msdask.storage import locks, places
from msdask.storage.bucket_errors import as_os_error
from msdask.storage.locks import slide_lock
from msdask.storage.patience import PassingError, interrupt, is_passing, patience, persist
from msdask.storage.ranges import ObjectSource
from tests.tools.s3_faults import FaultyServer, faulty_server, first, until
from tests.tools.s3_server import get, keys, place_of, put, s3_server


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def server(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy that all of msdask's requests go through."""
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as (state, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("MSDASK_PATIENCE", "60")
        yield state


@pytest.fixture
def place(server: FaultyServer, request: pytest.FixtureRequest) -> str:
    return place_of(request)


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_request_is_repeated_until_it_is_answered() -> None:
    answers = iter([PassingError("busy"), PassingError("busy"), 7])
    assert persist("a server", lambda: _answer(next(answers))) == 7


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

    with pytest.raises(PassingError, match=r"503 SlowDown; tried for 0 s \(MSDASK_PATIENCE says how long\)"):
        persist("a server", request)


def test_patience_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == 180
    monkeypatch.setenv("MSDASK_PATIENCE", "5")
    assert patience() == 5
    for text in ("long", "-1", "nan"):
        monkeypatch.setenv("MSDASK_PATIENCE", text)
        with pytest.raises(SpecError, match="expected seconds"):
            patience()


def test_an_interrupt_ends_all_waiting_and_later_requests_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "600")
    asked = threading.Event()

    def request() -> None:
        asked.set()
        raise PassingError("503")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(persist, "a server", request)
        assert asked.wait(60)
        interrupt()
        with pytest.raises(PassingError, match="interrupted"):
            waiting.result(60)
    answers = iter([PassingError("503"), 7])
    assert persist("a server", lambda: _answer(next(answers))) == 7


def _answer(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (500, True), (501, False), (404, False)])
def test_which_statuses_pass(status: int, passes: bool) -> None:
    assert is_passing(status) == passes


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
    assert lines == ["waiting for s3://one-line (0 s so far, giving up after 0.5 s): 503"]


def _busy() -> None:
    raise PassingError("503")


# --- object storage ---------------------------------------------------------------------------------------------------


READS: dict[str, tuple[Callable[[Any, str], Any], Any]] = {
    "read": (lambda storage, place: storage.read(f"{place}/folder/object"), b"0123456789" * 100),
    "read_end": (lambda storage, place: storage.read_end(f"{place}/folder/object", 10), (b"0123456789", 1000)),
    "read_range": (lambda storage, place: storage.read_range(f"{place}/folder/object", 5, 10), b"5678901234"),
    "size": (lambda storage, place: storage.size(f"{place}/folder/object"), 1000),
    "folders": (lambda storage, place: storage.folders(place), ["folder"]),
    "names": (lambda storage, place: storage.names(f"{place}/folder"), ["object"]),
    "is_folder": (lambda storage, place: storage.is_folder(place), True),
    "size_below": (lambda storage, place: storage.size_below(place), 1000),
}


@pytest.mark.parametrize("fault", ["busy", "reset", "half", "cut"])
@pytest.mark.parametrize("step", READS)
def test_every_read_outlives_a_few_faults(client: Any, server: FaultyServer, place: str, fault: Any, step: str) -> None:
    if step == "size" and fault in ("half", "cut"):
        pytest.skip("an answer without a body")
    put(client, f"{place}/folder/object", b"0123456789" * 100)
    server.rule = first(3, fault)
    ask, answer = READS[step]
    assert ask(places.at(place), place) == answer
    assert server.faults == 3


@pytest.mark.parametrize("step", ["read", "read_range"])
def test_all_bytes_where_some_were_asked_for_are_not_taken_for_some(
    client: Any, server: FaultyServer, place: str, step: str
) -> None:
    put(client, f"{place}/folder/object", b"0123456789" * 100)
    server.rule = first(2, "whole", method="GET")
    ask, answer = READS[step]
    assert ask(places.at(place), place) == answer


def test_a_list_of_many_pages_is_whole_though_a_page_is_cut(
    client: Any, server: FaultyServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    for number in range(10):
        put(client, f"{place}/folder/{number}", b"x")
    server.rule = first(1, "half", method="GET", part="continuation-token")
    assert len(places.at(place).names(f"{place}/folder")) == 10
    assert server.faults == 1
    server.rule = first(1, "half", method="GET", part="continuation-token")
    assert places.at(place).size_below(place) == 10
    places.at(place).remove_tree(place)
    assert not places.at(place).is_folder(place)


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


def test_other_programs_clients_are_as_patient(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/a.zarr/zarr.json", json.dumps({"zarr_format": 3, "node_type": "group"}).encode())
    server.rule = until(3.0, "busy")
    assert zarr.open_group(places.zarr_store(f"{place}/a.zarr"), mode="r").metadata.node_type == "group"


@pytest.mark.parametrize("step", ["read", "size", "folders"])
@pytest.mark.parametrize("fault", ["denied", "expired"])
def test_a_refusal_is_never_taken_for_nothing(
    client: Any, server: FaultyServer, place: str, fault: Any, step: str
) -> None:
    put(client, f"{place}/folder/object", b"x")
    server.rule = first(1, fault)
    error = OSError if fault == "expired" and step == "size" else PermissionError  # HEAD has no words
    with pytest.raises(error) as failure:
        READS[step][0](places.at(place), place)
    assert not isinstance(failure.value, FileNotFoundError)
    assert server.faults == 1


def test_what_ends_patience_says_what_the_server_said_and_what_to_set(
    client: Any, server: FaultyServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.3")
    server.rule = until(60, "busy")
    with pytest.raises(PassingError) as failure:
        places.at(place).read(f"{place}/object")
    text = str(failure.value)
    assert "503 Service Unavailable (SlowDown: Please reduce your request rate.)" in text
    assert f"'{place}/object': the server {os.environ['AWS_ENDPOINT_URL']}" in text
    assert "AWS_ENDPOINT_URL" in text
    assert "tried for 0 s (MSDASK_PATIENCE says how long)" in text


def test_a_server_that_is_not_there_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(PassingError, match=r"the server http://127\.0\.0\.1:9 gives no answer.*Connection refused"):
        places.at("s3://patches/a").read("s3://patches/a/b")


def test_a_machine_without_credentials_is_told_what_to_set() -> None:
    from obstore.exceptions import GenericError

    text = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2s - HTTP error: error "
        'sending request\n\nDebug source:\nGeneric {\n HttpError {\n kind: Connect, message: "No route to host"'
    )
    error = as_os_error("s3://patches/a", GenericError(text), server=None)
    assert isinstance(error, PermissionError)
    assert "no credentials" in str(error)
    assert "AWS_ACCESS_KEY_ID" in str(error)
    busy = text.replace("HTTP error: error sending request", "Server returned non-2xx status code: 503 Slow: ")
    assert isinstance(as_os_error("s3://patches/a", GenericError(busy), server=None), PassingError)


def test_no_permission_is_an_answer_and_names_what_to_set(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/object", b"x")
    server.rule = first(1, "denied")
    with pytest.raises(PermissionError, match=r"access denied \(403 Forbidden .AccessDenied.*AWS_ACCESS_KEY_ID"):
        places.at(place).read(f"{place}/object")
    assert len(server.requests) == 1


def test_an_empty_object_is_read_as_nothing(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/empty", b"")
    assert places.at(place).read(f"{place}/empty") == b""
    assert places.bucket(place).read_end(f"{place}/empty", 10) == (b"", 0)


def test_a_slide_that_is_replaced_between_two_reads_is_an_error(client: Any, server: FaultyServer, place: str) -> None:
    put(client, f"{place}/a.svs", b"old" * 1000)
    source = ObjectSource(f"{place}/a.svs")
    assert source.read(0, 3) == b"old"
    put(client, f"{place}/a.svs", b"new" * 1000)
    with pytest.raises(UnreachableError, match="was replaced while it was read"):
        source.read(3, 3)
    with pytest.raises(UnreachableError, match="was replaced while it was read"):
        source.prefetch([(3, 3), (2000, 10)])


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


@pytest.mark.parametrize("fault", ["busy", "reset", "lost"])
def test_taking_checking_and_leaving_a_lock_outlive_a_few_faults(
    client: Any, server: FaultyServer, place: str, fault: Any
) -> None:
    store = f"{place}/s.zarr"
    server.rule = first(2, fault, method="PUT", part=".lock")
    with slide_lock(store, "set", "a") as lock:
        server.rule = first(2, fault, method="PUT", part=".lock")
        lock.check()
        server.rule = first(2, fault, method="PUT", part=".lock")
        lock.check()
        server.rule = first(1, fault)
    assert keys(client, f"{store}.locks") == []


def test_a_lock_that_waited_in_vain_for_longer_than_it_is_believed_is_lost(
    client: Any, server: FaultyServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "1.5")
    monkeypatch.setattr("msdask.storage.locks._RELEASE_SECONDS", 0.0)

    def write() -> None:
        with slide_lock(f"{place}/s.zarr", "set", "a", stale_after=1.0) as lock:
            server.rule = until(600, "busy")
            lock.check()

    with pytest.raises(StoreError, match=r"could not be renewed for \d+ s \(.*503"):
        write()


def test_a_server_that_is_away_is_not_an_output_that_cannot_be_written(
    client: Any, server: FaultyServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    server.rule = until(600, "busy")
    with pytest.raises(UnreachableError, match="503 Service Unavailable"), slide_lock(f"{place}/s.zarr", "set", "a"):
        pass


def test_locks_are_renewed_by_requests_that_end_before_a_lock_grows_old() -> None:
    from msdask.storage import buckets

    assert float(buckets._QUICK_TIMEOUT.removesuffix("s")) < locks.STALE_AFTER / 4
