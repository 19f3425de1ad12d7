"""Damage, by kind of file: blind damage to bytes, and lies where a format keeps its sizes and offsets."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

ABSURD = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x10000, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""Numbers that sizes, counts and offsets should not be."""
ABSURD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 2**31, 2**63, -(2**63), 1e308, 1e-308, "", "x", "..", "../../outside", "raw", "\u0000",
    "\ud800", [], {}, [0], [[]], [2**40, 2**40], {"a": {}}, "9" * 5000,
)  # fmt: skip

Random = np.random.Generator
Damage = Callable[[bytearray, Random], bytearray]


def mutate(data: bytes, seed: int, *, kind: str) -> bytes:
    """A damaged copy of `data`: one to three kinds of damage, at least one byte of difference where that can be.

    Parameters
    ----------
    kind : "tiff", "png", "jpeg", "json", "text" or "binary": which lies come on top of blind damage
    """
    rng = np.random.default_rng([seed, len(data)])
    special = {"tiff": _tiff_lie, "png": _png_lie, "jpeg": _jpeg_lie, "json": _json_lie, "text": _text_lie}.get(kind)
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if special is not None and rng.random() < 0.6:
            changed = special(changed, rng)
        elif changed:
            changed = BLIND[int(rng.integers(len(BLIND)))](changed, rng)
    return bytes(changed)


def _place(data: bytearray, rng: Random) -> int:
    """An offset; half of them near the file's ends, where headers and directories are."""
    draw = rng.random()
    if draw < 0.25:
        return int(rng.integers(min(len(data), 512)))
    if draw < 0.5:
        return len(data) - 1 - int(rng.integers(min(len(data), 1024)))
    return int(rng.integers(len(data)))


def _truncate(data: bytearray, rng: Random) -> bytearray:
    return data[: _place(data, rng)]


def _flip(data: bytearray, rng: Random) -> bytearray:
    for _ in range(int(rng.integers(1, 9))):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def _number(data: bytearray, rng: Random) -> bytearray:
    width, order = ((2, "little"), (4, "little"), (8, "little"), (2, "big"), (4, "big"))[int(rng.integers(5))]
    value = (*ABSURD, len(data), len(data) - 1)[int(rng.integers(len(ABSURD) + 2))]
    at = _place(data, rng)
    data[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, order)  # type: ignore[arg-type]
    return data


def _noise(data: bytearray, rng: Random) -> bytearray:
    at, length = _place(data, rng), int(rng.integers(1, 64))
    data[at : at + length] = rng.bytes(length)
    return data


def _zeros(data: bytearray, rng: Random) -> bytearray:
    at, length = _place(data, rng), int(rng.integers(1, 512))
    data[at : at + length] = bytes(len(data[at : at + length]))
    return data


def _delete(data: bytearray, rng: Random) -> bytearray:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 64))]
    return data


def _insert(data: bytearray, rng: Random) -> bytearray:
    at = _place(data, rng)
    data[at:at] = rng.bytes(int(rng.integers(1, 32)))
    return data


def _swap(data: bytearray, rng: Random) -> bytearray:
    length = int(rng.integers(1, 257))
    a, b = sorted((_place(data, rng), _place(data, rng)))
    first, second = data[a : a + length], data[b : b + length]
    if b - a >= length and len(second) == length:
        data[a : a + length], data[b : b + length] = second, first
    return data


def _repeat(data: bytearray, rng: Random) -> bytearray:
    a, b = _place(data, rng), _place(data, rng)
    return data[: max(a, b)] + data[min(a, b) :]


BLIND: tuple[Damage, ...] = (
    _truncate,
    _flip,
    _flip,
    _number,
    _number,
    _noise,
    _zeros,
    _delete,
    _insert,
    _swap,
    _repeat,
)


# --- TIFF -------------------------------------------------------------------------------------------------------------


def tiff_entries(data: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(offset, size) of every directory entry and of every link to a next directory, little-endian classic and Big."""
    is_big = data[:4] == b"II+\0"
    if data[:4] not in (b"II*\0", b"II+\0") or len(data) < 16:
        return [], []
    word, entry, head = ("<Q", 20, 8) if is_big else ("<I", 12, 4)
    link = (8, 8) if is_big else (4, 4)
    entries, links = [], [link]
    seen: set[int] = set()
    while link[0] + link[1] <= len(data) and len(seen) < 32:
        (at,) = struct.unpack_from(word, data, link[0])
        if at in seen or not 8 <= at < len(data) - 8:
            break
        seen.add(at)
        (count,) = struct.unpack_from("<Q" if is_big else "<H", data, at)
        start = at + (8 if is_big else 2)
        if start + count * entry + head > len(data):
            break
        entries += [(start + i * entry, entry) for i in range(count)]
        link = (start + count * entry, head)
        links.append(link)
    return entries, links


def _tiff_lie(data: bytearray, rng: Random) -> bytearray:
    entries, links = tiff_entries(bytes(data))
    if not entries:
        return _flip(data, rng) if data else data
    if rng.random() < 0.1:  # a chain of directories that leads back, or away
        at, size = links[int(rng.integers(len(links)))]
        target = int(rng.choice([links[0][0], entries[0][0] - 2, len(data) - 4, 0]))
        data[at : at + size] = target.to_bytes(size, "little")
        return data
    at, size = entries[int(rng.integers(len(entries)))]
    part = int(rng.integers(4))
    value_at, value_size = (at + 8, 4) if size == 12 else (at + 12, 8)
    if part == 0:
        data[at + 2 : at + 4] = int(rng.integers(0, 20)).to_bytes(2, "little")  # type
    elif part == 1:
        count = int(rng.choice([0, 1, 2, 3, 1000, 2**31 - 1]))
        data[at + 4 : value_at] = count.to_bytes(value_at - at - 4, "little")
    elif part == 2:
        tags = (254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 338, 347, 530)
        data[at : at + 2] = int(rng.choice(tags)).to_bytes(2, "little")
    else:
        near = int.from_bytes(data[value_at : value_at + value_size], "little")
        choices = (
            *ABSURD,
            len(data),
            near * 2,
            near * 1000,
            max(0, near - 1),
            near + 1,
            7,
            8,
            6,
            5,
            33003,
            34712,
            50000,
        )
        value = choices[int(rng.integers(len(choices)))] % (1 << (8 * value_size))
        data[value_at : value_at + value_size] = value.to_bytes(value_size, "little")
    return data


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


def _png_lie(data: bytearray, rng: Random) -> bytearray:
    """A lie in a chunk, with its checksum made right again: so it is believed."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append((at, length))
        at += 12 + length
    if not chunks:
        return _flip(data, rng) if data else data
    at, length = chunks[0] if rng.random() < 0.5 else chunks[int(rng.integers(len(chunks)))]
    if length == 0 or rng.random() < 0.1:
        return data[:at] + data[at + 12 + length :] + (data[at : at + 12 + length] if rng.random() < 0.5 else b"")
    body = at + 8
    if data[at + 4 : body] == b"IHDR" and rng.random() < 0.7:
        if rng.random() < 0.6:
            side = int(rng.choice([0, 1, 65_535, 20_000, 100_000, 2**31 - 1]))
            where = body + 4 * int(rng.integers(2))
            data[where : where + 4] = struct.pack(">I", side)
        else:
            data[body + 8 + int(rng.integers(5))] = int(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255]))
    else:
        data[body + int(rng.integers(length))] = int(rng.integers(256))
    data[body + length : body + length + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : body + length]))
    return data


def _jpeg_lie(data: bytearray, rng: Random) -> bytearray:
    frame = data.find(b"\xff\xc0")
    if frame < 0 or frame + 19 > len(data):
        return _flip(data, rng) if data else data
    if rng.random() < 0.6:
        where = frame + 5 + 2 * int(rng.integers(2))
        data[where : where + 2] = struct.pack(">H", int(rng.choice([0, 1, 7, 20_000, 65_535])))
    else:
        data[frame + 2 + int(rng.integers(17))] = int(rng.integers(256))
    return data


# --- text -------------------------------------------------------------------------------------------------------------


def _json_lie(data: bytearray, rng: Random) -> bytearray:
    """Another value, or none, somewhere in the document: still good JSON."""
    try:
        document = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return _flip(data, rng) if data else data
    if rng.random() < 0.03:
        return bytearray(b"[" * 100_000)
    holders: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
            holders.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    if not isinstance(document, (dict, list)) or not document:
        return data
    walk(document)
    node, key = holders[int(rng.integers(len(holders)))]
    draw = rng.random()
    if draw < 0.25:
        del node[key]
    elif draw < 0.5 and isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
        node[key] = node[key] * int(rng.choice([-1, 0, 2, 1000])) + int(rng.integers(-1, 2))
    elif draw < 0.6:
        other, name = holders[int(rng.integers(len(holders)))]
        node[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
    else:
        node[key] = ABSURD_VALUES[int(rng.integers(len(ABSURD_VALUES)))]
    return bytearray(json.dumps(document).encode())


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _text_lie(data: bytearray, rng: Random) -> bytearray:
    pieces = (
        b",", b'"', b"\n", b"\r", b"\0", b";", b"\t", b"../../", b"/etc/passwd", b"\xff\xfe", b"path", b"nan", b"inf",
        b"-1", b"1e999", b"0x10", b"'", b"=1+1", b"A" * 200_000, b"a" * 300, b"\xed\xa0\x80", b"\xe2\x80\xae", b"://",
        b"s3://", b".", b"_x",
    )  # fmt: skip
    at = int(rng.integers(len(data) + 1))
    piece = pieces[int(rng.integers(len(pieces)))]
    length = 0 if rng.random() < 0.6 else int(rng.integers(1, 12))
    data[at : at + length] = piece
    return data
