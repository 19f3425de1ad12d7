"""Sheets of patches: of a dataset row by row, and of a patch set from the lowest to the highest value of a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from msdask.computing import in_process
from msdask.errors import SpecError
from msdask.plots.drawing import (
    DPI,
    FOREGROUND,
    SCALE_COLORS,
    PlainFigure,
    centered_square,
    fitted,
    frame,
    outline,
    scale_bar,
    show,
)
from msdask.scale import magnification_to_mpp
from msdask.spec import format_magnification

if TYPE_CHECKING:
    from msdask.store.patch_set import PatchSet

__all__ = ["patches", "scale_name", "sheet", "spread"]

_PANEL, _GAP = 1.9, 0.1
"""Inches."""
_COLUMNS = 5


def patches(dataset: xr.Dataset, *, rows: Sequence[int] | NDArray[np.integer[Any]] | None = None, n: int = 5) -> Figure:
    """A sheet of patches: one row a tuple, one column a magnification.

    Computes the tuples that it shows; a lazy dataset decodes the blocks that they lie in. On the lower magnifications a
    square shows what the patch of the highest covers.

    Parameters
    ----------
    dataset : image (patch, magnification, y, x, channel) uint8, lazy or stored, with the coordinate magnification; x0,
        y0, tissue and label are written beside the row where they are there
    rows : which tuples, as positions along `patch`; by default `n` spread evenly over all
    n : number of tuples if `rows` is not given
    """
    image = dataset["image"]
    count = image.sizes["patch"]
    picked = spread(count, n) if rows is None else np.asarray(rows, dtype=np.int64).reshape(-1)
    if len(picked) and not (-count <= picked.min() and picked.max() < count):
        raise SpecError(f"rows={picked.tolist()}: expected positions from 0 to {count - 1}")
    scales = [float(m) for m in np.atleast_1d(dataset["magnification"].values)]
    if not len(picked):
        return _empty("no patches")
    pixels = image.isel(patch=picked).compute(scheduler=in_process()).values
    notes = [_describe(dataset, int(row)) for row in picked % count]
    if len(scales) == 1:
        return fitted(_single(pixels[:, 0], notes, scales[0], columns=_COLUMNS))
    return fitted(_tuples(pixels, notes, scales))


def sheet(
    patch_set: PatchSet,
    *,
    by: str,
    show: Literal["all", "lowest", "random", "highest"] = "all",
    n: int = 5,
    keep: bool = False,
    seed: int = 0,
) -> Figure:
    """A set's patches by one column of its table: those of the lowest values, some at random, those of the highest.

    Look at it before you choose a threshold. Of tuples the patch of the highest magnification is shown, which the
    columns are of. Reads the shown patches only.

    Parameters
    ----------
    patch_set : of a store
    by : a column of ``patch_set.table()`` with numbers: focus, blank, pen, dark, brightness, contrast, tissue ...
    show : "all", or one of the three rows; that one then fills three rows of patches
    n : patches in a row
    keep : only patches whose verdict `keep` is True
    seed : of those at random

    Raises
    ------
    SpecError
        There is no such column, or it holds no numbers.
    """
    table = patch_set.table(keep=keep)
    numbers = [str(c) for c in table.columns if table[c].dtype.kind in "iuf" and c != "row"]
    if by not in numbers:
        raise SpecError(f"by={by!r} of {patch_set!r}: expected one of {', '.join(numbers)} (older stores lack some)")
    table = table[table[by].notna()].sort_values(by, kind="stable")
    if not len(table):
        return _empty("no patches")
    kinds = ["lowest", "random", "highest"] if show == "all" else [show]
    each = min(len(table), n if show == "all" else 3 * n)
    draw = np.random.default_rng(seed)
    parts = {
        "lowest": table.iloc[:each],
        "random": table.iloc[np.sort(draw.choice(len(table), each, replace=False))],
        "highest": table.iloc[-each:],
    }
    chosen = pd.concat([parts[kind] for kind in kinds])
    notes = [
        [f"{by} {value:.4g}, row {row}", str(slide_id)]
        for value, slide_id, row in zip(chosen[by], chosen["slide_id"], chosen["row"], strict=True)
    ]
    heads = [f"{by}: {kind}" for kind in kinds]
    pixels = _read(patch_set, chosen)
    figure = _single(pixels, notes, patch_set.spec.magnifications[0], columns=min(n, each), heads=heads)
    words = f"{patch_set.name}: {len(table):,} patches, {by} from {table[by].min():.4g} to {table[by].max():.4g}"
    figure.text(0.0, 1.0, words, fontsize=11, va="bottom", color=FOREGROUND)
    return fitted(figure)


def _read(patch_set: PatchSet, chosen: pd.DataFrame) -> NDArray[np.uint8]:
    """(n, y, x, 3), the patches of the highest magnification in the order of the table."""
    size = patch_set.spec.patch_size
    pixels = np.empty((len(chosen), size, size, 3), np.uint8)
    slides = chosen["slide_id"].to_numpy()
    for slide_id in np.unique(slides).tolist():
        mine = np.flatnonzero(slides == slide_id)
        pixels[mine] = patch_set.read(slide_id, chosen["row"].to_numpy()[mine])[:, 0]
    return pixels


def _empty(words: str) -> Figure:
    figure = PlainFigure(figsize=(4, 1), dpi=DPI, facecolor="white")
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=11, color=FOREGROUND)
    return figure


def _single(
    pixels: NDArray[np.uint8],
    notes: Sequence[Sequence[str]],
    magnification: float,
    *,
    columns: int,
    heads: Sequence[str] = (),
) -> Figure:
    """Patches of one magnification, row by row, with two lines under each; `heads` stand over equal shares of rows."""
    columns = min(columns, len(pixels))
    lines = -(-len(pixels) // columns)
    top, under = 0.34, 0.46
    wide, high = columns * (_PANEL + _GAP) - _GAP, lines * (_PANEL + under + (top if heads else _GAP)) + top
    figure = PlainFigure(figsize=(wide, high), dpi=DPI, facecolor="white")
    size = pixels.shape[2]
    for k, one in enumerate(pixels):
        r, c = divmod(k, columns)
        left = c * (_PANEL + _GAP)
        bottom = high - top - (top if heads else 0) - _PANEL - r * (_PANEL + under + (top if heads else _GAP))
        axes = figure.add_axes((left / wide, bottom / high, _PANEL / wide, _PANEL / high))
        show(axes, one, extent=(0, size, size, 0))
        if r == 0:
            figure.text(left / wide, 1 - 0.2 / high, scale_name(magnification), fontsize=9.5, color=FOREGROUND)
        scale_bar(axes, magnification_to_mpp(magnification), fontsize=8)
        text = "\n".join(_short(line) for line in notes[k])
        figure.text(left / wide, (bottom - 0.05) / high, text, fontsize=9, va="top", color=FOREGROUND)
        if heads and c == 0 and r % max(1, lines // len(heads)) == 0:
            head = heads[min(len(heads) - 1, r // max(1, lines // len(heads)))]
            above = (bottom + _PANEL + 0.08) / high
            figure.text(0, above, head, fontsize=10, weight="bold", color=FOREGROUND)
    return figure


def _tuples(pixels: NDArray[np.uint8], notes: Sequence[Sequence[str]], scales: Sequence[float]) -> Figure:
    """One row a tuple, one column a magnification, with what is known of it at the left."""
    size, side, top = pixels.shape[3], 1.25, 0.32
    columns = len(scales)
    wide = side + columns * (_PANEL + _GAP) - _GAP
    high = top + len(pixels) * (_PANEL + _GAP) - _GAP
    figure = PlainFigure(figsize=(wide, high), dpi=DPI, facecolor="white")
    for k, row in enumerate(pixels):
        bottom = high - top - (k + 1) * _PANEL - k * _GAP
        for i, magnification in enumerate(scales):
            left = side + i * (_PANEL + _GAP)
            axes = figure.add_axes((left / wide, bottom / high, _PANEL / wide, _PANEL / high))
            show(axes, row[i], extent=(0, size, size, 0))
            frame(axes, SCALE_COLORS[i % len(SCALE_COLORS)])
            if i > 0:
                footprint = size * magnification / scales[0]
                outline(axes, centered_square(size / 2, size / 2, footprint), SCALE_COLORS[0])
            if k == 0:
                axes.set_title(scale_name(magnification), fontsize=9.5, color=FOREGROUND)
            scale_bar(axes, magnification_to_mpp(magnification), fontsize=8)
        note = "\n".join(notes[k]).replace(", ", "\n")
        figure.text(0, (bottom + _PANEL / 2) / high, note, fontsize=9, va="center", color=FOREGROUND)
    return figure


def _short(line: str, longest: int = 28) -> str:
    return line if len(line) <= longest else f"{line[: longest // 2 - 1]}…{line[-longest // 2 :]}"


def scale_name(magnification: float) -> str:
    """A scale as a title says it: 20x and its µm/px."""
    return f"{format_magnification(magnification)}   {magnification_to_mpp(magnification):.4g} µm/px"


def spread(count: int, n: int) -> NDArray[np.int64]:
    """At most `n` positions spread evenly over 0 ... count - 1."""
    n = min(n, count)
    return ((np.arange(n) + 0.5) * count / n).astype(np.int64) if n > 0 else np.zeros(0, dtype=np.int64)


def _describe(dataset: xr.Dataset, row: int) -> list[str]:
    """What is known of a tuple, in two lines: row, tissue and class, and where it lies."""
    one = dataset[[name for name in ("x0", "y0", "tissue", "label") if name in dataset]].isel(patch=row)
    first, second = [f"patch {row}"], []
    if "tissue" in one:
        first.append(f"tissue {float(one['tissue'].values):.0%}")
    if "label" in one and int(one["label"].values.flat[0]) >= 0:
        first.append(f"class {int(one['label'].values.flat[0])}")
    if "x0" in one and "y0" in one:
        second = [f"{name[0]} {int(one[name].values.flat[0])}" for name in ("x0", "y0")]
    return [", ".join(first), ", ".join(second)]
