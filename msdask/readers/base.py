"""What a reader is: the small protocol behind which every file format lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from msdask.errors import SlideError, TileError

if TYPE_CHECKING:
    from msdask.readers.place import Place

__all__ = [
    "LevelInfo",
    "PartTileError",
    "Reader",
    "ReaderModule",
    "ReadsAhead",
    "SlideMetadata",
    "UnsupportedSlideError",
    "stored_downsample",
]


class UnsupportedSlideError(SlideError):
    """A slide that may be whole, but of a kind that this reader does not read: the next reader is asked."""


class PartTileError(TileError):
    """A part of a tile cannot be read, such as where it is made from tiles of a finer level of which one is damaged.

    Parameters
    ----------
    message : as of any error
    pixels : (height, width, 3) uint8, the tile; white where it cannot be read
    is_bad : (height, width) bool, where that is
    """

    def __init__(self, message: str, pixels: NDArray[np.uint8], is_bad: NDArray[np.bool_]) -> None:
        super().__init__(message)
        self.pixels = pixels
        self.is_bad = is_bad

    def __reduce__(self) -> tuple[type[PartTileError], tuple[str, NDArray[np.uint8], NDArray[np.bool_]]]:
        return type(self), (str(self), self.pixels, self.is_bad)

    def changed(self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> PartTileError:
        """The same of the tile turned, cut or reduced by `change`; px to which the bad part adds anything are bad."""
        white = np.where(self.is_bad[..., None], np.full(3, 255, np.uint8), np.uint8(0))
        is_bad: NDArray[np.bool_] = np.any(change(white), axis=2)
        pixels = change(self.pixels).copy()
        pixels[is_bad] = 255
        return PartTileError(str(self), pixels, is_bad)


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One stored resolution.

    Attributes
    ----------
    shape : (height, width), px of this level
    tile : (height, width) of a stored tile, px of this level; a strip is a tile as wide as the level
    downsample : level-0 px per px of this level, >= 1; an integer where the sizes allow it
    dct_scales : reductions that the decoder itself can give, ascending, always with 1; (1, 2, 4, 8) for JPEG tiles
        whose sides divide by them
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    downsample: float = 1.0
    dct_scales: tuple[int, ...] = (1,)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles (rows, columns)."""
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])


def stored_downsample(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Level-0 px per px of a level, from the (height, width) of both.

    The nearest integer where both sides agree with it within one px of the level (floor, ceil and rounding writers all
    do), else the mean of the two ratios.

    >>> stored_downsample((32914, 46000), (2057, 2875)), stored_downsample((1000, 1000), (400, 400))
    (16.0, 2.5)
    """
    ratios = full[0] / level[0], full[1] / level[1]
    nearest = max(1, round(sum(ratios) / 2))
    if all(abs(a / nearest - b) < 1 for a, b in zip(full, level, strict=True)):
        return float(nearest)
    return sum(ratios) / 2


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """What a file says of itself.

    Attributes
    ----------
    mpp : (x, y) um/px of level 0 as stored, unjudged, or None
    mpp_source : where `mpp` was read ("aperio", "ome", "hamamatsu", "leica", "tiff resolution" ...), or None
    objective_power : as stored, or None
    vendor : "aperio", "hamamatsu", "leica", "philips", "ome", "generic" ...
    properties : every other fact that the file states, as text
    unread : what the file says of its scale that could not be read or used, quoted: "MPP = 'about 0.5' (aperio)"
    warnings : sentences for a person about what was found and is not as usual
    """

    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    objective_power: float | None = None
    vendor: str = "generic"
    properties: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Reader(Protocol):
    """A slide file: levels of tiles, and some metadata. Thread-safe; opening reads metadata only."""

    format: str
    levels: tuple[LevelInfo, ...]
    metadata: SlideMetadata
    associated: tuple[str, ...]

    def read_tile(
        self, level: int, row: int, column: int, scale: int = 1, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Decode one tile.

        Parameters
        ----------
        level, row, column : which tile
        scale : one of the level's `dct_scales`; the decoder gives the tile reduced by it
        out : (height, width, 3) uint8, C-contiguous, of a whole tile: memory that may be used for what is returned
            (then it is returned itself); fresh memory for every tile costs as much as a tenth of the decoding

        Returns
        -------
        pixels : (height, width, 3) uint8, RGB, C-contiguous
            At least the part of the tile that lies inside the level; edge tiles may be cut or padded.

        Raises
        ------
        TileError
            The tile is missing in the file, lies beyond its end or cannot be decoded; names file, level and tile.
        UnreachableError
            Its bytes cannot be read now, whatever they are: such a tile is never filled.
        """
        ...

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Decode an associated image ("label", "macro", "thumbnail"): (height, width, 3) uint8."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file's size, its directories, its first and last MiB, and 64 seeded ranges of 64 KiB."""
        ...

    def close(self) -> None:
        """Release the file. Reading afterwards is an error."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """What a reader may also be: told which tiles come next, it reads their bytes in a few large requests."""

    reads_ahead: bool

    def prefetch(self, level: int, tiles: Sequence[tuple[int, int]]) -> int:
        """Read the bytes of the first of these (row, column) tiles, as many as its budget holds; returns how many.

        Each tile is then read once without a request. What is wrong with a tile, `read_tile` says.

        Raises
        ------
        UnreachableError
            The bytes cannot be read now.
        """
        ...

    def forget(self, level: int, tile: tuple[int, int]) -> None:
        """Let go of the bytes of a (row, column) tile that was prefetched and is not needed after all."""
        ...


class ReaderModule(Protocol):
    """What a module that reads a slide format has: two functions, and a third where a slide is several files."""

    def accepts(self, place: Place) -> bool:
        """Whether this looks like a slide of the format: by first bytes, names in a folder, or files beside it.

        Asked of every slide that no earlier reader took, so it must be quick; on a file of another format it says
        False and raises nothing but SlideError and UnreachableError.
        """
        ...

    def open_place(self, place: Place) -> Reader:
        """The reader of a place that was accepted.

        Raises
        ------
        UnsupportedSlideError
            It is a slide, but of a kind that is not read here: the next reader is asked.
        SlideError
            It is damaged.
        """
        ...
