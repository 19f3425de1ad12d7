"""Where a slide is built, so that what is there stays until there is something better in its place."""

from __future__ import annotations

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
    path : the place itself where nothing lies there, or what does is gone on with; else one beside it, which
        `msdask.store.writing.commit` puts in its place: what is unfinished says what it was made from, too
    """
    if not documents.exists(place.path):
        clear_work(place)
        return place.path
    return place.work_path if afresh else place.path


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
