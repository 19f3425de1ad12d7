"""Readers: one file a slide format behind one small protocol, chosen by content."""

from msdask.readers.base import LevelInfo, Reader, SlideMetadata, UnsupportedSlideError
from msdask.readers.listing import is_slide, slides_in
from msdask.readers.place import Place
from msdask.readers.registry import Backend, backends, open_reader, register

__all__ = [
    "Backend",
    "LevelInfo",
    "Place",
    "Reader",
    "SlideMetadata",
    "UnsupportedSlideError",
    "backends",
    "is_slide",
    "open_reader",
    "register",
    "slides_in",
]
