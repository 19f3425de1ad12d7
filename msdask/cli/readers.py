"""`msdask info --readers`: which readers there are, in the order in which a slide is offered to them."""

from __future__ import annotations

from msdask.cli.terminal import out
from msdask.readers.registry import backends

__all__ = ["print_readers"]


def print_readers() -> int:
    """Print name, formats, the reason for the place in the order, and what to install where something is missing."""
    for backend in backends().values():
        state = "available" if backend.is_available else f"not installed: {backend.remedy}"
        out.print(f"{backend.name:<11} {', '.join(backend.formats)}", markup=False)
        out.print(f"{'':<11} {state}", markup=False)
        if backend.reason:
            out.print(f"{'':<11} {backend.reason}", markup=False)
    return 0
