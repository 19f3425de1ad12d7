"""A reader in the fewest lines: anything is a white slide of one tile."""

from __future__ import annotations

from typing import Any

from msdask.readers import LevelInfo, Place


def accepts(place: Place) -> bool:
    return not place.is_folder


def open_place(place: Place) -> Any:
    return type("PlainReader", (), {"format": "plain", "levels": (LevelInfo((8, 8), (8, 8)),)})()
