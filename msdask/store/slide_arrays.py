"""One slide's arrays in a patch set: names, paths and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msdask.cutting.measures import FIRST_MEASURES, MEASURES
from msdask.errors import StoreError
from msdask.spec import Codec
from msdask.storage import places

__all__ = ["CRC_BYTES", "SCHEMA", "SlideArrays", "checksums_of", "measures_of"]

SCHEMA = 2
"""Of what is written. 2: the checksums of all chunks are a column of the slide's tables; 1 has none, and is read."""

CRC_BYTES = 4
"""Length of the checksum behind every chunk and index."""
_CELL_BYTES = 16
"""Of a chunk's offset and length in the index of its shard."""


@dataclass(frozen=True, slots=True)
class SlideArrays:
    """One slide's arrays: where they lie, and in what shape. All that a block's task needs to know of the store.

    Attributes
    ----------
    path : of the slide's group; a URL in object storage
    codec : of the store
    shape : (patches, magnifications)
    rows : patches in a shard
    patch_size : px
    schema : that the slide was written in
    measures : how many of `msdask.cutting.measures.MEASURES` were, or are, measured on its patches
    digests : (name, digest) of the columns of chunks' checksums, of a complete slide: what is read must fit them
    """

    path: str
    codec: Codec
    shape: tuple[int, int]
    rows: int
    patch_size: int
    schema: int = SCHEMA
    measures: int = len(MEASURES)
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def blocks(self) -> int:
        """Number of shards of `image`."""
        return -(-self.shape[0] // self.rows)

    def block(self, index: int) -> slice:
        """Rows of one block."""
        return slice(index * self.rows, min((index + 1) * self.rows, self.shape[0]))

    def array_path(self, name: str) -> str:
        """Directory of one of the slide's arrays."""
        return places.join(self.path, name)

    def shard_path(self, name: str, block: int) -> str:
        """File of one shard of `image` or `label_map`."""
        rest = ["0"] * (len(self.chunk_shape(name)) - 1)
        return places.join(self.path, name, "c", str(block), *rest)

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one inner chunk: one patch at one magnification."""
        size = self.patch_size
        return (1, 1, size, size, 3) if name == "image" else (1, 1, size, size)

    def checksums_path(self, name: str, block: int) -> str:
        """File of a block's rows of the column of checksums that belongs to `image` or `label_map`."""
        return places.join(self.path, checksums_of(name), "c", str(block), "0")

    def array_codec(self, name: str) -> Codec:
        """Codec of one of the sharded arrays; label maps are always raw."""
        return self.codec if name == "image" else "raw"

    def chunk_bytes(self, name: str) -> int | None:
        """Bytes of every stored chunk with its checksum; None where they differ from patch to patch."""
        return math.prod(self.chunk_shape(name)) + CRC_BYTES if self.array_codec(name) == "raw" else None

    @property
    def shard_shape(self) -> tuple[int, int]:
        """(patches, magnifications) of a shard."""
        return self.rows, self.shape[1]

    @property
    def index_bytes(self) -> int:
        """Length of the index at a shard's end, its checksum included."""
        return self.rows * self.shape[1] * _CELL_BYTES + CRC_BYTES


def checksums_of(name: str) -> str:
    """Column with the CRC32C of every chunk of `image` or `label_map`.

    It says of each place in the slide which bytes belong there: a shard that was put in the place of another has sound
    chunks, but not these.
    """
    return f"{name}_crc"


def measures_of(path: str, attrs: Mapping[str, Any]) -> int:
    """How many measures a slide's array `measured` has, as its document says; earlier versions said nothing.

    Raises
    ------
    StoreError
        It is no list of names, or one that lacks the first ones.
    """
    names = attrs.get("measures", list(FIRST_MEASURES))
    if not isinstance(names, list) or names[: len(FIRST_MEASURES)] != list(FIRST_MEASURES):
        raise StoreError(
            f"'{path}' says that {names!r} were measured; expected a list that begins with "
            f"{', '.join(FIRST_MEASURES)}: the store was changed from outside; restore it or extract again"
        )
    return len(names)
