"""Sizes of the levels of a Philips TIFF: its pages are padded to whole tiles, its XML says what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msdask.readers.tiff_xml import Described

__all__ = ["level_sizes"]

_MOST_HALVINGS = 24


def level_sizes(pages: Sequence[Any], described: Described) -> list[str]:
    """Cut the padding off the smaller levels, in place: their pages get the sizes that they stand for.

    Parameters
    ----------
    pages : tifffile's, of the whole file
    described : its XML; where it does not state the spacing of a level, the next halving that fits its tiles counts

    Returns
    -------
    warnings : sentences for a person
    """
    levels = sorted((page for page in pages if page.is_tiled), key=lambda page: -page.imagewidth * page.imagelength)
    spacings = described.philips.spacings if described.philips is not None else ()
    stated = [(x / spacings[0][0], y / spacings[0][1]) for x, y in spacings[1:]] if _is_sound(spacings) else []
    halvings = [(float(1 << k), float(1 << k)) for k in range(1, _MOST_HALVINGS)]
    height, width = (levels[0].imagelength, levels[0].imagewidth) if levels else (0, 0)
    least, warnings = 1.0, []
    for place, page in enumerate(levels[1:]):
        candidates = [*stated[place : place + 1], *stated, *halvings]
        factors = next((f for f in candidates if min(f) > least and _fits(page, height / f[1], width / f[0])), None)
        if factors is None:
            warnings.append(
                f"a level of {page.imagewidth} x {page.imagelength} px is no reduction of {width} x {height} px that "
                "its XML states"
            )
            continue
        least = min(factors)
        _cut(page, int(height / factors[1]), int(width / factors[0]))
    if len(spacings) < len(levels) and len(levels) > 1:
        warnings.append(
            f"its XML states the spacing of {len(spacings)} of its {len(levels)} levels: the sizes of the others are "
            "taken from their tiles, as halves of each other"
        )
    return warnings


def _is_sound(spacings: Sequence[tuple[float, float]]) -> bool:
    return all(x > 0 and y > 0 for x, y in spacings)


def _fits(page: Any, height: float, width: float) -> bool:
    """Whether a page has just the tiles, or the px, that an image of this size takes."""
    sides = ((page.imagelength, page.tilelength, int(height)), (page.imagewidth, page.tilewidth, int(width)))
    return all(size > 0 and size <= stored < size + tile + 1 for stored, tile, size in sides)


def _cut(page: Any, height: int, width: int) -> None:
    """Give a page another size; one that would leave out a row or column of tiles keeps a px of it."""
    height = max(height, (page.imagelength - 1) // page.tilelength * page.tilelength + 1)
    width = max(width, (page.imagewidth - 1) // page.tilewidth * page.tilewidth + 1)
    page.imagelength, page.imagewidth = height, width
    planes, depth, samples = page.shaped[0], page.shaped[1], page.shaped[4]
    page.shaped = (planes, depth, height, width, samples)
    page.shape = (planes, height, width) if planes > 1 else (height, width, samples) if samples > 1 else (height, width)
