"""The errors that msdask raises on purpose: each message says where, what was found, what was expected, what to do."""

from __future__ import annotations

__all__ = [
    "CorruptChunkError",
    "FileWriteError",
    "LockedError",
    "MaskError",
    "MissingScaleError",
    "MsdaskError",
    "SlideError",
    "SpecError",
    "StoreError",
    "TileError",
    "UnreachableError",
    "WorkerLostError",
]


class MsdaskError(Exception):
    """Base of every error that msdask raises on purpose."""


class SpecError(MsdaskError, ValueError):
    """A request that makes no sense: a patch size of 0, an unknown mode, an empty list of magnifications."""


class SlideError(MsdaskError):
    """A file that cannot be opened or read as a slide."""


class MissingScaleError(SlideError):
    """A physical scale was asked of a slide that does not say how large its pixels are."""


class TileError(SlideError):
    """One tile of a slide cannot be read or decoded; the rest of the slide may be fine."""


class MaskError(MsdaskError):
    """A tissue or label mask that does not fit its slide or holds unknown values."""


class StoreError(MsdaskError):
    """A patch store that cannot be written, is not what was asked for, or is damaged."""


class CorruptChunkError(StoreError):
    """Stored bytes that are missing, cut short or fail their checksum."""


class UnreachableError(StoreError):
    """It is there, or may be, but cannot be read now: nothing is said about its contents."""


class LockedError(StoreError):
    """Somebody else is writing it at this moment."""


class FileWriteError(MsdaskError, OSError):
    """A file outside a store that cannot be written."""


class WorkerLostError(MsdaskError):
    """The workers that did a piece of work died or hung, as often as is allowed: it is given up, the rest goes on."""
