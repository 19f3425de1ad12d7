"""Slides without pixels: what a cohort's tasks are, of the sizes that real ones have, doing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

from msdask.cutting.lazy_patches import block_rows, planned
from msdask.extraction.slide_job import BlockJob, Target
from msdask.extraction.slide_table import SlideRow
from msdask.selection.select import select
from msdask.slides.opened import file_state
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.store.slide_arrays import SlideArrays
from msdask.store.slide_place import SlidePlace

__all__ = ["begin_slide", "commit_slide", "run_block"]


@lru_cache(maxsize=4)
def _job(path: str, spec: ExtractionSpec, patches: int) -> BlockJob:
    """A real slide's job, with the tables of a larger one left out."""
    slide = Slide(path)
    table = select(slide, spec)
    cutter, facts = planned(slide, table.isel(patch=slice(1)))
    scales = facts.sizes["magnification"]
    rows = block_rows(patches, scales, spec.patch_size)
    arrays = SlideArrays("", "raw", (patches, scales), rows, spec.patch_size)
    return BlockJob(SlidePlace("", "", ""), arrays, slide, cutter, file_state(path), tuple(range(arrays.blocks)), 0)


def begin_slide(
    row: SlideRow, specs: Sequence[ExtractionSpec], targets: Sequence[Target | None], **options: Any
) -> list[BlockJob | None]:
    """A job of as many patches as the row's column `patches` says."""
    job = _job(row.path, specs[0], int(row.cohort["patches"]))
    return [
        None if target is None else replace(job, place=target.place, arrays=replace(job.arrays, path=target.path))
        for target in targets
    ]


def run_block(job: BlockJob, block: int, *, pool: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
    """Nothing; the block's number of patches."""
    rows = job.arrays.block(block)
    return rows.stop - rows.start


def commit_slide(job: BlockJob) -> dict[str, Any]:
    """Nothing; what a commit tells the client."""
    count = job.arrays.shape[0]
    return {"counts": {"candidates": 2 * count, "selected": count, "kept": count, "labeled": 0, "filled": 0}}
