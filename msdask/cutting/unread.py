"""What of a slide could not be read: bad tiles that were filled white, and the px that stand for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Unread"]


@dataclass
class Unread:
    """Bad tiles under some patches.

    Attributes
    ----------
    tiles : (level, row, column) of each
    px : for each (patch, magnification) over one, (y, x) bool: which px of what was read for it stand for a bad tile
    """

    tiles: set[tuple[int, int, int]] = field(default_factory=set)
    px: dict[tuple[int, int], NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, other: Unread, *, patch: int = 0, magnification: int = 0) -> None:
        """Take in what was read apart, whose first patch and magnification have these numbers here.

        Threads may do so at once, each with patches of its own.
        """
        self.tiles.update(other.tiles)
        self.px.update({(patch + i, magnification + m): is_bad for (i, m), is_bad in other.px.items()})
