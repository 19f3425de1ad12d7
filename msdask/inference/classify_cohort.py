"""Maps of many slides: one after the other into a folder, and one that fails never stops the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from msdask.errors import SpecError
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.inference.class_map import prediction_table
from msdask.inference.classify import THREADS, Classifier, Model, classify_slide, load_classifier
from msdask.inference.cohort import Wrote, one_after_another, opened_with_mask
from msdask.masks.choice import MaskChoice
from msdask.plots.maps import class_map
from msdask.progress.events import Listener
from msdask.storage import places
from msdask.storage.files import replacing

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
    listeners: Iterable[Listener] = (),
) -> pd.DataFrame:
    """Classify slides into a folder: maps, tables of predictions, figures.

    The same call again goes on where it was stopped, and tries the slides again that failed.

    Parameters
    ----------
    slides : as for `msdask.extract`: a table, a folder, a slide, a list
    model, patch_size, stride, min_tissue, inside, allow_upsampling, classes, batch_size, threads, device, overwrite
        As for `classify_slide`.
    folder : gets ``maps/<slide>.ome.zarr``, ``predictions/<slide>.parquet`` (or .csv), ``overlays/<slide>.png`` and
        ``slides.csv``
    masks : folder of tissue masks, see `msdask.extract`; a table's column `mask` goes before it
    table : format of the predictions
    listeners : functions that hear of slides begun and done, and of shards written (`msdask.events`)

    Returns
    -------
    slides : a row a slide: slide_id, path, state ("complete" or "failed"), reason, tuples, share_<class> of them, and
        outside_20x ...: the mean share of the patches that lies outside of the slide

    Raises
    ------
    MsdaskError
        The model cannot be loaded, or the table of slides cannot be read.
    """
    if table not in get_args(Table):
        raise SpecError(f"table={table!r}: expected one of {', '.join(get_args(Table))}")
    rows, classifier = read_slides(slides), load_classifier(model, device=device, classes=classes)
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
    }

    def made(row: SlideRow, wrote: Wrote) -> dict[str, Any]:
        return _classify(row, classifier, place, choice, table, {**options, "wrote": wrote})

    return one_after_another(
        rows,
        made,
        place,
        action="classify",
        kind="map",
        count="tuples",
        magnifications=len(classifier.network.magnifications),
        device=str(next(classifier.network.parameters()).device),
        listeners=listeners,
    )


def _classify(
    row: SlideRow, classifier: Classifier, folder: Path, choice: MaskChoice, table: Table, options: dict[str, Any]
) -> dict[str, Any]:
    """One slide into the folder; gives what is said of it in the table of slides."""
    slide, mask = opened_with_mask(row, choice, classifier.network.magnifications)
    name = row.slide_id
    made = classify_slide(slide, classifier, folder / "maps" / f"{name}.ome.zarr", mask=mask, slide_id=name, **options)
    rows = prediction_table(made)
    with replacing(folder / "predictions" / f"{name}.{table}", what="predictions") as part:
        if table == "csv":
            rows.to_csv(part, index=False)
        else:
            rows.to_parquet(part, index=False)
    with replacing(folder / "overlays" / f"{name}.png", what="figure") as part:
        class_map(slide, made).savefig(part, format="png", bbox_inches="tight")
    shares = rows["predicted"].value_counts(normalize=True)
    counted = {f"share_{c}": float(shares.get(c, 0.0)) for c in classifier.classes}
    outside = {f"outside_{scale}": share for scale, share in made.attrs["outside_share"].items()}
    return {"tuples": made.attrs["tuples"], **counted, **outside}
