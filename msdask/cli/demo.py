"""`msdask demo`: generated slides through the main job, grid and multi-center, and a report to look at."""

from __future__ import annotations

import os
from pathlib import Path

from msdask.cli.options import Output, Threads
from msdask.cli.terminal import out
from msdask.spec import ExtractionSpec

__all__ = ["demo", "run_demo"]


def demo(*, output: Output = Path("demo"), threads: Threads = None) -> int:
    """Make three slides, run grid and multi-center extraction on them, and write a report to look at.

    Example: `msdask demo -o demo`.

    Parameters
    ----------
    output
        folder
    """
    out.print(f"report: {run_demo(output, threads=threads).resolve()}", markup=False)
    return 0


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
    from msdask.extraction.cohort import extract
    from msdask.report.run import report_run
    from msdask.sample.slides import make_cohort
    from msdask.storage.files import check_folder_writable

    folder = Path(output)
    check_folder_writable(folder, what="folder of the demo")
    folder.mkdir(parents=True, exist_ok=True)
    table = make_cohort(folder, n=slides, size=(size, size * 4 // 3))
    runs = [
        extract(
            table,
            folder / "patches.zarr",
            spec,
            masks=folder / masks,
            values=values,
            threads=threads,
            overwrite=True,
            progress=progress,
        )
        for spec, masks, values in (
            (ExtractionSpec(mode="grid", magnifications=(10,)), "masks", None),
            # Annotated masks: the classes of the generator, as the values 50, 100, 150.
            (ExtractionSpec(mode="centroids", magnifications=(20, 10, 5)), "labels", [50, 100, 150]),
        )
    ]
    return report_run(
        folder / "report.html", runs, title="msdask demo: generated slides, grid and multi-center", pictures=slides
    )
