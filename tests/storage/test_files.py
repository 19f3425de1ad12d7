"""Files outside a store: whole or not there, whoever is killed or writes at the same time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msdask.errors import FileWriteError, MsdaskError
from msdask.storage import local as storage_local
from msdask.storage.files import replacing, replacing_folder, write_file

OLD = "what was there before"


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a" / "b" / "ß.txt", "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert write_file(str(path), b"\x00\xff", sync=True).read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["ß.txt"]


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", OLD)

    def fail() -> None:
        with replacing(path) as part, part.open("w") as stream:
            stream.write("half")
            stream.flush()
            assert path.read_text() == OLD
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


KILLED = """
import os, signal, sys
from msdask.storage.files import replacing
with replacing(sys.argv[1]) as part, open(part, "w") as stream:
    stream.write("half of what was to be written")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", OLD)
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=_env(), timeout=120)
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == OLD
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert left.read_text().startswith("half")
    assert left.name.startswith(".")


def test_two_threads_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    barrier = threading.Barrier(2)
    texts = [letter * 300_000 for letter in "ab"]

    def write(text: str) -> None:
        for _ in range(20):
            barrier.wait(30)
            with replacing(path) as part, part.open("w") as stream:
                stream.write(text[:1000])
                stream.flush()
                barrier.wait(30)  # both are in the middle now
                stream.write(text[1000:])
            assert path.read_text() in texts

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, texts))
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


MANY = """
import sys
from msdask.storage.files import write_file
for _ in range(200):
    write_file(sys.argv[1], sys.argv[2] * 100_000)
"""


def test_two_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    arguments = [[sys.executable, "-c", MANY, str(path), letter] for letter in "ab"]
    running = [subprocess.Popen(a, env=_env()) for a in arguments]
    seen = set()
    while any(process.poll() is None for process in running):
        if path.exists():
            seen.add(path.read_text())
    assert [process.wait(60) for process in running] == [0, 0]
    assert seen | {path.read_text()} <= {"a" * 100_000, "b" * 100_000}
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "切" * 83 + ".png", "a b.ome.tif"])
def test_the_temporary_name_fits_and_ends_like_the_files(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as part:
        assert part.parent == tmp_path
        assert part.name.endswith(name[-8:])
        part.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_is_as_private_as_any_other_that_is_made(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_file(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_pipe_is_written_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_file(pipe, "through")
        assert read.result(30) == "through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_cannot_be_written_is_named_with_the_reason_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(FileWriteError, match=rf"cannot write report '{path}': [A-Z].*; ask the owner") as caught:
            write_file(path, "y", what="report", advice="ask the owner")
        assert isinstance(caught.value, MsdaskError)
        assert isinstance(caught.value, OSError)
    with pytest.raises(FileWriteError, match=r"cannot write '.*folder': .*has room"):
        write_file(tmp_path / "folder", "y")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for names in (["a", "b"], ["c"]):
        with replacing_folder(tmp_path / "out") as part:
            part.mkdir()
            for name in names:
                (part / name).write_text("x")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_folder_and_nothing_made_removes_it(tmp_path: Path) -> None:
    write_file(tmp_path / "out" / "a", OLD)

    def fail() -> None:
        with replacing_folder(tmp_path / "out") as part:
            part.mkdir()
            (part / "b").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "out" / "a").read_text() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with replacing_folder(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    write_file(tmp_path / ".out.part" / "half", "x")
    with replacing_folder(tmp_path / "out") as part:
        part.mkdir()
    assert not list((tmp_path / "out").iterdir())


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_large_files_are_given_to_the_disk_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = storage_local._sync_file_range()
    assert original is not None

    def counted(handle: int, offset: int, length: int, flags: int) -> int:
        result = original(handle, offset, length, flags)
        calls.append(result)
        return result

    monkeypatch.setattr(storage_local, "_sync_file_range", lambda: counted)
    place = storage_local.local()
    for name, size in (("large", 2**20), ("small", 2**20 - 1)):
        place.write(str(tmp_path / name), [bytes(size)])
        assert (tmp_path / name).stat().st_size == size
    place.write(str(tmp_path / "synced"), [bytes(2**20)], sync=True)
    assert calls == [0]
