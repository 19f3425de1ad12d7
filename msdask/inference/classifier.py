"""Classifier: a trained classifier of tissue, loaded once for any number of slides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from msdask.errors import MsdaskError
from msdask.extras import require
from msdask.inference.loading import class_names, identity_of, load_network

if TYPE_CHECKING:
    from msdask.models import MultiScaleClassifier

__all__ = ["Classifier", "Model", "load_classifier"]

Model: TypeAlias = "str | os.PathLike[str] | MultiScaleClassifier | Classifier"


@dataclass(frozen=True)
class Classifier:
    """A trained classifier, ready for any number of slides.

    Attributes
    ----------
    network : in evaluation mode, on its device
    patch_size : px a side of what it learnt from, or None where nobody says
    classes : their names
    identity : class, configuration, SHA-256 of the weights
    """

    network: MultiScaleClassifier
    patch_size: int | None
    classes: tuple[str, ...]
    identity: Mapping[str, Any]


def load_classifier(model: Model, *, device: str | None = None, classes: Sequence[str] | None = None) -> Classifier:
    """A classifier for many slides: `classify_slide` takes it as its model.

    Parameters
    ----------
    model, device, classes : as for `classify_slide`

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or is no classifier of tissue.
    SpecError
        Another number of names than the model has classes, or there is no such device.
    """
    require("classify_slide")
    from msdask.models import MultiScaleClassifier
    from msdask.models.backbones import PRECOMPUTED
    from msdask.models.encoder import with_encoder

    if isinstance(model, Classifier):
        return model if classes is None else replace(model, classes=class_names(classes, model.network.classes))
    network, about = load_network(
        model,
        MultiScaleClassifier,
        expected="a classifier of tissue such as FeatureFusion",
        device=device,
    )
    if network.config["backbone"].startswith(PRECOMPUTED):
        if "encoder" not in about:
            raise MsdaskError(
                f"the model takes features ('{network.config['backbone']}'), and nothing says of which backbone: give "
                "the run folder of an experiment, or a model of images"
            )
        with_encoder(network, about["encoder"])
    named = class_names(classes or about.get("classes") or range(network.classes), network.classes)
    return Classifier(network, about.get("patch_size"), named, identity_of(network))
