"""One slide into the store: `begin` makes its tables, `msdask.store.blocks` writes its blocks, `commit` completes it.

Blocks come in any order, on any worker: first a block's shard, then its rows of `measured`. What is NaN there is not
written yet, so that a killed run goes on with those blocks. The commit checks every shard, syncs, and makes the slide
complete in one step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.measures import MEASURES, column, keep
from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import documents, layout, manifest, shards
from msdask.store.integrity import committed_documents, digest_of, slide_checksum
from msdask.store.reading import ShardArray
from msdask.store.slide_arrays import SCHEMA, SlideArrays, checksums_of, measures_of
from msdask.store.slide_place import SlidePlace

__all__ = ["begin", "commit", "differences", "first_checksum", "patches_in", "update_facts"]

COLUMNS = ("x0", "y0", "tissue", "label", "label_fraction")
"""Tables that a selection must bring; `outside` and `parent_<m>x` may follow."""

_IDENTITY = ("fingerprint", "selection", "labels_from", "mpp", "mpp_used", "reads", "slide_id", "spec_hash", "schema")
"""Attributes that say that two writes mean the same slide, selection and pixels."""


def begin(
    path: str,
    codec: Codec,
    tables: xr.Dataset,
    *,
    rows: int,
    tissue_mean: Callable[[], float],
    sharded: Sequence[str] = ("image",),
    labels: int = 0,
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
    labels : of the column `label_pixels`, unlabeled among them; 0: there is no such column
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
    spec = replace(ExtractionSpec.from_dict(tables.attrs["spec"]), codec=codec)
    arrays = SlideArrays(path, codec, (tables.sizes["patch"], tables.sizes["magnification"]), rows, spec.patch_size)
    identity = {
        **_identity(tables),
        "slide_id": str(tables.attrs["slide_id"]),
        "spec_hash": spec.hash,
        "schema": SCHEMA,
    }
    found = documents.read_attrs(path)
    if found.get("state") == "writing" and not _differences(found, identity):
        places.at(path).remove_leftovers(path)
        arrays = replace(arrays, measures=measures_of(path, found))  # an earlier version may have begun it
        return arrays, _written_blocks(arrays, sharded, has_counts=labels > 0)
    if links := places.at(path).links(path):
        raise StoreError(f"'{links[0]}' is a link, and nothing in a store may be one: remove it, then run again")
    if documents.exists(path):
        documents.remove_tree(path)
    mean = tables.attrs.get("tissue_mean")
    identity["tissue_mean"] = tissue_mean() if mean is None else mean
    _write_tables(arrays, tables, sharded, labels, {**identity, **(attrs or {})})
    return arrays, np.zeros(arrays.blocks, bool)


def differences(found: Mapping[str, Any], tables: xr.Dataset) -> list[str]:
    """In which of fingerprint, selection, scale and reads a stored slide's attributes differ from `tables`."""
    return _differences(found, _identity(tables))


def _differences(found: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    return [key for key in _IDENTITY if key in identity and found.get(key) != identity[key]]


def _written_blocks(arrays: SlideArrays, sharded: Sequence[str], *, has_counts: bool) -> NDArray[np.bool_]:
    """Blocks that are marked as written and whose shards are there: a crash may have lost what was not synced."""
    written = shards.written_blocks(arrays)
    marked = [(name, block) for block in np.flatnonzero(written).tolist() for name in sharded]
    whole = places.gather(arrays.path, partial(_is_whole, arrays), marked)
    for (name, block), is_there in zip(marked, whole, strict=True):
        if not is_there:
            path = arrays.shard_path(name, block)
            places.at(path).remove(path)
            written[block] = False
    if has_counts:
        marked_blocks = np.flatnonzero(written).tolist()
        counted = places.gather(arrays.path, partial(shards.has_label_pixels, arrays), marked_blocks)
        written[written] = counted
    return written


def _is_whole(arrays: SlideArrays, shard: tuple[str, int]) -> bool:
    name, block = shard
    try:
        ShardArray(arrays, name).index(block)
    except CorruptChunkError:
        return False
    return shards.stored_checksums(arrays, name, block) is not None


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
            values = np.ascontiguousarray(tables.variables[name].values)
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(values.tobytes())
    keys = ("fingerprint", "shape", "mpp", "mpp_used", "mpp_source", "mpp_quality", "reads", "tissue_mean")
    facts = {key: attrs.get(key) for key in keys}
    optional = ("slide_region", "start", "step", "footprint", "grid_shape", "candidates", "classes", "labels_from")
    grid = {key: attrs[key] for key in optional if key in attrs}
    facts["reads"] = [dict(zip(r, map(_plain, r.values()), strict=True)) for r in attrs["reads"]]
    # Its file's name, not where it lies: a store is the same wherever its slides are.
    facts["source"] = os.path.basename(str(attrs["source"]).rstrip("/"))
    if "mask" in tables:
        facts["mask_source"] = os.path.basename(str(tables["mask"].attrs.get("source", "msdask")))
    return {**{k: _plain(v) for k, v in {**facts, **grid}.items()}, "selection": digest.hexdigest()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value


def _write_tables(
    arrays: SlideArrays, tables: xr.Dataset, sharded: Sequence[str], labels: int, attrs: dict[str, Any]
) -> None:
    # Before anything else, so that whatever a kill leaves says which slide it is of.
    documents.write_sealed(arrays.path, {**attrs, "state": "begun"}, sync=False)
    try:
        for name in sharded:
            layout.create_shards(arrays, name)
        layout.create_measured(arrays)
        if labels:
            layout.create_label_pixels(arrays, labels)
        columns = [*COLUMNS, *(str(v) for v in tables if str(v) == "outside" or str(v).startswith("parent_"))]
        variables = tables.variables  # `tables[name]` builds an array with coordinates each time
        magnification = np.asarray(variables["magnification"].values, np.float64)
        layout.create_column(arrays.path, "magnification", magnification, ("magnification",))
        for name in columns:
            layout.create_column(arrays.path, name, variables[name].values, [str(d) for d in variables[name].dims])
        if "mask" in variables:
            mask = variables["mask"]
            layout.create_column(arrays.path, "mask", mask.values, ("mask_y", "mask_x"), _mask_attrs(mask))
    except OSError as error:
        raise StoreError(
            f"cannot write '{arrays.path}': {error}; check that the place is writable and has room"
        ) from error
    optional = [*(["mask"] if "mask" in tables else []), *(["label_pixels"] if labels else [])]
    small = ["magnification", *columns, "measured", "keep", *optional]
    names = sorted([*small, *sharded, *map(checksums_of, sharded)])
    measures = list(MEASURES[: arrays.measures])
    facts = {**attrs, "state": "writing", "rows_per_shard": arrays.rows, "arrays": names, "measures": measures}
    documents.write_sealed(arrays.path, facts)


def _mask_attrs(mask: xr.Variable) -> dict[str, Any]:
    attrs = {str(k): _plain(v) for k, v in mask.attrs.items() if isinstance(_plain(v), (str, int, float, list))}
    return attrs | ({"source": os.path.basename(str(attrs["source"]))} if "source" in attrs else {})


def commit(arrays: SlideArrays, place: SlidePlace) -> dict[str, Any]:
    """Check that everything is there, sync it, decide `keep`, and make the slide complete in one step.

    What there must be is what was planned when the slide was begun, not what a listing shows now.

    Parameters
    ----------
    arrays : of the slide, in its place or where it was built to take that place
    place : of the slide

    Returns
    -------
    attrs : of the complete slide, with "counts" and "checksum"

    Raises
    ------
    StoreError
        A block is not written, a shard or a table is missing or of the wrong size, or the patch set was replaced
        meanwhile by one of another spec.
    """
    # what workers that were lost on the way have left
    places.at(arrays.path).remove_leftovers(arrays.path)
    attrs = {name: value for name, value in documents.read_slide(arrays.path).items() if name != "seal"}
    measured = shards.read_measured(arrays)
    missing = np.flatnonzero(~shards.written_blocks(arrays, measured)).tolist()
    if missing:
        raise StoreError(f"'{arrays.path}' lacks blocks {missing[:10]} of {arrays.blocks}: run the same command again")
    verdict = keep(measured, float(attrs["tissue_mean"]))
    layout.create_column(arrays.path, "keep", verdict, ("patch",))
    names = attrs["arrays"]
    for name in layout.SHARDED:
        if name in names:
            ShardArray(arrays, name).check_sizes()
    small = [name for name in names if name not in layout.SHARDED]
    columns = dict(zip(small, layout.read_columns(arrays.path, small), strict=True))
    _sync(arrays.path)
    label = columns["label"]
    counts = {
        "candidates": int(attrs.get("candidates", arrays.shape[0])),
        "selected": arrays.shape[0],
        "kept": int(verdict.sum()),
        "labeled": int((label[:, 0] >= 0).sum()) if label.size else 0,
        "filled": int((column(measured, "filled").max(axis=1, initial=0) > 0).sum()),
    }
    digests = {name: digest_of(values) for name, values in columns.items()}
    complete = {**attrs, "state": "complete", "counts": counts, "digests": digests}
    inside = documents.array_documents(arrays.path, names)
    complete["checksum"] = slide_checksum(complete, inside)
    set_attrs = manifest.check_set(place.store, place.set_name, documents.read_attrs(place.set_path))
    if set_attrs.get("spec_hash") != attrs["spec_hash"]:
        raise StoreError(f"{place}: the patch set was replaced by one of another spec meanwhile: nothing was committed")
    manifest.enter_slide(place, complete)
    documents.write_sealed(arrays.path, complete, inside)
    if arrays.path != place.path:
        places.at(place.path).replace_tree(arrays.path, place.path)
    return complete


def _sync(path: str) -> None:
    """Make what lies below `path` survive a power cut: once a slide, before its commit."""
    places.at(path).sync(path)


def update_facts(place: SlidePlace, cohort: Mapping[str, Any]) -> None:
    """Put other facts of the cohort's table into a complete slide's document, in one step; no pixels are read.

    Raises
    ------
    StoreError
        The slide is not complete, or its document is damaged.
    """
    attrs = documents.read_slide(place.path)
    if attrs.get("state") != "complete":
        raise StoreError(f"{place} is {attrs.get('state', 'absent')}, not complete: run the same extraction again")
    inside = committed_documents(documents.read_document(place.path))
    attrs = {**attrs, "cohort": dict(cohort)}
    write = documents.write_document if attrs.get("schema", 1) < SCHEMA else documents.write_sealed
    write(place.path, attrs, inside)
    manifest.enter_slide(place, attrs)


def first_checksum(arrays: SlideArrays) -> str:
    """SHA-256 (hex) of a slide of schema 1: its tables and its shards' indexes, which say where chunks lie."""
    digest = hashlib.sha256()
    names = ["magnification", *COLUMNS, "measured", "keep"]
    names += [n for n in documents.array_names(arrays.path) if n == "mask" or n.startswith("parent_")]
    for name in names:
        values = np.ascontiguousarray(layout.read_column(arrays.path, name))
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    for name in layout.sharded_names(arrays):
        for raw, _ in places.gather(arrays.path, ShardArray(arrays, name).index, range(arrays.blocks)):
            digest.update(raw)
    return digest.hexdigest()
