"""U-Net: one magnification; and its branch, which HookNet has one of for every magnification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.registry import register
from msdask.models.segmentation import Padding, SegmentationModel, SegmentOutput, center_crop

__all__ = ["UNet", "UNetBranch"]

_MEAN, _STD = 0.7, 0.2
"""Of tissue's pixels, from 0 to 1: what goes in is about as wide as what batch norm gives between the layers."""


class UNetBranch(nn.Module):
    """Encoder and decoder of a U-Net, which can be left and entered where a hook is.

    Each block is two convolutions of 3 x 3 px, each followed by ReLU and batch norm. The encoder takes the largest of
    2 x 2 px between its blocks; the decoder doubles the size by repeating px, applies one such convolution, puts the
    middle of the encoder's output of that size beside it, and applies a block.

    Parameters
    ----------
    classes, filters, depth, bottleneck, padding : see `SegmentationModel`
    hooked : filters that are put beside the bottleneck's before they are decoded
    """

    def __init__(
        self, classes: int, *, filters: int, depth: int, bottleneck: int, padding: Padding, hooked: int = 0
    ) -> None:
        super().__init__()
        pad = 1 if padding == "same" else 0
        widths = [filters * 2**level for level in range(depth)]
        deepest = filters * bottleneck
        self.widths, self.n_bottleneck = tuple(widths), deepest
        self.down = nn.ModuleList(_block(a, b, pad) for a, b in zip([3, *widths], [*widths, deepest], strict=False))
        above = [*widths[1:], deepest + hooked]
        self.up = nn.ModuleList(_layer(a, b, pad) for a, b in zip(above, widths, strict=True))
        self.join = nn.ModuleList(_block(2 * width, width, pad) for width in widths)
        self.head = nn.Conv2d(filters, classes, 1)
        self.apply(_he_normal)

    def encode(self, images: Tensor) -> list[Tensor]:
        """What each block of the encoder gives, the bottleneck last, of images (B, 3, S, S)."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        x = ((x - _MEAN) / _STD).contiguous(memory_format=torch.channels_last)
        found = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            found.append(x)
        return found

    def decode(self, x: Tensor, skips: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """Go up from the input of step `start` to the output of step `stop`; 0 is the finest.

        Parameters
        ----------
        x : (B, F, s, s)
        skips : what `encode` gave
        start, stop : steps; the output of step `start` + 1 goes in, or the bottleneck where `start` is depth - 1
        """
        for level in range(start, stop - 1, -1):
            x = self.up[level](nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = self.join[level](torch.cat([x, center_crop(skips[level], x.shape[-2:])], dim=1))
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Logits, float32 whatever precision the layers had, of the output of step 0."""
        logits: Tensor = self.head(x)
        return logits.float()


@register
class UNet(SegmentationModel):
    """A U-Net at one magnification.

    Parameters
    ----------
    classes, magnifications, filters, depth, bottleneck, padding : see `SegmentationModel`; one magnification

    Examples
    --------
    >>> model = UNet(4, [20], filters=2).eval()
    >>> model(torch.zeros(1, 1, 3, 284, 284, dtype=torch.uint8)).logits.shape
    torch.Size([1, 4, 70, 70])
    """

    def __init__(
        self,
        classes: int,
        magnifications: Sequence[float] = (20.0,),
        *,
        filters: int = 16,
        depth: int = 4,
        bottleneck: int | None = None,
        padding: Padding = "valid",
    ) -> None:
        if len(magnifications) != 1:
            raise SpecError(f"magnifications={list(magnifications)!r}: expected one for UNet")
        super().__init__(classes, magnifications, filters=filters, depth=depth, bottleneck=bottleneck, padding=padding)
        self.target = UNetBranch(classes, filters=filters, depth=depth, bottleneck=self.bottleneck, padding=padding)

    def forward_views(self, views: Sequence[Tensor], *, contexts: bool = True) -> SegmentOutput:
        """See `SegmentationModel.forward_views`; one view."""
        if len(views) != 1:
            raise SpecError(f"{len(views)} views: expected one for UNet")
        for size in views[0].shape[-2:]:
            self.check_size(size)
        *skips, deepest = self.target.encode(views[0])
        return SegmentOutput(self.target.classify(self.target.decode(deepest, skips, self.depth - 1, 0)))


def _layer(inputs: int, outputs: int, pad: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=pad), nn.ReLU(inplace=True), nn.BatchNorm2d(outputs))


def _block(inputs: int, outputs: int, pad: int) -> nn.Sequential:
    return nn.Sequential(*_layer(inputs, outputs, pad), *_layer(outputs, outputs, pad))


def _he_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
