"""Pictures of slides, masks and selections: each function returns a matplotlib Figure, without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch
from numpy.typing import NDArray

from msdask.colors import LABEL_COLORS
from msdask.computing import in_process
from msdask.errors import SpecError
from msdask.plots.drawing import (
    DPI,
    FOREGROUND,
    MASK,
    REJECTED,
    SCALE_COLORS,
    SELECTED,
    UNLABELED,
    PlainFigure,
    centered_square,
    fitted,
    frame,
    legend_below,
    outline,
    polygons,
    scale_bar,
    show,
    slide_figure,
    squares_at,
)
from msdask.plots.sheets import scale_name, spread
from msdask.scale import magnification_to_mpp, mpp_to_magnification
from msdask.spec import format_magnification

if TYPE_CHECKING:
    from msdask.slides.slide import Slide

__all__ = ["mask", "pyramid", "selection"]

_FILL = 0.12
"""Opacity of a patch in its class's colour; without classes it is an outline only: the tissue is what one looks at."""


def pyramid(
    slide: Slide,
    *,
    magnifications: Sequence[float] | None = None,
    center: tuple[float, float] | None = None,
    size_px: int = 320,
) -> Figure:
    """The same point of a slide at several magnifications, side by side (the paper's figure 1).

    Reads one window per magnification and a thumbnail. On each panel a square shows what the panel of the next higher
    magnification covers.

    Parameters
    ----------
    slide : with a known scale
    magnifications : one panel each; by default the slide's own and up to four halvings of it
    center : (x, y) in level-0 px; by default the most coloured spot of the thumbnail
    size_px : side of a panel's window, px at its magnification

    Raises
    ------
    MissingScaleError
        The slide does not say how large its pixels are.
    SpecError
        No magnification, a window without pixels, or a center outside the slide.
    """
    if size_px < 8:
        raise SpecError(f"size_px={size_px!r}: expected at least 8 px, such as 320")
    height, width = slide.shape
    mpp_used = slide.mpp_used
    if magnifications is None:
        magnifications = _halvings(mpp_to_magnification(mpp_used), min(height, width), size_px)
    scales = sorted({float(m) for m in magnifications})
    if not scales:
        raise SpecError("magnifications=[]: expected one or more numbers, such as [20, 10, 5]")
    thumbnail = slide.thumbnail(max_size=512)
    x, y = _most_coloured(thumbnail, slide.shape) if center is None else (float(center[0]), float(center[1]))
    if not (0 <= x <= width and 0 <= y <= height):
        raise SpecError(f"slide {slide.name!r}: center={center!r} lies outside its {width} x {height} level-0 px")

    shown = len(scales) + 1
    panel, gap, top = min(2.5, 10.5 / shown), 0.12, 0.6
    figure = PlainFigure(figsize=(shown * panel + (shown - 1) * gap, panel + top), dpi=DPI, facecolor="white")
    columns = GridSpec(1, shown, figure, left=0, right=1, bottom=0, top=panel / (panel + top), wspace=gap / panel)

    overview = figure.add_subplot(columns[0, 0])
    show(overview, thumbnail, extent=(0, width, height, 0))
    overview.set_anchor("N")
    overview.set_title("whole slide", fontsize=10, color=FOREGROUND)
    outline(
        overview, centered_square(x, y, size_px * magnification_to_mpp(scales[0]) / mpp_used), _scale_color(scales, 0)
    )
    scale_bar(overview, mpp_used)
    for i, magnification in enumerate(scales):
        mpp = magnification_to_mpp(magnification)
        axes = figure.add_subplot(columns[0, i + 1])
        show(axes, _window(slide, mpp, (x, y), size_px), extent=(0, size_px, size_px, 0))
        axes.set_title(scale_name(magnification), fontsize=10, color=FOREGROUND)
        frame(axes, _scale_color(scales, i))
        if i + 1 < len(scales):
            side = size_px * magnification / scales[i + 1]
            outline(axes, centered_square(size_px / 2, size_px / 2, side), _scale_color(scales, i + 1))
        scale_bar(axes, mpp)
    figure.text(0.0, 1.0, slide.name, ha="left", va="top", fontsize=11, color=FOREGROUND)
    return fitted(figure)


def selection(
    slide: Slide,
    table: xr.Dataset,
    *,
    mask: xr.DataArray | None = None,
    max_size: int = 1200,
    tuples: int = 3,
) -> Figure:
    """Which patches were taken: thumbnail, mask, lattice and selected patches (the paper's figures 2 and 3).

    Selected patches are green, or have the colour of their class where there are labels; the lattice's other positions
    are light gray. Of a multi-center selection a few tuples are drawn with the squares of their contexts.

    Parameters
    ----------
    slide : the slide that `table` was made for
    table : a selection with dims (patch, magnification), level-0 px; attrs "footprint", and "start", "step" and
        "grid_shape" for the positions that were not taken
    mask : (y, x) bool or integer; its outline is drawn, and attrs "classes" name the labels; by default the one that
        the table carries, if any
    max_size : px, the thumbnail's longest side
    tuples : how many tuples are drawn with their contexts
    """
    height, width = slide.shape
    mask = table.get("mask") if mask is None else mask
    thumbnail = slide.thumbnail(max_size=max_size)
    figure, axes = slide_figure(thumbnail, slide.shape)
    corner = np.stack([table["x0"].values, table["y0"].values], axis=-1).astype(float)
    footprint = [float(side) for side in np.atleast_1d(table.attrs["footprint"])]
    scales = [float(m) for m in np.atleast_1d(table["magnification"].values)]
    names = [format_magnification(m) for m in scales]
    # A line as thick as the patch is wide would hide it: thin lines on fine lattices.
    points_per_px = axes.get_window_extent().width * 72 / figure.dpi / width
    line = float(np.clip(0.05 * footprint[0] * points_per_px, 0.15, 1.0))
    handles: list[Patch] = []

    if mask is not None:
        _mask_outline(axes, np.asarray(mask.values) > 0, slide.shape)
        handles.append(Patch(facecolor="none", edgecolor=MASK, linewidth=1.2, label="mask"))
    rejected = _rejected(table, corner[:, 0])
    if len(rejected):
        polygons(axes, squares_at(rejected, footprint[0]), edge=REJECTED, width=0.8 * line, gid="rejected")
        handles.append(Patch(facecolor="none", edgecolor=REJECTED, label=f"not selected ({len(rejected):,})"))
    for chosen, name, color in _groups(table, mask):
        squares = squares_at(corner[chosen, 0], footprint[0])
        fill = 0.0 if color == SELECTED else _FILL
        polygons(axes, squares, edge=color, width=1.3 * line, fill=fill, zorder=3, gid="selected")
        handles.append(Patch(facecolor=(color, fill), edgecolor=color, label=f"{name} ({len(squares):,})"))

    low, high = np.zeros(2), np.array([width, height], dtype=float)
    shown = spread(len(corner), tuples) if len(scales) > 1 else np.zeros(0, dtype=np.int64)
    if len(shown):
        for i in range(len(scales) - 1, -1, -1):
            squares = squares_at(corner[shown, i], footprint[i])
            color = SCALE_COLORS[i % len(SCALE_COLORS)]
            outline(axes, squares, color, gid=f"context {names[i]}" if i else "centroid")
            low, high = np.minimum(low, squares.min((0, 1))), np.maximum(high, squares.max((0, 1)))
            label = f"context at {names[i]}" if i else f"centroid at {names[0]}"
            handles.append(Patch(facecolor="none", edgecolor=color, linewidth=1.8, label=label))
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])
    scale_bar(axes, slide.mpp_used, fraction=0.2, fontsize=10)
    what = "tuples at " if len(scales) > 1 else "patches at "
    axes.set_title(f"{slide.name}: {len(corner):,} {what}{', '.join(names)}", fontsize=11, loc="left", color=FOREGROUND)
    legend_below(figure, axes, handles)
    return fitted(figure)


def _scale_color(ascending: Sequence[float], i: int) -> str:
    return SCALE_COLORS[(len(ascending) - 1 - i) % len(SCALE_COLORS)]


def _halvings(finest: float, shortest_px: int, size_px: int) -> list[float]:
    """The slide's magnification and its halvings, as long as a window is not larger than the slide."""
    return [finest / 2**k for k in range(5) if k == 0 or size_px * 2**k <= shortest_px]


def _most_coloured(thumbnail: NDArray[np.uint8], shape: tuple[int, int]) -> tuple[float, float]:
    """(x, y) in level-0 px of the spot with the strongest colour around it: tissue rather than glass or dust."""
    colour = thumbnail.max(axis=-1).astype(np.float32) - thumbnail.min(axis=-1)
    # A wide Gaussian, so that the middle of a piece wins over its darkest rim.
    smooth = cv2.GaussianBlur(colour, (0, 0), sigmaX=max(1.0, min(colour.shape) / 10), borderType=cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    return float((column + 0.5) * shape[1] / colour.shape[1]), float((row + 0.5) * shape[0] / colour.shape[0])


def _window(slide: Slide, mpp: float, center: tuple[float, float], size_px: int) -> NDArray[np.uint8]:
    """(size_px, size_px, 3) pixels around a level-0 point; white outside the slide."""
    image = slide.at(mpp=mpp)
    ratio = mpp / slide.mpp_used
    height, width = image.sizes["y"], image.sizes["x"]
    x, y = (round(value / ratio - size_px / 2) for value in center)
    x_in, y_in = slice(max(x, 0), min(x + size_px, width)), slice(max(y, 0), min(y + size_px, height))
    pixels = np.full((size_px, size_px, 3), 255, dtype=np.uint8)
    if x_in.start < x_in.stop and y_in.start < y_in.stop:
        inside = image.isel(y=y_in, x=x_in).compute(scheduler=in_process()).values
        pixels[y_in.start - y : y_in.stop - y, x_in.start - x : x_in.stop - x] = inside
    return pixels


def mask(slide: Slide, mask: xr.DataArray, *, max_size: int = 1000) -> Figure:
    """A mask over its slide: the outline of the tissue, or each class in its colour.

    Parameters
    ----------
    slide : that the mask is of
    mask : (y, x) bool, as `tissue_mask` gives it, or integer with 0 = unlabeled and k + 1 = class k
    max_size : px, the thumbnail's longest side
    """
    figure, axes = slide_figure(slide.thumbnail(max_size=max_size), slide.shape)
    values = np.asarray(mask.values)
    _mask_outline(axes, values > 0, slide.shape)
    share = float((values > 0).mean())
    if values.dtype == np.bool_:
        handles = [Patch(facecolor="none", edgecolor=MASK, linewidth=1.2, label=f"tissue ({share:.1%})")]
    else:
        names, labels = mask.attrs.get("classes", ()), np.unique(values[values > 0]).astype(int) - 1
        table = np.zeros((int(values.max(initial=0)) + 1, 4))
        handles = []
        for k in labels.tolist():
            color = LABEL_COLORS[k % len(LABEL_COLORS)]
            table[k + 1] = to_rgba(color, 0.45)
            label = f"class {names[k] if k < len(names) else k} ({float((values == k + 1).mean()):.1%})"
            handles.append(Patch(facecolor=(color, 0.45), edgecolor=color, label=label))
        axes.imshow(table[values], extent=(0, slide.shape[1], slide.shape[0], 0), interpolation="nearest", zorder=2)
    if slide.mpp is not None:
        scale_bar(axes, slide.mpp, fraction=0.2, fontsize=10)
    axes.set_title(f"{slide.name}: mask", fontsize=11, loc="left", color=FOREGROUND)
    legend_below(figure, axes, handles)
    return fitted(figure)


def _rejected(table: xr.Dataset, corner: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) origins of the lattice's positions that were not selected; none if the lattice is unknown."""
    if not {"start", "step", "grid_shape"} <= set(table.attrs):
        return np.zeros((0, 2))
    rows, columns = (int(v) for v in table.attrs["grid_shape"])
    start, step = np.asarray(table.attrs["start"], dtype=np.float64), float(table.attrs["step"])
    cell = np.rint((corner - start) / step).astype(np.int64)
    free = np.ones((rows, columns), dtype=bool)
    known = ((cell >= 0) & (cell < [columns, rows])).all(axis=1)
    free[cell[known, 1], cell[known, 0]] = False
    y, x = np.nonzero(free)
    origins: NDArray[np.float64] = start + np.stack([x, y], axis=-1) * step
    return origins


def _groups(table: xr.Dataset, mask: xr.DataArray | None) -> list[tuple[NDArray[np.bool_], str, str]]:
    """(rows, name, colour) of what is drawn in one colour: all selected patches, or those of each class."""
    count = table.sizes["patch"]
    label = table["label"].values if "label" in table else np.full(count, -1)
    label = label[:, 0] if label.ndim == 2 else label
    if not (label >= 0).any():
        return [(np.ones(count, dtype=bool), "selected", SELECTED)] if count else []
    stated: list[Mapping[Any, Any]] = [table.attrs] + ([mask.attrs] if mask is not None else [])
    classes = next((attrs["classes"] for attrs in stated if attrs.get("classes") is not None), ())
    groups = []
    for k in sorted(np.unique(label).tolist(), key=lambda k: (k < 0, k)):
        name = "no class" if k < 0 else f"class {classes[k]}" if k < len(classes) else f"class {k}"
        groups.append((label == k, name, UNLABELED if k < 0 else LABEL_COLORS[k % len(LABEL_COLORS)]))
    return groups


def _mask_outline(axes: Axes, mask: NDArray[np.bool_], shape: tuple[int, int], longest: int = 1600) -> None:
    reduce = max(1, -(-max(mask.shape) // longest))
    if reduce > 1:
        size = (-(-mask.shape[1] // reduce), -(-mask.shape[0] // reduce))
        mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127
    rows, columns = mask.shape
    # One px of background all around, so that outlines close where tissue touches the slide's edge.
    closed = np.pad(mask.astype(np.float32), 1)
    x = np.clip((np.arange(-1, columns + 1) + 0.5) * shape[1] / columns, 0, shape[1])
    y = np.clip((np.arange(-1, rows + 1) + 0.5) * shape[0] / rows, 0, shape[0])
    if mask.any():
        axes.contour(x, y, closed, levels=[0.5], colors=[MASK], linewidths=1.2, zorder=4)
