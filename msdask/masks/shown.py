"""Masks that a notebook shows as a picture."""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Mask"]

_SIZE = 320
"""px of the picture's longer side, at most."""
_COLORS = np.array(
    [[245, 245, 245], [176, 96, 144], [240, 228, 66], [63, 43, 150], [0, 194, 199], [155, 27, 48], [143, 209, 79]],
    np.uint8,
)
"""RGB: glass, tissue, then classes as `msdask.plots` draws them; more classes than colours start again."""


class Mask(xr.DataArray):
    """A mask (y, x), bool or of labels with 0 = unlabeled: a DataArray that a notebook shows as a picture."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        values = np.asarray(self.values)
        if values.ndim != 2 or values.dtype.kind not in "bu" or not values.size:
            return str(super()._repr_html_())
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(key)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for key, value in self._shown(values)
        )
        return (
            "<div style='display:flex;gap:1em;align-items:flex-start'>"
            f"<img alt='mask' src='{_picture(values)}' style='max-height:{_SIZE}px;border:1px solid #888'>"
            f"<div><strong>{escape(str(self.name or 'mask'))}</strong><table>{rows}</table></div></div>"
        )

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


def _picture(values: NDArray[np.generic]) -> str:
    """A PNG of the mask, as an address."""
    step = max(1.0, max(values.shape) / _SIZE)
    rows, columns = (
        np.minimum((np.arange(max(1, int(n / step))) + 0.5) * step, n - 1).astype(int) for n in values.shape
    )
    small = values[np.ix_(rows, columns)]
    labels = small.astype(np.int64)
    shown = labels if values.dtype == np.bool_ else np.where(labels > 0, 2 + (labels - 1) % (len(_COLORS) - 2), 0)
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(_COLORS[shown][:, :, ::-1]))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
