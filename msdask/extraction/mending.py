"""Blocks of a stored slide, cut again from its file; runs where both can be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import xarray as xr

from msdask.cutting.lazy_patches import planned
from msdask.errors import SlideError, StoreError
from msdask.extraction.slide_job import BlockJob, commit_slide, run_block
from msdask.extraction.slide_labels import plane_again
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.slides.opened import file_state
from msdask.slides.slide import Slide
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import documents, layout, shards, writing
from msdask.store.integrity import check_same_file
from msdask.store.slide_arrays import SCHEMA
from msdask.store.slide_place import SlidePlace

__all__ = ["finish_repair", "mend_block", "mend_maps", "reopen", "same_slide"]


def reopen(
    place: SlidePlace,
    codec: Codec,
    spec: ExtractionSpec,
    source: str,
    blocks: Sequence[int],
    *,
    mask: str | None = None,
    masks: MaskChoice | None = None,
) -> BlockJob:
    """The job that some blocks of a stored slide were, from its tables.

    Parameters
    ----------
    place : of the slide
    codec : of the store
    spec : of its patch set
    source : where the slide's file is now
    blocks : to read again
    mask, masks : where its mask is now; needed only where label maps are drawn from outlines, which no store has

    Raises
    ------
    MsdaskError
        The file is not the one that the slide was made from, or would be read in another way.
    """
    attrs, state = documents.read_slide(place.path), file_state(source)
    slide = same_slide(attrs, source, spec)
    facts = {"spec": spec.to_dict(), "shape": attrs["shape"], "mpp_used": attrs["mpp_used"]}
    on_bad_tile: Literal["raise", "fill"] = "fill" if attrs.get("counts", {}).get("filled") else "raise"
    cutter, read = planned(slide, xr.Dataset(attrs=facts), on_bad_tile=on_bad_tile)
    if [dict(plan) for plan in read.attrs["reads"]] != attrs["reads"]:
        raise StoreError(
            f"'{place.path}' was read in another way ({attrs['reads']}) than this version would read '{source}'"
        )
    plane = plane_again(
        slide, place.path, attrs, lambda: masks_of_slide(slide, mask, masks or MaskChoice(kind="labels"), spec=spec)
    )
    arrays = layout.open_arrays(place.path, codec, attrs)
    return BlockJob(place, arrays, slide, cutter, state, tuple(blocks), 0, plane=plane)


def same_slide(attrs: dict[str, Any], source: str, spec: ExtractionSpec) -> Slide:
    """The slide that stored attributes speak of.

    Raises
    ------
    SlideError
        It cannot be opened.
    StoreError
        It is another file.
    """
    try:
        slide = Slide(source, mpp=attrs["mpp"], tolerance=spec.tolerance, region=attrs.get("slide_region"))
        fingerprint = slide.fingerprint()
    except OSError as error:
        raise SlideError(f"slide '{source}' cannot be opened: {error}") from error
    otherwise = "nothing was changed; give the right one in a table of slides, or extract it again with overwrite"
    check_same_file("the stored slide", attrs, fingerprint, source, otherwise=otherwise)
    return slide


def mend_block(job: BlockJob, block: int, *, pool: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
    """Cut a block again and write it, if it measures as it did.

    The shard is replaced in one step and nothing else is touched: whatever happens, what is not mended yet is found
    again.

    Raises
    ------
    StoreError
        Its pixels are others than those that were stored: patches may be changed between reading and writing.
    """
    stored = shards.stored_measures(job.arrays, block)
    return run_block(job, block, pool=pool, parts=parts, stored=None if np.isnan(stored).any() else stored)


def mend_maps(job: BlockJob, block: int, *, pool: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
    """Cut a block's label maps again and write them, if they are what they were; no pixels of the slide are read.

    Raises
    ------
    StoreError
        They are others than those that were stored, or nothing says what they were cut from.
    """
    if job.plane is None:
        raise StoreError(
            f"{job.place}: nothing says what its label maps were cut from: extract it again with overwrite"
        )
    rows = job.arrays.block(block)
    x0, y0 = (values[rows] for values in layout.read_columns(job.arrays.path, ["x0", "y0"]))
    maps = job.plane.cut(x0, y0, job.cutter.footprints, job.cutter.patch_size)
    shards.mend_shard(job.arrays, "label_map", block, maps)
    return len(x0)


def finish_repair(job: BlockJob) -> bool:
    """Commit a slide that was not complete; for one that was, whether it is now what it was when it was completed."""
    arrays = job.arrays
    attrs = documents.read_slide(arrays.path)
    if attrs["state"] != "complete":
        commit_slide(job)
        return True
    place = places.at(arrays.path)
    place.remove_leftovers(arrays.path)
    place.sync(arrays.path)
    # Of schema 2 every block was held against the checksums of its chunks before it was put there.
    return arrays.schema >= SCHEMA or writing.first_checksum(arrays) == attrs["checksum"]
