"""Whether a JPEG 2000 stream holds RGB or YCbCr: its own header decides, the TIFF's tags only where it is silent."""

from __future__ import annotations

import struct

__all__ = ["APERIO_YCBCR", "J2K_COMPRESSIONS", "holds_ycbcr"]

APERIO_YCBCR = 33003
J2K_COMPRESSIONS = {APERIO_YCBCR, 33004, 33005, 34712}

_START = b"\xff\x4f\xff\x51"
_COD = b"\xff\x52"
_SOT = b"\xff\x90"
_YCBCR = 6
_SYCC = 18


def holds_ycbcr(data: bytes, *, compression: int, photometric: int) -> bool:
    """Whether three decoded components are YCbCr that is still to be converted.

    They are not where the stream says that it transformed RGB itself (MCT), where the chroma is subsampled, and where
    a JP2 file says so: the decoder turns these into RGB. Full chroma without a transform is YCbCr in Aperio's 33003,
    and where the photometric tag says so.

    Parameters
    ----------
    data : codestream or JP2 file
    compression, photometric : the page's tags
    """
    start = data.find(_START)
    if start < 0 or start + 42 > len(data):
        return False
    (count,) = struct.unpack_from(">H", data, start + 40)
    samplings = {data[start + 43 + 3 * i : start + 45 + 3 * i] for i in range(min(count, 4))}
    if count != 3 or samplings != {b"\x01\x01"} or _is_transformed(data, start):
        return False
    if _box_color(data[:start]) == _SYCC:  # the decoder converts; sRGB is what encoders write who were told nothing
        return False
    return compression == APERIO_YCBCR or photometric == _YCBCR


def _is_transformed(data: bytes, start: int) -> bool:
    """The multiple component transform of the codestream's COD segment."""
    at = start + 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at : at + 2] != _SOT:
        if data[at : at + 2] == _COD:
            return data[at + 8] == 1
        at += 2 + max(2, *struct.unpack_from(">H", data, at + 2))
    return False


def _box_color(boxes: bytes) -> int | None:
    """The enumerated colour space of a JP2 file, or None."""
    at = boxes.find(b"colr\x01")
    return int.from_bytes(boxes[at + 7 : at + 11], "big") if at >= 0 else None
