"""One slide into the store: tables first, then blocks in any order on any worker, then one commit.

The protocol (design section 6): a block's shard, then its rows of `measured`. What is NaN there is not written yet,
so a
killed run goes on with those blocks. The commit checks every shard, syncs, and makes the slide complete in one atomic
step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.optimization import optimize
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from msdask.cutting.measures import keep, measure
from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import layout, shards
from msdask.store.layout import SlideTarget

__all__ = [
    "SlideWrite",
    "begin",
    "commit",
    "differences",
    "open_target",
    "patches_in",
    "prepare",
    "slide_checksum",
    "write_block",
    "write_chunks",
]

COLUMNS = ("x0", "y0", "tissue", "label", "label_fraction")
"""Tables that a selection must bring; `parent_<m>x` may follow."""

_IDENTITY = ("fingerprint", "selection", "mpp", "mpp_used", "reads")
"""Attributes that say that two writes mean the same slide, selection and pixels."""

State = Literal["writing", "complete"]


@dataclass(frozen=True)
class SlideWrite:
    """A slide that is ready to be written: its tables are there, its blocks are tasks.

    Attributes
    ----------
    target : where
    graph, keys : one task a block that is still to be written; each gives the number of patches that it wrote
    done : patches that an earlier run has written
    """

    target: SlideTarget
    graph: Mapping[Any, Any]
    keys: tuple[tuple[str, int], ...]
    done: int


def write_block(
    target: SlideTarget,
    block: int,
    image: NDArray[np.uint8],
    filled: NDArray[np.float32] | None = None,
    label_map: NDArray[np.uint8] | None = None,
) -> int:
    """Measure and write one block; returns its number of patches. Writing it twice changes nothing."""
    if label_map is not None:
        shards.write_block(target, "label_map", block, label_map)
    return write_chunks(target, block, shards.encode(target, "image", image), measure(image, filled))


def write_chunks(target: SlideTarget, block: int, chunks: Sequence[shards.Chunk], measured: NDArray[np.float32]) -> int:
    """The same with chunks and measures at hand: the shard first, then what says that it is there."""
    shards.write_chunks(target, "image", block, chunks)
    shards.write_measured(target, block, measured)
    return len(measured)


def prepare(path: str, codec: Codec, patches: xr.Dataset, attrs: Mapping[str, Any]) -> SlideWrite:
    """Make the slide's arrays and tables, or find those of an earlier run, and list the blocks that are left.

    Parameters
    ----------
    path : of the slide's group
    codec : of the store
    patches : Dataset from `msdask.cutting.lazy_patches.patches`
    attrs : further attributes of the slide (its cohort's row)

    Raises
    ------
    StoreError
        It cannot be written.
    """
    image = patches["image"].data
    if not isinstance(image, da.Array):
        raise StoreError(
            f"'{path}': image is a {type(image).__name__}, expected lazy patches (a dask array), as "
            "msdask.patches gives"
        )
    lengths = image.chunks[0]
    rows = max(1, lengths[0] if lengths else 1)
    if any(len(c) > 1 for c in image.chunks[1:]) or any(n != rows for n in lengths[:-1]):
        raise StoreError(
            f"'{path}': image has chunks {image.chunks}; a chunk must be a whole block: only the first axis may be cut"
        )
    sharded = ["image"] + (["label_map"] if "label_map" in patches else [])
    target, written = begin(
        path,
        codec,
        patches,
        rows=rows,
        tissue_mean=lambda: float(patches["tissue_mean"].compute()),
        sharded=sharded,
        attrs=attrs,
    )
    graph, keys = _block_tasks(target, patches, sharded, np.flatnonzero(~written).tolist())
    return SlideWrite(target, graph, keys, patches_in(target, written))


def begin(
    path: str,
    codec: Codec,
    tables: xr.Dataset,
    *,
    rows: int,
    tissue_mean: Callable[[], float],
    sharded: Sequence[str] = ("image",),
    attrs: Mapping[str, Any] | None = None,
) -> tuple[SlideTarget, NDArray[np.bool_]]:
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
    target : where blocks are written
    written : (blocks,) bool, which of them an earlier run has written

    Raises
    ------
    StoreError
        It cannot be written.
    """
    spec = ExtractionSpec.from_dict(tables.attrs["spec"])
    target = SlideTarget(path, codec, (tables.sizes["patch"], tables.sizes["magnification"]), rows, spec.patch_size)
    identity = _identity(tables)
    found = layout.read_attrs(path)
    if found.get("state") == "writing" and not _differences(found, identity):
        places.at(path).remove_leftovers(path)
    else:
        if layout.exists(path):
            layout.remove_tree(path)
        mean = tables.attrs.get("tissue_mean")
        identity["tissue_mean"] = tissue_mean() if mean is None else mean
        _write_tables(target, tables, sharded, {**identity, **(attrs or {})})
    return target, _written_blocks(target)


def differences(found: Mapping[str, Any], tables: xr.Dataset) -> list[str]:
    """In which of fingerprint, selection, scale and reads a stored slide's attributes differ from `tables`."""
    return _differences(found, _identity(tables))


def _differences(found: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    return [key for key in _IDENTITY if found.get(key) != identity[key]]


def _written_blocks(target: SlideTarget) -> NDArray[np.bool_]:
    """Blocks that are marked as written and whose shards are there: a crash may have lost what was not synced."""
    written = shards.written_blocks(target)
    marked = [(name, block) for block in np.flatnonzero(written).tolist() for name in sharded_arrays(target)]
    for (name, block), is_there in zip(marked, places.gather(target.path, _is_whole(target), marked), strict=True):
        if not is_there:
            path = target.shard_path(name, block)
            places.at(path).remove(path)
            written[block] = False
    return written


def _is_whole(target: SlideTarget) -> Callable[[tuple[str, int]], bool]:
    def is_whole(shard: tuple[str, int]) -> bool:
        try:
            shards.shard_index(target, *shard)
        except CorruptChunkError:
            return False
        return True

    return is_whole


def patches_in(target: SlideTarget, blocks: NDArray[np.bool_]) -> int:
    """Patches in the blocks that are marked."""
    ends = np.minimum(np.arange(1, target.blocks + 1) * target.rows, target.shape[0])
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


def _write_tables(target: SlideTarget, tables: xr.Dataset, sharded: Sequence[str], attrs: dict[str, Any]) -> None:
    try:
        for name in sharded:
            layout.create_shards(target, name)
        layout.create_measured(target)
        magnification = np.asarray(tables["magnification"].values, np.float64)
        layout.create_column(target.path, "magnification", magnification, ("magnification",))
        for name in [*COLUMNS, *(str(v) for v in tables if str(v).startswith("parent_"))]:
            layout.create_column(target.path, name, tables[name].values, [str(d) for d in tables[name].dims])
        if "mask" in tables:
            mask = tables["mask"]
            layout.create_column(target.path, "mask", mask.values, ("mask_y", "mask_x"), _mask_attrs(mask))
    except OSError as error:
        raise StoreError(
            f"cannot write '{target.path}': {error}; check that the place is writable and has room"
        ) from error
    layout.write_document(target.path, {**attrs, "state": "writing", "rows_per_shard": target.rows})


def _mask_attrs(mask: xr.DataArray) -> dict[str, Any]:
    return {str(k): _plain(v) for k, v in mask.attrs.items() if isinstance(_plain(v), (str, int, float, list))}


def _block_tasks(
    target: SlideTarget, patches: xr.Dataset, sharded: list[str], todo: list[int]
) -> tuple[Mapping[Any, Any], tuple[tuple[str, int], ...]]:
    """One fused task a block: read, whatever the user put between, measure, write."""
    image = patches["image"].data
    inputs: list[da.Array] = [image]
    # Tasks of one name are one task to a cluster: the same patches into another store are others.
    name = f"write-{os.path.basename(target.path)}-{tokenize(target, image.name)}"
    filled = patches["filled"].data if "filled" in patches else None
    label_map = patches["label_map"].data if "label_map" in sharded else None
    inputs += [extra for extra in (filled, label_map) if extra is not None]

    def source(array: da.Array | None, block: int) -> Any:
        return None if array is None else (array.name, block, *([0] * (array.ndim - 1)))

    layer: dict[Any, Any] = {
        (name, i): (write_block, target, i, source(image, i), source(filled, i), source(label_map, i)) for i in todo
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=cast("list[Any]", inputs))
    if not layer:
        return {}, ()
    fused = dict(optimize(graph, list(layer)))
    # dask names a fused task after its parts and leaves an alias under its own name: two tasks a block instead of one.
    aliases = {key: getattr(fused[key], "target", None) for key in layer}
    for key in (key for key, target_key in aliases.items() if target_key is not None):
        del fused[key]
    return fused, tuple(aliases[key] or key for key in layer)


def open_target(path: str, codec: Any, *, attrs: Mapping[str, Any] | None = None) -> SlideTarget:
    """The target that a slide's group was written through."""
    attrs = layout.read_attrs(path) if attrs is None else attrs
    shape = layout.read_shape(places.join(path, "image"))
    return SlideTarget(path, codec, (shape[0], shape[1]), int(attrs["rows_per_shard"]), shape[2])


def commit(target: SlideTarget) -> dict[str, Any]:
    """Check that everything is there, sync it, decide `keep`, and make the slide complete in one step.

    Returns
    -------
    attrs : of the complete slide, with "counts" and "checksum"

    Raises
    ------
    StoreError
        A block is not written, or a shard is missing or of the wrong size.
    """
    attrs = layout.read_attrs(target.path)
    missing = np.flatnonzero(~shards.written_blocks(target)).tolist()
    if missing:
        raise StoreError(f"'{target.path}' lacks blocks {missing[:10]} of {target.blocks}: run the same command again")
    measured = layout.read_column(target.path, "measured")
    verdict = keep(measured, float(attrs["tissue_mean"]))
    layout.create_column(target.path, "keep", verdict, ("patch",))
    checksum = slide_checksum(target)
    _sync(target.path)
    label = layout.read_column(target.path, "label")
    counts = {
        "candidates": int(attrs.get("candidates", target.shape[0])),
        "selected": target.shape[0],
        "kept": int(verdict.sum()),
        "labeled": int((label[:, 0] >= 0).sum()) if label.size else 0,
        "filled": int((measured[..., 2].max(axis=1, initial=0) > 0).sum()),
    }
    complete = {**attrs, "state": "complete", "counts": counts, "checksum": checksum}
    layout.write_document(target.path, complete, consolidate=True)
    return complete


def slide_checksum(target: SlideTarget) -> str:
    """SHA-256 (hex) over the slide's tables and its shards' indexes, which hold every chunk's place, not pixels."""
    digest = hashlib.sha256()
    names = ["magnification", *COLUMNS, "measured", "keep"]
    names += [n for n in layout.array_names(target.path) if n == "mask" or n.startswith("parent_")]
    for name in names:
        values = np.ascontiguousarray(layout.read_column(target.path, name))
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    for name in sharded_arrays(target):
        for raw in places.gather(target.path, _raw_index(target, name), range(target.blocks)):
            digest.update(raw)
    return digest.hexdigest()


def _raw_index(target: SlideTarget, name: str) -> Callable[[int], bytes]:
    return lambda block: shards.shard_index(target, name, block)[0]


def sharded_arrays(target: SlideTarget) -> list[str]:
    """Names of the slide's sharded arrays."""
    return [name for name in ("image", "label_map") if layout.has_document(target.array_path(name))]


def _sync(path: str) -> None:
    """Make what lies below `path` survive a power cut: once a slide, before its commit."""
    places.at(path).sync(path)
