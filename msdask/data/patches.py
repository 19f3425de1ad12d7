"""What a dataset reads: the protocol of a set of patches, and the stored patch set behind it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import SpecError
from msdask.store import documents
from msdask.store.patch_set import PatchSet
from msdask.store.reading import ShardArray

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
    ) -> list[Future[None]]:
        """Begin to read rows of an array into ``out[places]``; they are there when every future is done."""
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

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """See `Patches.open`; checks that every shard is there."""
        arrays = self._set.arrays(slide_id)
        for name in names:
            if name != "image" and not documents.has_document(arrays.array_path(name)):
                raise SpecError(
                    f"slide '{slide_id}' of '{self.name}' has no {name}: write it with labels= given to msdask.patches"
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
    ) -> list[Future[None]]:
        """See `Patches.begin`."""
        return self._arrays[slide_id, name].submit(rows, out, places=places, columns=columns)
