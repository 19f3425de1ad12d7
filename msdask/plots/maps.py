"""Maps over their slide: classes with a legend, and values such as probabilities or attention with a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from msdask.colors import class_colors
from msdask.errors import SpecError
from msdask.plots.drawing import FOREGROUND, fitted, legend_below, scale_bar, slide_figure

if TYPE_CHECKING:
    from msdask.slides.slide import Slide

__all__ = ["class_map", "heat_map"]


def class_map(slide: Slide, found: xr.Dataset, *, max_size: int = 1200, opacity: float = 0.5) -> Figure:
    """The classes of a slide, in colors over its thumbnail, with each one's share of what was looked at.

    Parameters
    ----------
    slide : that the map is of
    found : as `msdask.classify_slide`, `msdask.segment_slide` or `msdask.open_segmentation` gives it; of a large
        segmentation a coarser level (``open_segmentation(path, level=3)``) is as good and quicker
    max_size : px, the thumbnail's longest side
    opacity : of the colors, 0 to 1
    """
    _check(slide, found)
    figure, axes = slide_figure(slide.thumbnail(max_size=max_size), slide.shape)
    is_segmented = "label" in found
    predicted = found["label"].values.astype(np.int16) - 1 if is_segmented else found["predicted"].values
    names = [str(name) for name in found["class"].values]
    colors = class_colors(len(names))
    table = np.array([(*to_rgb(color), opacity) for color in colors] + [(0.0, 0.0, 0.0, 0.0)])
    _overlay(axes, table[predicted], found)
    counts = np.bincount(predicted[predicted >= 0], minlength=len(names))
    total = max(1, int(counts.sum()))
    handles = [
        Patch(facecolor=(color, max(opacity, 0.5)), edgecolor=color, label=f"class {name} ({count / total:.1%})")
        for name, color, count in zip(names, colors, counts, strict=True)
    ]
    looked = f"{sum(found.attrs['area_mm2'].values()):,.2f} mm²" if is_segmented else f"{int(counts.sum()):,} patches"
    _finish(axes, slide, looked)
    legend_below(figure, axes, handles)
    return fitted(figure)


def heat_map(
    slide: Slide,
    values: xr.DataArray,
    *,
    title: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
    max_size: int = 1200,
    opacity: float = 0.6,
) -> Figure:
    """Values of a slide, in colors over its thumbnail: a class's probability, or the attention to a magnification.

    Parameters
    ----------
    slide : that the map is of
    values : (y, x), NaN where there is nothing, such as ``found["probability"].sel({"class": "tumor"})``
    title : what they are
    limits : values at the ends of the colors
    max_size : px, the thumbnail's longest side
    opacity : of the colors, 0 to 1
    """
    if values.ndim != 2:
        raise SpecError(f"values with dims {values.dims}: expected (y, x): choose one, as with .sel(magnification=20)")
    figure, axes = slide_figure(slide.thumbnail(max_size=max_size), slide.shape)
    norm = Normalize(*limits, clip=True)
    plain = values.values.astype(np.float64)
    colors = colormaps["viridis"](norm(np.nan_to_num(plain)))
    colors[..., 3] = np.where(np.isnan(plain), 0.0, opacity)
    _overlay(axes, colors, values)
    _finish(axes, slide, title)
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.0, -0.3 / height, min(1.0, 3.0 / width), 0.12 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap="viridis", extent=(*limits, 0, 1))
    bar.set_yticks([])
    bar.tick_params(labelsize=9, colors=FOREGROUND)
    return fitted(figure)


def _check(slide: Slide, found: xr.Dataset) -> None:
    if tuple(found.attrs["shape"]) != tuple(slide.shape):
        height, width = found.attrs["shape"]
        raise SpecError(
            f"slide {slide.name!r} is {slide.shape[1]} x {slide.shape[0]} px, the map is of one of {width} x {height}"
        )


def _overlay(axes: Axes, colors: NDArray[np.float64], found: xr.Dataset | xr.DataArray) -> None:
    """Draw one colored square a px of the map, in level-0 px."""
    y, x = found["y"].values, found["x"].values
    # One row alone has no neighbour to tell its height: px are square.
    step = next((float(v[1] - v[0]) for v in (x, y) if len(v) > 1), 2 * min(float(x[0]), float(y[0])))
    half = step / 2
    extent = (x[0] - half, x[-1] + half, y[-1] + half, y[0] - half)
    axes.imshow(colors, extent=extent, interpolation="nearest", zorder=2)


def _finish(axes: Axes, slide: Slide, what: str) -> None:
    scale_bar(axes, slide.mpp or slide.mpp_used, fraction=0.2, fontsize=10)
    axes.set_title(f"{slide.name}: {what}" if what else slide.name, fontsize=11, loc="left", color=FOREGROUND)
