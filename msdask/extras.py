"""Optional dependencies: one clear sentence where one is missing."""

from __future__ import annotations

import importlib.util

from msdask.errors import MsdaskError

__all__ = ["MissingExtraError", "require"]


class MissingExtraError(MsdaskError, ImportError):
    """A part of msdask was asked for whose dependencies are not installed."""


def require(part: str, *, module: str = "torch", extra: str = "torch") -> None:
    """Check that an optional dependency is there, without importing it.

    Parameters
    ----------
    part : what needs it, as a sentence names it: "msdask.data"
    module : that must be importable
    extra : of msdask that installs it

    Raises
    ------
    MissingExtraError
        It is not; says what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{part} needs {module}, which is not installed: pip install 'msdask[{extra}]'")
