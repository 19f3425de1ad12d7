"""msdask: the multi-scale structure of whole-slide images, on Dask and Zarr.

Names are imported when they are first used: `import msdask` is quick, and torch is loaded only by what needs it.

The rooms of the house, from the top down; a room imports only from rooms below it (docs/architecture.md):

- `cli` `msdask ...`; it parses, calls and prints
- `report` what a run did, as one HTML file
- `exports` from a store to other programs' files; one file a target
- `plots` figures of slides, selections, patches and trainings
- `sample` generated slides, and the truth about them
- `inference` trained models on images and slides; one file a task
- `training` written once; one recipe, one `fit`, one `evaluate`, one layout of run folders, for every model
- `models` networks, their registry, and their files
- `data` patches into PyTorch; datasets, order, loader and augmentation
- `extraction` many slides into one store, and its repair
- `engines` where blocks of jobs are computed; one file an engine behind one protocol
- `store` patch sets in sharded Zarr, verified, resumable
- `cutting` from a slide and a selection to pixels, each tile decoded once, each patch measured
- `selection` which patches to take. Pure: arrays in, tables out
- `masks` where there is tissue, and which class; found by msdask, or read from files of any format
- `slides` whole-slide images as lazy arrays, at stored levels or at any physical scale
- `readers` one file a slide format behind one small protocol, chosen by content
- `runs` what happens while many slides are worked on, and what became of each; events, progress bar, reports
- `storage` bytes by path or URL, in folders and in object storage; locks
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from msdask._version import __version__

if TYPE_CHECKING:
    from msdask import data as data
    from msdask import models as models
    from msdask import plots as plots
    from msdask import sample as sample
    from msdask import training as training
    from msdask.cutting.lazy_patches import patches as patches
    from msdask.errors import CorruptChunkError as CorruptChunkError
    from msdask.errors import MaskError as MaskError
    from msdask.errors import MissingScaleError as MissingScaleError
    from msdask.errors import MsdaskError as MsdaskError
    from msdask.errors import SlideError as SlideError
    from msdask.errors import SpecError as SpecError
    from msdask.errors import StoreError as StoreError
    from msdask.errors import TileError as TileError
    from msdask.errors import WorkerLostError as WorkerLostError
    from msdask.exports.png import export as export
    from msdask.extraction.cohort import extract as extract
    from msdask.extraction.repair import repair as repair
    from msdask.inference.scale import ScaleEstimate as ScaleEstimate
    from msdask.inference.scale import estimate_scale as estimate_scale
    from msdask.masks.files import read_tissue_mask as read_tissue_mask
    from msdask.masks.labels import read_label_mask as read_label_mask
    from msdask.masks.tissue import tissue_mask as tissue_mask
    from msdask.runs import events as events
    from msdask.selection.parents import complete_tuples as complete_tuples
    from msdask.selection.parents import link_upper_regions as link_upper_regions
    from msdask.selection.select import centroids as centroids
    from msdask.selection.select import grid as grid
    from msdask.selection.select import select as select
    from msdask.slides.slide import Slide as Slide
    from msdask.slides.slide import open_slide as open_slide
    from msdask.spec import ExtractionSpec as ExtractionSpec
    from msdask.store.patch_store import PatchStore as PatchStore

_HOME = {
    "CorruptChunkError": "errors",
    "ExtractionSpec": "spec",
    "MaskError": "errors",
    "MissingScaleError": "errors",
    "MsdaskError": "errors",
    "PatchStore": "store.patch_store",
    "ScaleEstimate": "inference.scale",
    "Slide": "slides.slide",
    "SlideError": "errors",
    "SpecError": "errors",
    "StoreError": "errors",
    "TileError": "errors",
    "WorkerLostError": "errors",
    "centroids": "selection.select",
    "complete_tuples": "selection.parents",
    "estimate_scale": "inference.scale",
    "events": "runs",
    "export": "exports.png",
    "extract": "extraction.cohort",
    "grid": "selection.select",
    "link_upper_regions": "selection.parents",
    "open_slide": "slides.slide",
    "patches": "cutting.lazy_patches",
    "read_label_mask": "masks.labels",
    "read_tissue_mask": "masks.files",
    "repair": "extraction.repair",
    "select": "selection.select",
    "tissue_mask": "masks.tissue",
}
_MODULES = ("data", "models", "plots", "sample", "training")

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
