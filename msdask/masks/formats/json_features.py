"""GeoJSON cut into its features as it is read: a file of a million of them is never in memory as Python objects."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from msdask.computing import ahead
from msdask.errors import MaskError
from msdask.storage.source import ByteSource

__all__ = ["MAX_TEXT_BYTES", "feature_lists"]

T = TypeVar("T")

MAX_TEXT_BYTES: Final = 8 << 30
"""Of JSON, unpacked: some thirty million outlines of nuclei."""
_MAX_FEATURE_BYTES: Final = 256 << 20
_BLOCK: Final = 1 << 20
_HEAD: Final = 1 << 16
"""Bytes within which the list of features begins, in a file that has one."""
_ARRAY = re.compile(rb'"features"\s*:\s*\[')
_QUOTE, _OPEN, _CLOSE, _BACKSLASH = 1, 2, 3, 4
_KINDS: Final = bytes(
    {34: _QUOTE, 91: _OPEN, 123: _OPEN, 93: _CLOSE, 125: _CLOSE, 92: _BACKSLASH}.get(c, 0) for c in range(256)
)
"""What each byte is to the structure of JSON; 0 for most."""


def feature_lists(
    source: ByteSource, quick: Callable[[bytes], T | None] = lambda _text: None
) -> Iterator[list[Any] | T]:
    """The members of a FeatureCollection or of a list, as parsed JSON, many at a time; anything else as one member.

    Parameters
    ----------
    source : the open file
    quick : tried before: what it makes of the text of whole members is given instead of them. None where that is no
        JSON, or nothing that it knows

    Raises
    ------
    MaskError
        The file is too large, damaged, or holds something else than features.
    """
    blocks = ahead(_unpacked(source))
    buffer, begin = b"", None
    for block in blocks:
        buffer = (buffer + block).removeprefix(b"\xef\xbb\xbf").lstrip()
        begin = _array_begin(buffer)
        if begin is not None or len(buffer) >= _HEAD:
            break
    if begin is None:
        for block in blocks:
            buffer += block
            _check_length(buffer, source.path)
        yield [_parsed(buffer, source.path)]
        return
    head, buffer = buffer[:begin], buffer[begin:]
    is_first = True
    while True:
        last, end = _likely_cut(buffer)
        text = _without_comma(buffer[:last], is_first)
        found = quick(text) if text else None
        if found is None:
            last, end = _cut(buffer)
        if last:
            yield _members(buffer[:last], is_first, source.path) if found is None else found
            is_first = False
        if end is not None:
            if buffer[last:end].strip():
                raise _damaged(source.path, f"{buffer[last:end].strip()[:20]!r} in the list of features")
            tail = buffer[end:] + b"".join(blocks)
            break
        buffer = buffer[last:]
        _check_length(buffer, source.path)
        more = next(blocks, b"")
        if not more:
            raise _damaged(source.path, "it ends within the list of features")
        buffer += more
    _check_rest(_parsed(head + tail, source.path), source.path)


def _without_comma(text: bytes, is_first: bool) -> bytes | None:
    """Members without the comma that must be before them where they are not the first; None where there is none."""
    text = text.lstrip()
    if is_first:
        return text
    return text[1:] if text.startswith(b",") else None


def _members(text: bytes, is_first: bool, path: str) -> list[Any]:
    members = _without_comma(text, is_first)
    if members is None:
        raise _damaged(path, f"{text.lstrip()[:20]!r} between two features, expected a comma")
    parsed: list[Any] = _parsed(b"[" + members + b"]", path)
    return parsed


def _check_rest(rest: Any, path: str) -> None:
    """What is around the features must say that it is a collection of them, or be their list alone."""
    if isinstance(rest, dict) and rest.get("type") != "FeatureCollection":
        raise MaskError(
            f"mask {path!r}: JSON of type {rest.get('type')!r} with features in it; expected a GeoJSON "
            "FeatureCollection: export it as GeoJSON"
        )


def _unpacked(source: ByteSource) -> Iterator[bytes]:
    """The file's text, block by block, unpacked where it is gzip of any number of members."""
    total = 0
    blocks: Iterator[bytes] = (source.read(offset, _BLOCK) for offset in range(0, source.size, _BLOCK))
    if source.read(0, 2) == b"\x1f\x8b":
        blocks = _gunzipped(blocks, source.path)
    for text in blocks:
        total += len(text)
        if total > MAX_TEXT_BYTES:
            raise MaskError(f"mask {source.path!r}: more than {MAX_TEXT_BYTES} bytes of JSON; expected less: split it")
        yield text


def _gunzipped(blocks: Iterable[bytes], path: str) -> Iterator[bytes]:
    """What gzip members hold, at most four blocks at a time, however well they are packed."""
    most = 4 * _BLOCK
    unpacker: Any = None
    for data in blocks:
        is_full = False
        while data or is_full:
            unpacker = unpacker or zlib.decompressobj(31)
            try:
                text = unpacker.decompress(data, most)
            except zlib.error as why:
                raise _damaged(path, f"gzip: {why}") from why
            data, is_full = unpacker.unconsumed_tail, len(text) == most
            if unpacker.eof:
                data, is_full, unpacker = unpacker.unused_data, False, None
            if text:
                yield text
    if unpacker is not None:
        raise _damaged(path, "its gzip stream is cut short")


def _array_begin(text: bytes) -> int | None:
    """Where the first feature of a list begins; None where the text is no list, and no object that has one."""
    if text[:1] == b"[":
        return 1
    for match in _ARRAY.finditer(text):
        depth = _brackets(text[: match.end()])[1]
        if len(depth) and int(depth[-1]) == 2:
            return match.end()
    return None


def _cut(text: bytes) -> tuple[int, int | None]:
    """The end of the last whole member, 0 if there is none; and where the list ends, None where it goes on."""
    positions, depth = _brackets(text)
    closing = np.flatnonzero(depth < 0)
    end = int(positions[closing[0]]) if closing.size else None
    if closing.size:
        positions, depth = positions[: closing[0]], depth[: closing[0]]
    whole = np.flatnonzero(depth == 0)
    return (int(positions[whole[-1]]) + 1 if whole.size else 0), end


def _likely_cut(text: bytes) -> tuple[int, int | None]:
    """What `_cut` gives, looked for in the last feature alone; 0 and None where it is the only one.

    That it is right, since this feature begins outside of strings and of other features, is known when all text up to
    the end found is JSON.
    """
    begin = text.rfind(b"{", 0, max(text.rfind(b'"Feature"'), 0))
    before = text[: max(begin, 0)].rstrip()
    members = before[:-1].rstrip()
    if not members or not before.endswith(b","):
        return 0, None
    last, end = _cut(text[begin:])
    return (begin + last if last else len(members)), (None if end is None else begin + end)


def _brackets(text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Brackets outside of strings: where they are, and how deep the text is nested after each."""
    # Of bytes and truth values: numpy's own look-up and search of numbers are several times slower.
    kinds = np.frombuffer(text.translate(_KINDS), np.uint8)
    positions = np.flatnonzero(kinds != 0)
    found = kinds[positions]
    slashes = positions[found == _BACKSLASH]
    if slashes.size:
        # A quote after an odd number of backslashes is part of a string.
        is_new = np.diff(slashes, prepend=-2) != 1
        begin = slashes[is_new]
        behind = slashes[np.append(is_new[1:], True)] + 1
        escaped = behind[(behind - begin) % 2 == 1]
        keep = (found != _BACKSLASH) & ~((found == _QUOTE) & np.isin(positions, escaped))
        positions, found = positions[keep], found[keep]
    is_quote = found == _QUOTE
    outside = ~is_quote & (np.cumsum(is_quote) % 2 == 0)
    positions, found = positions[outside], found[outside]
    return positions, np.cumsum(np.where(found == _OPEN, 1, -1))


def _parsed(text: bytes, path: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as why:
        raise _damaged(path, str(why)) from why


def _check_length(text: bytes, path: str) -> None:
    if len(text) > _MAX_FEATURE_BYTES:
        raise MaskError(f"mask {path!r}: a feature of more than {_MAX_FEATURE_BYTES} bytes; expected less: split it")


def _damaged(path: str, why: str) -> MaskError:
    return MaskError(f"mask {path!r}: is no whole GeoJSON ({why}); export or copy it again")
