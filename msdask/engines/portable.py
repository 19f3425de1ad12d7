"""Errors that travel from a worker to who waits for its work."""

from __future__ import annotations

import pickle

__all__ = ["portable"]


def portable(error: Exception) -> Exception:
    """An error that can travel, without its traceback."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
