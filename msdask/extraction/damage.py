"""What is broken in a stored slide, and how its blocks are read again; runs where the store can be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.lazy_patches import planned
from msdask.errors import CorruptChunkError, SlideError, StoreError
from msdask.extraction.slide_job import BlockJob, read_block
from msdask.slides.slide import Slide
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import layout, shards, writing
from msdask.store.layout import SlideTarget

__all__ = ["Damage", "find_damage", "finish_repair", "mend_block", "reopen", "same_slide"]


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one slide of one patch set.

    Attributes
    ----------
    part : "blocks": its tables are sound; "slide": they are not, or nothing can be trusted; "label_map": shards of
        label maps, which are not read from a slide
    blocks : that are broken or not written; of `part` "blocks"
    problems : sentences that say where
    state : of the slide, "complete", "writing" or "broken"
    """

    part: Literal["blocks", "slide", "label_map"]
    blocks: tuple[int, ...]
    problems: tuple[str, ...]
    state: str


def find_damage(path: str, codec: Codec) -> Damage | None:
    """Read every byte of a slide; None if all is well. A slide that was not finished is damaged, too.

    Parameters
    ----------
    path : of the slide's group
    codec : of the store
    """
    try:
        attrs = layout.read_attrs(path)
    except StoreError as error:
        return Damage("slide", (), (str(error),), "broken")
    state = str(attrs.get("state", "broken"))
    if state not in ("complete", "writing"):
        return Damage("slide", (), (f"'{path}' is {state}: its document says no more",), "broken")
    try:
        target = writing.open_target(path, codec, attrs=attrs)
        columns = [name for name in layout.array_names(path) if name not in ("image", "label_map", "measured")]
        for name in columns:
            layout.read_column(path, name)
        sharded = writing.sharded_arrays(target)
        written = shards.written_blocks(target)
        if state == "complete":
            layout.read_column(path, "measured")
        problems = {block: [f"block {block} is not written"] for block in np.flatnonzero(~written).tolist()}
        broken: dict[str, set[int]] = {name: set() for name in sharded}
        for block in np.flatnonzero(written).tolist():
            for name in sharded:
                if lines := shards.check_shard(target, name, block):
                    problems.setdefault(block, []).extend(lines)
                    broken[name].add(block)
        if broken.get("label_map") or (problems and "label_map" in sharded):
            return Damage("label_map", tuple(problems), tuple(_flat(problems)), state)
        if problems or state == "writing":
            return Damage("blocks", tuple(sorted(problems)), tuple(_flat(problems)) or ("not committed",), state)
        if writing.slide_checksum(target) != attrs["checksum"]:
            line = "its tables or shard indexes do not match the checksum taken when it was completed"
            return Damage("slide", (), (line,), state)
    except (StoreError, KeyError, ValueError, OSError) as error:
        return Damage("slide", (), (str(error),), state)
    return None


def _flat(problems: dict[int, list[str]]) -> list[str]:
    return [line for block in sorted(problems) for line in problems[block]]


def reopen(path: str, codec: Codec, spec: ExtractionSpec, source: str, blocks: Sequence[int]) -> BlockJob:
    """The job that some blocks of a stored slide were, from its tables.

    Parameters
    ----------
    path : of the slide's group
    codec : of the store
    spec : of its patch set
    source : where the slide's file is now
    blocks : to read again

    Raises
    ------
    MsdaskError
        The file is not the one that the slide was made from, or would be read in another way.
    """
    attrs = layout.read_attrs(path)
    slide = same_slide(attrs, source, spec)
    facts = {"spec": spec.to_dict(), "shape": attrs["shape"], "mpp_used": attrs["mpp_used"]}
    on_bad_tile: Literal["raise", "fill"] = "fill" if attrs.get("counts", {}).get("filled") else "raise"
    reader, read = planned(slide, xr.Dataset(attrs=facts), on_bad_tile=on_bad_tile)
    if [dict(plan) for plan in read.attrs["reads"]] != attrs["reads"]:
        raise StoreError(f"'{path}' was read in another way ({attrs['reads']}) than this version would read '{source}'")
    return BlockJob(writing.open_target(path, codec, attrs=attrs), slide, reader, tuple(blocks), 0)


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
        slide = Slide(source, mpp=attrs["mpp"], tolerance=spec.tolerance)
        fingerprint = slide.fingerprint()
    except OSError as error:
        raise SlideError(f"slide '{source}' cannot be opened: {error}") from error
    if fingerprint != attrs["fingerprint"]:
        raise StoreError(
            f"'{source}' is not the file that the stored slide was made from (their fingerprints differ): nothing was "
            "changed; give the right one in a table of slides, or extract it again with overwrite"
        )
    return slide


def mend_block(job: BlockJob, block: int, *, readers: ThreadPoolExecutor | None = None, parts: int = 1) -> int:
    """Read a block again and write it, if it measures as it did.

    The shard is replaced in one step and nothing else is touched: whatever happens, what is not mended yet is found
    again.

    Raises
    ------
    StoreError
        Its pixels are others than those that were stored: patches may be changed between reading and writing.
    """
    chunks, measured = read_block(job, block, readers=readers, parts=parts)
    stored = _measures(job.target, block)
    if np.isnan(stored).any():
        return writing.write_chunks(job.target, block, chunks, measured)
    if not np.array_equal(measured, stored):
        raise StoreError(
            f"'{job.target.path}' block {block}: what is read from '{job.slide.path}' does not measure as what was "
            "stored (a step between reading and writing?): left as it is; write the slide again with overwrite"
        )
    shards.write_chunks(job.target, "image", block, chunks)
    return len(measured)


def _measures(target: SlideTarget, block: int) -> NDArray[np.float32]:
    """A block's rows of `measured`, NaN where they are not written."""
    try:
        return layout.read_column(target.path, "measured")[target.block(block)]
    except CorruptChunkError:  # of a slide that was not finished: its chunks are not all there
        return np.full(1, np.nan, np.float32)


def finish_repair(target: SlideTarget) -> bool:
    """Commit a slide that was not complete; for one that was, whether it is now what it was when it was completed."""
    attrs = layout.read_attrs(target.path)
    place = places.at(target.path)
    place.remove_leftovers(target.path)
    if attrs["state"] != "complete":
        writing.commit(target)
        return True
    place.sync(target.path)
    return bool(writing.slide_checksum(target) == attrs["checksum"])
