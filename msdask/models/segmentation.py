"""SegmentationModel: what U-Net and HookNet share - sizes that fit, contexts that fit, and what comes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.spec import format_magnification

__all__ = ["Padding", "SegmentOutput", "SegmentationModel", "center_crop"]

Padding = Literal["valid", "same"]

_BORDER = 6
"""What an output of a decoder with valid padding is wider than 2^depth times the bottleneck, less 6: 2 (b - 6) + 6."""


class SegmentOutput(NamedTuple):
    """What a segmentation model says of a batch; no softmax is applied.

    Attributes
    ----------
    logits : (B, C, s, s) float32 of the target
    context_logits : (B, C, s', s') float32 of each context, in the order of the magnifications; empty for a U-Net, and
        where they were not asked for
    """

    logits: Tensor
    context_logits: tuple[Tensor, ...] = ()


class SegmentationModel(nn.Module):
    """Classes for every px of the target, whose patch may be seen at coarser magnifications, too.

    All patches of a tuple are concentric. With valid padding the output is smaller than the input by a border that
    depends on the depth alone (214 px at depth 4); with same padding it is as large.

    Parameters
    ----------
    classes : how many
    magnifications : the target first, then its contexts, each coarser than the one before
    filters : of the first block; a block a level deeper has twice as many
    depth : how often the size is halved
    bottleneck : filters of the deepest block, in units of `filters`; None: 2 (depth + 1), 10 at depth 4
    padding : "valid" or "same"
    context_size : px a side of the middle of a context's patch that `forward` takes; None: all of it

    Attributes
    ----------
    ratios : px of the target on one px of each context, a side
    config : what is saved with the model

    Raises
    ------
    SpecError
        An argument makes no sense.
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float],
        *,
        filters: int,
        depth: int,
        bottleneck: int | None,
        padding: Padding,
        context_size: int | None = None,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise SpecError(f"classes={classes!r}: expected at least 2")
        for name, value in (("filters", filters), ("depth", depth)):
            if value < 1:
                raise SpecError(f"{name}={value!r}: expected a whole number of at least 1")
        if bottleneck is not None and bottleneck < 1:
            raise SpecError(f"bottleneck={bottleneck!r}: expected at least 1 times the filters, such as 10 or 16")
        if padding not in get_args(Padding):
            raise SpecError(f"padding={padding!r}: expected one of {', '.join(get_args(Padding))}")
        self.classes, self.filters, self.depth, self.padding = classes, filters, depth, padding
        self.bottleneck = 2 * (depth + 1) if bottleneck is None else bottleneck
        self.magnifications: tuple[float, ...] = tuple(map(float, magnifications))
        self.ratios = _ratios(self.magnifications, depth)
        self.context_size = context_size
        self.config: dict[str, Any] = {
            "classes": classes,
            "magnifications": list(self.magnifications),
            "filters": filters,
            "depth": depth,
            "bottleneck": self.bottleneck,
            "padding": padding,
        }
        if context_size is not None:
            self._check(context_size, f"context_size={context_size!r}")

    @property
    def is_valid(self) -> bool:
        """Whether no px of an output depends on where its tile ends: padding "valid"."""
        return self.padding == "valid"

    @property
    def lattice(self) -> int:
        """Px of the target by which output tiles may move without a change: what is pooled stays pooled together."""
        return 2**self.depth * max(self.ratios, default=1)

    @property
    def border(self) -> int:
        """Px by which an output is smaller than its input."""
        return 14 * 2**self.depth - 10 if self.is_valid else 0

    @property
    def _step(self) -> int:
        """Px between legal sizes: with contexts the bottleneck has a middle between two px, as they have."""
        return 2**self.depth * (2 if self.ratios else 1)

    @property
    def _first(self) -> int:
        """The smallest legal size."""
        if not self.is_valid:
            return self._step
        least = _BORDER - (_BORDER - 1) // 2**self.depth  # px of a bottleneck that leave an output
        if self.ratios:
            least += least % 2
        return 2**self.depth * (least + 8) - 4

    def check_size(self, size: int) -> None:
        """Refuse a size that halves into fractions of px, or leaves nothing.

        Parameters
        ----------
        size : px a side, of target or context

        Raises
        ------
        SpecError
            Names the legal sizes beside it.
        """
        self._check(size, f"patches of {size} px")

    def _check(self, size: int, what: str) -> None:
        if size >= self._first and (size - self._first) % self._step == 0:
            return
        above = self.legal_size(size)
        near = [above] if above == self._first else [above - self._step, above]
        raise SpecError(
            f"{what}: {type(self).__name__} with {self.padding} padding takes {self._first}, "
            f"{self._first + self._step}, ... px, every {self._step}; take {' or '.join(map(str, near))}"
        )

    def legal_size(self, at_least: int) -> int:
        """The smallest legal size of a target that is not below `at_least` px."""
        return self._first + self._step * max(0, math.ceil((at_least - self._first) / self._step))

    def output_size(self, size: int) -> int:
        """Px a side that come out of `size` px.

        Raises
        ------
        SpecError
            The size is not legal.
        """
        self.check_size(size)
        return size - self.border

    def context_sizes(self, target_size: int) -> tuple[int, ...]:
        """The smallest legal context patches, px a side, that cover what a target of `target_size` px needs of them.

        Raises
        ------
        SpecError
            The size is not legal.
        """
        self.check_size(target_size)
        needed = self.bottleneck_size(target_size)
        sizes = []
        for ratio in self.ratios:
            if self.is_valid:  # hook = ratio (b - 6) + 6 px of a context with a bottleneck of b px
                width = math.ceil((needed - _BORDER) / ratio) + _BORDER
                sizes.append(self.legal_size(2**self.depth * (width + 8) - 4))
            else:
                sizes.append(self.legal_size(2**self.depth * math.ceil(needed / ratio)))
        return tuple(sizes)

    def bottleneck_size(self, size: int) -> int:
        """Px a side of the deepest block's output."""
        return (size + 4) // 2**self.depth - 8 if self.is_valid else size // 2**self.depth

    def hook_size(self, size: int, ratio: int) -> int:
        """Px a side of a context of `size` px where it is hooked into the target, before it is cropped."""
        width = self.bottleneck_size(size)
        return ratio * (width - _BORDER) + _BORDER if self.is_valid else ratio * width

    def forward(self, images: Tensor, *, contexts: bool = True) -> SegmentOutput:
        """Classes of the px in the middle of concentric patches.

        Parameters
        ----------
        images : (B, M, 3, S, S) uint8, or float from 0 to 1; RGB, the target first
        contexts : give the contexts' own classes, too; without them they are not computed

        Raises
        ------
        SpecError
            Another number of magnifications, or a size that is not legal; names those that are.
        """
        if images.ndim != 5 or images.shape[1] != len(self.magnifications) or images.shape[3] != images.shape[4]:
            named = ", ".join(format_magnification(m) for m in self.magnifications)
            raise SpecError(
                f"images of shape {tuple(images.shape)}: expected (B, {len(self.magnifications)}, 3, S, S), a patch "
                f"for each of {named}"
            )
        size = self.context_size
        if size is not None and size > images.shape[-1]:
            raise SpecError(f"patches of {images.shape[-1]} px, context_size={size}: expected larger patches")
        views = list(images.unbind(1))
        if size is not None:
            views[1:] = [center_crop(view, size) for view in views[1:]]
        return self.forward_views(views, contexts=contexts)

    def forward_views(self, views: Sequence[Tensor], *, contexts: bool = True) -> SegmentOutput:
        """The same of patches that have sizes of their own: a target may grow without its contexts.

        Parameters
        ----------
        views : of each magnification (B, 3, H_i, W_i) uint8, or float from 0 to 1; concentric. Height and width are
            legal sizes each
        contexts : as in `forward`
        """
        raise NotImplementedError


def center_crop(values: Tensor, size: int | Sequence[int]) -> Tensor:
    """The middle (..., h, w) of (..., H, W): a view.

    Parameters
    ----------
    values : (..., H, W)
    size : px a side, or (h, w)
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left = (values.shape[-2] - height) // 2, (values.shape[-1] - width) // 2
    return values[..., top : top + height, left : left + width]


def _ratios(magnifications: tuple[float, ...], depth: int) -> tuple[int, ...]:
    """How much coarser each context is than the target: 2 to 2^depth, powers of 2."""
    given = list(magnifications)
    if not given or not all(math.isfinite(m) and m > 0 for m in given):
        raise SpecError(f"magnifications={given!r}: expected one or more numbers above 0, such as 20, the target first")
    if any(a <= b for a, b in itertools.pairwise(given)):
        raise SpecError(f"magnifications={given!r}: expected the target first, then its contexts, each coarser")
    legal = [2**k for k in range(1, depth + 1)]
    found = []
    for context in given[1:]:
        ratio = given[0] / context
        nearest = min(legal, key=lambda n: abs(n - ratio))
        if abs(ratio - nearest) > 1e-6 * nearest:
            names = ", ".join(f"{n} ({format_magnification(given[0] / n)})" for n in legal)
            raise SpecError(
                f"magnifications={given!r}: {format_magnification(context)} is {ratio:g} times coarser than "
                f"{format_magnification(given[0])}; at depth {depth} a context can be hooked in where it is {names} "
                "times coarser"
            )
        found.append(nearest)
    return tuple(found)
