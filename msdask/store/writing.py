"""One slide into the store: `begin` makes its tables, `msdask.store.blocks` writes its blocks, `commit` completes it.

Blocks come in any order, on any worker: first a block's shard, then its rows of `measured`. What is NaN there is not
written yet, so that a killed run goes on with those blocks. The commit checks every shard, syncs, and makes the slide
complete in one step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.measures import column, keep
from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import layout, shards
from msdask.store.reading import ShardArray
from msdask.store.slide_arrays import SlideArrays

__all__ = ["begin", "commit", "differences", "patches_in", "slide_checksum"]

COLUMNS = ("x0", "y0", "tissue", "label", "label_fraction")
"""Tables that a selection must bring; `parent_<m>x` may follow."""

_IDENTITY = ("fingerprint", "selection", "mpp", "mpp_used", "reads")
"""Attributes that say that two writes mean the same slide, selection and pixels."""


def begin(
    path: str,
    codec: Codec,
    tables: xr.Dataset,
    *,
    rows: int,
    tissue_mean: Callable[[], float],
    sharded: Sequence[str] = ("image",),
    attrs: Mapping[str, Any] | None = None,
) -> tuple[SlideArrays, NDArray[np.bool_]]:
    """Make the slide's arrays and write its tables, or find those of an earlier run.

    An unfinished run with another file, selection or scale (a damaged slide that was copied again) is cleared away:
    nothing that was finished is lost.

    Parameters
    ----------
    path : of the slide's group
    codec : of the store
    tables : selection with the facts of `msdask.cutting.lazy_patches.planned` in its attributes
    rows : patches in a shard
    tissue_mean : of the slide; called only where nothing was begun yet, since it reads pixels
    sharded : arrays to make beside the tables
    attrs : further attributes of the slide

    Returns
    -------
    arrays : where blocks are written
    written : (blocks,) bool, which of them an earlier run has written

    Raises
    ------
    StoreError
        It cannot be written.
    """
    spec = ExtractionSpec.from_dict(tables.attrs["spec"])
    arrays = SlideArrays(path, codec, (tables.sizes["patch"], tables.sizes["magnification"]), rows, spec.patch_size)
    identity = _identity(tables)
    found = layout.read_attrs(path)
    if found.get("state") == "writing" and not _differences(found, identity):
        places.at(path).remove_leftovers(path)
        return arrays, _written_blocks(arrays)
    if layout.exists(path):
        layout.remove_tree(path)
    mean = tables.attrs.get("tissue_mean")
    identity["tissue_mean"] = tissue_mean() if mean is None else mean
    _write_tables(arrays, tables, sharded, {**identity, **(attrs or {})})
    return arrays, np.zeros(arrays.blocks, bool)


def differences(found: Mapping[str, Any], tables: xr.Dataset) -> list[str]:
    """In which of fingerprint, selection, scale and reads a stored slide's attributes differ from `tables`."""
    return _differences(found, _identity(tables))


def _differences(found: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    return [key for key in _IDENTITY if found.get(key) != identity[key]]


def _written_blocks(arrays: SlideArrays) -> NDArray[np.bool_]:
    """Blocks that are marked as written and whose shards are there: a crash may have lost what was not synced."""
    written = shards.written_blocks(arrays)
    marked = [(name, block) for block in np.flatnonzero(written).tolist() for name in layout.sharded_names(arrays)]
    whole = places.gather(arrays.path, partial(_is_whole, arrays), marked)
    for (name, block), is_there in zip(marked, whole, strict=True):
        if not is_there:
            path = arrays.shard_path(name, block)
            places.at(path).remove(path)
            written[block] = False
    return written


def _is_whole(arrays: SlideArrays, shard: tuple[str, int]) -> bool:
    name, block = shard
    try:
        ShardArray(arrays, name).index(block)
    except CorruptChunkError:
        return False
    return True


def patches_in(arrays: SlideArrays, blocks: NDArray[np.bool_]) -> int:
    """Patches in the blocks that are marked."""
    ends = np.minimum(np.arange(1, arrays.blocks + 1) * arrays.rows, arrays.shape[0])
    return int(np.diff(ends, prepend=0)[blocks].sum())


def _identity(tables: xr.Dataset) -> dict[str, Any]:
    """What the slide's attributes say of input and plan; JSON values only."""
    attrs = tables.attrs
    digest = hashlib.sha256()
    for name in (*COLUMNS, "mask"):
        if name in tables:
            values = np.ascontiguousarray(tables[name].values)
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(values.tobytes())
    keys = ("source", "fingerprint", "shape", "mpp", "mpp_used", "mpp_source", "mpp_quality", "reads", "tissue_mean")
    facts = {key: attrs.get(key) for key in keys}
    grid = {
        key: attrs[key] for key in ("start", "step", "footprint", "grid_shape", "candidates", "classes") if key in attrs
    }
    facts["reads"] = [dict(zip(r, map(_plain, r.values()), strict=True)) for r in attrs["reads"]]
    return {**{k: _plain(v) for k, v in {**facts, **grid}.items()}, "selection": digest.hexdigest()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value


def _write_tables(arrays: SlideArrays, tables: xr.Dataset, sharded: Sequence[str], attrs: dict[str, Any]) -> None:
    try:
        for name in sharded:
            layout.create_shards(arrays, name)
        layout.create_measured(arrays)
        magnification = np.asarray(tables["magnification"].values, np.float64)
        layout.create_column(arrays.path, "magnification", magnification, ("magnification",))
        for name in [*COLUMNS, *(str(v) for v in tables if str(v).startswith("parent_"))]:
            layout.create_column(arrays.path, name, tables[name].values, [str(d) for d in tables[name].dims])
        if "mask" in tables:
            mask = tables["mask"]
            layout.create_column(arrays.path, "mask", mask.values, ("mask_y", "mask_x"), _mask_attrs(mask))
    except OSError as error:
        raise StoreError(
            f"cannot write '{arrays.path}': {error}; check that the place is writable and has room"
        ) from error
    layout.write_document(arrays.path, {**attrs, "state": "writing", "rows_per_shard": arrays.rows})


def _mask_attrs(mask: xr.DataArray) -> dict[str, Any]:
    return {str(k): _plain(v) for k, v in mask.attrs.items() if isinstance(_plain(v), (str, int, float, list))}


def commit(arrays: SlideArrays) -> dict[str, Any]:
    """Check that everything is there, sync it, decide `keep`, and make the slide complete in one step.

    Returns
    -------
    attrs : of the complete slide, with "counts" and "checksum"

    Raises
    ------
    StoreError
        A block is not written, or a shard is missing or of the wrong size.
    """
    # what workers that were lost on the way have left
    places.at(arrays.path).remove_leftovers(arrays.path)
    attrs = layout.read_attrs(arrays.path)
    measured = shards.read_measured(arrays)
    missing = np.flatnonzero(~shards.written_blocks(arrays, measured)).tolist()
    if missing:
        raise StoreError(f"'{arrays.path}' lacks blocks {missing[:10]} of {arrays.blocks}: run the same command again")
    verdict = keep(measured, float(attrs["tissue_mean"]))
    layout.create_column(arrays.path, "keep", verdict, ("patch",))
    checksum = slide_checksum(arrays)
    _sync(arrays.path)
    label = layout.read_column(arrays.path, "label")
    counts = {
        "candidates": int(attrs.get("candidates", arrays.shape[0])),
        "selected": arrays.shape[0],
        "kept": int(verdict.sum()),
        "labeled": int((label[:, 0] >= 0).sum()) if label.size else 0,
        "filled": int((column(measured, "filled").max(axis=1, initial=0) > 0).sum()),
    }
    complete = {**attrs, "state": "complete", "counts": counts, "checksum": checksum}
    layout.write_document(arrays.path, complete, consolidate=True)
    return complete


def slide_checksum(arrays: SlideArrays) -> str:
    """SHA-256 (hex) over the slide's tables and its shards' indexes, which hold every chunk's place, not pixels."""
    digest = hashlib.sha256()
    names = ["magnification", *COLUMNS, "measured", "keep"]
    names += [n for n in layout.array_names(arrays.path) if n == "mask" or n.startswith("parent_")]
    for name in names:
        values = np.ascontiguousarray(layout.read_column(arrays.path, name))
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    for name in layout.sharded_names(arrays):
        for raw, _ in places.gather(arrays.path, ShardArray(arrays, name).index, range(arrays.blocks)):
            digest.update(raw)
    return digest.hexdigest()


def _sync(path: str) -> None:
    """Make what lies below `path` survive a power cut: once a slide, before its commit."""
    places.at(path).sync(path)
