"""The errors that msdask raises on purpose: each message says where, what was found, what was expected, what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

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


_PACKAGES = (str(Path(__file__).parent), "site-packages", "dist-packages", f"{Path(traceback.__file__).parent}")
"""Where code lies that is nobody's cell or script."""


class MsdaskError(Exception):
    """Base of every error that msdask raises on purpose.

    A notebook shows its sentence and the line that asked, since the message says what to do; ``traceback.print_last()``
    shows the rest, and ``%debug`` goes there.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the calls inside msdask and of the errors that this one came from."""
        frames = traceback.extract_tb(self.__traceback__)
        own = [frame for frame in frames if not any(part in frame.filename for part in _PACKAGES)]
        asked = [f"  line {own[-1].lineno}: {own[-1].line}"] if own and own[-1].line else []
        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {self}", *asked]


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
