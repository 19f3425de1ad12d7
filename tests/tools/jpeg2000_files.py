"""JPEG 2000 streams that no encoder at hand makes: components of several sizes, as scanners store YCbCr."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import imagecodecs
import numpy as np
from numpy.typing import NDArray

SIZ, COD, SOT, SOD = b"\xff\x51", b"\xff\x52", b"\xff\x90", b"\xff\x93"


def to_ycbcr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range YCbCr of BT.601, as JPEG has it."""
    red, green, blue = (image[:, :, i].astype(float) for i in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = (128 + 0.564 * (blue - luma), 128 + 0.713 * (red - luma))
    return np.clip(np.stack([luma, *chroma], -1) + 0.5, 0, 255).astype(np.uint8)


def encode_components(planes: Sequence[NDArray[np.uint8]], shape: tuple[int, int]) -> bytes:
    """One lossless codestream of planes that may be smaller than `shape` by whole factors.

    Each plane is encoded alone. Ordered by component (CPRL), the packets of all are those of each, one after another.
    """
    streams = [
        imagecodecs.jpeg2k_encode(plane, level=0, codecformat="j2k", mct=False, resolutions=3) for plane in planes
    ]
    header = streams[0][: streams[0].index(SOT)]
    quantization = header[header.index(b"\xff\x5c") :]
    quantization = quantization[: 2 + struct.unpack_from(">H", quantization, 2)[0]]
    factors = [(shape[1] // plane.shape[1], shape[0] // plane.shape[0]) for plane in planes]
    sizes = struct.pack(">H8IH", 0, shape[1], shape[0], 0, 0, shape[1], shape[0], 0, 0, len(planes))
    sizes += b"".join(bytes([7, x, y]) for x, y in factors)
    style = bytearray(header[header.index(COD) : header.index(COD) + 14])
    style[5] = 4  # CPRL
    packets = b"".join(stream[stream.index(SOD, stream.index(SOT)) + 2 : -2] for stream in streams)
    start = struct.pack(">HHIBB", 10, 0, 14 + len(packets), 0, 1)
    return b"".join(
        (
            b"\xff\x4f" + SIZ + struct.pack(">H", len(sizes) + 2) + sizes,
            bytes(style) + quantization + SOT + start + SOD + packets + b"\xff\xd9",
        )
    )
