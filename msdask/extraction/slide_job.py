"""The work on one slide, as functions that run where its file can be read: plan, begin, one block.

What travels between them is small: a job says where the tables are, never what is in them. Nothing a patch reaches the
scheduler or the client.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.computing import opencv_threads, quick_switches
from msdask.cutting.cutter import Cutter, OnBadTile, SharedTiles
from msdask.cutting.lazy_patches import block_rows, mean_of_tissue, planned
from msdask.cutting.measures import column
from msdask.cutting.tile_cache import process_cache
from msdask.errors import SlideError, SpecError, StoreError, UnreachableError
from msdask.extraction.slide_labels import as_stored, is_same_mask, label_plane, origin, with_outside, write_maps
from msdask.extraction.slide_table import SlideRow
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.masks.darkness import darkness_warning
from msdask.masks.label_plane import LabelPlane
from msdask.readers.base import Reader
from msdask.selection.parents import link_upper_regions
from msdask.selection.select import select
from msdask.slides.opened import file_state
from msdask.slides.overview import Overview
from msdask.slides.slide import Slide
from msdask.spec import Codec, ExtractionSpec, format_magnification
from msdask.store import documents, layout, writing
from msdask.store.blocks import BlockWriter, block_writer
from msdask.store.integrity import check_same_file
from msdask.store.slide_arrays import SlideArrays
from msdask.store.slide_place import SlidePlace
from msdask.store.sources import note_source

__all__ = [
    "BlockJob",
    "Target",
    "begin_set",
    "begin_slide",
    "check_source",
    "check_unchanged",
    "commit_slide",
    "plan_slide",
    "run_block",
]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a slide is written.

    Attributes
    ----------
    place : of the slide in the store
    path : at which it is built: that place, or one beside it
    """

    place: SlidePlace
    path: str


@dataclass(frozen=True, slots=True)
class BlockJob:
    """One slide in one patch set, begun: what a block's task needs.

    Attributes
    ----------
    place : of the slide in the store
    arrays : where blocks are written, in that place or beside it; the tables are there
    slide, cutter : what they are cut from, and how
    file_state : of the slide's file when it was begun: a file that changes meanwhile makes the slide fail
    todo : blocks that are not written yet
    done : patches that an earlier run has written
    notes : warnings about scale and mask
    plane : what label maps are cut from; None: there are none
    """

    place: SlidePlace
    arrays: SlideArrays
    slide: Slide
    cutter: Cutter
    file_state: tuple[int, int, int] | None
    todo: tuple[int, ...]
    done: int
    notes: tuple[str, ...] = ()
    plane: LabelPlane | None = None


def begin_slide(
    row: SlideRow,
    specs: Sequence[ExtractionSpec],
    targets: Sequence[Target | None],
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
    specs, targets : what to cut, and where to, in each patch set; None where it is complete already
    codec : of the store
    masks : where its mask comes from
    links : what a `parent_<m>x` column points into
    on_bad_tile : as for `msdask.patches`

    Raises
    ------
    MsdaskError
        The slide, its scale or its mask is not usable, or the store cannot be written.
    """
    with opencv_threads():
        slide, tables, notes, overview, plane = _plan(row, specs, masks, on_bad_tile)
    jobs: list[BlockJob | None] = []
    for table, target in zip(tables, targets, strict=True):
        if target is None:
            jobs.append(None)
            continue
        own = {name: dict(link) for name, link in links.items() if name in table}
        attrs = {"cohort": row.facts} | ({"links": own} if own else {})
        known: dict[str, Any] = {"codec": codec, "attrs": attrs, "notes": notes, "overview": overview, "plane": plane}
        jobs.append(begin_set(slide, table, target, on_bad_tile=on_bad_tile, **known))
    return jobs


def begin_set(
    slide: Slide,
    table: xr.Dataset,
    target: Target,
    *,
    codec: Codec = "raw",
    attrs: Mapping[str, Any] | None = None,
    on_bad_tile: OnBadTile = "raise",
    notes: tuple[str, ...] = (),
    overview: Overview | None = None,
    plane: LabelPlane | None = None,
) -> BlockJob:
    """Write the tables of one selection, or find those of an earlier run; the job has the blocks that are left."""
    spec = ExtractionSpec.from_dict(table.attrs["spec"])
    if spec.label_maps and plane is None:
        raise SpecError(f"slide '{slide.path}': its spec asks for label maps, and nothing says what they are cut from")
    state = file_state(slide.path)
    cutter, facts = planned(slide, table, on_bad_tile=on_bad_tile)
    count, magnifications = facts.sizes["patch"], facts.sizes["magnification"]
    mask = facts["mask"].values if "mask" in facts else None
    source = facts["mask"].attrs.get("source", "msdask") if "mask" in facts else "msdask"
    mask_file = None if source == "msdask" else str(source)
    own = {"fingerprint": facts.attrs["fingerprint"], "slide_id": target.place.slide_id}
    note_source(target.place.store, own, slide.path, mask_file)
    maps = plane if spec.label_maps else None
    arrays, written = writing.begin(
        target.path,
        codec,
        facts if maps is None else with_outside(facts).assign_attrs(origin(maps, str(source))),
        rows=block_rows(count, magnifications, cutter.patch_size),
        tissue_mean=lambda: float(mean_of_tissue(overview or slide.with_bad_tiles(on_bad_tile), mask)),
        sharded=("image",) if maps is None else ("image", "label_map"),
        labels=0 if maps is None else len(maps.classes) + 1,
        attrs=attrs,
    )
    todo, done = tuple(np.flatnonzero(~written).tolist()), writing.patches_in(arrays, written)
    empty = () if count else ("no patch was selected",)
    travels = None if maps is None else as_stored(maps, arrays.path)
    return BlockJob(target.place, arrays, slide, cutter, state, todo, done, (*notes, *empty), travels)


def commit_slide(job: BlockJob) -> dict[str, Any]:
    """Make a slide complete, if its file is still the one that it was begun with; gives its attributes.

    Raises
    ------
    SlideError
        The file was replaced or written meanwhile, or cannot be opened any more.
    StoreError
        As for `msdask.store.writing.commit`.
    """
    check_unchanged(job)
    # A file on a server, or one of several that a slide is made of, has no state to look at.
    stored = documents.read_slide(job.arrays.path)
    if job.slide.fingerprint() != stored.get("fingerprint"):
        raise SlideError(_changed(job.slide.path))
    return writing.commit(job.arrays, job.place)


def check_unchanged(job: BlockJob) -> None:
    """Raise SlideError if the slide's file was replaced or written since it was begun: its blocks would not fit."""
    if file_state(job.slide.path) != job.file_state:
        raise SlideError(_changed(job.slide.path))


def _changed(path: str) -> str:
    return (
        f"slide '{path}' was replaced or written while it was read: nothing of it was completed; run the same command "
        "again when it stays as it is"
    )


def run_block(
    job: BlockJob,
    block: int,
    *,
    pool: ThreadPoolExecutor | None = None,
    parts: int = 1,
    stored: NDArray[np.float32] | None = None,
) -> int:
    """Cut, measure and write one block; returns its number of patches. Doing it twice changes nothing.

    Parameters
    ----------
    job, block : what to do
    pool, parts : threads that the block is cut on, in so many parts; for slides of fewer blocks than there are threads
    stored : what was measured on the block before, as for `msdask.store.blocks.block_writer`
    """
    parts = 1 if pool is None else parts
    reader = cast("Any", job.slide.reader)
    state = documents.document_state(job.arrays.array_path("x0"))
    with _tables_lock:  # a slide's first blocks begin together: one of them reads
        x0, y0, needed = _tables(job.arrays, job.cutter, reader, parts, state)
    rows = job.arrays.block(block)
    x, y = x0[rows], y0[rows]
    shared = SharedTiles(process_cache(), (job.slide.path, reader), needed)
    if job.plane is not None and stored is None:
        write_maps(job.arrays, block, job.plane, job.plane.cut(x, y, job.cutter.footprints, job.cutter.patch_size))
    with quick_switches(), block_writer(job.arrays, block, stored=stored) as writer:

        def cut(part: slice) -> None:
            _cut_part(job, writer, part, x[part], y[part], shared)

        if pool is None or parts < 2:
            cut(slice(0, len(x)))
        else:
            futures = [pool.submit(cut, slice(*edge)) for edge in pairwise(_edges(len(x), parts))]
            try:
                for future in futures:
                    future.result()
            finally:  # nobody may still be writing when the file is closed
                for future in futures:
                    future.cancel()
                wait([future for future in futures if not future.cancelled()])
        check_unchanged(job)
    return len(x)


def _cut_part(
    job: BlockJob,
    writer: BlockWriter,
    part: slice,
    x0: NDArray[np.int32],
    y0: NDArray[np.int32],
    shared: SharedTiles,
) -> None:
    """Cut a part of a block in this thread, a few patches in hand at a time."""
    count, size = len(x0), job.cutter.patch_size
    ring = _buffer((min(writer.in_hand, count), len(job.cutter.plans), size, size, 3))
    first = 0

    def after(i: int) -> None:
        nonlocal first
        end = i + 1
        if end - first == len(ring) or end == count:
            writer.put(part.start + first, ring[: end - first])
            first = end

    _, filled = job.cutter.cut(job.slide.reader, x0, y0, shared=shared, out=ring, after=after)
    column(writer.measured, "filled")[part] = filled


def _edges(count: int, parts: int) -> list[int]:
    """Where the parts of a block of `count` patches begin, and its end."""
    edges: list[int] = np.linspace(0, count, parts + 1).round().astype(int).tolist()
    return edges


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
    arrays: SlideArrays, cutter: Cutter, reader: Reader, parts: int, state: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[NDArray[np.bool_], ...]]:
    """(x0, y0) of a slide, and the tiles that several parts of its blocks need: once a process."""
    x0, y0 = layout.read_column(arrays.path, "x0"), layout.read_column(arrays.path, "y0")
    blocks = [arrays.block(block) for block in range(arrays.blocks)]
    lengths = np.concatenate([np.diff(_edges(rows.stop - rows.start, parts)) for rows in blocks])
    return x0, y0, cutter.shared_tiles(reader, x0, y0, np.repeat(np.arange(len(lengths)), lengths))


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
    return _plan(row, specs, masks, on_bad_tile)[:3]


def _plan(
    row: SlideRow, specs: Sequence[ExtractionSpec], masks: MaskChoice | None, on_bad_tile: OnBadTile
) -> tuple[Slide, tuple[xr.Dataset, ...], tuple[str, ...], Overview, LabelPlane | None]:
    """What `plan_slide` gives, the images that it has read for it, and what label maps are cut from."""
    slide = Slide(
        row.path,
        mpp=row.mpp,
        magnification=row.magnification,
        tolerance=specs[0].tolerance,
        region=row.slide_region,
    )
    overview = Overview(slide.with_bad_tiles(on_bad_tile))
    found = masks_of_slide(overview, row.mask, masks or MaskChoice(), spec=specs[0])
    mask, labels = found.tissue, found.labels
    plane = label_plane(slide, found) if any(spec.label_maps for spec in specs) else None
    tables = [select(slide, spec, mask=mask, labels=labels) for spec in specs]
    # Python's own record of warnings is one for all threads: notes of two slides in flight would mix.
    notes = slide.warnings + darkness_warning(overview)
    if mask is not None and not mask.values.any():
        notes = (*notes, f"mask '{mask.attrs.get('source')}' is empty")
    for table in tables:
        table.attrs["slide_id"] = row.slide_id
    for spec, coarse in zip(specs, tables, strict=True):
        for finer in tables:
            if finer.attrs["footprint"][0] < coarse.attrs["footprint"][0]:
                parent = link_upper_regions(finer, coarse)
                finer[f"parent_{format_magnification(spec.magnifications[0])}"] = ("patch", parent)
    return slide, tuple(tables), notes, overview, plane


def check_source(row: SlideRow, path: str, spec: ExtractionSpec, masks: MaskChoice) -> tuple[str, ...]:
    """Whether a complete slide was made from the files that are there now; notes for the report.

    Raises
    ------
    StoreError
        The slide is another one, or its scale or the mask that was read for it is.
    """
    stored = documents.read_slide(path)
    try:
        slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, region=row.slide_region)
        fingerprint = slide.fingerprint()
    except (SlideError, UnreachableError) as error:
        return (f"complete, but its file cannot be opened now: {error}",)
    check_same_file(f"'{path}'", stored, fingerprint, row.path)
    if slide.mpp is not None and slide.mpp != stored["mpp"]:
        raise StoreError(
            f"'{path}' was made at {stored['mpp']:g} um/px, now '{row.path}' has {slide.mpp:g} ({slide.mpp_source}): "
            "pass overwrite=True to replace it, or give the slide another id"
        )
    is_given = row.mask is not None or masks.folder is not None
    if is_given and not is_same_mask(masks_of_slide(slide, row.mask, masks, spec=spec), path, stored):
        raise StoreError(
            f"'{path}' was made with another mask than the one given for '{row.path}' now: pass overwrite=True to "
            "replace it, or give the new patch set a name of its own"
        )
    return ()
