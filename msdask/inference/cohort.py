"""Networks on many slides: one slide after the other, and one that fails never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import xarray as xr

from msdask.extraction.slide_table import SlideRow
from msdask.extraction.slide_work import reason
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.progress.events import BlockWritten, Listener, Listeners, Outcome, RunBegun, RunDone, SlideBegun, SlideDone
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.storage.files import write_file

__all__ = ["Wrote", "one_after_another", "opened_with_mask"]

Wrote: TypeAlias = Callable[[int, int, int], object]
"""Called with a shard's number, how many there are, and the tuples or px in it, when it is written."""


def one_after_another(
    rows: Sequence[SlideRow],
    made: Callable[[SlideRow, Wrote], dict[str, Any]],
    folder: Path,
    *,
    action: str,
    kind: str,
    count: str,
    magnifications: int = 1,
    device: str,
    listeners: Iterable[Listener],
) -> pd.DataFrame:
    """Do something with every slide; what became of them goes into ``slides.csv``.

    Parameters
    ----------
    rows : the slides
    made : does it with one, and gives what is said of it in the table; an error of it is said there, too
    folder : gets the table
    action, kind : of the events: "classify" and "map", say
    count : name of the number in the table that says how much was looked at
    magnifications : of a tuple; 1 where they are px
    device : that the network is on
    listeners : hear of it

    Returns
    -------
    table : a row a slide: slide_id, path, state ("complete" or "failed"), reason, and what `made` gives
    """
    tell = Listeners(listeners)
    tell(RunBegun(action, str(folder), (kind,), len(rows)))
    records: list[dict[str, Any]] = []
    for order, row in enumerate(rows):
        tell(SlideBegun(row.slide_id, (kind,)))
        said: dict[str, Any] = {"slide_id": row.slide_id, "path": row.path, "state": "complete", "reason": ""}
        try:
            said |= made(row, _told(tell, row.slide_id, kind, magnifications))
        except Exception as error:  # also a network without memory: the slides after it are smaller, or not
            said |= {"state": "failed", "reason": reason(error)}
        records.append(said)
        outcome = Outcome(row.slide_id, kind, said["state"], said["reason"], int(said.get(count, 0)), magnifications)
        tell(SlideDone(row.slide_id, (kind,), order, (outcome,)))
    found = pd.DataFrame(records)
    write_file(folder / "slides.csv", found.to_csv(index=False), what="table of slides")
    tell(RunDone({"kind": "network", "device": device}))
    return found


def _told(tell: Callable[[Any], None], slide_id: str, kind: str, magnifications: int) -> Wrote:
    return lambda shard, shards, count: tell(BlockWritten(slide_id, kind, shard, count, magnifications))


def opened_with_mask(
    row: SlideRow, choice: MaskChoice, magnifications: Sequence[float]
) -> tuple[Slide, xr.DataArray | None]:
    """A slide of a table, and its mask, where the table or a folder has one."""
    slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, region=row.slide_region)
    if row.mask is None and choice.folder is None:
        return slide, None
    found = masks_of_slide(slide, row.mask, choice, spec=ExtractionSpec("centroids", tuple(magnifications)))
    return slide, found.tissue if found.tissue is not None else found.labels
