"""A Zarr group that is written piece by piece by a plan, and gone on with where a run was killed.

The plan goes first, with the state "writing"; arrays follow; the document with the state "complete", in which viewers
find the image, comes last. Nothing in it depends on when, where or by how many threads it was made.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeAlias

from msdask.errors import StoreError
from msdask.inference import ome_zarr
from msdask.storage import places

__all__ = [
    "GroupPlan",
    "PlannedGroup",
    "Tile",
    "Warn",
    "as_tuples",
    "stored",
    "stored_complete",
    "unread_sentence",
    "warn_of_unread",
]

FORMAT = 1


Tile: TypeAlias = tuple[int, int, int]
"""Level, row and column of a tile of a slide."""
Warn: TypeAlias = Callable[[str], object]
"""Told, in a sentence, of something that does not stop the work."""


@dataclass(frozen=True)
class GroupPlan:
    """Everything that decides what is in a group."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote."""
        return cls(**as_tuples(values))


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from JSON, which knows lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class PlannedGroup:
    """A group on its way to its place.

    Parameters
    ----------
    path : folder ending in .ome.zarr, or URL of object storage
    plan : what is to be there
    kind : what it is, such as "class map"
    overwrite : replace what another plan made

    Attributes
    ----------
    is_complete : whether it is there already
    unread : tiles of the slide that could not be read, of what is there

    Raises
    ------
    StoreError
        Something else is there: one of another plan, or something that is none at all.
    """

    def __init__(self, path: str | os.PathLike[str], plan: GroupPlan, kind: str, *, overwrite: bool = False) -> None:
        self.path, self.kind, self._plan = places.location(path), kind, plan.to_dict()
        place = places.at(self.path)
        found = stored(self.path, kind)
        if found is None and place.is_taken(self.path):
            raise StoreError(f"'{self.path}' exists and is no {kind}: give another path")
        if found is not None and found["plan"] != self._plan:
            if not overwrite:
                raise StoreError(
                    f"'{self.path}' is another {kind.split()[-1]}: {_differences(found['plan'], self._plan)}"
                )
            place.remove_tree(self.path)
            found = None
        self.is_complete = found is not None and found["state"] == "complete"
        self.unread: set[Tile] = {(one[0], one[1], one[2]) for one in (found or {}).get("unread", {}).get("tiles", ())}
        if found is None:
            ome_zarr.write_document(self.path, ome_zarr.group_document(None, msdask=self._said("writing")))
        elif not self.is_complete:
            place.remove_leftovers(self.path)

    def _said(self, state: str, *, unread: Mapping[str, int] | None = None, **more: Any) -> dict[str, Any]:
        said = {"format": FORMAT, "kind": self.kind, "state": state, "plan": self._plan, **more}
        if self.unread:
            said["unread"] = {"tiles": sorted(self.unread), **(unread or {})}
        return said

    def note_unread(self, tiles: Iterable[Tile]) -> None:
        """Note tiles that could not be read, before what was made without them is written: a later run knows them."""
        before = len(self.unread)
        self.unread.update(tiles)
        if len(self.unread) > before:
            ome_zarr.write_document(self.path, ome_zarr.group_document(None, msdask=self._said("writing")))

    def at(self, *names: str) -> str:
        """A place in the group."""
        return places.join(self.path, *names)

    def complete(self, image: Mapping[str, Any], *, unread: Mapping[str, int], **more: Any) -> None:
        """Say that everything is there.

        Parameters
        ----------
        image : the "ome" of the group
        unread : how much has no class since it could not be read; said beside the tiles, where there are any
        more : what goes beside the plan
        """
        places.at(self.path).sync(self.path)
        said = self._said("complete", unread=unread, **more)
        ome_zarr.write_document(self.path, ome_zarr.group_document(image, msdask=said))
        self.is_complete = True


def stored(path: str, kind: str) -> dict[str, Any] | None:
    """What a group says of itself; None where there is none.

    Raises
    ------
    StoreError
        It is damaged, something else, or of a newer format.
    """
    try:
        attributes = ome_zarr.read_document(path)
    except ValueError as error:
        raise StoreError(f"'{path}' has a damaged zarr.json ({error}): remove the folder, or restore it") from error
    if attributes is None:
        return None
    said = attributes.get("msdask", {})
    if said.get("kind") != kind:
        raise StoreError(f"'{path}' is a Zarr group, but no {kind} of msdask: give another path")
    if said["format"] > FORMAT:
        raise StoreError(f"'{path}' has format {said['format']}, this msdask reads {FORMAT}: update msdask")
    return dict(said)


def stored_complete(path: str, kind: str, *, made_by: str) -> dict[str, Any]:
    """What a complete group says of itself.

    Raises
    ------
    StoreError
        There is none, or it is not complete.
    """
    found = stored(path, kind)
    if found is None:
        raise StoreError(f"'{path}' does not exist: expected a {kind} ({made_by}(..., output=...))")
    if found["state"] != "complete":
        raise StoreError(f"'{path}' is not complete: run the same command again, it goes on where it stopped")
    return found


def unread_sentence(unread: Mapping[str, int]) -> str:
    """What could not be read of a slide, in a sentence; empty where all could.

    >>> unread_sentence({"tiles": 2, "tuples": 30})
    '2 tiles could not be read (on_bad_tile="fill"): 30 tuples over them have no class'
    >>> unread_sentence({"tiles": 0, "tuples": 0})
    ''
    """
    (what, count) = next((key, value) for key, value in unread.items() if key != "tiles")
    tiles = f"{unread['tiles']:,} tile{'s' if unread['tiles'] > 1 else ''}"
    return (
        f'{tiles} could not be read (on_bad_tile="fill"): {count:,} {what} over them have no class'
        if unread["tiles"]
        else ""
    )


def warn_of_unread(slide: str, unread: Mapping[str, int], warn: Warn | None) -> None:
    """Say what could not be read of a slide, where there is something; as a UserWarning where nobody is to be told."""
    if not (said := unread_sentence(unread)):
        return
    if warn is None:
        warnings.warn(f"slide {slide!r}: {said}", UserWarning, stacklevel=3)
    else:
        warn(said)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, the parts of the spec and of the model each on its own."""
    pairs = [(key, found.get(key), wanted[key]) for key in wanted if found.get(key) != wanted[key]]
    flat = [
        (f"{key}.{name}", old.get(name), new[name])
        for key, old, new in pairs
        if isinstance(old, dict) and isinstance(new, dict)
        for name in new
        if old.get(name) != new[name]
    ]
    flat += [pair for pair in pairs if not isinstance(pair[1], dict)]
    shown = "; ".join(f"{key} {_short(old)} there, {_short(new)} now" for key, old, new in flat[:4])
    return f"{shown}: give another path, or overwrite (overwrite=True, --overwrite)"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
