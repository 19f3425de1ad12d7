"""Outlines as GeoJSON for QuPath: written as they come, so that a file may hold more than memory does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, Any, Final, Literal
from uuid import UUID

import imagecodecs
import numpy as np
import orjson
from numpy.typing import NDArray

from msdask.computing import Beside
from msdask.errors import SpecError
from msdask.masks.outlines import Outlines
from msdask.storage.files import replacing

__all__ = ["write_geojson"]

ObjectType = Literal["annotation", "detection"]

_AT_ONCE: Final = 4096
"""Polygons that are Python objects at a time."""
_DECIMALS: Final = 3
_NAMESPACE: Final = UUID("6f1a3b86-6f0e-5d9c-9a3e-3d0c5d1f7b52").bytes
"""Of the ids, which are UUIDs of version 5."""
_MEMBER_BYTES: Final = 4 << 20


def write_geojson(
    path: str | os.PathLike[str],
    outlines: Outlines | Iterable[Outlines],
    *,
    colors: Mapping[str, tuple[int, int, int]] | None = None,
    object_type: ObjectType = "annotation",
) -> int:
    """Write polygons as a FeatureCollection that QuPath opens, each with its class.

    The same polygons in the same parts of any size give the same bytes: coordinates are rounded to 1/1000 px, an id is
    a UUID made of the polygon's number, class and corners, and gzip gets no time.

    Parameters
    ----------
    path : file to write; compressed where its name ends in ".gz"
    outlines : polygons in level-0 px, or parts of them that are made as they are written. Rings are closed and turned
        (outer rings with an area above 0, as RFC 7946 has them); that none crosses itself is the caller's business,
        those of `polygons_of` never do
    colors : of classes, RGB of 0 to 255; QuPath chooses its own for those that have none
    object_type : "annotation", or "detection", which QuPath draws faster where there are very many

    Returns
    -------
    count : polygons written

    Raises
    ------
    SpecError
        A polygon has a ring of fewer than three corners, or corners that are no finite numbers.
    FileWriteError
        The file cannot be written; what was there before stays.
    """
    if object_type not in ("annotation", "detection"):
        raise SpecError(f"object_type={object_type!r}: expected 'annotation' or 'detection'")
    parts = (outlines,) if isinstance(outlines, Outlines) else outlines
    count = 0
    with replacing(path, what="GeoJSON") as part, _opened(part) as stream, Beside() as thread:
        thread.call(stream.write, b'{"type":"FeatureCollection","features":[')
        for polygons in _pieces(parts):
            features = _features(polygons, count, colors or {}, object_type, path)
            thread.call(stream.write, (b",\n" if count else b"\n") + b",\n".join(features))
            count += len(polygons)
        thread.call(stream.write, b"\n]}\n")
    return count


class _Gzip:
    """A gzip file, member by member: they are compressed four times as fast as a stream of the standard library is.

    Every reader of gzip takes members one behind the other as one file. Where they end depends on the content alone.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._waiting = raw, bytearray()

    def write(self, data: bytes) -> None:
        """Write, a member at a time."""
        self._waiting += data
        while len(self._waiting) >= _MEMBER_BYTES:
            self._write_member(_MEMBER_BYTES)

    def close(self) -> None:
        """Write what is left; does not close the file under it."""
        if self._waiting:
            self._write_member(len(self._waiting))

    def _write_member(self, length: int) -> None:
        self._raw.write(imagecodecs.gzip_encode(bytes(self._waiting[:length]), level=1))
        del self._waiting[:length]


@contextmanager
def _opened(path: os.PathLike[str]) -> Iterator[IO[bytes] | _Gzip]:
    with open(path, "wb") as raw:
        if not os.fspath(path).endswith(".gz"):
            yield raw
            return
        compressed = _Gzip(raw)
        yield compressed
        compressed.close()


def _pieces(parts: Iterable[Outlines]) -> Iterator[Outlines]:
    for outlines in parts:
        if 0 < len(outlines) <= _AT_ONCE:
            yield outlines
        else:
            for first in range(0, len(outlines), _AT_ONCE):
                yield outlines.take(slice(first, first + _AT_ONCE))


def _features(
    outlines: Outlines,
    first: int,
    colors: Mapping[str, tuple[int, int, int]],
    object_type: str,
    path: str | os.PathLike[str],
) -> list[bytes]:
    """Each polygon as text."""
    _check(outlines, first, path)
    geometries = _coordinates(outlines.oriented())
    classes = outlines.class_of.tolist()
    heads = [_NAMESPACE + name.encode() + b"\0" for name in outlines.classes]
    tails = [_tail(name, colors.get(name), object_type) for name in outlines.classes]
    ids = _uuids(
        heads[k] + b"%d\0" % number + geometry
        for number, (k, geometry) in enumerate(zip(classes, geometries, strict=True), first)
    )
    return [
        b'{"type":"Feature","id":"%s","geometry":{"type":"Polygon","coordinates":[[%s]]},%s'
        % (name, geometry, tails[k])
        for name, geometry, k in zip(ids, geometries, classes, strict=True)
    ]


def _coordinates(outlines: Outlines) -> list[bytes]:
    """The rings of each polygon as text, closed, without the brackets around them.

    All numbers become one text, brackets come between them, and it is cut where a ring ends: tens of times faster than
    ring by ring.
    """
    xy = np.round(outlines.xy, _DECIMALS) + 0.0  # -0.0 is 0.0
    starts, ends = outlines.rings[:-1], outlines.rings[1:]
    closed = np.insert(np.arange(len(xy)), ends, starts)
    # One list of numbers takes half the time of a list of corners.
    text = _without_zeros(orjson.dumps(xy[closed].reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY))
    commas = np.flatnonzero(text == ord(","))[1::2]
    text[commas] = ord(";")
    text[commas[(ends + np.arange(len(ends)))[:-1]]] = ord("|")
    within = text[1:-1].tobytes().replace(b";", b"],[").replace(b"|", b"]|[")
    rings = (b"[" + within + b"]").split(b"|")
    if len(rings) == len(outlines):
        return rings
    polygons = outlines.polygons.tolist()
    return [b"],[".join(rings[start:end]) for start, end in pairwise(polygons)]


def _without_zeros(text: bytes) -> NDArray[np.uint8]:
    """Numbers of a JSON list, whole ones without a point: "[1.0,2.5]" is "[1,2.5]"."""
    characters = np.frombuffer(text, np.uint8)
    is_end = (characters[2:] == ord(",")) | (characters[2:] == ord("]"))
    point = np.flatnonzero((characters[:-2] == ord(".")) & (characters[1:-1] == ord("0")) & is_end)
    keep = np.ones(len(characters), np.bool_)
    keep[point] = keep[point + 1] = False
    return characters[keep]


def _tail(name: str, color: tuple[int, int, int] | None, object_type: str) -> bytes:
    """What is the same for all polygons of a class: their properties, and the end of the feature."""
    classification: dict[str, Any] = {"name": name}
    if color is not None:
        classification["color"] = [int(value) for value in color]
    properties = {"objectType": object_type, "classification": classification}
    return orjson.dumps({"properties": properties})[1:-1] + b"}"


def _uuids(contents: Iterable[bytes]) -> list[bytes]:
    """UUIDs of version 5 as text, as `uuid.uuid5` makes them."""
    digests = b"".join(hashlib.sha1(content, usedforsecurity=False).digest() for content in contents)
    fields = np.frombuffer(digests, np.uint8).reshape(-1, 20)[:, :16].copy()
    fields[:, 6] = fields[:, 6] & 0x0F | 0x50
    fields[:, 8] = fields[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(fields.tobytes().hex().encode(), np.uint8).reshape(-1, 32)
    text = np.insert(digits, [8, 12, 16, 20], ord("-"), axis=1).tobytes()
    return [text[start : start + 36] for start in range(0, len(text), 36)]


def _check(outlines: Outlines, first: int, path: str | os.PathLike[str]) -> None:
    few = np.flatnonzero(np.diff(outlines.rings) < 3)
    if few.size:
        number = int(np.searchsorted(outlines.polygons, few[0], side="right")) - 1
        corners = int(np.diff(outlines.rings)[few[0]])
        raise SpecError(
            f"GeoJSON '{os.fspath(path)}': polygon {first + number} has a ring of {corners} corners; expected three or "
            "more: leave it out"
        )
    is_finite = np.isfinite(outlines.xy)
    if not is_finite.all():
        odd = int(np.argmin(is_finite.all(axis=1)))
        number = int(np.searchsorted(outlines.corners, odd, side="right")) - 1
        raise SpecError(
            f"GeoJSON '{os.fspath(path)}': polygon {first + number} has a corner at {outlines.xy[odd].tolist()}; "
            "expected finite numbers"
        )
