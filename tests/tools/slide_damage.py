"""Damage to the files of slides, for tests."""

from __future__ import annotations

from pathlib import Path

import tifffile

__all__ = ["damage_tile"]


def damage_tile(path: Path, level: int, index: int) -> bytes:
    """Overwrite a tile of a TIFF, so that it cannot be decoded; gives the bytes of the whole file before that."""
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[level].pages[0]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    path.write_bytes(whole[:offset] + b"\x55" * count + whole[offset + count :])
    return whole
