"""The drawing of a classifier: its branches, how they are brought together, and what its losses teach, from the model.

Every name, width and count in it is read from the modules themselves, so that it cannot be out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from msdask.errors import SpecError
from msdask.plots.drawing import DPI, FOREGROUND, SCALE_COLORS, PlainFigure
from msdask.spec import format_magnification

__all__ = ["architecture"]

Losses = Literal["one", "n+1"]

_COLUMNS = {"image": 0.0, "backbone": 1.35, "embedding": 2.95, "head": 4.45, "fusion": 6.05, "whole": 7.75, "loss": 9.2}
_WIDTHS = {"image": 1.05, "backbone": 1.3, "embedding": 1.2, "head": 1.2, "fusion": 1.4, "whole": 1.2, "loss": 1.25}
"""Where the columns begin and how wide they are, inches."""
_ROW = 1.35
_BOX = 0.86
_LINE = 0.21
_WIDE = 10.85
_GRAY = "#5A5A5A"
_LOSS = "#A61C3C"


class Model(Protocol):
    """A `msdask.models.MultiScaleClassifier`, as far as it is drawn."""

    classes: int
    magnifications: tuple[float, ...]
    config: dict[str, Any]

    @property
    def branches(self) -> Any: ...
    @property
    def uses_branch_logits(self) -> bool: ...
    def parameters(self) -> Iterable[Any]: ...


class _Box(NamedTuple):
    """A box that was drawn: its left and right edge and its middle."""

    left: float
    right: float
    middle: float


def architecture(
    model: Model, losses: Losses = "one", *, patch_size: int | None = None, loss_weights: Sequence[float] | None = None
) -> Figure:
    """Draw a classifier and its losses (the paper's figures 4 and 5).

    Shapes and numbers of parameters are those of the modules; on `torch.device("meta")` a model takes no memory. What
    no loss reaches is dashed.

    Parameters
    ----------
    model : `msdask.models.FeatureFusion`, `PredictionFusion`, `AttentionFusion` or `SingleScale`
    losses : "one", or "n+1" for one of the whole and one of each magnification
    patch_size : px a side of its images; None writes S
    loss_weights : with "n+1", of the whole and of each magnification; None for 1

    Raises
    ------
    SpecError
        There are no such losses, or the model is of another kind.

    Examples
    --------
    >>> model = ms.models.FeatureFusion(5, (10, 5))  # doctest: +SKIP
    >>> ms.plots.architecture(model, "n+1").savefig("fusion.svg")  # doctest: +SKIP
    """
    if losses not in get_args(Losses):
        raise SpecError(f"losses={losses!r}: expected one of {', '.join(get_args(Losses))}")
    if not hasattr(model, "branches") or not hasattr(model, "uses_branch_logits"):
        raise SpecError(f"model of class {type(model).__name__}: expected a classifier such as FeatureFusion")
    if losses == "n+1" and len(model.magnifications) < 2:
        raise SpecError("losses='n+1' of one magnification: it has one loss")
    weights = list(loss_weights or [1.0] * (len(model.magnifications) + 1))
    rows = len(model.branches)
    tall = rows * _ROW + 0.75
    figure = PlainFigure(figsize=(_WIDE, tall), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.15, _WIDE - 0.15), ylim=(0, tall))
    axes.set_axis_off()
    is_fusion = hasattr(model, "head")
    is_taught = losses == "n+1" or model.uses_branch_logits
    heads: list[_Box] = []
    sources: list[_Box] = []
    for number in range(rows):
        middle = tall - 0.62 - (number + 0.5) * _ROW
        features, head = _branch(axes, model, number, middle, patch_size, is_taught=is_taught or not is_fusion)
        heads.append(head)
        sources.append(head if model.uses_branch_logits else features)
        if losses == "n+1":
            _branch_loss(axes, model, number, middle, head, weights)
    whole = _whole(axes, model, sources, tall - 0.62 - rows * _ROW / 2) if is_fusion else heads[0]
    name = f"{_times(weights[0])}CE" if losses == "n+1" else "CE"
    middle = whole.middle
    loss = _box(axes, "loss", middle, [name, "label of the finest" if losses == "n+1" else "label"], _LOSS)
    _arrow(axes, (whole.right, middle), (loss.left, middle), _LOSS)
    total = sum(p.numel() for p in model.parameters())
    said = f"{type(model).__name__}, {'n + 1 losses' if losses == 'n+1' else 'one loss'}"
    axes.text(0, tall - 0.2, said, fontsize=12, weight="bold", color=FOREGROUND, va="center")
    backbone = model.config.get("backbone", "")
    about = f"{backbone}, {total:,} parameters, {model.classes} classes"
    axes.text(_WIDE - 0.3, tall - 0.2, about, fontsize=9, color=_GRAY, va="center", ha="right")
    return figure


def _branch(
    axes: Axes, model: Model, number: int, middle: float, patch_size: int | None, *, is_taught: bool
) -> tuple[_Box, _Box]:
    """One branch; gives the boxes that its features and its logits come out of."""
    branch = model.branches[number]
    scale = number // model.config.get("copies", 1)
    color = SCALE_COLORS[scale % len(SCALE_COLORS)]
    magnification = model.magnifications[scale]
    side = "S" if patch_size is None else str(patch_size)
    image = _box(
        axes,
        "image",
        middle,
        [format_magnification(magnification), f"3 × {side} × {side}", f"{10 / magnification:g} µm/px"],
        color,
        fill=0.22,
    )
    backbone = _box(
        axes,
        "backbone",
        middle,
        [model.config.get("backbone", "backbone"), f"{branch.backbone.n_features} features", _count(branch.backbone)],
        color,
    )
    _arrow(axes, (image.right, middle), (backbone.left, middle))
    features = backbone
    if _count(branch.embedding):
        features = _box(
            axes, "embedding", middle, ["embedding", _widths(branch.embedding), _count(branch.embedding)], color
        )
        _arrow(axes, (backbone.right, middle), (features.left, middle))
    lines = ["classes", _widths(branch.head), _count(branch.head)]
    if branch.dropout.p > 0:
        lines.insert(1, f"dropout {branch.dropout.p:g}")
    head = _box(axes, "head", middle, lines, color, is_dashed=not is_taught)
    _arrow(axes, (features.right, middle), (head.left, middle), is_dashed=not is_taught)
    return features, head


def _branch_loss(axes: Axes, model: Model, number: int, middle: float, head: _Box, weights: Sequence[float]) -> None:
    """The loss of one magnification, below the logits of its branch; copies of one magnification share theirs."""
    copies = model.config.get("copies", 1)
    scale = number // copies
    label = format_magnification(model.magnifications[scale])
    shared = " (mean of its branches)" if copies > 1 else ""
    text = f"{_times(weights[scale + 1])}CE, label at {label}{shared}"
    x, y = (head.left + head.right) / 2, middle - _BOX / 2
    _arrow(axes, (x, y), (x, y - 0.17), _LOSS)
    axes.text(x, y - 0.19, text, fontsize=7.5, color=_LOSS, ha="center", va="top")


def _whole(axes: Axes, model: Any, sources: Sequence[_Box], middle: float) -> _Box:
    """What brings the branches together, and the logits of the whole."""
    lines = _fusion_lines(model)
    fusion = _box(axes, "fusion", middle, lines, FOREGROUND, height=_BOX + 0.17 * max(0, len(lines) - 3))
    for source in sources:
        # Features leave above the box of the branch's own classes, which they pass by.
        start = (source.right, source.middle)
        if not model.uses_branch_logits:
            start = ((source.left + source.right) / 2, source.middle + _BOX / 2)
        _bent_arrow(axes, start, (fusion.left, middle), over=not model.uses_branch_logits)
    whole = _box(axes, "whole", middle, ["classes", _widths(model.head), _count(model.head)], FOREGROUND, fill=0.12)
    _arrow(axes, (fusion.right, middle), (whole.left, middle))
    return whole


def _fusion_lines(model: Any) -> list[str]:
    """What the box of the fusion says."""
    branches = len(model.branches)
    if hasattr(model, "attention"):
        own = sum(p.numel() for p in model.parameters())
        own -= sum(p.numel() for part in (model.branches, model.head) for p in part.parameters())
        width = model.n_features
        return ["attention", f"{branches} tokens of {width}", f"{model.config['heads']} heads, mean", f"{own:,} param."]
    if model.uses_branch_logits:
        what = "softmax, concat" if model.config.get("fuse") == "probabilities" else "concat logits"
        return [what, f"{branches} × {model.classes} = {branches * model.classes}", "no param."]
    return ["concat features", f"{branches} × {model.n_features} = {branches * model.n_features}", "no param."]


def _box(
    axes: Axes,
    column: str,
    middle: float,
    lines: Sequence[str],
    color: str,
    *,
    fill: float = 0.06,
    height: float = _BOX,
    is_dashed: bool = False,
) -> _Box:
    left, width = _COLUMNS[column], _WIDTHS[column]
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=to_rgba(color, fill),
            edgecolor=color,
            linewidth=1.3,
            linestyle="--" if is_dashed else "-",
        )
    )
    said = [line for line in lines if line]
    for i, line in enumerate(said):
        y = middle + (len(said) / 2 - 0.5 - i) * min(_LINE, height / (len(said) + 0.3))
        weight = "bold" if i == 0 else "normal"
        axes.text(
            left + width / 2,
            y,
            line,
            fontsize=8.5 if i == 0 else 7.5,
            weight=weight,
            color=FOREGROUND,
            ha="center",
            va="center",
        )
    return _Box(left, left + width, middle)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = _GRAY, *, is_dashed: bool = False
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            color=color,
            linewidth=1.1,
            shrinkA=0,
            shrinkB=0,
            linestyle="--" if is_dashed else "-",
        )
    )


def _bent_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, over: bool) -> None:
    """An arrow along the axes: out of a box to the right (or over its top), then to the height of the other."""
    corner = end[0] - 0.22
    points = [start, (start[0], start[1] + 0.14)] if over else [start]
    points += [(corner, points[-1][1]), (corner, end[1])]
    axes.plot([x for x, _ in points], [y for _, y in points], color=_GRAY, linewidth=1.1, solid_joinstyle="round")
    _arrow(axes, (corner, end[1]), end)


def _widths(linear: Any) -> str:
    """A linear layer's features as "128 → 5"."""
    return f"{linear.in_features} → {linear.out_features}"


def _count(module: Any) -> str:
    """Parameters of a module; "" where it has none."""
    number = sum(p.numel() for p in module.parameters())
    return f"{number:,} param." if number else ""


def _times(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} × "
