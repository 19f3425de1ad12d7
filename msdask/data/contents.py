"""What a dataset reads, as one hash: which slides, with which patches, tables and facts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msdask.data.patches import Patches
from msdask.store.frozen import contents_of, hash_of

__all__ = ["contents_hash"]


def contents_hash(sets: Sequence[Patches], used: Iterable[tuple[int, str]]) -> str:
    """SHA-256 (hex) of the contents of slides; equal for equal contents, wherever they lie.

    Of all slides of a stored set it is what `PatchStore.freeze` gives for a store with this set alone.

    Parameters
    ----------
    sets : that are read
    used : (number of the set, slide id) of each slide that patches are taken from
    """
    contents: dict[str, dict[str, Mapping[str, str]]] = {}
    for number, slide_id in used:
        one = sets[number]
        contents.setdefault(one.name, {})[slide_id] = _facts(one.attrs(slide_id))
    return hash_of(contents)


def _facts(attrs: Mapping[str, Any]) -> dict[str, str]:
    if "checksum" in attrs:
        return contents_of(attrs)
    # of patches that are read from slides or images: nobody has read all of these
    return {"source": os.path.basename(str(attrs.get("source", ""))), "mpp": f"{attrs.get('mpp')}"}
