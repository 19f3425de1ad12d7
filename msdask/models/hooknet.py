"""HookNet: a U-Net of the target, into which those of coarser, concentric contexts are hooked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.registry import register
from msdask.models.segmentation import Padding, SegmentationModel, SegmentOutput, center_crop
from msdask.models.unet import UNetBranch

__all__ = ["Hook", "HookNet", "Merge"]

Merge = Literal["concat", "add", "subtract", "multiply"]


class Hook(nn.Module):
    """What the target takes of a context: its middle; unless they are concatenated, with as many filters as its own.

    Parameters
    ----------
    given, wanted : filters of the context and of the target there
    is_projected : bring the filters to as many as the target's: a convolution of 1 x 1 px, then ReLU
    """

    def __init__(self, given: int, wanted: int, *, is_projected: bool) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(given, wanted, 1), nn.ReLU()) if is_projected else nn.Identity()
        for module in self.project.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, context: Tensor, size: Sequence[int]) -> Tensor:
        """(B, wanted, *size) of (B, given, h, w)."""
        found: Tensor = self.project(center_crop(context, size))
        return found


@register
class HookNet(SegmentationModel):
    """A target and its contexts: a U-Net each, with weights of its own, the contexts hooked into the target.

    A context's decoder is left at depth f, where its px are as large as those of the target's bottleneck, before the
    target's decoder begins (step t = depth - 1): f = depth - log2(ratio) of the magnifications. Its middle is merged
    with the bottleneck. With several contexts each is hooked into the target; with "subtract" and "multiply" one after
    the other, in their order.

    Parameters
    ----------
    classes, filters, depth, bottleneck, padding, context_size : see `SegmentationModel`
    magnifications : the target, then one context or two, each 2, 4, 8 or 16 times coarser than the target (at depth 4)
    merge : "concat": contexts beside the target; "add"; "subtract": context - target; "multiply". All but the first
        bring a context to the target's filters with a convolution of 1 x 1 px and a ReLU

    Attributes
    ----------
    hook_depths : (f, t) of each context, 0 the finest

    Examples
    --------
    >>> model = HookNet(4, [20, 1.25], filters=2).eval()
    >>> model.hook_depths
    ((0, 3),)
    >>> model(torch.zeros(1, 2, 3, 284, 284, dtype=torch.uint8)).logits.shape
    torch.Size([1, 4, 70, 70])
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float] = (20.0, 5.0),
        *,
        filters: int = 16,
        depth: int = 4,
        bottleneck: int | None = None,
        padding: Padding = "valid",
        merge: Merge = "concat",
        context_size: int | None = None,
    ) -> None:
        if not 2 <= len(magnifications) <= 3:
            raise SpecError(
                f"magnifications={list(magnifications)!r}: expected two or three for HookNet, the target first"
            )
        if merge not in get_args(Merge):
            raise SpecError(f"merge={merge!r}: expected one of {', '.join(get_args(Merge))}")
        super().__init__(
            classes,
            magnifications,
            filters=filters,
            depth=depth,
            bottleneck=bottleneck,
            padding=padding,
            context_size=context_size,
        )
        self.merge: Merge = merge
        self.config |= {"merge": merge, "context_size": context_size}
        self.hook_depths = tuple((depth - (ratio.bit_length() - 1), depth - 1) for ratio in self.ratios)
        given = [filters * 2**f for f, _ in self.hook_depths]
        branch = functools.partial(
            UNetBranch, classes, filters=filters, depth=depth, bottleneck=self.bottleneck, padding=padding
        )
        self.target = branch(hooked=sum(given) if merge == "concat" else 0)
        self.contexts = nn.ModuleList(branch() for _ in self.ratios)
        self.hooks = nn.ModuleList(Hook(n, self.target.n_bottleneck, is_projected=merge != "concat") for n in given)

    def forward_views(self, views: Sequence[Tensor], *, contexts: bool = True) -> SegmentOutput:
        """See `SegmentationModel.forward_views`."""
        for axis in (-2, -1):
            self._check_views([view.shape[axis] for view in views])
        *skips, merged = self.target.encode(views[0])
        size, beside, said = merged.shape[-2:], [merged], []
        for view, branch, hook, (f, _) in zip(views[1:], self.contexts, self.hooks, self.hook_depths, strict=True):
            assert isinstance(branch, UNetBranch)
            *own, deepest = branch.encode(view)
            left = branch.decode(deepest, own, self.depth - 1, f)
            taken = hook(left, size)
            if self.merge == "concat":
                beside.append(taken)
            else:
                merged = self._merged(merged, taken)
            if contexts:
                said.append(branch.classify(branch.decode(left, own, f - 1, 0)))
        if self.merge == "concat":
            merged = torch.cat(beside, dim=1)
        logits = self.target.classify(self.target.decode(merged, skips, self.depth - 1, 0))
        return SegmentOutput(logits, tuple(said))

    def beyond_hooks(self) -> list[nn.Module]:
        """The parts of the contexts that say their own classes, and nothing to the target."""
        found: list[nn.Module] = []
        for branch, (f, _) in zip(self.contexts, self.hook_depths, strict=True):
            assert isinstance(branch, UNetBranch)
            found += [*branch.up[:f], *branch.join[:f], branch.head]
        return found

    def _merged(self, target: Tensor, context: Tensor) -> Tensor:
        if self.merge == "add":
            return target + context
        return context - target if self.merge == "subtract" else target * context

    def _check_views(self, sizes: Sequence[int]) -> None:
        if len(sizes) != len(self.magnifications):
            raise SpecError(f"{len(sizes)} views: expected {len(self.magnifications)}, one a magnification")
        for size in sizes:
            self.check_size(size)
        for size, needed in zip(sizes[1:], self.context_sizes(sizes[0]), strict=True):
            if size < needed:
                raise SpecError(
                    f"a target of {sizes[0]} px with a context of {size} px: the hook needs at least {needed} px"
                )
