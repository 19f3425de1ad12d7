"""What is broken in a stored slide: the one judge of a slide as a whole, for `verify`, `repair` and whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from msdask.errors import StoreError, UnreachableError
from msdask.spec import Codec
from msdask.storage import places
from msdask.store import documents, layout, shards
from msdask.store.integrity import committed_documents, slide_checksum
from msdask.store.reading import ShardArray
from msdask.store.slide_arrays import SCHEMA, SlideArrays
from msdask.store.slide_place import SlidePlace
from msdask.store.writing import first_checksum

__all__ = ["Damage", "find_damage"]


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one slide of one patch set.

    Attributes
    ----------
    part : "blocks": its tables are sound; "slide": they are not, or nothing can be trusted; "label_map": shards of
        label maps that were given by whoever wrote them, and are not in any slide or mask
    blocks : that are broken or not written; of `part` "blocks"
    images : those of them whose images are broken, or that are not written
    maps : those of them whose label maps are broken, and can be cut again
    problems : sentences that say where
    state : of the slide, "complete", "begun", "writing", "broken" or "missing"
    """

    part: Literal["blocks", "slide", "label_map"]
    blocks: tuple[int, ...]
    problems: tuple[str, ...]
    state: str
    images: tuple[int, ...] = ()
    maps: tuple[int, ...] = ()


def find_damage(place: SlidePlace, codec: Codec, spec_hash: str, expected: str | None = None) -> Damage | None:
    """Read every byte of a slide; None if all is well. A slide that was not finished is damaged, too.

    Parameters
    ----------
    place : of the slide
    codec : of the store
    spec_hash : of its patch set
    expected : checksum that the manifest has for it; None where the manifest does not know it

    Raises
    ------
    UnreachableError
        It cannot be read now: nothing is said about its contents.
    """
    path, state = place.path, "broken"
    try:
        if links := places.at(path).links(path):
            return Damage("slide", (), (f"'{links[0]}' is a link, and nothing in a store may be one",), state)
        attrs = documents.read_slide(path, spec_hash=spec_hash)
        state = str(attrs.get("state", "broken" if documents.exists(path) else "missing"))
        if state not in ("complete", "writing"):
            why = "a kill came before its tables were written" if state == "begun" else "its document is lost"
            return Damage("slide", (), (f"'{path}' is {state}: {why}",), state)
        arrays = layout.open_arrays(path, codec, attrs)
        if state == "complete":
            _check_tables(arrays, attrs, expected)
        return _broken_blocks(arrays, state, can_cut_maps="labels_from" in attrs)
    except UnreachableError:
        raise
    except (StoreError, KeyError, ValueError, TypeError, OSError) as error:
        return Damage("slide", (), (str(error),), state)


def _check_tables(arrays: SlideArrays, attrs: Mapping[str, Any], expected: str | None) -> None:
    """Raise StoreError unless documents and tables of a complete slide are those that were committed."""
    names = documents.check_documents(arrays.path)
    small = [name for name in names if name not in layout.SHARDED]
    if arrays.schema < SCHEMA:
        layout.read_columns(arrays.path, small)
        return
    inside = committed_documents(documents.read_document(arrays.path))
    if sorted(inside) != attrs["arrays"] or slide_checksum(attrs, inside) != attrs["checksum"]:
        raise StoreError("its document does not match the checksum taken when it was completed")
    if expected is None:
        raise StoreError("the store's manifest does not know it: it was put there, or the manifest was changed")
    if expected != attrs["checksum"]:
        raise StoreError("it is not the one that the store's manifest speaks of")
    layout.read_columns(arrays.path, small, attrs["digests"])


def _broken_blocks(arrays: SlideArrays, state: str, *, can_cut_maps: bool) -> Damage | None:
    """Read all shards of a slide whose tables are sound."""
    sharded = layout.sharded_names(arrays)
    written = shards.written_blocks(arrays)
    problems = {block: [f"block {block} is not written"] for block in np.flatnonzero(~written).tolist()}
    broken: dict[str, list[int]] = {}
    for name in sharded:
        for block in np.flatnonzero(written).tolist():
            if lines := ShardArray(arrays, name).damage(block):
                problems.setdefault(block, []).extend(lines)
                broken.setdefault(name, []).append(block)
    found = tuple(line for block in sorted(problems) for line in problems[block])
    if not can_cut_maps and ("label_map" in broken or (problems and "label_map" in sharded)):
        return Damage("label_map", tuple(sorted(problems)), found, state)
    if problems or state == "writing":
        images = tuple(sorted({*np.flatnonzero(~written).tolist(), *broken.get("image", ())}))
        maps = tuple(broken.get("label_map", ()))
        return Damage("blocks", tuple(sorted(problems)), found or ("not committed",), state, images, maps)
    if arrays.schema < SCHEMA and first_checksum(arrays) != documents.read_attrs(arrays.path)["checksum"]:
        line = "its tables or shard indexes do not match the checksum taken when it was completed"
        return Damage("slide", (), (line,), state)
    return None
