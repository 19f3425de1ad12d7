"""The place of a slide in a patch store: where it lies, and where it is built when one is there already."""

from __future__ import annotations

from dataclasses import dataclass

from msdask.storage import places

__all__ = ["WORK_GROUP", "SlidePlace"]

WORK_GROUP = "_work"
"""Slides that are built to take the place of others."""


@dataclass(frozen=True, slots=True)
class SlidePlace:
    """One slide of one patch set.

    Attributes
    ----------
    store : path or URL
    set_name, slide_id : what it is
    """

    store: str
    set_name: str
    slide_id: str

    @property
    def set_path(self) -> str:
        """Group of the patch set."""
        return places.join(self.store, self.set_name)

    @property
    def path(self) -> str:
        """Group of the slide."""
        return places.join(self.set_path, self.slide_id)

    @property
    def work_path(self) -> str:
        """Where it is built while another one, or a damaged one, is in its place."""
        return places.join(self.store, WORK_GROUP, self.set_name, self.slide_id)

    def __str__(self) -> str:
        return f"slide '{self.slide_id}' of '{self.set_name}' in '{self.store}'"
