"""msdask: the multi-scale structure of whole-slide images, on Dask and Zarr.

Names are imported when they are first used: `import msdask` is quick, and torch is loaded only by what needs it.
The names themselves are listed once, in `__init__.pyi`, which type checkers and editors read too.

The rooms of the house, from the top down; a room imports only from rooms below it (docs/architecture.md):

- `cli` `msdask ...`; it parses, calls and prints
- `report` what a run did, as one HTML file
- `plots` figures of slides, selections, patches and trainings
- `sample` generated slides, and the truth about them
- `inference` trained models on images and slides; one file a task
- `training` written once; one recipe, one `fit`, one `evaluate`, one layout of run folders, for every model
- `models` networks, their registry, and their files
- `data` patches into PyTorch; datasets, order, loader and augmentation
- `exports` from a store or a prediction to other programs' files; one file a target
- `extraction` many slides into one store, and its repair
- `engines` where blocks of jobs are computed; one file an engine behind one protocol
- `store` patch sets in sharded Zarr, verified, resumable
- `cutting` from a slide and a selection to pixels, each tile decoded once, each patch measured
- `selection` which patches to take. Pure: arrays in, tables out
- `masks` where there is tissue, and which class; found by msdask, or read from files of any format
- `slides` whole-slide images as lazy arrays, at stored levels or at any physical scale
- `readers` one file a slide format behind one small protocol, chosen by content
- `progress` what happens while many slides are worked on, and what became of each; events, progress bar, reports
- `storage` bytes by path or URL, in folders and in object storage; locks
"""

from importlib.util import find_spec
from typing import Any

import lazy_loader

from msdask._version import __version__ as __version__
from msdask.upper import bind as _bind

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

_NEEDED = {"data": "torch", "models": "torch", "training": "pytorch_lightning", "experiment": "pytorch_lightning"}

# `from msdask import *` works without PyTorch too: it leaves out the rooms that need it.
__all__ = [name for name in _names if name not in _NEEDED or find_spec(_NEEDED[name])]


def _report_html(*arguments: Any, **options: Any) -> str:
    from msdask.report.run import report_html

    return report_html(*arguments, **options)


_bind("report_html", _report_html)
