"""A place where a slide may lie: what readers look at when they decide whether it is theirs."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import PurePosixPath

from msdask.errors import SlideError, UnreachableError
from msdask.storage import source as storage
from msdask.storage.places import is_url
from msdask.storage.source import ByteSource

__all__ = ["HEAD_BYTES", "Place"]

HEAD_BYTES = 1024
"""How much of a file's beginning readers see before one of them opens it."""
_SHOWN_NAMES = 4


class Place:
    """A path or URL, a file or a folder. Everything is looked up when it is first asked for, and once.

    Use it as a context manager: a file that was opened for its first bytes, and that no reader took, is closed.

    Attributes
    ----------
    path : as given, text
    is_url : whether it is a URL and no local path
    name : last part of the path
    stem, ending : the name without its ending, and the ending with its dot in lower case: ".svs", or ""
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise SlideError(f"slide {text!r}: expected a path or URL as text")
        self.path = text
        self.is_url = is_url(text)
        pure = PurePosixPath(text.replace(os.sep, "/").rstrip("/"))
        self.name = pure.name
        self.stem = pure.stem
        self.ending = pure.suffix.lower()
        self._source: ByteSource | None = None

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a folder. A server is asked only if `head` has not opened a file there."""
        return self._source is None and storage.is_folder(self.path)

    @cached_property
    def head(self) -> bytes:
        """The first KiB of a file, all of it if it is shorter; b"" for a folder.

        Raises
        ------
        SlideError
            There is nothing, or it is empty.
        UnreachableError
            It cannot be read now.
        """
        if not self.is_url and self.is_folder:
            return b""
        try:
            if self._source is None:
                self._source = storage.open_source(self.path)
            return self._source.read(0, HEAD_BYTES)
        except SlideError:
            if self.is_folder:
                return b""
            raise

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of what lies directly in a folder, sorted; () for a file.

        Raises
        ------
        UnreachableError
            The folder cannot be listed now.
        """
        try:
            return tuple(storage.names(self.path)) if self.is_folder else ()
        except OSError as error:
            raise UnreachableError(
                f"folder {self.path!r}: cannot be listed now ({error}); check its permissions, and run again"
            ) from error

    @cached_property
    def size(self) -> int | None:
        """Bytes of a file; None for a folder."""
        if self.is_url and self.head and self._source is not None:
            return self._source.size
        return os.path.getsize(self.path) if os.path.isfile(self.path) else None

    def inside(self, name: str) -> Place:
        """The place of that name in this folder."""
        return Place(f"{self.path.rstrip('/')}/{name}" if self.is_url else os.path.join(self.path, name))

    def beside(self, name: str) -> Place:
        """The place of that name in the folder in which this one lies."""
        text = self.path.rstrip("/")
        return Place(text[: len(text) - len(self.name)] + name)

    def open(self) -> ByteSource:
        """The file's bytes, for the reader that takes it: it closes them.

        Raises
        ------
        SlideError
            It is a folder, or missing or empty.
        UnreachableError
            It cannot be read now.
        """
        taken = self._source if self._source is not None else storage.open_source(self.path)
        self._source = None
        return taken

    def close(self) -> None:
        """Close what `head` opened, unless a reader has taken it."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def described(self) -> str:
        """What lies in a folder, in words, for messages: "2 folders ('a', 'b') and 1 file ('README')"."""
        folders = [name for name in self.names if self.inside(name).is_folder]
        files = [name for name in self.names if name not in set(folders)]
        parts = [_counted("folder", folders)] * bool(folders) + [_counted("file", files)] * bool(files)
        return " and ".join(parts) or "nothing"

    def __repr__(self) -> str:
        return f"<Place {self.path!r}>"


def _counted(word: str, names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES])) + (", ..." if len(names) > _SHOWN_NAMES else "")
    return f"{len(names)} {word}{'s' if len(names) > 1 else ''} ({shown})"
