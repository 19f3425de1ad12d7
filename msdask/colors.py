"""The colours of classes: the same in figures, in masks that a notebook shows, and in files for other programs."""

from __future__ import annotations

__all__ = ["LABEL_COLORS", "class_colors", "rgb_of"]

LABEL_COLORS = ("#F0E442", "#3F2B96", "#00C2C7", "#9B1B30", "#8FD14F", "#8A5A2B", "#C6A5FF")
"""One colour per class, none of them near one of `msdask.plots.SCALE_COLORS`; more classes than colours start again."""


def class_colors(count: int) -> list[str]:
    """The colours of so many classes, as "#RRGGBB".

    >>> class_colors(2)
    ['#F0E442', '#3F2B96']
    """
    return [LABEL_COLORS[k % len(LABEL_COLORS)] for k in range(count)]


def rgb_of(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of "#RRGGBB".

    >>> rgb_of("#F0E442")
    (240, 228, 66)
    """
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
