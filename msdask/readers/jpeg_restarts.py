"""Restart intervals of a JPEG stream: pieces of its scan that are coded apart, between markers RST0 to RST7."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from msdask.readers.jpeg_header import EOI, RST0, read_header

__all__ = ["PADDING", "without_interval_strays"]

_RESTART = re.compile(b"\xff[\xd0-\xd7]")
PADDING = 64
"""Bytes, more than any decoder fetches at a time."""
_LONGEST = 65_500
"""px of a side, by libjpeg."""


def without_interval_strays(stream: bytes, stray_bytes: Callable[[bytes, bytes], int]) -> bytes | None:
    """The stream without bytes that belong to nothing before its restart markers.

    Each interval but the last is looked at alone, in a picture that shows it twice, with `PADDING` bytes of 0 before
    the restart marker between: libjpeg says how many bytes there belong to nothing only where it has not fetched all.

    Parameters
    ----------
    stream : whole, without strays in its header, of one scan
    stray_bytes : of such a picture and of the interval's bytes, how many at the interval's end belong to nothing

    Returns
    -------
    stream : or None where it has no intervals of this kind: another process than Huffman's, several scans
    """
    scan = stream.find(b"\xff\xda")
    frame = next((at for code in (b"\xff\xc0", b"\xff\xc1") if (at := stream.find(code + b"\0", 0, scan)) > 0), -1)
    interval = stream.find(b"\xff\xdd\0\4", 0, scan)
    components = read_header(stream).components
    if min(scan, frame, interval) < 0 or not components or stream.count(b"\xff\xda") > 1:
        return None
    body = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
    across, down = (max(s[axis] for _, s in components) if len(components) > 1 else 1 for axis in (0, 1))
    width = 8 * across * int.from_bytes(stream[interval + 4 : interval + 6], "big")
    if not 0 < width <= _LONGEST:
        return None
    size = struct.pack(">HH", 2 * 8 * down, width)
    head = stream[: frame + 5] + size + stream[frame + 9 : body]
    parts, first = [stream[:body]], body
    for marker in _RESTART.finditer(stream, body):
        piece = stream[first : marker.start()]
        parts += [
            piece[: len(piece) - stray_bytes(b"".join((head, piece, bytes(PADDING), RST0, piece, EOI)), piece)],
            marker[0],
        ]
        first = marker.end()
    return b"".join((*parts, stream[first:]))
