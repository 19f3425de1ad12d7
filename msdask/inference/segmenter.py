"""Segmenter: a trained segmentation model, loaded once for any number of slides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from msdask.extras import require
from msdask.inference.loading import class_names, identity_of, load_network

if TYPE_CHECKING:
    from msdask.models import SegmentationModel

__all__ = ["Model", "Segmenter", "load_segmenter"]

Model: TypeAlias = "str | os.PathLike[str] | SegmentationModel | Segmenter"


class Segmenter:
    """A trained segmentation model, ready for any number of slides: `segment_slide` takes it as its model.

    Parameters
    ----------
    model : run folder of `msdask train segmenter`, .safetensors file, or a segmentation model
    device : "cpu", "cuda" ...; None: where a given model is; a loaded one goes to a GPU if there is one
    classes : names; None: what the model says, or numbers

    Attributes
    ----------
    network : on its device
    classes : their names
    identity : class, configuration, SHA-256 of the weights

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or is no segmentation model.
    SpecError
        Another number of names than the model has classes, or there is no such device.
    """

    network: SegmentationModel

    def __init__(
        self,
        model: str | os.PathLike[str] | SegmentationModel,
        *,
        device: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        require("segment_slide")
        from msdask.models import SegmentationModel

        self.network, about = load_network(
            model, SegmentationModel, expected="a segmentation model such as UNet or HookNet", device=device
        )
        count = self.network.classes
        self.classes = class_names(classes or about.get("classes") or range(count), count)
        self.identity = identity_of(self.network)


def load_segmenter(model: Model, *, device: str | None = None, classes: Sequence[str] | None = None) -> Segmenter:
    """A model for many slides; one that is given comes back as it is.

    Parameters
    ----------
    model, device, classes : as for `Segmenter`
    """
    if isinstance(model, Segmenter):
        if device is None and classes is None:
            return model
        return Segmenter(model.network, device=device, classes=classes or model.classes)
    return Segmenter(model, device=device, classes=classes)
