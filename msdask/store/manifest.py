"""What there should be in a store: a small document for the store, for each patch set, and for each complete slide.

They lie apart from what they speak of, so that what is lost is missed: a folder that is gone takes no notice of itself.
A slide's entry is written before the slide becomes complete, and goes when the slide is removed on purpose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from msdask.errors import CorruptChunkError, StoreError, UnreachableError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import documents
from msdask.store.slide_arrays import SCHEMA
from msdask.store.slide_place import SlidePlace

__all__ = [
    "MANIFEST_GROUP",
    "check_set",
    "enter_set",
    "enter_slide",
    "enter_store",
    "forget_set",
    "forget_slide",
    "restore_documents",
    "set_entry",
    "set_names",
    "slide_entries",
    "slide_entry",
    "store_entry",
]

MANIFEST_GROUP = "_manifest"
_KEPT = (
    *("checksum", "spec_hash", "source", "slide_region", "fingerprint"),
    *("mask_source", "mpp", "mpp_source", "cohort", "classes"),
)
"""Attributes of a slide that are kept apart from it: what it takes to make it again."""


def _path(store: str, *names: str) -> str:
    return places.join(store, MANIFEST_GROUP, *names)


def store_entry(store: str) -> dict[str, Any]:
    """Attributes that the store's own document should have; {} where nothing is known."""
    return _without_seal(documents.read_attrs(_path(store)))


def enter_store(store: str, codec: Codec) -> None:
    """Enter the store. Hold its lock."""
    documents.remove_half_written(_path(store))
    if not store_entry(store):
        documents.write_sealed(_path(store), {"msdask_schema": SCHEMA, "codec": codec})


def set_names(store: str) -> list[str]:
    """Patch sets that there should be, sorted."""
    path = _path(store)
    return [name for name in places.at(path).folders(path) if documents.has_document(places.join(path, name))]


def set_entry(store: str, name: str) -> dict[str, Any]:
    """Attributes that a set's document should have, "spec" and "spec_hash"; {} where there should be no such set."""
    return _without_seal(documents.read_attrs(_path(store, name)))


def enter_set(store: str, name: str, spec: ExtractionSpec) -> None:
    """Enter a patch set. Hold its lock."""
    documents.remove_half_written(_path(store, name))
    documents.write_sealed(_path(store, name), {"spec": spec.to_dict(), "spec_hash": spec.hash})


def forget_set(store: str, name: str) -> None:
    """Remove a patch set's entry, and those of its slides: it is removed on purpose."""
    path = _path(store, name)
    if documents.exists(path):
        documents.remove_tree(path)


def slide_entries(store: str, name: str) -> dict[str, str]:
    """Checksum of each slide that should be complete in a patch set, by id; "" where the entry itself is damaged."""
    path = _path(store, name)
    ids = places.at(path).folders(path)
    entries = places.gather(path, lambda slide_id: slide_entry(SlidePlace(store, name, slide_id)), ids)
    return {slide_id: str(entry.get("checksum", "")) for slide_id, entry in zip(ids, entries, strict=True)}


def enter_slide(place: SlidePlace, attrs: Mapping[str, Any]) -> None:
    """Enter a slide that becomes complete now, or whose facts change: its checksum, its scale, its row of the table.

    Hold the slide's lock.

    Parameters
    ----------
    place : of the slide
    attrs : of the complete slide
    """
    own = {name: attrs[name] for name in _KEPT if name in attrs}
    own |= {"slide_id": place.slide_id, "schema": SCHEMA}
    path = _path(place.store, place.set_name, place.slide_id)
    documents.remove_half_written(path)
    documents.write_sealed(path, own)


def slide_entry(place: SlidePlace) -> dict[str, Any]:
    """What `enter_slide` kept of a slide; {} where it was not entered, or the entry is damaged."""
    try:
        return _without_seal(documents.read_slide(_path(place.store, place.set_name, place.slide_id)))
    except UnreachableError:
        raise
    except StoreError:
        return {}


def forget_slide(place: SlidePlace) -> None:
    """Remove a slide's entry: it is removed on purpose."""
    path = _path(place.store, place.set_name, place.slide_id)
    if documents.exists(path):
        documents.remove_tree(path)


def _without_seal(attrs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attrs.items() if name != "seal"}


def check_set(store: str, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a patch set, whose document says what it was made with.

    Parameters
    ----------
    store, name : of the set
    found : attributes that it has

    Raises
    ------
    CorruptChunkError
        The document is lost or was changed; names the set.
    """
    expected = set_entry(store, name)
    what = f"document of patch set '{name}' in '{store}'"
    if not found and expected:
        raise CorruptChunkError(f"{what} is lost: run `msdask verify --repair`, which writes it again")
    # Of what is stored, not of what this version would make of it.
    text = json.dumps(found.get("spec"), sort_keys=True, separators=(",", ":"))
    own = hashlib.sha256(text.encode()).hexdigest()
    if own != found.get("spec_hash") or (expected and own != expected.get("spec_hash")):
        raise CorruptChunkError(
            f"{what} has another spec than it was made with: run `msdask verify --repair`, which writes it again"
        )
    return found


def restore_documents(store: str) -> list[str]:
    """Write again the documents of a store and of its patch sets that are lost, or say something else than they did.

    Returns
    -------
    restored : what was written again, in words
    """
    entry, restored = store_entry(store), []
    if entry and _own(store) != entry:
        documents.write_document(store, entry)
        restored.append("the store's document")
    for name in set_names(store):
        path, expected = places.join(store, name), set_entry(store, name)
        if _own(path) != expected:
            documents.write_document(path, expected)
            restored.append(f"the document of patch set '{name}'")
    return restored


def _own(path: str) -> dict[str, Any]:
    """Attributes of a group; {} where its document is lost or cannot be parsed."""
    try:
        return documents.read_attrs(path)
    except UnreachableError:
        raise
    except StoreError:
        return {}
