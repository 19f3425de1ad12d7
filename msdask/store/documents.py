"""Documents of groups and arrays in a patch store: read, checked, and written in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msdask.errors import CorruptChunkError, StoreError
from msdask.storage import places
from msdask.store.integrity import (
    check_document,
    check_slide_document,
    committed_documents,
    sealed,
    unreadable,
)

__all__ = [
    "array_documents",
    "array_names",
    "check_documents",
    "create_group",
    "document_state",
    "exists",
    "has_document",
    "read_attrs",
    "read_document",
    "read_slide",
    "remove_half_written",
    "remove_tree",
    "write_document",
    "write_sealed",
]

DOCUMENT = "zarr.json"


def read_attrs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Attributes of a group or array, straight from its document; {} where there is none."""
    document = read_document(path)
    return dict(document.get("attributes", {})) if document else {}


def read_slide(path: str, *, spec_hash: str | None = None) -> dict[str, Any]:
    """Attributes of a slide's group, whose document is sound; {} where there is none.

    Parameters
    ----------
    path : of the group
    spec_hash : of the patch set that it lies in; None: of any

    Raises
    ------
    CorruptChunkError
        The document is damaged, or of another slide or spec.
    UnreachableError
        It cannot be read now.
    """
    text, document = _read_text(path)
    if document is None:
        return {}
    check_slide_document(path, text, document, slide_id=os.path.basename(path), spec_hash=spec_hash)
    return dict(document.get("attributes", {}))


def read_document(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """A group's or an array's document; None where there is none."""
    return _read_text(path)[1]


def _read_text(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any] | None]:
    """A document as stored, and parsed; None where there is none."""
    file = places.join(path, DOCUMENT)
    try:
        text = places.at(file).read(file)
        document = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return b"", None
    except OSError as error:
        raise unreadable(f"'{file}'", error) from error
    except (ValueError, RecursionError) as error:
        raise CorruptChunkError(
            f"'{file}' cannot be read as a Zarr v3 document: {error}; restore it or extract again"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise CorruptChunkError(
            f"'{file}' holds no Zarr v3 document: expected a JSON object; restore it or extract again"
        )
    return text, document


def write_document(
    path: str | os.PathLike[str], attrs: Mapping[str, Any], inside: Mapping[str, Any] | None = None
) -> None:
    """Write a group's metadata document in one atomic step.

    Parameters
    ----------
    path : of the group
    attrs : all of its attributes
    inside : documents of the arrays below it, by name, so that readers open one file; only done for a slide, since a
        document further up goes stale with every slide that is added
    """
    document = _group(attrs, inside)
    _write_text(path, json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


def write_sealed(
    path: str | os.PathLike[str],
    attrs: Mapping[str, Any],
    inside: Mapping[str, Any] | None = None,
    *,
    sync: bool = True,
) -> None:
    """The same, with a hash of the document in it; `sync` to the disk."""
    _write_text(path, sealed(_group(attrs, inside)), sync=sync)


def _group(attrs: Mapping[str, Any], inside: Mapping[str, Any] | None) -> dict[str, Any]:
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attrs)}
    if inside is not None:
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": dict(inside)}
    return document


def _write_text(path: str | os.PathLike[str], text: bytes, *, sync: bool = True) -> None:
    file = places.join(path, DOCUMENT)
    try:
        places.at(file).write(file, [text], sync=sync)
    except OSError as error:
        raise StoreError(
            f"cannot write '{file}': {error.strerror or error}; check that the place exists, is writable and has room"
        ) from error


def remove_half_written(path: str) -> None:
    """Remove what a killed writer left of a group's document. Hold the lock of whoever writes it."""
    if not places.is_remote(path):
        for part in Path(path).glob(f"{DOCUMENT}.*.part"):
            part.unlink(missing_ok=True)


def array_documents(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Documents of a group's arrays, by name.

    Raises
    ------
    CorruptChunkError
        One is missing.
    """
    found = places.gather(path, lambda name: read_document(places.join(path, name)), names)
    if missing := [name for name, document in zip(names, found, strict=True) if document is None]:
        raise CorruptChunkError(f"'{path}' lacks its arrays {missing}: run the same command again")
    return dict(zip(names, found, strict=True))


def create_group(path: str | os.PathLike[str], attrs: Mapping[str, Any]) -> None:
    """Create a group unless there is one."""
    if read_document(path) is None:
        write_document(path, attrs)


def array_names(group: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays of a group, sorted."""
    folders = places.at(group).folders(os.fspath(group))
    found = places.gather(os.fspath(group), lambda name: has_document(places.join(group, name)), folders)
    return [name for name, is_there in zip(folders, found, strict=True) if is_there]


def has_document(path: str | os.PathLike[str]) -> bool:
    """Whether there is a group or array at `path`."""
    file = places.join(path, DOCUMENT)
    try:
        places.at(file).size(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether something lies at `path`: a group, or what a killed writer or removal has left of one."""
    return places.at(path).is_folder(os.fspath(path))


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a group: its document first, so that a killed removal never leaves something that looks complete."""
    place, folder = places.at(path), os.fspath(path)
    place.remove(places.join(folder, DOCUMENT))
    place.remove_tree(folder)


def document_state(path: str | os.PathLike[str]) -> int:
    """State of an array's document: caches of what is stored are keyed by it.

    Made from the document and that of the group above, since equal documents have equal ETags in object storage.
    """
    place, folder = places.at(path), os.fspath(path)
    files = (places.join(folder, DOCUMENT), places.join(os.path.dirname(folder), DOCUMENT))
    return hash(tuple(place.state(file) for file in files))


def check_documents(group: str | os.PathLike[str], names: Sequence[str] | None = None) -> list[str]:
    """Compare documents of a complete slide's arrays with the copies that its own document took at the commit.

    Parameters
    ----------
    group : of the slide
    names : of the arrays; by default "image" and all that were committed

    Returns
    -------
    names : of all arrays that were committed

    Raises
    ------
    CorruptChunkError
        One is another, or missing; names the array.
    """
    committed = committed_documents(read_document(group))

    def check(name: str) -> None:
        path = places.join(group, name)
        try:
            found = read_document(path)
        except StoreError as error:
            raise CorruptChunkError(str(error)) from error
        check_document(path, found, committed.get(name))

    places.gather(os.fspath(group), check, sorted({"image", *committed}) if names is None else names)
    return sorted(committed)
