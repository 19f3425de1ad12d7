"""What is broken in a stored slide: the one judge of a slide as a whole, for `verify`, `repair` and whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from msdask.errors import StoreError
from msdask.spec import Codec
from msdask.store import layout, shards
from msdask.store.reading import ShardArray
from msdask.store.writing import slide_checksum

__all__ = ["Damage", "find_damage"]


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
    state = "broken"
    try:
        attrs = layout.read_attrs(path)
        state = str(attrs.get("state", state))
        if state not in ("complete", "writing"):
            return Damage("slide", (), (f"'{path}' is {state}: its document says no more",), "broken")
        names = layout.check_documents(path) if state == "complete" else layout.array_names(path)
        arrays = layout.open_arrays(path, codec, attrs)
        sharded = [name for name in names if name in layout.SHARDED]
        unfinished = ("measured", "keep") if state == "writing" else ()
        for name in names:
            if name not in (*sharded, *unfinished):
                layout.read_column(path, name)
        written = shards.written_blocks(arrays)
        problems = {block: [f"block {block} is not written"] for block in np.flatnonzero(~written).tolist()}
        broken = set()
        for name in sharded:
            for block in np.flatnonzero(written).tolist():
                if lines := ShardArray(arrays, name).damage(block):
                    problems.setdefault(block, []).extend(lines)
                    broken.add(name)
        found = tuple(line for block in sorted(problems) for line in problems[block])
        if "label_map" in broken or (problems and "label_map" in sharded):
            return Damage("label_map", tuple(sorted(problems)), found, state)
        if problems or state == "writing":
            return Damage("blocks", tuple(sorted(problems)), found or ("not committed",), state)
        if slide_checksum(arrays) != attrs["checksum"]:
            line = "its tables or shard indexes do not match the checksum taken when it was completed"
            return Damage("slide", (), (line,), state)
    except (StoreError, KeyError, ValueError, TypeError, OSError) as error:
        return Damage("slide", (), (str(error),), state)
    return None
