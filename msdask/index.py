"""The derived index of a patch set: the columns that loaders need, of all slides, as a few 1-D arrays.

1,000 slides of 2,000 patches open in 0.14 s this way, 53 s slide by slide (design section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask import layout, storage
from msdask.errors import StoreError

if TYPE_CHECKING:
    from msdask.patchset import PatchSet

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


def index_path(patch_set: PatchSet) -> str:
    """Group of a set's index."""
    return storage.join(_store_path(patch_set), layout.INDEX_GROUP, patch_set.name)


def _store_path(patch_set: PatchSet) -> str:
    return patch_set.path[: -len(patch_set.name) - 1]


def open_index(patch_set: PatchSet) -> xr.Dataset:
    """The set's index, from the store if it is up to date, else made anew (and stored where that is allowed)."""
    path = index_path(patch_set)
    # The split is no part of a slide's checksum, but of the index.
    names = patch_set.slides
    attrs = storage.gather(path, patch_set.attrs, names)
    slides = {slide_id: _state(found) for slide_id, found in zip(names, attrs, strict=True)}
    try:
        stored = layout.read_attrs(path)
        if stored.get("states") == list(slides.values()) and stored.get("slides") == list(slides):
            values = storage.gather(path, _column_of(path), list(_DTYPES))
            columns = {name: ("patch", column) for name, column in zip(_DTYPES, values, strict=True)}
            return xr.Dataset(columns, attrs=_public(stored))
    except StoreError:  # damaged: it is derived, so it is made anew
        pass
    index = _build(patch_set, slides)
    if storage.at(path).may_write(_store_path(patch_set)):
        try:
            write_index(path, index)
        except StoreError as error:
            # whether one may write to object storage, only a try can tell
            if not isinstance(error.__cause__, PermissionError) or not storage.is_remote(path):
                raise
    index.attrs = _public(index.attrs)
    return index


def _state(attrs: dict[str, Any]) -> list[str]:
    return [attrs["checksum"], _split(attrs)]


def _split(attrs: dict[str, Any]) -> str:
    return str(attrs.get("cohort", {}).get("split", ""))


def _public(attrs: dict[str, Any]) -> dict[str, Any]:
    return {"slides": list(attrs["slides"]), "splits": list(attrs["splits"])}


def _build(patch_set: PatchSet, states: dict[str, list[str]]) -> xr.Dataset:
    splits: list[str] = []
    parts: dict[str, list[Any]] = {name: [] for name in _DTYPES}
    for number, slide_id in enumerate(states):
        path = storage.join(patch_set.path, slide_id)
        split = _split(patch_set.attrs(slide_id))
        if split and split not in splits:
            splits.append(split)
        wanted = ("x0", "y0", "label", "tissue", "keep")
        columns = dict(zip(wanted, storage.gather(path, _column_of(path), wanted), strict=True))
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


def _column_of(path: str) -> Callable[[str], NDArray[Any]]:
    return lambda name: layout.read_column(path, name)


def write_index(path: str, index: xr.Dataset) -> None:
    """Store an index: columns first, then its document."""
    try:
        group, _, _ = path.rpartition(layout.INDEX_GROUP)
        layout.create_group(group + layout.INDEX_GROUP, {"derived": "made anew from the slides when it is out of date"})
        if layout.exists(path):
            layout.remove_tree(path)
        for name in _DTYPES:
            layout.create_column(path, name, index[name].values, ("patch",))
        layout.write_document(path, index.attrs)
    except OSError as error:
        raise StoreError(f"cannot write the index '{path}': {error}; it is derived: remove it and run again") from error
