"""Frozen states of a store: which slides there were and what was in each, so that a model can say what it saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msdask.errors import StoreError
from msdask.storage import places
from msdask.store import documents
from msdask.store.layout import check_slide_id
from msdask.store.slide_place import SlidePlace

__all__ = ["FROZEN_GROUP", "Frozen", "check_frozen", "contents_of", "hash_of", "read_frozen", "write_frozen"]

FROZEN_GROUP = "_frozen"


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state of a store that was given a name.

    Attributes
    ----------
    name : of the state
    sets : patch set -> slide id -> "checksum" of its patches and tables, "facts", a hash of its cohort's row
    hash : SHA-256 (hex) of `sets`: equal for stores with equal contents, wherever they lie
    """

    name: str
    sets: Mapping[str, Mapping[str, Mapping[str, str]]]
    hash: str


def contents_of(attrs: Mapping[str, Any]) -> dict[str, str]:
    """What a frozen state keeps of a complete slide."""
    facts = json.dumps(attrs.get("cohort", {}), sort_keys=True, ensure_ascii=False)
    return {"checksum": str(attrs["checksum"]), "facts": hashlib.sha256(facts.encode()).hexdigest()[:32]}


def write_frozen(store: str, name: str, sets: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Frozen:
    """Write a frozen state; one of this name with the same contents is left as it is.

    Raises
    ------
    StoreError
        There is another one of this name: what is frozen stays.
    """
    path = places.join(store, FROZEN_GROUP, check_slide_id(name))
    made = Frozen(name, sets, hash_of(sets))
    if documents.has_document(path):
        if read_frozen(store, name).hash != made.hash:
            raise StoreError(f"'{store}' has a frozen state {name!r} with other contents: give this one another name")
        return made
    documents.write_sealed(path, {"sets": sets, "hash": made.hash, "slide_id": name, "schema": 2})
    return made


def read_frozen(store: str, name: str) -> Frozen:
    """Read a frozen state.

    Raises
    ------
    StoreError
        There is none of this name, or it is damaged.
    """
    path = places.join(store, FROZEN_GROUP, check_slide_id(name))
    attrs = documents.read_slide(path)
    if not attrs:
        folder = places.join(store, FROZEN_GROUP)
        raise StoreError(f"'{store}' has no frozen state {name!r}; it has {places.at(folder).folders(folder)}")
    if hash_of(attrs["sets"]) != attrs["hash"]:
        raise StoreError(f"the frozen state {name!r} of '{store}' is not as it was written: nothing can be said by it")
    return Frozen(name, attrs["sets"], attrs["hash"])


def check_frozen(place: SlidePlace, attrs: Mapping[str, Any], slides: Mapping[str, Mapping[str, str]]) -> None:
    """Check that a slide is the one that was frozen.

    Parameters
    ----------
    place : of the slide
    attrs : that it has now
    slides : id -> what was frozen of it

    Raises
    ------
    StoreError
        It is gone, or is another one, or another row of the cohort's table belongs to it.
    """
    if place.slide_id not in slides:
        raise StoreError(f"{place} is none of the {len(slides)} slides that were frozen")
    frozen = slides[place.slide_id]
    if attrs.get("state") != "complete":
        raise StoreError(f"{place} was frozen, and is {attrs.get('state', 'gone')} now: bring back the store of then")
    now = contents_of(attrs)
    changed = [what for what in ("checksum", "facts") if now[what] != frozen.get(what)]
    if changed:
        words = {"checksum": "its patches or tables", "facts": "its row of the cohort's table"}
        what = " and ".join(words[c] for c in changed)
        raise StoreError(
            f"{place} is not what was frozen: {what} changed; open the store without `at` for what is there"
        )


def hash_of(sets: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """SHA-256 (hex) of the contents of patch sets, as `Frozen.sets` has them."""
    return hashlib.sha256(json.dumps(sets, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
