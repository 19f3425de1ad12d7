"""What every figure is made of: colours, squares, outlines, scale bars, and a Figure that notebooks show."""

from __future__ import annotations

import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, withStroke
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

__all__ = [
    "DPI",
    "FOREGROUND",
    "MASK",
    "REJECTED",
    "SCALE_COLORS",
    "SELECTED",
    "UNLABELED",
    "PlainFigure",
    "centered_square",
    "fitted",
    "frame",
    "legend_below",
    "outline",
    "polygons",
    "round_length",
    "scale_bar",
    "show",
    "slide_figure",
    "squares_at",
]

SELECTED = "#009E73"
REJECTED = "#B4B4B4"
UNLABELED = "#555555"
MASK = "#000000"
SCALE_COLORS = (SELECTED, "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
"""One colour per magnification, the highest first, from the colour-blind-safe palette of Okabe and Ito."""

DPI = 120
FOREGROUND = "#1A1A1A"


class PlainFigure(Figure):
    """A Figure that notebooks show without pyplot, and only once (pyplot's own figures show twice when returned).

    As a JPEG: tissue as PNG would make a notebook of a few pictures several MB large.
    """

    def _repr_jpeg_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="jpeg", pil_kwargs={"quality": 75, "optimize": True})
        return buffer.getvalue()


def scale_bar(axes: Axes, mpp: float, *, fraction: float = 0.3, fontsize: float = 8.0) -> Rectangle:
    """Draw a bar of a round length in the lower left corner: black on a white backing, readable on light and dark.

    Parameters
    ----------
    axes : shows an image in px of `mpp`
    mpp : µm per unit of the axes
    fraction : the bar takes at most this part of the width

    Returns
    -------
    bar : its width in px of the axes is its length in µm / mpp
    """
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    length = round_length(fraction * abs(right - left) * mpp)
    # Margins and thickness follow the font, so that the bar looks alike on small and on large pictures.
    axes.apply_aspect()
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    up = (top - bottom) / (axes.get_window_extent().height * 72 / dpi) * fontsize
    right_way = math.copysign(abs(up), right - left)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    x, y, width = left + 0.9 * right_way, bottom + 0.8 * up, math.copysign(length / mpp, right - left)
    wide = max(abs(width), TextPath((0, 0), text, size=1).get_extents().width * abs(up))
    backing = Rectangle(
        (x - 0.4 * right_way, y - 0.35 * up),
        wide * math.copysign(1, right_way) + 0.8 * right_way,
        2.2 * up,
        facecolor=(1, 1, 1, 0.85),
        edgecolor="none",
        zorder=7,
    )
    axes.add_patch(backing)
    bar = Rectangle((x, y), width, 0.35 * up, facecolor="black", edgecolor="none", zorder=8)
    bar.set_gid("scale bar")
    axes.add_patch(bar)
    axes.text(x, y + 0.6 * up, text, fontsize=fontsize, color="black", va="bottom", zorder=8)
    return bar


def round_length(longest: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `longest`."""
    power = 10.0 ** math.floor(math.log10(longest) + 1e-9)
    return next(step * power for step in (5.0, 2.0, 1.0) if step * power <= longest * (1 + 1e-9))


def show(axes: Axes, pixels: NDArray[np.uint8], *, extent: tuple[float, float, float, float]) -> None:
    """An image (y, x, 3) without ticks; `extent` is (left, right, bottom, top) in the axes' units."""
    axes.imshow(pixels, extent=extent, interpolation="antialiased", aspect="equal")
    # What is drawn on top must not change what is seen.
    axes.autoscale(False)
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes, REJECTED, width=0.8)


def slide_figure(thumbnail: NDArray[np.uint8], shape: tuple[int, int]) -> tuple[Figure, Axes]:
    """A figure about as many px large as the thumbnail; its axes are in level-0 px. A tall slide is made smaller.

    Call `fitted` when all is drawn: it makes room for what stands around.
    """
    longest = float(np.clip(max(thumbnail.shape[:2]) / DPI, 4.0, 13.5))
    # A notebook's screen is wider than high.
    scale = min(longest / shape[1], 0.75 * longest / shape[0])
    wide, tall = max(shape[1] * scale, 3.0), max(shape[0] * scale, 1.5)
    figure = PlainFigure(figsize=(wide, tall), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    show(axes, thumbnail, extent=(0, shape[1], shape[0], 0))
    axes.set_anchor("W")
    return figure, axes


def fitted(figure: Figure, margin: float = 0.1) -> Figure:
    """The figure, as large as what is drawn on it: nothing is clipped, however it is saved.

    Parameters
    ----------
    figure : its axes and texts keep their sizes
    margin : around all of it, inches
    """
    FigureCanvasAgg(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    new = box.width + 2 * margin, box.height + 2 * margin
    places = [axes.get_position(original=True).bounds for axes in figure.axes]
    figure.set_size_inches(*new)
    for axes, (x, y, w, h) in zip(figure.axes, places, strict=True):
        left, low = (x * width - box.x0 + margin) / new[0], (y * height - box.y0 + margin) / new[1]
        axes.set_position((left, low, w * width / new[0], h * height / new[1]))
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position(((x * width - box.x0 + margin) / new[0], (y * height - box.y0 + margin) / new[1]))
    return figure


def legend_below(figure: Figure, axes: Axes, handles: list[Patch]) -> None:
    """A legend under the axes, in as many columns as its names leave room for."""
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.55 + 0.078 * longest))))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=columns, fontsize=10, frameon=False)


def frame(axes: Axes, color: str, *, width: float = 2.0) -> None:
    """Colour the axes' border."""
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=width)


def polygons(
    axes: Axes,
    corners: NDArray[np.float64],
    *,
    edge: str,
    width: float,
    fill: float = 0.0,
    zorder: float = 2,
    gid: str = "",
) -> PolyCollection:
    """Many polygons of one colour as one artist, whatever their number.

    Parameters
    ----------
    corners : (n, points, 2) x and y
    edge : colour of the lines and of the fill
    width : of the lines, points
    fill : opacity of the inside, 0 to 1
    """
    collection = PolyCollection(
        corners,  # type: ignore[arg-type]  # an array is drawn faster than the sequence that the stub asks for
        facecolors=[to_rgba(edge, fill)],
        edgecolors=edge,
        linewidths=width,
        zorder=zorder,
        gid=gid,
    )
    axes.add_collection(collection)
    return collection


def outline(axes: Axes, corners: NDArray[np.float64], color: str, *, gid: str = "outline") -> None:
    """A few polygons, (n, points, 2), as coloured lines on a white rim."""
    lines = polygons(axes, corners, edge=color, width=1.8, zorder=5, gid=gid)
    lines.set_path_effects([withStroke(linewidth=3.4, foreground="white"), Normal()])


def squares_at(corner: NDArray[np.float64], side: float) -> NDArray[np.float64]:
    """(n, 4, 2) corners of squares given by their (n, 2) upper left ones (x, y)."""
    unit = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    squares: NDArray[np.float64] = corner[:, None, :] + side * unit[None]
    return squares


def centered_square(x: float, y: float, side: float) -> NDArray[np.float64]:
    """(1, 4, 2) corners of the square around a point."""
    return squares_at(np.array([[x - side / 2, y - side / 2]]), side)
