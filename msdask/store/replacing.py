"""Where a slide is built, so that what is there stays until there is something better in its place."""

from __future__ import annotations

from contextlib import suppress

from msdask.errors import CorruptChunkError
from msdask.storage import places
from msdask.store import documents
from msdask.store.slide_place import SlidePlace

__all__ = ["building_path", "clear_work", "finish_replacement"]


def building_path(place: SlidePlace, *, afresh: bool) -> str:
    """Path at which to begin a slide. Hold the slide's lock.

    Parameters
    ----------
    place : of the slide
    afresh : what lies there is to be replaced, not gone on with

    Returns
    -------
    path : the place itself where nothing, or only something unfinished, lies there; else one beside it, which
        `msdask.store.writing.commit` puts in its place
    """
    if not documents.exists(place.path):
        clear_work(place)
        return place.path
    if not afresh:
        return place.path
    with suppress(CorruptChunkError):
        if documents.read_slide(place.path).get("state") in ("begun", "writing"):
            documents.remove_tree(place.path)
            return place.path
    return place.work_path


def finish_replacement(place: SlidePlace) -> bool:
    """Put a slide that was built beside its place there, if a kill came between; whether it did. Hold the lock."""
    if documents.has_document(place.path) or not documents.has_document(place.work_path):
        return False
    try:
        if documents.read_slide(place.work_path).get("state") != "complete":
            return False
    except CorruptChunkError:
        return False
    places.at(place.path).replace_tree(place.work_path, place.path)
    return True


def clear_work(place: SlidePlace) -> None:
    """Remove what was begun beside a slide's place and is not wanted any more. Hold the lock."""
    if documents.exists(place.work_path):
        documents.remove_tree(place.work_path)
