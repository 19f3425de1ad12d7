"""Maps of many slides in a folder; a slide that fails never stops the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from msdask.errors import SpecError
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.inference.class_map import prediction_table
from msdask.inference.classifier import Classifier, Model, load_classifier
from msdask.inference.classify import THREADS, classify_slide
from msdask.inference.cohort import Hooks, IntoFolder, do_slides, model_for
from msdask.masks.choice import MaskChoice
from msdask.progress.events import Listener
from msdask.slides.region import OnBadTile
from msdask.storage import places
from msdask.storage.files import replacing

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["Table", "classify_slides"]

Table = Literal["parquet", "csv"]


def classify_slides(
    slides: Slides,
    model: Model,
    folder: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    table: Table = "parquet",
    patch_size: int | None = None,
    stride: int | None = None,
    min_tissue: float = 0.7,
    inside: bool = True,
    allow_upsampling: bool = False,
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    threads: int = THREADS,
    device: str | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    client: Client | None = None,
    workers: int | None = None,
    listeners: Iterable[Listener] = (),
) -> pd.DataFrame:
    """Classify slides into a folder: maps, tables of predictions, figures.

    The same call again goes on where it was stopped, and tries the slides again that failed.

    Parameters
    ----------
    slides : as for `msdask.extract`: a table, a folder, a slide, a list
    model, patch_size, stride, min_tissue, inside, allow_upsampling, classes, batch_size, threads, device, overwrite,
        on_bad_tile
        As for `classify_slide`; with client or workers the model is a run folder or a file.
    folder : gets ``maps/<slide>.ome.zarr``, ``predictions/<slide>.parquet`` (or .csv), ``overlays/<slide>.png`` and
        ``slides.csv``
    masks : folder of tissue masks, see `msdask.extract`; a table's column `mask` goes before it
    table : format of the predictions
    client : Dask client; its workers must see slides, masks, model and folder under the same paths. Slides are then
        done beside each other, each whole in one worker, which loads the model once, onto its GPU if it has one;
        `threads` are those that read each slide
    workers : the same with so many worker processes of this machine, for this call
    listeners : functions that hear of slides begun and done, and of shards written (`msdask.events`)

    Returns
    -------
    slides : a row a slide: slide_id, path, state ("complete" or "failed"), reason, tuples, share_<class> of them,
        outside_20x ...: the mean share of the patches that lies outside of the slide, unread_tiles and unread_tuples:
        what could not be read, and has no class

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or the table of slides cannot be read.
    SpecError
        Options contradict each other, or workers are to have a model that is in no file.
    """
    if table not in get_args(Table):
        raise SpecError(f"table={table!r}: expected one of {', '.join(get_args(Table))}")
    rows = read_slides(slides)
    loaded = model_for(model, load_classifier, device=device, classes=classes, client=client, workers=workers)
    choice, place = MaskChoice.of(masks), Path(places.local_path(folder))
    choice.check(row.mask for row in rows)
    options = {
        "patch_size": patch_size,
        "stride": stride,
        "min_tissue": min_tissue,
        "inside": inside,
        "allow_upsampling": allow_upsampling,
        "batch_size": batch_size,
        "threads": threads,
        "overwrite": overwrite,
        "on_bad_tile": on_bad_tile,
    }
    return do_slides(
        rows,
        loaded.travels,
        _Classify(place, choice, options, table),
        place,
        action="classify",
        kind="map",
        count="tuples",
        magnifications=len(loaded.model.network.magnifications),
        client=client,
        workers=workers,
        listeners=listeners,
    )


@dataclass(frozen=True)
class _Classify(IntoFolder):
    """Does one slide into the folder, wherever it is called."""

    table: Table

    def __call__(self, row: SlideRow, classifier: Classifier, hooks: Hooks) -> dict[str, Any]:
        """One slide; gives what is said of it in the table of slides."""
        slide, options = self.opened(row, classifier.network.magnifications, hooks)
        name, folder = row.slide_id, self.folder
        made = classify_slide(slide, classifier, folder / "maps" / f"{name}.ome.zarr", **options)
        rows = prediction_table(made)
        with replacing(folder / "predictions" / f"{name}.{self.table}", what="predictions") as part:
            if self.table == "csv":
                rows.to_csv(part, index=False)
            else:
                rows.to_parquet(part, index=False)
        self.draw(slide, name, made)
        shares = rows["predicted"].value_counts(normalize=True)
        counted = {f"share_{c}": float(shares.get(c, 0.0)) for c in classifier.classes}
        outside = {f"outside_{scale}": share for scale, share in made.attrs["outside_share"].items()}
        unread = {f"unread_{what}": number for what, number in made.attrs["unread"].items()}
        return {"tuples": made.attrs["tuples"], **counted, **outside, **unread}
