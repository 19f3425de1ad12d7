"""Which patches of a set a dataset takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from msdask.data.patches import Patches, StoredPatches
from msdask.store.keep_rule import Keep, kept

__all__ = ["Choice", "columns_of"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which patches of a set a dataset takes."""

    slides: Sequence[str] | None
    splits: Sequence[str] | None
    labels: Sequence[int] | Literal["labeled"] | None
    keep: Keep

    def mask(self, index: Any, table: Callable[[], pd.DataFrame]) -> NDArray[np.bool_]:
        """(patches,) bool.

        Parameters
        ----------
        index : of the set
        table : gives what a rule may ask for, a row a patch of the index
        """
        names = np.asarray(index.attrs["slides"], object)
        taken = np.ones(index.sizes["patch"], bool)
        if self.slides is not None:
            taken &= np.isin(names, list(self.slides))[index["slide"].values] if len(names) else taken
        if self.splits is not None:
            numbers = [i for i, name in enumerate(index.attrs["splits"]) if name in self.splits]
            taken &= np.isin(index["split"].values, numbers)
        if isinstance(self.labels, str):
            taken &= index["label"].values >= 0
        elif self.labels is not None:
            taken &= np.isin(index["label"].values, list(self.labels))
        if isinstance(self.keep, bool):
            return taken & index["keep"].values if self.keep else taken
        return taken & kept(self.keep, table())


def columns_of(patches: Patches, index: xr.Dataset) -> pd.DataFrame:
    """What is known of the patches of a set, in the order of its index: a stored set's table, else the index itself."""
    if isinstance(patches, StoredPatches):
        return patches.table()
    table = {str(name): values.values for name, values in index.items()}
    slides, splits = (np.asarray([*index.attrs[name], ""], object) for name in ("slides", "splits"))
    return pd.DataFrame({**table, "slide_id": slides[table["slide"]], "split": splits[table["split"]]})
