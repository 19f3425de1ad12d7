"""Whether most of a slide is dark, as fluorescence is and brightfield, whose glass is bright, is not."""

from __future__ import annotations

import numpy as np

from msdask.errors import TileError
from msdask.readers.base import ReadsAhead
from msdask.slides.slide import Slide

__all__ = ["dark_share", "darkness_warning"]

MAX_TILES = 12
DARK_BELOW = 64
"""Of 255, in the brightest channel. Dense nuclei in hematoxylin keep more than that in blue."""
MOSTLY = 0.6


def dark_share(slide: Slide) -> float:
    """Share of dark px in up to 12 tiles of the coarsest level, spread evenly; 0 where none of them can be decoded.

    Computed: tiles are decoded as small as their decoder gives them.
    """
    level = len(slide.level_infos) - 1
    info, reader = slide.level_infos[level], slide.reader
    rows, columns = info.grid
    places = np.unique(np.linspace(0, rows * columns - 1, min(rows * columns, MAX_TILES)).round().astype(int))
    tiles = [divmod(int(place), columns) for place in places]
    if isinstance(reader, ReadsAhead) and reader.reads_ahead:
        reader.prefetch(level, tiles)
    dark = count = 0
    scale = max(info.dct_scales)
    for row, column in tiles:
        try:
            pixels = reader.read_tile(level, row, column, scale)
        except TileError:  # whoever reads its pixels is told
            continue
        height = max(1, min(info.tile[0], info.shape[0] - row * info.tile[0]) // scale)
        width = max(1, min(info.tile[1], info.shape[1] - column * info.tile[1]) // scale)
        brightest = pixels[:height, :width].max(axis=2)
        dark += int(np.count_nonzero(brightest < DARK_BELOW))
        count += brightest.size
    return dark / count if count else 0.0


def darkness_warning(slide: Slide) -> tuple[str, ...]:
    """A sentence where most of a slide is dark; computed, see `dark_share`."""
    share = dark_share(slide)
    if share <= MOSTLY:
        return ()
    return (
        f"{share:.0%} of the slide is nearly black, where brightfield has bright glass: is it a fluorescence image? "
        "masks, measures and models of msdask are made for brightfield",
    )
