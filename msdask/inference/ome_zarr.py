"""OME-Zarr 0.5 as files: multiscale images and image-labels of maps, shard by shard, the same bytes every time.

A shard is a square of the map with all its channels, each channel one chunk in it. What is written appears whole or not
at all, in a folder or in object storage, and nothing but the values decides its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdask.storage import places
from msdask.store.array_documents import array_document, chunk_bytes
from msdask.store.documents import DOCUMENT
from msdask.store.integrity import checksum

if TYPE_CHECKING:
    import zarr

__all__ = [
    "SHARD",
    "VERSION",
    "group_document",
    "image_label",
    "is_written",
    "level_shapes",
    "multiscales",
    "omero",
    "open_array",
    "pyramid",
    "read_array",
    "read_document",
    "shards_of",
    "write_array",
    "write_array_document",
    "write_document",
    "write_part",
    "write_shard",
]

VERSION = "0.5"
"""Of the specification that these documents follow (https://ngff.openmicroscopy.org/0.5)."""
SHARD = 32
"""Side of a shard in px of the map: at most so many squared tuples are lost where a run is killed."""
_ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard leaves out."""
_SMALLEST = 64
"""A pyramid ends with the level whose longer side is at most so many px."""


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level of a pyramid, the finest first; each is half of the one before, rounded up."""
    shapes = [shape]
    while max(shapes[-1]) > _SMALLEST:
        rows, columns = shapes[-1]
        shapes.append((-(-rows // 2), -(-columns // 2)))
    return shapes


def pyramid(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """All levels of a map: each px is the mean of those of the four below it that are known.

    Parameters
    ----------
    values : (channel, y, x) float32, NaN where nothing is known

    Returns
    -------
    levels : the finest first, which is `values` itself
    """
    levels = [values]
    for rows, columns in level_shapes(values.shape[1:])[1:]:
        finer = levels[-1]
        padded = np.full((len(values), 2 * rows, 2 * columns), np.nan, np.float32)
        padded[:, : finer.shape[1], : finer.shape[2]] = finer
        fours = padded.reshape(len(values), rows, 2, columns, 2)
        known = ~np.isnan(fours)
        count = known.sum((2, 4))
        total = np.where(known, fours, 0).sum((2, 4), dtype=np.float64)
        levels.append(np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32))
    return levels


def multiscales(
    name: str,
    *,
    levels: int,
    px_um: float,
    first_um: tuple[float, float],
    has_channels: bool,
    kind: str,
    folder: str = "",
) -> list[dict[str, Any]]:
    """The "multiscales" of an image whose levels halve.

    Parameters
    ----------
    name : of the image
    levels : how many, at paths "0", "1", ...
    px_um : side of a px of the finest level, um
    first_um : (y, x) of the center of its first px, um; the center of the slide's first px is (0, 0)
    has_channels : whether y and x come after an axis of channels
    kind : how levels are made: "mean", "argmax of mean"
    folder : that the levels lie in, such as "labels/class/"; by default in the group itself
    """
    lead = [1.0] if has_channels else []
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if has_channels else []
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    datasets = []
    for level in range(levels):
        side = px_um * 2**level
        shift = (side - px_um) / 2  # of the center of the first px, which is larger on every level
        move = [*(0.0 for _ in lead), *(value + shift for value in first_um)]
        steps = [{"type": "scale", "scale": [*lead, side, side]}, {"type": "translation", "translation": move}]
        datasets.append({"path": f"{folder}{level}", "coordinateTransformations": steps})
    said = {"method": "of what is known of each 2 x 2 px", "axes": ["y", "x"]}
    return [{"name": name, "axes": axes, "datasets": datasets, "type": kind, "metadata": said}]


def omero(names: Sequence[str], colors: Sequence[str], *, top: float = 1.0) -> dict[str, Any]:
    """How viewers show channels of values from 0 to `top`; colors such as "#E69F00"."""
    window = {"min": 0.0, "max": top, "start": 0.0, "end": top}
    return {
        "channels": [
            {"label": name, "color": color.lstrip("#"), "active": True, "window": dict(window)}
            for name, color in zip(names, colors, strict=True)
        ]
    }


def image_label(names: Sequence[str], colors: Sequence[str]) -> dict[str, Any]:
    """The "image-label" of a map in which 0 is nothing and k + 1 is class k."""
    rgba = [[0, 0, 0, 0], *([*bytes.fromhex(color.lstrip("#")), 255] for color in colors)]
    named = ["not classified", *names]
    return {
        "version": VERSION,
        "colors": [{"label-value": value, "rgba": color} for value, color in enumerate(rgba)],
        "properties": [{"label-value": value, "class": name} for value, name in enumerate(named)],
        "source": {"image": "../../"},
    }


def group_document(ome: Mapping[str, Any] | None = None, **more: Any) -> bytes:
    """The document of a group; `ome` gets its version."""
    attributes = {} if ome is None else {"ome": {"version": VERSION, **ome}}
    document = {"attributes": {**attributes, **more}, "zarr_format": 3, "node_type": "group"}
    return json.dumps(document, indent=2).encode()


def write_document(path: str, document: bytes) -> None:
    """Write the document of a group or array, replacing what is there in one step."""
    file = places.join(path, DOCUMENT)
    places.at(file).write(file, [document])


def read_document(path: str) -> dict[str, Any] | None:
    """Attributes of a group or array; None where there is none.

    Raises
    ------
    ValueError
        It is no document.
    """
    file = places.join(path, DOCUMENT)
    try:
        text = places.at(file).read(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return dict(json.loads(text).get("attributes", {}))


def shards_of(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(row, column) of every shard of a map."""
    for row in range(-(-shape[0] // SHARD)):
        for column in range(-(-shape[1] // SHARD)):
            yield row, column


def write_array(path: str, values: NDArray[Any]) -> None:
    """Write a map, (channel, y, x) or (y, x), whole; shards in which nothing is known are left out."""
    write_array_document(path, values.shape, values.dtype)
    shape: tuple[int, int] = values.shape[-2:]
    for row, column in shards_of(shape):
        write_shard(path, values, row, column)


def write_array_document(
    path: str, shape: Sequence[int], dtype: Any, *, shard: int | None = None, chunk: int | None = None
) -> None:
    """Write the document of a map: NaN is what is not known of floats, 0 of whole numbers.

    Parameters
    ----------
    path : of the array
    shape, dtype : (channel, y, x) or (y, x)
    shard, chunk : px a side; None: `SHARD`, and one chunk a channel in it
    """
    side = shard or SHARD
    inner = (*(1 for _ in shape[:-2]), chunk or side, chunk or side)
    outer = (*shape[:-2], side, side)
    fill = np.nan if np.dtype(dtype).kind == "f" else 0
    names = ("c", "y", "x")[-len(shape) :]
    document = array_document(shape, outer, dtype, dims=names, fill_value=fill, compressed=True, inner=inner)
    write_document(path, document)


def write_shard(path: str, values: NDArray[Any], row: int, column: int) -> None:
    """Write one shard of a map, whose values are given whole; nothing where nothing of it is known."""
    part = values[..., row * SHARD : (row + 1) * SHARD, column * SHARD : (column + 1) * SHARD]
    write_part(path, part, row, column, shard=SHARD, chunk=SHARD)


def write_part(path: str, part: NDArray[Any], row: int, column: int, *, shard: int, chunk: int) -> None:
    """Write one shard of a map from its own px; nothing where nothing of it is known.

    Parameters
    ----------
    path : of the array
    part : (channel, y, x) or (y, x), at most `shard` px a side: less at the map's edges
    row, column : of the shard
    shard, chunk : px a side, as in the array's document
    """
    is_float = part.dtype.kind == "f"
    if not (~np.isnan(part) if is_float else part).any():
        return
    square = np.full((*part.shape[:-2], shard, shard), np.nan if is_float else 0, part.dtype)
    square[..., : part.shape[-2], : part.shape[-1]] = part
    n = shard // chunk
    cut = square.reshape(-1, n, chunk, n, chunk).swapaxes(2, 3).reshape(-1, chunk, chunk)
    known = (~np.isnan(cut) if is_float else cut != 0).any((1, 2))
    chunks = [chunk_bytes(cut[i], compressed=True) for i in np.flatnonzero(known)]
    index = np.full((len(cut), 2), _ABSENT, np.uint64)
    lengths = np.array([len(one) for one in chunks], np.uint64)
    index[known] = np.stack([np.cumsum(lengths) - lengths, lengths], 1)
    ends = index.astype("<u8").tobytes()
    file = _shard_path(path, part.ndim, row, column)
    places.at(file).write(file, [*chunks, ends, checksum(ends)])


def is_written(path: str, ndim: int, row: int, column: int) -> bool:
    """Whether a shard is there; it is whole then."""
    file = _shard_path(path, ndim, row, column)
    try:
        return places.at(file).size(file) > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _shard_path(path: str, ndim: int, row: int, column: int) -> str:
    return places.join(path, "c", *("0" for _ in range(ndim - 2)), str(row), str(column))


def open_array(path: str) -> zarr.Array[Any]:
    """A map as it is stored, to be read in parts; what is not written is NaN or 0."""
    import zarr

    store = places.zarr_store(path) if places.is_remote(path) else path
    return zarr.open_array(store, mode="r")


def read_array(path: str) -> NDArray[Any]:
    """A map as it is stored, whole."""
    return np.asarray(open_array(path)[...])
