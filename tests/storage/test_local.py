"""Folders of this machine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from msdask.storage.local import local


def test_a_folder_that_files_are_still_put_into_is_removed(tmp_path: Path) -> None:
    # A worker whose client was killed goes on with its block for a moment: the next run clears the folder meanwhile.
    folder = tmp_path / "slide"
    for i in range(40):
        (folder / f"array-{i}").mkdir(parents=True)
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set() and folder.exists():
            try:
                (folder / f"late-{i}").write_bytes(b"x")
                time.sleep(0.002)
            except FileNotFoundError:
                return
            i += 1

    writer = threading.Thread(target=write)
    writer.start()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    local().remove_tree(str(folder))
    stop.set()
    writer.join()
    assert not folder.exists()


def test_a_folder_that_is_not_there_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        local().remove_tree(str(tmp_path / "slide"))
