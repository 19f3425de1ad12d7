"""Segmentations of many slides: label pyramids, outlines and figures into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from msdask.colors import class_colors, rgb_of
from msdask.errors import SpecError
from msdask.exports.label_outlines import write_label_outlines
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.inference.cohort import Hooks, IntoFolder, do_slides, model_for
from msdask.inference.label_file import label_level, open_segmentation
from msdask.inference.segment import THREADS, segment_slide
from msdask.inference.segment_plan import Precision, Probabilities
from msdask.inference.segmenter import Model, Segmenter, load_segmenter
from msdask.masks.choice import MaskChoice
from msdask.progress.events import Listener
from msdask.slides.region import OnBadTile
from msdask.storage import places

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["segment_slides", "write_outlines"]

OUTLINE_MPP = 1.0
"""um/px that outlines have at most by default: the coarsest level of a segmentation that is as fine."""
_SHOWN = 1600
"""Px of the longer side of a figure's labels, at most."""


def segment_slides(
    slides: Slides,
    model: Model,
    folder: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    outline_mpp: float | None = OUTLINE_MPP,
    tile: int | None = None,
    probabilities: Probabilities | None = None,
    precision: Precision = "float32",
    classes: Sequence[str] | None = None,
    batch_size: int = 1,
    threads: int = THREADS,
    device: str | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    client: Client | None = None,
    workers: int | None = None,
    listeners: Iterable[Listener] = (),
) -> pd.DataFrame:
    """Segment slides into a folder.

    The same call again goes on where it was stopped, and tries the slides again that failed.

    Parameters
    ----------
    slides : as for `msdask.extract`: a table, a folder, a slide, a list
    model, tile, probabilities, precision, classes, batch_size, threads, device, overwrite, on_bad_tile
        As for `segment_slide`; with client or workers the model is a run folder or a file.
    folder : gets ``segmentations/<slide>.ome.zarr``, ``outlines/<slide>.geojson.gz``, ``overlays/<slide>.png`` and
        ``slides.csv``
    masks : folder of tissue masks, see `msdask.extract`; a table's column `mask` goes before it
    outline_mpp : see `write_outlines`; None: no outlines
    client : Dask client; its workers must see slides, masks, model and folder under the same paths. Slides are then
        done beside each other, each whole in one worker, which loads the model once, onto its GPU if it has one;
        `threads` are those that read each slide
    workers : the same with so many worker processes of this machine, for this call
    listeners : functions that hear of slides begun and done, and of shards written (`msdask.events`)

    Returns
    -------
    slides : a row a slide: slide_id, path, state ("complete" or "failed"), reason, px, area_mm2_<class>,
        unread_tiles and unread_px: what could not be read, and has no class; polygons

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or the table of slides cannot be read.
    SpecError
        Options contradict each other, or workers are to have a model that is in no file.
    """
    rows = read_slides(slides)
    loaded = model_for(model, load_segmenter, device=device, classes=classes, client=client, workers=workers)
    choice, place = MaskChoice.of(masks), Path(places.local_path(folder))
    options: dict[str, Any] = {
        "tile": tile,
        "probabilities": probabilities,
        "precision": precision,
        "batch_size": batch_size,
        "threads": threads,
        "overwrite": overwrite,
        "on_bad_tile": on_bad_tile,
    }
    return do_slides(
        rows,
        loaded.travels,
        _Segment(place, choice, options, outline_mpp),
        place,
        action="segment",
        kind="segmentation",
        count="px",
        client=client,
        workers=workers,
        listeners=listeners,
    )


@dataclass(frozen=True)
class _Segment(IntoFolder):
    """Does one slide into the folder, wherever it is called."""

    outline_mpp: float | None

    def __call__(self, row: SlideRow, segmenter: Segmenter, hooks: Hooks) -> dict[str, Any]:
        """One slide; gives what is said of it in the table of slides."""
        slide, options = self.opened(row, segmenter.network.magnifications, hooks)
        name, folder = row.slide_id, self.folder
        found = segment_slide(slide, segmenter, folder / "segmentations" / f"{name}.ome.zarr", **options)
        said = {"px": sum(found.attrs["px"].values())}
        said |= {f"area_mm2_{one}": area for one, area in found.attrs["area_mm2"].items()}
        said |= {f"unread_{what}": number for what, number in found.attrs["unread"].items()}
        if self.outline_mpp is not None:
            said["polygons"] = write_outlines(found, folder / "outlines" / f"{name}.geojson.gz", mpp=self.outline_mpp)
        self.draw(slide, name, _small_enough(found), max_size=_SHOWN)
        return said


def write_outlines(found: xr.Dataset, path: str | os.PathLike[str], *, mpp: float = OUTLINE_MPP) -> int:
    """Write the outlines of a segmentation's classes as GeoJSON for QuPath, in level-0 px.

    They run along the px of one level of the pyramid. Levels of more than 32 Mpx are traced in bands of rows, and what
    lies in several bands is joined: each area is one polygon.

    Parameters
    ----------
    found : as `msdask.segment_slide` or `msdask.open_segmentation` gives it
    path : file to write; compressed where its name ends in ".gz"
    mpp : um/px that the level has at most; the finest level where none is as fine

    Returns
    -------
    count : polygons
    """
    if not mpp > 0:
        raise SpecError(f"mpp={mpp!r}: expected um/px above 0, such as 1.0")
    attrs = found.attrs
    px_um = attrs["step"] * attrs["mpp_used"]
    level = max((k for k in range(attrs["levels"]) if px_um * 2**k <= mpp * (1 + 1e-9)), default=0)
    classes = tuple(attrs["classes"])
    colors = {name: rgb_of(color) for name, color in zip(classes, class_colors(len(classes)), strict=True)}
    scale = attrs["step"] * 2**level
    return write_label_outlines(
        path,
        label_level(attrs["path"], level),
        classes=classes,
        scale=(scale, scale),
        shard=attrs["shard"],
        colors=colors,
    )


def _small_enough(found: xr.Dataset) -> xr.Dataset:
    """A segmentation's finest level that is small enough for a figure."""
    attrs = found.attrs
    sizes = [max(attrs["grid"]) / 2**k for k in range(attrs["levels"])]
    level = next((k for k, size in enumerate(sizes) if size <= _SHOWN), attrs["levels"] - 1)
    return open_segmentation(attrs["path"], level=level)
