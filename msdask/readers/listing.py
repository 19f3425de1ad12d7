"""Which of the things in a folder are slides: asked of the readers, for cohorts and for the scale detector alike."""

from __future__ import annotations

import os

from msdask.errors import SlideError, SpecError, UnreachableError
from msdask.readers.place import Place
from msdask.readers.registry import Backend, backends

__all__ = ["is_slide", "slides_in"]


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Whether this is meant to be a slide: a file with a slide's ending, or a file or folder that a reader accepts."""
    with Place(path) as place:
        return _backend_of(place) is not None


def slides_in(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the slides in a folder, by name.

    A file is a slide if a reader accepts it, or if its ending says so: then one that cannot be opened is not passed
    over. Tables, notes, hidden files, the data of a slide of several files are none. A folder in it is a slide if a
    reader accepts it. Where there is none of these, the folders in it are looked into: each may hold one slide.

    Raises
    ------
    SlideError
        The folder holds no slide; says what was found.
    SpecError
        It holds folders of several slides: which of them are meant cannot be told.
    UnreachableError
        What may be a slide cannot be read now: a cohort never lacks one without a word.
    """
    place = Place(folder)
    names, held = _slides_among(place), {}
    if not names:
        held = {name: found for name in _visible(place) if (found := _slides_among(place.inside(name)))}
        crowded = {name: len(found) for name, found in held.items() if len(found) > 1}
        if crowded:
            shown = ", ".join(f"{count} in '{name}'" for name, count in list(crowded.items())[:3])
            raise SpecError(
                f"'{place.path}' holds no slides itself but folders of several ({shown}); expected slides, or folders "
                "of one slide each: give one of these folders, or a CSV of paths"
            )
    paths = [place.inside(name).path for name in names]
    paths += [place.inside(name).inside(slide).path for name, (slide,) in held.items()]
    if not paths:
        raise SlideError(
            f"no slides in '{place.path}': found {place.described()}; expected slide files, folders that are slides, "
            "or folders of one slide each"
        )
    return paths


def _visible(place: Place) -> list[str]:
    return [name for name in place.names if not name.startswith(".")]


def _slides_among(place: Place) -> list[str]:
    """Names of what lies directly in a folder and is a slide."""
    found: list[str] = []
    parts: set[str] = set()
    for name in _visible(place):
        with place.inside(name) as one:
            backend = _backend_of(one)
            if backend is not None:
                found.append(name)
                parts |= backend.parts(one)
    return [name for name in found if name not in parts]


def _backend_of(place: Place) -> Backend | None:
    """The reader that accepts a place, else the one that its ending names."""
    named = next((b for b in backends().values() if place.ending in b.endings), None) if place.ending else None
    if named is not None and not place.is_folder:
        return named
    try:
        return next((backend for backend in backends().values() if backend.accepts(place)), None)
    except SlideError:  # it cannot be read, and its ending does not say that it should be
        return None
    except UnreachableError as error:
        if isinstance(error.__cause__, PermissionError):  # nor may it be: somebody else's file
            return None
        raise
