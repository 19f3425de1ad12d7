"""GridTask: models at any magnification, judged on the same px: those that the finest target shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from msdask.errors import SpecError
from msdask.models.segmentation import SegmentationModel, center_crop
from msdask.training.segment_metrics import PixelPredictions, pixel_confusion
from msdask.training.segment_task import SegmentTask
from msdask.training.task import Batch

__all__ = ["GridTask"]


class GridTask(SegmentTask):
    """Measures a model on the px of one grid, whatever its own magnification; not for training.

    A coarser output is enlarged by repeating px, and its middle is compared with the middle of the finest label map.

    Parameters
    ----------
    classes : names
    magnifications : of a batch's images, the finest first; the model's are among them
    size : px a side of the middle that is compared

    Raises
    ------
    SpecError
        The model sees less than that, or is no whole number of times coarser.
    """

    def __init__(self, classes: Sequence[str], *, magnifications: Sequence[float], size: int) -> None:
        super().__init__(classes)
        self.magnifications, self.size = tuple(map(float, magnifications)), size

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[PixelPredictions, Tensor]]:
        """Cross-entropy on the grid; the confusion of its px, and their classes (B, size, size)."""
        self._check_model(model)
        assert isinstance(model, SegmentationModel)
        columns = [self.magnifications.index(m) for m in model.magnifications]
        logits = model(batch["image"][:, columns], contexts=False).logits
        ratio = self.magnifications[0] / model.magnifications[0]
        whole = round(ratio)
        if abs(ratio - whole) > 1e-6 or logits.shape[-1] * whole < self.size:
            raise SpecError(
                f"an output of {logits.shape[-1]} px at {model.magnifications[0]:g}x: expected one that covers "
                f"{self.size} px at {self.magnifications[0]:g}x and is a whole number of times coarser"
            )
        wide = center_crop(logits.repeat_interleave(whole, 2).repeat_interleave(whole, 3), self.size)
        targets = center_crop(batch["label_map"][:, 0], self.size).long() - 1
        loss = F.cross_entropy(wide, targets, ignore_index=-1, reduction="sum") / (targets >= 0).sum().clamp_min(1)
        return loss, (PixelPredictions(pixel_confusion(wide.argmax(1), targets, len(self.classes))), targets)
