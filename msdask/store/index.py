"""The derived index of a patch set: the columns that loaders need, of all slides, as a few 1-D arrays.

1,000 slides of 2,000 patches open in 0.14 s this way, 53 s slide by slide (design section 6).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from msdask.errors import LockedError, StoreError
from msdask.storage import places
from msdask.storage.locks import ENDING, held, lock_folder
from msdask.store import documents, layout
from msdask.store.integrity import digest_of

__all__ = ["open_index", "write_index"]

_DTYPES = {
    "slide": np.int32,
    "row": np.int32,
    "x0": np.int32,
    "y0": np.int32,
    "label": np.int16,
    "tissue": np.float32,
    "keep": np.bool_,
    "split": np.int16,
}


def index_path(set_path: str) -> str:
    """Group of a set's index."""
    store, name = _parts(set_path)
    return places.join(store, layout.INDEX_GROUP, name)


def _parts(set_path: str) -> tuple[str, str]:
    """Path of the store, name of the set."""
    name = os.path.basename(set_path)
    return set_path[: -len(name) - 1], name


def open_index(set_path: str, slides: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """The set's index, from the store if it is up to date, else made anew (and stored where that is allowed).

    Parameters
    ----------
    set_path : of the patch set
    slides : id of each complete slide -> its attributes, sorted by id
    """
    path = index_path(set_path)
    # The split is no part of a slide's checksum, but of the index.
    states = {slide_id: _state(attrs) for slide_id, attrs in slides.items()}
    try:
        stored = documents.read_attrs(path)
        if stored.get("states") == list(states.values()) and stored.get("slides") == list(slides):
            values = layout.read_columns(path, list(_DTYPES), stored["digests"])
            columns = {name: ("patch", column) for name, column in zip(_DTYPES, values, strict=True)}
            return xr.Dataset(columns, attrs=_public(stored))
    except (StoreError, KeyError):  # damaged, or of an older version: it is derived, so it is made anew
        pass
    index = _build(set_path, slides, states)
    try:
        with held(places.join(lock_folder(*_parts(set_path)), f"_index{ENDING}"), f"the index '{path}'"):
            write_index(path, index)
    except LockedError:  # another process writes the same
        pass
    except StoreError as error:
        if not _is_forbidden(error.__cause__):
            raise
    index.attrs = _public(index.attrs)
    return index


def _is_forbidden(cause: BaseException | None) -> bool:
    """Whether one may not write there: only a try can tell."""
    return isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno == errno.EROFS)


def _state(attrs: Mapping[str, Any]) -> list[str]:
    return [attrs["checksum"], _split(attrs)]


def _split(attrs: Mapping[str, Any]) -> str:
    return str(attrs.get("cohort", {}).get("split", ""))


def _public(attrs: dict[str, Any]) -> dict[str, Any]:
    return {"slides": list(attrs["slides"]), "splits": list(attrs["splits"])}


def _build(set_path: str, slides: Mapping[str, Mapping[str, Any]], states: Mapping[str, list[str]]) -> xr.Dataset:
    splits: list[str] = []
    parts: dict[str, list[Any]] = {name: [] for name in _DTYPES}
    for number, (slide_id, attrs) in enumerate(slides.items()):
        path = places.join(set_path, slide_id)
        split = _split(attrs)
        if split and split not in splits:
            splits.append(split)
        wanted = ("x0", "y0", "label", "tissue", "keep")
        columns = dict(zip(wanted, layout.read_columns(path, wanted, attrs.get("digests")), strict=True))
        count = len(columns["keep"])
        columns = {name: values[:, 0] if values.ndim > 1 else values for name, values in columns.items()}
        columns |= {
            "slide": np.full(count, number),
            "row": np.arange(count),
            "split": np.full(count, splits.index(split) if split else -1),
        }
        for name in _DTYPES:
            parts[name].append(columns[name])
    data: dict[str, Any] = {
        name: ("patch", np.concatenate(parts[name]).astype(dtype) if parts[name] else np.empty(0, dtype))
        for name, dtype in _DTYPES.items()
    }
    return xr.Dataset(data, attrs={"slides": list(states), "states": list(states.values()), "splits": splits})


def write_index(path: str, index: xr.Dataset) -> None:
    """Store an index: columns first, then its document."""
    try:
        group, _, _ = path.rpartition(layout.INDEX_GROUP)
        documents.create_group(
            group + layout.INDEX_GROUP, {"derived": "made anew from the slides when it is out of date"}
        )
        if documents.exists(path):
            documents.remove_tree(path)
        for name in _DTYPES:
            layout.create_column(path, name, index[name].values, ("patch",))
        digests = {name: digest_of(index[name].values) for name in _DTYPES}
        documents.write_document(path, {**index.attrs, "digests": digests})
    except OSError as error:
        raise StoreError(f"cannot write the index '{path}': {error}; it is derived: remove it and run again") from error
