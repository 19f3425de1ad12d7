"""A Zarr group that is written piece by piece by a plan, and gone on with where a run was killed.

The plan goes first, with the state "writing"; arrays follow; the document with the state "complete", in which viewers
find the image, comes last. Nothing in it depends on when, where or by how many threads it was made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from msdask.errors import StoreError
from msdask.inference import ome_zarr
from msdask.storage import places

__all__ = ["Plan", "PlannedGroup", "stored", "stored_complete"]

FORMAT = 1


class Plan(Protocol):
    """Everything that decides what is in a group."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...


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

    Raises
    ------
    StoreError
        Something else is there: one of another plan, or something that is none at all.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Plan, kind: str, *, overwrite: bool = False) -> None:
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
        if found is None:
            ome_zarr.write_document(self.path, ome_zarr.group_document(None, msdask=self._said("writing")))
        elif not self.is_complete:
            place.remove_leftovers(self.path)

    def _said(self, state: str, **more: Any) -> dict[str, Any]:
        return {"format": FORMAT, "kind": self.kind, "state": state, "plan": self._plan, **more}

    def at(self, *names: str) -> str:
        """A place in the group."""
        return places.join(self.path, *names)

    def complete(self, image: Mapping[str, Any], **more: Any) -> None:
        """Say that everything is there; `image` is the "ome" of the group, `more` goes beside the plan."""
        places.at(self.path).sync(self.path)
        ome_zarr.write_document(self.path, ome_zarr.group_document(image, msdask=self._said("complete", **more)))
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
