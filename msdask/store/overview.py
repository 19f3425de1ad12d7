"""What there is in a patch set, as a row of a table: documents are read, no pixels."""

from __future__ import annotations

from typing import Any

from msdask.storage import places
from msdask.store.patch_set import PatchSet

__all__ = ["set_row"]


def set_row(patch_set: PatchSet) -> dict[str, Any]:
    """A set in a row: set, slides, unfinished (ids that are not complete), patches, magnifications, kept, bytes.

    `patches` are tuples where there are several magnifications.
    """
    states, complete = patch_set.states(), patch_set.complete()
    counts = [attrs["counts"] for attrs in complete.values()]
    return {
        "set": patch_set.name,
        "slides": len(complete),
        "unfinished": [slide_id for slide_id in states if slide_id not in complete],
        "patches": sum(int(count["selected"]) for count in counts),
        "magnifications": len(patch_set.spec.magnifications),
        "kept": sum(int(count["kept"]) for count in counts),
        "bytes": places.at(patch_set.path).size_below(patch_set.path),
    }
