"""Where slides and masks were read, beside the store: inside it would depend on the place that its slides lie in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msdask.errors import StoreError, UnreachableError
from msdask.storage import places
from msdask.store.slide_place import SlidePlace

__all__ = ["note_source", "read_source", "source_of"]


def _path(place: SlidePlace) -> str:
    return places.join(f"{place.store}.sources", f"{place.slide_id}.json")


def read_source(place: SlidePlace) -> dict[str, str]:
    """Where a slide ("slide") and its mask ("mask") were last read, as far as that is known."""
    file = _path(place)
    try:
        found = json.loads(places.at(file).read(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreachableError(f"'{file}' cannot be read now: {error}") from error
    except ValueError:  # it was damaged: then nothing is known
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def note_source(place: SlidePlace, slide: str, mask: str | None = None) -> None:
    """Note where a slide, and its mask if it was read from a file, were read; in one step, where that is new."""
    found = {"slide": slide} | ({"mask": mask} if mask is not None else {})
    if read_source(place) == found:
        return
    file = _path(place)
    try:
        places.at(file).write(file, [json.dumps(found, sort_keys=True, ensure_ascii=False).encode()])
    except OSError as error:
        raise StoreError(
            f"cannot write '{file}': {error}; check that the place beside the store is writable"
        ) from error


def source_of(place: SlidePlace, attrs: Mapping[str, Any]) -> str:
    """Path or URL at which a stored slide was last read; its file's name where nobody noted more.

    Parameters
    ----------
    place : of the slide
    attrs : its attributes; those of schema 1 have the whole path
    """
    return read_source(place).get("slide", str(attrs.get("source", place.slide_id)))
