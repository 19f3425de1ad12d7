"""One way to write a file outside a store: under another name beside it, then renamed, so that none is half there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from msdask.errors import FileWriteError

__all__ = ["check_folder_writable", "check_writable", "replacing", "replacing_folder", "write_file"]

_LONGEST = 150
"""Bytes of a file's name that its temporary name keeps, so that both are shorter than file systems allow."""


@contextmanager
def replacing(path: str | os.PathLike[str], *, what: str = "", advice: str = "", sync: bool = False) -> Iterator[Path]:
    """Give a temporary path; what is written there takes the place of `path`, whole, when the block ends.

    An error in the block leaves what was there before. Two writers do not disturb each other: the last one's file
    stays. What is no regular file, such as /dev/stdout or a pipe, is written in place.

    Parameters
    ----------
    path : file to write; its folder is made if it does not exist
    what : what the file is, for messages: "report", "model"
    advice : what to do where it cannot be written, for messages
    sync : flush it to the disk before it is renamed

    Yields
    ------
    part : path in the same folder that ends in the same name, so that writers find the ending that they look at

    Raises
    ------
    FileWriteError
        The operating system refuses: names the path, the reason and what to do.
    """
    target = Path(path)
    with _refusals_named(target, what, advice):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not (target.is_file() or target.is_dir()):
            yield target
            return
        ending = os.fsencode(target.name)[-_LONGEST:].decode(errors="ignore")
        part = target.with_name(f".{uuid4().hex[:12]}.part.{ending}")
        try:
            yield part
            if sync:
                _flush(part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def write_file(
    path: str | os.PathLike[str], data: str | bytes, *, what: str = "", advice: str = "", sync: bool = False
) -> Path:
    """Write a file in one step, replacing what is there; text as UTF-8. See `replacing`.

    Returns
    -------
    path : of the file
    """
    with replacing(path, what=what, advice=advice, sync=sync) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
    return Path(path)


def check_writable(path: str | os.PathLike[str], *, what: str = "", advice: str = "") -> None:
    """Make sure that a file can be written, before the work whose result it is to hold; its folder is made.

    Raises
    ------
    FileWriteError
        It is a folder, or the operating system refuses.
    """
    target = Path(path)
    with _refusals_named(target, what, advice):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.is_file():
            part = target.with_name(f".{uuid4().hex[:12]}.part")
            part.touch()
            part.unlink()


def check_folder_writable(folder: str | os.PathLike[str], *, what: str = "", advice: str = "") -> None:
    """Make sure that a folder can be written, or made, before the work whose results it is to hold.

    Nothing is left behind: where it is not there yet, the nearest folder above it is tried.

    Raises
    ------
    FileWriteError
        It, or what is above it, is no folder, or the operating system refuses.
    """
    target = Path(folder)
    with _refusals_named(target, what, advice):
        place = Path(os.path.abspath(target))
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"'{place}' is no folder", str(place))
        part = place / f".{uuid4().hex[:12]}.part"
        part.touch()
        part.unlink()


@contextmanager
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a folder that does not exist yet; what is made there takes the place of `folder` at the end.

    Where nothing was made, `folder` is removed. An error in the block leaves what was there before. What a killed
    writer left beside `folder` is removed first: one writer at a time.

    Raises
    ------
    OSError
        As the operating system says it.
    """
    target = Path(folder)
    part, old = (target.with_name(f".{target.name}.{ending}") for ending in ("part", "old"))
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield part
        if target.exists():
            target.rename(old)
        if part.exists():
            part.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _refusals_named(path: Path, what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except FileWriteError:
        raise
    except OSError as error:
        name = f"{what} '{path}'" if what else f"'{path}'"
        reason = error.strerror or error
        raise FileWriteError(
            f"cannot write {name}: {reason}; {advice}"
            if advice
            else f"cannot write {name}: {reason}; check that its folder can be written and has room"
        ) from error


def _flush(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
