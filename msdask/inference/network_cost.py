"""What a network costs for views of some sizes, found on tensors without memory: nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from msdask.models import SegmentationModel

__all__ = ["Cost", "costs_of"]


@dataclass(frozen=True)
class Cost:
    """Of one tile.

    Attributes
    ----------
    flops : of its convolutions, a multiplication and an addition being two
    values : numbers that are held at once, about: twice what goes into and comes out of the widest layer (the outputs
        of the encoder that wait for the decoder are the other half)
    """

    flops: int
    values: int


def costs_of(network: SegmentationModel, sizes: Sequence[Sequence[int]]) -> list[Cost]:
    """Cost of one tile for each of several sizes of its views.

    Parameters
    ----------
    network : is left as it is
    sizes : px a side of the view at each magnification
    """
    import torch

    hollow = copy.deepcopy(network).to("meta").eval()
    flops, widest = 0, 0

    def look(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        nonlocal flops, widest
        widest = max(widest, given[0].numel() + output.numel())
        if isinstance(module, torch.nn.Conv2d):
            flops += 2 * output.numel() * module.weight[0].numel()

    for module in hollow.modules():
        if not any(module.children()):
            module.register_forward_hook(look)
    found = []
    with torch.inference_mode():
        for views in sizes:
            flops, widest = 0, 0
            hollow.forward_views([torch.empty(1, 3, s, s, device="meta") for s in views], contexts=False)
            found.append(Cost(flops, 2 * widest))
    return found
