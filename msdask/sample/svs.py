"""Write a pyramid in the layout of Aperio's SVS files, one row of tiles at a time.

Level 0 is asked for tile by tile and never held; each coarser level is the area mean of the one above, made as its rows
come, and waits as encoded tiles in a temporary file, because a TIFF's levels follow one another.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from msdask.errors import SpecError
from msdask.scale import mpp_to_magnification
from msdask.storage.files import replacing

__all__ = ["Compression", "Render", "Subsampling", "SvsLayout", "write_svs"]

Compression = Literal["jpeg", "jpeg2000", "deflate", "none"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Render = Callable[[int, int, int], NDArray[np.uint8]]
"""(y, x, side) in level-0 px -> (side, side, 3) uint8; called from several threads, also beyond the slide's edge."""

_SAMPLING: Mapping[str, tuple[str, tuple[int, int]]] = {
    "4:4:4": ("444", (1, 1)),
    "4:2:2": ("422", (2, 1)),
    "4:2:0": ("420", (2, 2)),
}
_THUMBNAIL = 1024  # longest side, px


@dataclass(frozen=True, slots=True)
class SvsLayout:
    """How a pyramid is stored.

    Attributes
    ----------
    levels : downsample of each level, ascending from 1, each a multiple of the one before; sizes are
        floor(side / downsample)
    tile : side of the tiles, px, a multiple of 16
    compression : "jpeg", "jpeg2000" (reversible), "deflate" or "none"
    quality : of JPEG, 1 to 100
    subsampling : of JPEG's chroma
    """

    levels: tuple[int, ...] = (1, 4, 16)
    tile: int = 256
    compression: Compression = "jpeg"
    quality: int = 90
    subsampling: Subsampling = "4:2:0"

    def __post_init__(self) -> None:
        steps = self.levels
        if not steps or steps[0] != 1 or any(b <= a or b % a for a, b in pairwise(steps)):
            raise SpecError(
                f"levels={steps}: expected downsamples from 1 upwards, each a multiple of the last, such as (1, 4, 16)"
            )
        if self.tile < 16 or self.tile % 16:
            raise SpecError(f"tile={self.tile}: expected a multiple of 16 px, such as 256")
        if self.compression not in ("jpeg", "jpeg2000", "deflate", "none"):
            raise SpecError(f"compression={self.compression!r}: expected jpeg, jpeg2000, deflate or none")
        if self.subsampling not in _SAMPLING:
            raise SpecError(f"subsampling={self.subsampling!r}: expected one of {', '.join(_SAMPLING)}")
        if not 1 <= self.quality <= 100:
            raise SpecError(f"quality={self.quality}: expected 1 to 100")

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """One tile as the bytes of a complete stream of its own."""
        pixels = np.ascontiguousarray(pixels)
        if self.compression == "jpeg":
            sampling = _SAMPLING[self.subsampling][0]
            return simplejpeg.encode_jpeg(pixels, quality=self.quality, colorspace="RGB", colorsubsampling=sampling)
        if self.compression == "jpeg2000":
            return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, mct=True))
        return zlib.compress(pixels.data, 1) if self.compression == "deflate" else pixels.tobytes()

    def tags(self) -> dict[str, Any]:
        """What tifffile has to know to describe the tiles."""
        shared: dict[str, Any] = {"tile": (self.tile, self.tile), "dtype": np.uint8, "metadata": None}
        if self.compression == "jpeg":
            return shared | {
                "compression": "jpeg",
                "photometric": "ycbcr",
                "subsampling": _SAMPLING[self.subsampling][1],
            }
        names = {"jpeg2000": "aperio_jp2000_rgb", "deflate": "adobe_deflate", "none": None}
        return shared | {"compression": names[self.compression], "photometric": "rgb"}


def write_svs(
    path: str | os.PathLike[str],
    render: Render,
    *,
    shape: tuple[int, int],
    mpp: float | None,
    layout: SvsLayout | None = None,
    associated: bool = True,
    label: Sequence[str] = (),
    threads: int | None = None,
) -> Path:
    """Write a slide whose pixels a function gives.

    Parameters
    ----------
    path : file to write; an existing one is replaced
    render : gives the pixels of a square of level 0
    shape : (height, width) of level 0, px
    mpp : um/px to be stated, with the magnification, or None to state neither
    layout : levels, tiles and compression
    associated : also write a label and a macro image
    label : lines of text on the label
    threads : workers, as many as there are cores by default; they change no byte of the file

    Returns
    -------
    path : the file
    """
    layout = layout or SvsLayout()
    path = Path(path)
    if min(shape) < layout.levels[-1]:
        raise SpecError(
            f"size={shape}: smaller than one px of the coarsest level, 1/{layout.levels[-1]}; use fewer levels"
        )
    threads = threads or os.cpu_count() or 1
    raw = shape[0] * shape[1] * 3
    expected = raw * (1.4 if layout.compression in ("none", "deflate", "jpeg2000") else 0.5)
    facts = "" if mpp is None else f"|AppMag = {mpp_to_magnification(mpp):.6g}|MPP = {mpp:.6g}"

    def describe(size: tuple[int, int]) -> str:
        height, width = shape
        arrow = "" if size == shape else f" -> {size[1]}x{size[0]}"
        return (
            f"Aperio Image Library, in its layout by msdask\r\n{width}x{height} [0,0 {width}x{height}] "
            f"({layout.tile}x{layout.tile}){arrow} {layout.compression.upper()} Q={layout.quality}{facts}"
        )

    with (
        tempfile.TemporaryDirectory(prefix="msdask-svs-") as folder,
        ThreadPoolExecutor(threads) as pool,
        replacing(path) as part,
        tifffile.TiffWriter(part, bigtiff=expected > 3.5e9) as tiff,
    ):
        sizes = [(shape[0] // down, shape[1] // down) for down in layout.levels]
        reduction = max(1, -(-max(sizes[-1]) // _THUMBNAIL))
        pictures: list[NDArray[np.uint8]] = []
        below = _Reduced(sizes[-1], reduction, _Rows(max(1, sizes[-1][0] // reduction), pictures.append))
        waiting: list[_WaitingTiles] = []
        for above, (up, down) in reversed([*zip(sizes, pairwise(layout.levels), strict=False)]):
            waiting.insert(0, _WaitingTiles(layout, Path(folder) / f"level-{down}"))
            below = _Reduced(above, down // up, waiting[0], below)

        def write_level(tiles: Iterator[bytes], size: tuple[int, int]) -> None:
            tiff.write(tiles, shape=(*size, 3), description=describe(size), software=False, **layout.tags())

        write_level(_finest(render, shape, layout, below, pool, ahead=threads + 1), shape)
        (picture,) = pictures
        if associated or waiting:
            # Readers of this layout take page 1 for the thumbnail, whatever it is.
            tiff.write(picture, description=describe(picture.shape[:2]), software=False, **_STRIPS, metadata=None)
        for size, tiles in zip(sizes[1:], waiting, strict=True):
            write_level(iter(tiles), size)
        if associated:
            sticker = _label_image(label)
            for name, image, kind in (("label", sticker, 1), ("macro", _macro_image(picture, sticker), 9)):
                text = f"Aperio Image Library, in its layout by msdask\r\n{name} {image.shape[1]}x{image.shape[0]}"
                tiff.write(image, description=text, subfiletype=kind, software=False, **_STRIPS, metadata=None)
    return path


_STRIPS: dict[str, Any] = {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 64}


def _finest(
    render: Render,
    shape: tuple[int, int],
    layout: SvsLayout,
    below: _Rows,
    pool: ThreadPoolExecutor,
    *,
    ahead: int,
) -> Iterator[bytes]:
    """Encoded tiles of level 0 in order; each row of tiles goes to the levels below, and at last their end."""
    side = layout.tile

    def row(y: int) -> tuple[list[bytes], NDArray[np.uint8]]:
        tiles = [render(y, x, side) for x in range(0, shape[1], side)]
        encoded = [layout.encode(tile) for tile in tiles]
        return encoded, np.concatenate(tiles, axis=1)[: shape[0] - y, : shape[1]]

    starts = deque(range(0, shape[0], side))
    waiting: deque[Future[tuple[list[bytes], NDArray[np.uint8]]]] = deque()
    while starts or waiting:
        while starts and len(waiting) < ahead:
            waiting.append(pool.submit(row, starts.popleft()))
        encoded, pixels = waiting.popleft().result()
        below.push(pixels)
        if not waiting and not starts:
            below.finish()  # before the last tiles are given: nobody asks again after them
        yield from encoded


class _Rows:
    """Rows of a level, which come in any portions and go on in whole multiples of a height; what is left comes last."""

    def __init__(self, height: int, give: Callable[[NDArray[np.uint8]], None]) -> None:
        self._height, self._give = height, give
        self._rest: NDArray[np.uint8] | None = None

    def push(self, rows: NDArray[np.uint8]) -> None:
        """Take rows, from top to bottom."""
        if self._rest is not None:
            rows = np.concatenate([self._rest, rows])
        whole = len(rows) // self._height * self._height
        self._rest = rows[whole:].copy()
        if whole:
            self._give(rows[:whole])

    def finish(self) -> None:
        """All rows have come."""
        if self._rest is not None and len(self._rest):
            self._give(self._rest)


class _Reduced(_Rows):
    """The area mean of the level above, by a whole factor; its rows go to `takers`."""

    def __init__(self, above: tuple[int, int], factor: int, *takers: _Rows) -> None:
        super().__init__(factor, self._reduce)
        self._factor, self._width, self._takers = factor, max(1, above[1] // factor), takers

    def _reduce(self, rows: NDArray[np.uint8]) -> None:
        if height := len(rows) // self._factor:
            part = np.ascontiguousarray(rows[: height * self._factor, : self._width * self._factor])
            reduced = cv2.resize(part, (self._width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            for taker in self._takers:
                taker.push(reduced)

    def finish(self) -> None:
        super().finish()
        for taker in self._takers:
            taker.finish()


class _WaitingTiles(_Rows):
    """Encoded tiles of a level, in a file until their turn comes."""

    def __init__(self, layout: SvsLayout, path: Path) -> None:
        super().__init__(layout.tile, self._encode)
        self._layout, self._path = layout, path
        self._sizes: list[int] = []

    def _encode(self, rows: NDArray[np.uint8]) -> None:
        side = self._layout.tile
        padded = np.pad(rows, ((0, -len(rows) % side), (0, -rows.shape[1] % side), (0, 0)), mode="edge")
        with self._path.open("ab") as file:
            for y, x in np.ndindex(len(padded) // side, padded.shape[1] // side):
                tile = padded[y * side : (y + 1) * side, x * side : (x + 1) * side]
                self._sizes.append(file.write(self._layout.encode(tile)))

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            for size in self._sizes:
                yield file.read(size)


def _label_image(lines: Sequence[str]) -> NDArray[np.uint8]:
    image = np.full((320, 320, 3), 250, np.uint8)
    for i, line in enumerate(("msdask", *lines)):
        cv2.putText(image, line[:18], (16, 60 + 48 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (30, 30, 60), 2, cv2.LINE_AA)
    return image


def _macro_image(thumbnail: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole glass slide: the label on the left, the section on the right."""
    image = np.full((400, 1200, 3), 236, np.uint8)
    image[40:360, 10:330] = label
    scale = min(320 / thumbnail.shape[0], 800 / thumbnail.shape[1])
    size = tuple(max(1, round(side * scale)) for side in thumbnail.shape[1::-1])
    section = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA)
    image[40 : 40 + section.shape[0], 370 : 370 + section.shape[1]] = section
    return image
