"""Locks: one writer a slide, refused writers are told who, and none that was left behind blocks for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from msdask.errors import StoreError
from msdask.storage import lock_owner as owners
from msdask.storage import locks, places
from msdask.storage.locks import slide_lock
from tests.tools.s3_server import keys, place_of, s3_server

SET, SLIDE = "grid-10x-64", "a b.svs"
OTHER = {"host": "far", "pid": 7, "started": "123", "user": "ann", "boot": "another", "namespace": "", "token": "t"}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def bucket(server: Any, request: pytest.FixtureRequest) -> str:
    return f"{place_of(request)}/s.zarr"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path or URL of a store, in each kind of storage."""
    path: str = str(tmp_path / "s.zarr") if request.param == "folder" else request.getfixturevalue("bucket")
    return path


def lock_path(store: str) -> str:
    return f"{store}.locks/{SET}/{SLIDE}.lock"


def leave(store: str, document: bytes = json.dumps(OTHER).encode(), *, age: float = 0) -> None:
    """A lock that somebody else holds or has left behind."""
    places.at(store).write(lock_path(store), [document])
    if age:
        found = os.stat(lock_path(store))
        os.utime(lock_path(store), (found.st_mtime - age, found.st_mtime - age))


def owner(store: str) -> dict[str, Any]:
    return owners.parsed(places.at(store).read(lock_path(store)))


def refuse(store: str, *, stale_after: float = 60) -> str:
    with pytest.raises(StoreError) as refused, slide_lock(store, SET, SLIDE, stale_after=stale_after):
        pass
    return str(refused.value)


def test_a_lock_names_its_owner_and_ends_with_the_block(store: str) -> None:
    with slide_lock(store, SET, SLIDE):
        found = owner(store)
        assert (found["pid"], found["boot"]) == (os.getpid(), owners.this_owner()["boot"])
        assert found["host"]
        assert found["user"]
        message = refuse(store)
        assert f"slide '{SLIDE}' of '{SET}' in '{store}' is being written by" in message
        assert f'"pid": {os.getpid()}' in message
        assert owners.parsed(places.at(store).read(lock_path(store)))["token"] == found["token"]
        with slide_lock(store, SET, "another.svs"):
            pass
    with pytest.raises(FileNotFoundError):
        places.at(store).read(lock_path(store))
    with slide_lock(store, SET, SLIDE):
        pass


def test_an_error_in_the_block_lets_go_of_the_lock(store: str) -> None:
    with pytest.raises(ZeroDivisionError), slide_lock(store, SET, SLIDE):
        raise ZeroDivisionError
    with slide_lock(store, SET, SLIDE):
        pass


def test_a_living_writer_on_another_machine_is_named(store: str) -> None:
    leave(store)
    message = refuse(store)
    assert '{"host": "far", "pid": 7, "started": "123", "user": "ann"}' in message
    assert "60 s is taken over" in message
    assert owner(store) == OTHER


def test_a_lock_without_a_heartbeat_is_taken_over(store: str) -> None:
    leave(store)
    with slide_lock(store, SET, SLIDE, stale_after=0):
        assert owner(store)["pid"] == os.getpid()
    with slide_lock(store, SET, SLIDE):
        pass


def test_a_file_is_as_old_as_its_last_heartbeat(tmp_path: Path) -> None:
    store = str(tmp_path / "s.zarr")
    leave(store, age=59)
    assert "far" in refuse(store)
    leave(store, age=61)
    with slide_lock(store, SET, SLIDE):
        assert owner(store)["pid"] == os.getpid()


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b'{"pid": "x", "started": 1}', b"\xff" * 5000])
def test_a_lock_that_is_no_document_does_not_block_for_ever(document: bytes, store: str) -> None:
    leave(store, document)
    with slide_lock(store, SET, SLIDE, stale_after=0):
        assert owner(store)["pid"] == os.getpid()


HOLD = """
import signal, sys
from msdask.storage.locks import slide_lock

with slide_lock(*sys.argv[1:]):
    print("held", flush=True)
    signal.pause()
"""


def test_a_killed_owner_on_this_machine_is_replaced_at_once(store: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, store, SET, SLIDE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert f'"pid": {process.pid}' in refuse(store)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        with slide_lock(store, SET, SLIDE):
            assert owner(store)["pid"] == os.getpid()


def test_a_stopped_owner_keeps_its_lock_until_it_is_stale(bucket: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, bucket, SET, SLIDE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGSTOP)
        assert f'"pid": {process.pid}' in refuse(bucket)
        with slide_lock(bucket, SET, SLIDE, stale_after=0):
            pass
        process.kill()


@pytest.mark.parametrize("is_stale", [False, True], ids=["free", "stale"])
def test_one_of_many_racers_gets_a_lock_in_a_bucket(is_stale: bool, bucket: str, monkeypatch: Any) -> None:
    """All look at the lock before the first one writes."""
    from msdask.storage.buckets import Bucket

    racers = 6
    barrier = threading.Barrier(racers)
    step = "replace_if" if is_stale else "put_if_absent"
    original, waited = getattr(Bucket, step), threading.local()

    def after_all(self: Bucket, path: str, *args: Any, **options: Any) -> str | None:
        if not hasattr(waited, "once"):
            waited.once = barrier.wait(60)
        result: str | None = original(self, path, *args, **options)
        return result

    monkeypatch.setattr(Bucket, step, after_all)
    if is_stale:
        leave(bucket)
        # stale when each racer first looks; who comes second finds the winner's, which is fresh
        looked: set[int] = set()
        monkeypatch.setattr(locks._ObjectLock, "_age", lambda self, _: 0.0 if _seen(looked, id(self)) else 61.0)
    held = threading.Barrier(racers)

    def race(_: int) -> bool:
        try:
            with slide_lock(bucket, SET, SLIDE):
                held.wait(60)
                return True
        except StoreError:
            held.wait(60)
            return False

    with ThreadPoolExecutor(racers) as pool:
        assert sum(pool.map(race, range(racers))) == 1


def _seen(looked: set[int], number: int) -> bool:
    if number in looked:
        return True
    looked.add(number)
    return False


def test_who_lost_the_lock_is_told_and_leaves_the_new_owner_alone(store: str) -> None:
    def write() -> None:
        with slide_lock(store, SET, SLIDE) as lock:
            lock.check()
            if places.is_remote(store):
                leave(store)
            else:  # as on a file system whose flock does not reach the other machine
                Path(lock_path(store)).write_text(json.dumps(OTHER))
            lock.check()
            pytest.fail("a lock of somebody else was held")

    with pytest.raises(StoreError, match=r"lock of this run was lost, it was taken over by .*far"):
        write()
    assert owner(store) == OTHER


def test_a_removed_lock_is_a_lost_one(store: str) -> None:
    refused = pytest.raises(StoreError, match="lost, it was taken over by somebody who removed")
    with refused, slide_lock(store, SET, SLIDE):
        places.at(store).remove(lock_path(store))


def test_the_heartbeat_renews_the_lock(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = locks._ObjectLock if places.is_remote(store) else locks._FileLock
    renewed, original = threading.Semaphore(0), kind.renew

    def renew(self: Any, **options: Any) -> str | None:
        result: str | None = original(self, **options)
        renewed.release()
        return result

    monkeypatch.setattr(kind, "renew", renew)
    with slide_lock(store, SET, SLIDE, stale_after=0.04):
        before = places.at(store).state(lock_path(store))
        for _ in range(3):
            assert renewed.acquire(timeout=60)
        assert places.at(store).state(lock_path(store)) != before


def test_the_heartbeat_ends_with_the_last_lock(tmp_path: Path) -> None:
    def is_beating() -> bool:
        return any(thread.name == "msdask-heartbeat" for thread in threading.enumerate())

    for _ in range(2):
        with slide_lock(str(tmp_path / "s.zarr"), SET, "a"):
            with slide_lock(str(tmp_path / "s.zarr"), SET, "b"):
                pass
            assert is_beating()
        assert not is_beating()


def test_a_lock_that_cannot_be_renewed_is_lost_after_the_stated_time(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = locks._ObjectLock if places.is_remote(store) else locks._FileLock
    now = [1000.0]

    def write() -> None:
        with slide_lock(store, SET, SLIDE) as lock:
            monkeypatch.setattr(locks, "time", _Clock(now))
            lock.check()
            with monkeypatch.context() as patch:
                patch.setattr(kind, "renew", _fails)
                now[0] += 59
                lock.check()  # others still respect it
            lock.check()
            monkeypatch.setattr(kind, "renew", _fails)
            now[0] += 61
            lock.check()
            pytest.fail("a lock that others may have taken was held")

    with pytest.raises(StoreError, match=r"could not be renewed for 61 s \(no network\)"):
        write()


class _Clock:
    def __init__(self, now: list[float]) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now[0]


def _fails(self: object, **_: Any) -> str | None:
    raise OSError("no network")


def test_an_answer_that_was_lost_is_no_second_writer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client repeats a request whose answer it did not see, and is told that the object is there: its own."""
    from msdask.storage.buckets import Bucket

    def put_if_absent(self: Bucket, path: str, data: bytes) -> None:
        self.write(path, [data])

    def replace_if(self: Bucket, path: str, data: bytes, tag: str, **_: Any) -> None:
        self.write(path, [data])

    monkeypatch.setattr(Bucket, "put_if_absent", put_if_absent)
    monkeypatch.setattr(Bucket, "replace_if", replace_if)
    with slide_lock(bucket, SET, SLIDE) as lock:
        lock.check()


def test_a_refused_writer_leaves_nothing(server: Any, bucket: str, tmp_path: Path) -> None:
    leave(bucket)
    refuse(bucket)
    assert keys(server, f"{bucket}.locks") == [f"{SET}/{SLIDE}.lock"]
    folder = str(tmp_path / "s.zarr")
    leave(folder)
    refuse(folder)
    assert [p.name for p in Path(f"{folder}.locks").rglob("*") if p.is_file()] == [f"{SLIDE}.lock"]


def test_this_process_lives_and_others_are_not_declared_dead() -> None:
    mine = owners.this_owner()
    assert not owners.is_dead(mine)
    assert owners.is_dead({**mine, "started": "1"})  # the pid is another process now
    assert not owners.is_dead({**mine, "started": "1", "namespace": "pid:[1]"})  # a container of this machine
    assert not owners.is_dead({**mine, "started": "1", "boot": "another"})
    assert not owners.is_dead({**mine, "started": None})
