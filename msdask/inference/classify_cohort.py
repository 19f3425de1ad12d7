"""Maps of many slides: one after the other into a folder, and one that fails never stops the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from msdask.errors import MsdaskError, SpecError
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.inference.class_map import prediction_table
from msdask.inference.classify import THREADS, Classifier, Model, classify_slide, load_classifier
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.plots.maps import class_map
from msdask.progress.events import BlockWritten, Listener, Listeners, Outcome, RunBegun, RunDone, SlideBegun, SlideDone
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.storage import places
from msdask.storage.files import replacing, write_file

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
    tell = Listeners(listeners)
    tell(RunBegun("classify", str(place), ("map",), len(rows)))
    records: list[dict[str, Any]] = []
    scales = len(classifier.network.magnifications)
    for order, row in enumerate(rows):
        tell(SlideBegun(row.slide_id, ("map",)))
        wrote = _told(tell, row.slide_id, scales)
        said: dict[str, Any] = {"slide_id": row.slide_id, "path": row.path, "state": "complete", "reason": ""}
        try:
            said |= _classify(row, classifier, place, choice, table, {**options, "wrote": wrote})
        except (MsdaskError, OSError) as error:
            said |= {"state": "failed", "reason": str(error)}
        records.append(said)
        outcome = Outcome(row.slide_id, "map", said["state"], said["reason"], int(said.get("tuples", 0)), scales)
        tell(SlideDone(row.slide_id, ("map",), order, (outcome,)))
    found = pd.DataFrame(records)
    write_file(place / "slides.csv", found.to_csv(index=False), what="table of slides")
    tell(RunDone({"kind": "network", "device": str(next(classifier.network.parameters()).device)}))
    return found


def _told(tell: Callable[[Any], None], slide_id: str, scales: int) -> Callable[[int, int, int], None]:
    return lambda shard, shards, tuples: tell(BlockWritten(slide_id, "map", shard, tuples, scales))


def _classify(
    row: SlideRow, classifier: Classifier, folder: Path, choice: MaskChoice, table: Table, options: dict[str, Any]
) -> dict[str, Any]:
    """One slide into the folder; gives what is said of it in the table of slides."""
    slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, region=row.slide_region)
    mask = None
    if row.mask is not None or choice.folder is not None:
        spec = ExtractionSpec("centroids", classifier.network.magnifications)
        found = masks_of_slide(slide, row.mask, choice, spec=spec)
        mask = found.tissue if found.tissue is not None else found.labels
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
