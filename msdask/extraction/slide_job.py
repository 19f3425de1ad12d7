"""The work on one slide, as functions that run where its file can be read: plan, begin, one block, commit.

What travels between them is small: a job says where the tables are, never what is in them. Nothing a patch reaches the
scheduler or the client.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.block_reader import OnBadTile, PatchReader, SharedTiles
from msdask.cutting.lazy_patches import block_rows, mean_of_tissue, planned
from msdask.cutting.measures import MEASURES, measure
from msdask.cutting.tile_cache import process_cache
from msdask.errors import SlideError, StoreError
from msdask.extraction.slide_table import SlideRow
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.readers.base import Reader
from msdask.selection.parents import link_upper_regions
from msdask.selection.select import select
from msdask.slides.slide import Slide
from msdask.spec import Codec, ExtractionSpec, format_magnification
from msdask.storage import places
from msdask.store import layout, shards, writing
from msdask.store.layout import SlideTarget

__all__ = [
    "BlockJob",
    "begin_set",
    "begin_slide",
    "check_source",
    "commit_slide",
    "plan_slide",
    "read_block",
    "run_block",
]

IN_HAND_BYTES = 4 * 2**20
"""Pixels that a thread has in hand between the decoder and the file: 40x is 6 % faster than with a block of 38 MB."""


@dataclass(frozen=True, slots=True)
class BlockJob:
    """One slide in one patch set, begun: what a block's task needs.

    Attributes
    ----------
    target : where blocks are written; its tables are there
    slide, reader : where and how they are read
    todo : blocks that are not written yet
    done : patches that an earlier run has written
    notes : warnings about scale and mask
    """

    target: SlideTarget
    slide: Slide
    reader: PatchReader
    todo: tuple[int, ...]
    done: int
    notes: tuple[str, ...] = ()


def begin_slide(
    row: SlideRow,
    specs: Sequence[ExtractionSpec],
    paths: Sequence[str | None],
    *,
    codec: Codec,
    masks: MaskChoice,
    links: Mapping[str, Mapping[str, str]],
    on_bad_tile: OnBadTile = "raise",
) -> list[BlockJob | None]:
    """Open a slide, find or make its mask, select for every spec and write the tables.

    Parameters
    ----------
    row : the slide
    specs, paths : what to cut, and the slide's group in each patch set, None where it is complete already
    codec : of the store
    masks : where its mask comes from
    links : what a `parent_<m>x` column points into
    on_bad_tile : as for `msdask.patches`

    Raises
    ------
    MsdaskError
        The slide, its scale or its mask is not usable, or the store cannot be written.
    """
    slide, tables, notes = plan_slide(row, specs, masks, on_bad_tile=on_bad_tile)
    jobs: list[BlockJob | None] = []
    for table, path in zip(tables, paths, strict=True):
        if path is None:
            jobs.append(None)
            continue
        own = {name: dict(link) for name, link in links.items() if name in table}
        attrs = {"cohort": dict(row.cohort)} | ({"links": own} if own else {})
        jobs.append(begin_set(slide, table, path, codec=codec, attrs=attrs, on_bad_tile=on_bad_tile, notes=notes))
    return jobs


def begin_set(
    slide: Slide,
    table: xr.Dataset,
    path: str,
    *,
    codec: Codec = "raw",
    attrs: Mapping[str, Any] | None = None,
    on_bad_tile: OnBadTile = "raise",
    notes: tuple[str, ...] = (),
) -> BlockJob:
    """Write the tables of one selection, or find those of an earlier run; the job has the blocks that are left."""
    reader, facts = planned(slide, table, on_bad_tile=on_bad_tile)
    count, magnifications = facts.sizes["patch"], facts.sizes["magnification"]
    mask = facts["mask"].values if "mask" in facts else None
    target, written = writing.begin(
        path,
        codec,
        facts,
        rows=block_rows(count, magnifications, reader.patch_size),
        tissue_mean=lambda: float(mean_of_tissue(slide, mask, on_bad_tile)),
        attrs=attrs,
    )
    todo = tuple(np.flatnonzero(~written).tolist())
    empty = () if count else ("no patch was selected",)
    return BlockJob(target, slide, reader, todo, writing.patches_in(target, written), (*notes, *empty))


def run_block(job: BlockJob, block: int, *, readers: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
    """Read, measure and write one block; returns its number of patches. Running it twice changes nothing.

    Parameters
    ----------
    job, block : what to do
    readers, parts : pool that the block is read on, in so many parts; for slides of fewer blocks than there are threads
    """
    with shards.placed_chunks(job.target, "image", block) as put:
        placed = shards.is_placed(job.target, "image")
        measured = _read_parts(job, block, put, readers, parts, placed=placed)
    shards.write_measured(job.target, block, measured)
    return len(measured)


def read_block(
    job: BlockJob, block: int, *, readers: ThreadPoolExecutor | None = None, parts: int = 1
) -> tuple[list[shards.Chunk], NDArray[np.float32]]:
    """A block as it is stored, and its measures; valid until this thread reads another block."""
    pieces: dict[int, Sequence[shards.Chunk]] = {}
    measured = _read_parts(job, block, pieces.__setitem__, readers, parts)
    return [chunk for first in sorted(pieces) for chunk in pieces[first]], measured


def _read_parts(
    job: BlockJob,
    block: int,
    put: Callable[[int, Sequence[shards.Chunk]], None],
    readers: ThreadPoolExecutor | None,
    parts: int,
    *,
    placed: bool = False,
) -> NDArray[np.float32]:
    """Read and measure a block; its chunks go to `put` as they get ready, in no order.

    Where pixels are not needed after `put` (it has `placed` them, or they were encoded), they stay in the processor's
    cache from the decoder to the file, and a thread holds a few patches instead of a block.
    """
    reader = job.slide.reader
    if readers is None:
        parts = 1
    state = layout.document_time(job.target.array_path("x0"))
    with _tables_lock:  # a slide's first blocks begin together: one of them reads
        x0, y0, needed = _tables(job.target, job.reader, cast("Any", reader), parts, state)
    rows = job.target.block(block)
    x, y = x0[rows], y0[rows]
    shared = SharedTiles(process_cache(), (job.slide.path, cast("Any", reader)), needed)
    shape = (len(job.reader.plans), job.reader.patch_size, job.reader.patch_size, 3)
    measured = np.empty((len(x), len(job.reader.plans), len(MEASURES)), np.float32)
    ring = max(1, IN_HAND_BYTES // math.prod(shape))
    keeps = job.target.array_codec("image") == "raw" and not placed
    whole = _buffer((len(x), *shape)) if keeps else None

    def read(part: slice) -> None:
        count = part.stop - part.start
        own = _buffer((min(ring, count), *shape)) if whole is None else whole[part]
        first = 0

        def after(i: int) -> None:
            nonlocal first
            end = i + 1
            if end - first == len(own) or end == count:
                pixels = own[: end - first]
                measured[part.start + first : part.start + end] = measure(pixels)
                put((part.start + first) * shape[0], shards.encode(job.target, "image", pixels))
                first = end

        _, filled = job.reader.read(reader, x[part], y[part], shared=shared, out=own, after=after)
        measured[part, :, MEASURES.index("filled")] = filled

    if readers is None or parts < 2:
        read(slice(0, len(x)))
        return measured
    futures = [readers.submit(read, slice(*edge)) for edge in pairwise(_edges(len(x), parts))]
    try:
        for future in futures:
            future.result()
    finally:  # nobody may still be reading into this thread's memory, or writing
        for future in futures:
            future.cancel()
        wait([future for future in futures if not future.cancelled()])
    return measured


def _edges(count: int, parts: int) -> list[int]:
    """Where the parts of a block of `count` patches begin, and its end."""
    edges: list[int] = np.linspace(0, count, parts + 1).round().astype(int).tolist()
    return edges


def commit_slide(target: SlideTarget) -> dict[str, Any]:
    """`msdask.store.writing.commit`, without what workers that were lost on the way left behind."""
    places.at(target.path).remove_leftovers(target.path)
    return writing.commit(target)


_scratch = threading.local()


def _buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory of this thread for pixels, used again for the next block."""
    size = math.prod(shape)
    held: NDArray[np.uint8] | None = getattr(_scratch, "buffer", None)
    if held is None or held.size < size:
        held = _scratch.buffer = np.empty(size, np.uint8)
    return held[:size].reshape(shape)


_tables_lock = threading.Lock()


@lru_cache(maxsize=16)
def _tables(
    target: SlideTarget, patch_reader: PatchReader, reader: Reader, parts: int, state: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[NDArray[np.bool_], ...]]:
    """(x0, y0) of a slide, and the tiles that several parts of its blocks need: once a process."""
    x0, y0 = layout.read_column(target.path, "x0"), layout.read_column(target.path, "y0")
    blocks = [target.block(block) for block in range(target.blocks)]
    lengths = np.concatenate([np.diff(_edges(rows.stop - rows.start, parts)) for rows in blocks])
    return x0, y0, patch_reader.shared_tiles(reader, x0, y0, np.repeat(np.arange(len(lengths)), lengths))


def plan_slide(
    row: SlideRow,
    specs: Sequence[ExtractionSpec],
    masks: MaskChoice | None = None,
    *,
    on_bad_tile: OnBadTile = "raise",
) -> tuple[Slide, tuple[xr.Dataset, ...], tuple[str, ...]]:
    """Everything about one slide before its pixels: open it, find or make its mask, select for every spec.

    Returns
    -------
    slide : opened
    tables : one selection a spec; with several, each has `parent_<m>x` (patch,) int32 for every coarser one
    notes : warnings about scale and mask

    Raises
    ------
    MsdaskError
        The slide, its scale or its mask is not usable; says why.
    """
    slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, tolerance=specs[0].tolerance)
    readable = slide.with_bad_tiles(on_bad_tile)
    mask, labels = masks_of_slide(readable, row.mask, masks or MaskChoice(), mpp=specs[0].mask_mpp)
    tables = [select(slide, spec, mask=mask, labels=labels) for spec in specs]
    # Python's own record of warnings is one for all threads: notes of two slides in flight would mix.
    notes = slide.warnings
    if mask is not None and not mask.values.any():
        notes = (*notes, f"mask '{mask.attrs.get('source')}' is empty")
    for table in tables:
        table.attrs["slide_id"] = row.slide_id
    for spec, coarse in zip(specs, tables, strict=True):
        for finer in tables:
            if finer.attrs["footprint"][0] < coarse.attrs["footprint"][0]:
                parent = link_upper_regions(finer, coarse)
                finer[f"parent_{format_magnification(spec.magnifications[0])}"] = ("patch", parent)
    return slide, tuple(tables), notes


def check_source(row: SlideRow, path: str, spec: ExtractionSpec, masks: MaskChoice) -> tuple[str, ...]:
    """Whether a complete slide was made from the files that are there now; notes for the report.

    Raises
    ------
    StoreError
        The slide is another one, or its scale or the mask that was read for it is.
    """
    stored = layout.read_attrs(path)
    try:
        slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification)
        fingerprint = slide.fingerprint()
    except SlideError as error:
        return (f"complete, but its file cannot be opened now: {error}",)
    if fingerprint != stored["fingerprint"]:
        raise StoreError(
            f"'{path}' was made from another file than '{row.path}' (their fingerprints differ): pass "
            "overwrite=True to replace it, or give the slide another id"
        )
    if slide.mpp is not None and slide.mpp != stored["mpp"]:
        raise StoreError(
            f"'{path}' was made at {stored['mpp']:g} um/px, now '{row.path}' has {slide.mpp:g} ({slide.mpp_source}): "
            "pass overwrite=True to replace it, or give the slide another id"
        )
    if row.mask is not None or masks.folder is not None:
        mask, labels = masks_of_slide(slide, row.mask, masks, mpp=spec.mask_mpp)
        given, used = np.asarray(mask if labels is None else labels), layout.read_column(path, "mask")
        if given.shape != used.shape or (given != used).any():
            raise StoreError(
                f"'{path}' was made with another mask than the one given for '{row.path}' now: pass overwrite=True to "
                "replace it, or give the new patch set a name of its own"
            )
    return ()
