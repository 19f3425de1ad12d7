"""Masks that a notebook shows as a picture."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.colors import LABEL_COLORS, rgb_of
from msdask.html import facts_html

__all__ = ["Mask"]

_COLORS = np.array([(245, 245, 245), (176, 96, 144), *map(rgb_of, LABEL_COLORS)], np.uint8)
"""RGB: glass, tissue, then classes; more classes than colours start again."""


class Mask(xr.DataArray):
    """A mask (y, x), bool or of labels with 0 = unlabeled: a DataArray that a notebook shows as a picture."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        values = np.asarray(self.values)
        if values.ndim != 2 or values.dtype.kind not in "bu" or not values.size:
            return str(super()._repr_html_())
        labels = values.astype(np.int64)
        shown = labels if values.dtype == np.bool_ else np.where(labels > 0, 2 + (labels - 1) % len(LABEL_COLORS), 0)
        return facts_html(str(self.name or "mask"), self._shown(values), _COLORS[shown], is_drawing=True)

    def _shown(self, values: NDArray[np.generic]) -> list[tuple[str, str]]:
        """Size, scale, source, and the share of the slide that each value has."""
        facts = [("size", f"{values.shape[1]:,} x {values.shape[0]:,} px")]
        if "mpp" in self.attrs:
            facts.append(("scale", f"{self.attrs['mpp']:g} µm/px"))
        if "source" in self.attrs:
            facts.append(("from", str(self.attrs["source"])))
        if values.dtype == np.bool_:
            return [*facts, ("tissue", f"{values.mean():.1%} of the slide")]
        names = self.attrs.get("classes", ())
        found, counts = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            name = "unlabeled" if not value else f"class {names[value - 1] if value <= len(names) else value - 1}"
            facts.append((name, f"{count / values.size:.1%} of the slide"))
        return facts
