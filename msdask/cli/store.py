"""The commands of `msdask` that read a store: verify (and repair), export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import msdask as ms
from msdask.cli.terminal import Quiet, Scheduler, Workers, err, open_client, out
from msdask.errors import MsdaskError

__all__ = ["export", "verify"]


def verify(
    store: str,
    *,
    repair: Annotated[bool, Parameter(negative=())] = False,
    slides: Annotated[str | None, Parameter(name=["--slides", "-i"])] = None,
    masks: Annotated[str | None, Parameter(name=["--masks", "-t"])] = None,
    labels: str | None = None,
    values: Annotated[list[int | str] | None, Parameter(name="--values", consume_multiple=True, negative=())] = None,
    threads: Annotated[int | None, Parameter(name=["--threads", "-p"])] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> int:
    """Read every byte of a patch store again and say what is missing or damaged; with --repair, put it right.

    Parameters
    ----------
    store
        patch store
    repair
        read what is broken from the slides again, and only that
    slides
        table or folder of the slides, where they are not in the place any more that they were extracted from
    masks
        folder of their masks; only needed where a slide has to be extracted afresh
    labels
        the same of annotated masks, as for extract
    values
        the masks are annotated: their values, as for extract
    threads
        of this machine; default all cores (with --repair)
    scheduler
        address of a Dask scheduler (tcp://...) to repair on
    workers
        so many worker processes of this machine to repair on
    quiet
        no progress bar
    """
    if repair:
        with open_client(scheduler, workers) as client:
            report = ms.repair(
                store,
                slides=slides,
                masks=masks,
                labels=labels,
                values=values,
                client=client,
                threads=threads,
                progress=not quiet,
            )
        for done in report.repairs:
            for line in done.problems:
                err.print(f"{done.set_name}: slide '{done.slide_id}': {line}", markup=False)
            (out if done.action != "none" else err).print(str(done), markup=False)
        out.print(report.summary(), markup=False)
        return 0 if report.is_complete else 1
    opened = ms.PatchStore(store)
    if not len(opened):
        raise MsdaskError(f"'{store}' is no patch store, or has no patch set yet")
    problems = opened.verify()
    for name, lines in problems.items():
        for line in lines:
            err.print(f"{name}: {line}", markup=False)
        out.print(f"{name}: {len(opened[name].slides)} complete slides, {len(lines)} problems", markup=False)
    return 1 if any(problems.values()) else 0


def export(
    store: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    patch_set: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True, negative=())] = None,
    slides: Annotated[list[str] | None, Parameter(name="--slides", consume_multiple=True, negative=())] = None,
    form: Annotated[Literal["png", "csv", "parquet"], Parameter(name="--format")] = "png",
    lists: str | None = None,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    threads: Annotated[int | None, Parameter(name=["--threads", "-p"])] = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Write patches as PNG files with the original's CSVs and training lists, or tables as CSV or Parquet.

    Parameters
    ----------
    store
        patch store
    output
        folder
    patch_set
        names of patch sets; default all
    slides
        ids of slides; default all (png only)
    form
        png: patches in the original's folder layout with its CSVs; csv, parquet: one table a patch set
    lists
        also write the training lists: a folder of partitions (list_train.csv, list_valid.csv, list_test.csv), or
        "split" for the split that is stored with each slide (png only)
    every
        also patches that are white or of low contrast
    threads
        default all cores
    quiet
        no progress bar
    """
    from msdask.exports.png import export_table

    opened = ms.PatchStore(store)
    names = patch_set or list(opened)
    if not names:
        raise MsdaskError(f"'{store}' is no patch store, or has no patch set yet")
    if form != "png":
        for name in names:
            out.print(str(export_table(opened[name], output / f"{name}.{form}", keep=not every)), markup=False)
        return 0
    partitions: Literal[True] | str | None = True if lists == "split" else lists
    summary = ms.export(
        opened, output, name=names, slides=slides, keep=not every, lists=partitions, threads=threads, progress=not quiet
    )
    for where, reason in summary.failures.items():
        err.print(f"failed: {where}: {reason}", markup=False)
    for line in summary.problems:
        err.print(f"warning: {line}", markup=False)
    out.print(summary.summary(), markup=False)
    return 0 if summary.is_complete else 1
