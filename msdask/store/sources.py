"""Where slides and masks were read, beside the stores of a folder: inside a store it would tell where its slides lie.

One small file a slide, by fingerprint and id: whichever store of the folder asks, a copy of one too, finds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from msdask.errors import StoreError, UnreachableError
from msdask.storage import places

__all__ = ["FOLDER", "mask_of", "note_source", "source_of"]

FOLDER = ".msdask-sources"


def _path(store: str, attrs: Mapping[str, Any]) -> str | None:
    if "fingerprint" not in attrs or "slide_id" not in attrs:
        return None
    folder = store.rpartition("/")[0] if places.is_remote(store) else os.path.dirname(store)
    return places.join(folder, FOLDER, str(attrs["fingerprint"]), f"{attrs['slide_id']}.json")


def _read(file: str | None) -> dict[str, Any]:
    try:
        found = json.loads(places.at(file).read(file)) if file is not None else None
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreachableError(f"'{file}' cannot be read now: {error}") from error
    except ValueError:  # it was damaged: then nothing is known
        return {}
    if isinstance(found, dict) and isinstance(found.get("slide"), str) and isinstance(found.get("masks"), dict):
        return found
    return {}


def note_source(store: str, attrs: Mapping[str, Any], slide: str, mask: str | None = None) -> None:
    """Note where a slide, and its mask if it was read from a file, were read; in one step, where that is new.

    Parameters
    ----------
    store : path or URL of the store
    attrs : of the slide: "fingerprint", and "slide_id", since copies of a file have one fingerprint
    slide, mask : paths or URLs
    """
    file = _path(store, attrs)
    found = _read(file)
    masks = {**found.get("masks", {}), **({} if mask is None else {_name(mask): mask})}
    if file is None or found == {"slide": slide, "masks": masks}:
        return
    text = json.dumps({"slide": slide, "masks": masks}, sort_keys=True, ensure_ascii=False)
    try:
        places.at(file).write(file, [text.encode()])
    except OSError as error:
        raise StoreError(f"cannot write '{file}': {error}; check that one may write beside the store") from error


def source_of(store: str, attrs: Mapping[str, Any]) -> str | None:
    """Path or URL at which a stored slide was last read; None where nobody knows.

    Parameters
    ----------
    store : path or URL of the store
    attrs : of the slide; those of schema 1 have the whole path
    """
    known = str(attrs.get("source", ""))
    noted: str | None = _read(_path(store, attrs)).get("slide")
    return known if os.path.dirname(known) else noted


def mask_of(store: str, attrs: Mapping[str, Any]) -> str | None:
    """Path at which the mask of a stored slide was last read; None for one that msdask made, or where nobody knows."""
    masks: dict[str, str] = _read(_path(store, attrs)).get("masks", {})
    found = masks.get(str(attrs.get("mask_source", "")))
    return found if isinstance(found, str) else None


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
