"""The demonstration: generated slides through the main job, grid and multi-center, and a report to look at."""

from __future__ import annotations

import os
from pathlib import Path

from msdask.extraction.cohort import extract
from msdask.report.run import report_run
from msdask.sample.slides import make_cohort
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore

__all__ = ["run_demo"]


def run_demo(
    output: str | os.PathLike[str],
    *,
    slides: int = 3,
    size: int = 6000,
    threads: int | None = None,
    progress: bool = True,
) -> Path:
    """Make slides, extract a grid at 10x and tuples at 20x, 10x and 5x, and write `report.html`.

    Parameters
    ----------
    output : folder; what an earlier demo left there is used again
    slides : how many
    size : height of a slide, px at 40x; it is a third wider
    threads : of the extraction; None means all cores
    progress : show progress bars

    Returns
    -------
    report : path of the HTML file
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    table = make_cohort(folder, n=slides, size=(size, size * 4 // 3))
    store = PatchStore(folder / "patches.zarr")
    grid = ExtractionSpec(mode="grid", magnifications=(10,))
    centroids = ExtractionSpec(mode="centroids", magnifications=(20, 10, 5))
    runs = [
        extract(table, store, grid, masks=folder / "masks", threads=threads, overwrite=True, progress=progress),
        # Annotated masks: the classes of the generator, as the values 50, 100, 150.
        extract(
            table,
            store,
            centroids,
            masks=folder / "labels",
            values=[50, 100, 150],
            threads=threads,
            overwrite=True,
            progress=progress,
        ),
    ]
    return report_run(
        folder / "report.html", runs, title="msdask demo: generated slides, grid and multi-center", pictures=slides
    )
