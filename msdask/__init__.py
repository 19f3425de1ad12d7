"""msdask: the multi-scale structure of whole-slide images, on Dask and Zarr.

Names are imported when they are first used: `import msdask` is quick, and torch is loaded only by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msdask import data as data
    from msdask import models as models
    from msdask import plots as plots
    from msdask import sample as sample
    from msdask import training as training
    from msdask.annotations import read_label_mask as read_label_mask
    from msdask.cohort import extract as extract
    from msdask.errors import CorruptChunkError as CorruptChunkError
    from msdask.errors import MaskError as MaskError
    from msdask.errors import MissingScaleError as MissingScaleError
    from msdask.errors import MsdaskError as MsdaskError
    from msdask.errors import SlideError as SlideError
    from msdask.errors import SpecError as SpecError
    from msdask.errors import StoreError as StoreError
    from msdask.errors import TileError as TileError
    from msdask.errors import WorkerLostError as WorkerLostError
    from msdask.exporting import export as export
    from msdask.inference import ScaleEstimate as ScaleEstimate
    from msdask.inference import estimate_scale as estimate_scale
    from msdask.lazy import patches as patches
    from msdask.linking import complete_tuples as complete_tuples
    from msdask.linking import link_upper_regions as link_upper_regions
    from msdask.maskfiles import read_tissue_mask as read_tissue_mask
    from msdask.repairing import repair as repair
    from msdask.selection import centroids as centroids
    from msdask.selection import grid as grid
    from msdask.selection import select as select
    from msdask.slide import Slide as Slide
    from msdask.slide import open_slide as open_slide
    from msdask.spec import ExtractionSpec as ExtractionSpec
    from msdask.store import PatchStore as PatchStore
    from msdask.tissue import tissue_mask as tissue_mask

_HOME = {
    "CorruptChunkError": "errors",
    "ExtractionSpec": "spec",
    "MaskError": "errors",
    "MissingScaleError": "errors",
    "MsdaskError": "errors",
    "PatchStore": "store",
    "ScaleEstimate": "inference",
    "Slide": "slide",
    "SlideError": "errors",
    "SpecError": "errors",
    "StoreError": "errors",
    "TileError": "errors",
    "WorkerLostError": "errors",
    "centroids": "selection",
    "complete_tuples": "linking",
    "estimate_scale": "inference",
    "export": "exporting",
    "extract": "cohort",
    "grid": "selection",
    "link_upper_regions": "linking",
    "open_slide": "slide",
    "patches": "lazy",
    "read_label_mask": "annotations",
    "read_tissue_mask": "maskfiles",
    "repair": "repairing",
    "select": "selection",
    "tissue_mask": "tissue",
}
_MODULES = ("data", "models", "plots", "sample", "training")

__version__ = "0.1.0"
__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"msdask.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"msdask.{name}")
    else:
        raise AttributeError(f"module 'msdask' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
