"""What a dataset reads: the protocol of a set of patches, and the stored patch set behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.measures import count_labels
from msdask.errors import SpecError
from msdask.masks.label_plane import MAX_LABEL
from msdask.store import documents
from msdask.store.patch_set import PatchSet
from msdask.store.reading import ShardArray
from msdask.store.reading_threads import Begun, reading_pool

__all__ = ["Patches", "StoredPatches"]


class Patches(Protocol):
    """A set of patches as datasets see it: stored, virtual or linked."""

    @property
    def name(self) -> str:
        """Name of the set."""
        ...

    @property
    def magnifications(self) -> tuple[float, ...]:
        """Nominal ones of a patch's images, highest first."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of an image, px."""
        ...

    def index(self) -> xr.Dataset:
        """Columns of all patches, as `PatchSet.index` gives them."""
        ...

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """Facts of a slide; mpp and mpp_used are among them."""
        ...

    def labels(self, slide_id: str) -> NDArray[np.int16]:
        """(patch, magnification) int16, 0-based class, -1 none."""
        ...

    def label_pixels(self, slide_id: str, column: int) -> NDArray[np.uint32]:
        """(patch, label) uint32: px of each label in the label maps of one magnification, 0 = unlabeled first."""
        ...

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """Make ready to read arrays of a slide ("image", "label_map"); gives the patches of one of its blocks."""
        ...

    def begin(
        self,
        slide_id: str,
        name: str,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        *,
        places: NDArray[np.int64],
        columns: Sequence[int],
    ) -> Sequence[Begun]:
        """Begin to read rows of an array into ``out[places]``, or say what `reading_threads.start` begins to read."""
        ...


class StoredPatches:
    """A patch set in a store, its patches read one by one from its shards."""

    def __init__(self, patch_set: PatchSet) -> None:
        self._set = patch_set
        self.name = patch_set.name
        self.magnifications, self.patch_size = patch_set.spec.magnifications, patch_set.spec.patch_size
        self._arrays: dict[tuple[str, str], ShardArray] = {}

    def index(self) -> xr.Dataset:
        """See `Patches.index`."""
        return self._set.index()

    def table(self) -> pd.DataFrame:
        """The set's table: a row a patch, in the order of the index."""
        return self._set.table()

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """See `Patches.attrs`."""
        return self._set.attrs(slide_id)

    def labels(self, slide_id: str) -> NDArray[np.int16]:
        """See `Patches.labels`."""
        return self._set.columns(slide_id, ["label"])[0]

    def label_pixels(self, slide_id: str, column: int) -> NDArray[np.uint32]:
        """See `Patches.label_pixels`; stored for the highest magnification, otherwise all label maps are read."""
        if column == 0 and "label_pixels" in self._set.attrs(slide_id).get("arrays", ()):
            return self._set.columns(slide_id, ["label_pixels"])[0]
        self.open(slide_id, ["label_map"])
        maps = self._arrays[slide_id, "label_map"]
        pool, blocks = reading_pool(), range(maps.arrays.blocks)
        read = [pool.submit(_count_block, maps, block, column) for block in blocks]
        parts = [future.result() for future in read]
        counts = np.concatenate([np.zeros((0, MAX_LABEL + 1), np.uint32), *parts])
        return counts[:, : 1 + int(np.flatnonzero(counts.any(0))[-1])] if counts.any() else counts[:, :1]

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """See `Patches.open`; checks that every shard is there."""
        arrays = self._set.arrays(slide_id)
        for name in names:
            if name != "image" and not documents.has_document(arrays.array_path(name)):
                raise SpecError(
                    f"slide '{slide_id}' of '{self.name}' has no {name}: extract it with label maps "
                    "(ExtractionSpec(label_maps=True), --label-maps), or write it with labels= of msdask.patches"
                )
            self._arrays[slide_id, name] = ShardArray(arrays, name)
            self._arrays[slide_id, name].check_sizes()
        return arrays.rows

    def begin(
        self,
        slide_id: str,
        name: str,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        *,
        places: NDArray[np.int64],
        columns: Sequence[int],
    ) -> Sequence[Begun]:
        """See `Patches.begin`."""
        return self._arrays[slide_id, name].parts(rows, out, places=places, columns=columns)


def _count_block(maps: ShardArray, block: int, column: int) -> NDArray[np.uint32]:
    return count_labels(maps.read_block(block)[:, column : column + 1], MAX_LABEL + 1)
