"""Data: patches into PyTorch; datasets, order, loader and augmentation."""

from __future__ import annotations

from msdask.extras import require

require("msdask.data")

from msdask.data.areas import AreaSet  # noqa: E402  (a clear error about torch goes first)
from msdask.data.augment import Augment  # noqa: E402
from msdask.data.dataset import PatchDataset  # noqa: E402
from msdask.data.features import FeatureLoader  # noqa: E402
from msdask.data.images import image_lattice, image_patches  # noqa: E402
from msdask.data.linked import LinkedSet  # noqa: E402
from msdask.data.loader import PatchLoader, loader  # noqa: E402
from msdask.data.order import EpochOrder  # noqa: E402
from msdask.data.scales import MppRange, ScaleAugment, ScaleRange  # noqa: E402
from msdask.data.stream import PatchStream  # noqa: E402
from msdask.data.tuples import TupleDataset  # noqa: E402
from msdask.data.virtual import VirtualSet  # noqa: E402

__all__ = [
    "AreaSet",
    "Augment",
    "EpochOrder",
    "FeatureLoader",
    "LinkedSet",
    "MppRange",
    "PatchDataset",
    "PatchLoader",
    "PatchStream",
    "ScaleAugment",
    "ScaleRange",
    "TupleDataset",
    "VirtualSet",
    "image_lattice",
    "image_patches",
    "loader",
]
