"""`msdask verify` (and repair) and `msdask export`: the commands that read a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from msdask.cli.options import Masks, Output, Quiet, Threads, Where, given_slides
from msdask.cli.terminal import err, out
from msdask.errors import MsdaskError, SpecError, StoreError

if TYPE_CHECKING:
    from msdask.store.keep_rule import Keep
    from msdask.store.patch_store import PatchStore

__all__ = ["export", "freeze", "open_store", "verify"]


def open_store(path: str | Path) -> PatchStore:
    """A patch store that has a patch set; an error where there is none."""
    from msdask.store.patch_store import PatchStore

    store = PatchStore(path)
    if not len(store):
        raise MsdaskError(f"'{path}' is no patch store, or has no patch set yet")
    return store


def verify(
    store: str,
    *,
    repair: bool = False,
    slides: Annotated[list[str] | None, Parameter(name=["--slides", "-i"], consume_multiple=True)] = None,
    masks: Masks = Masks(),
    where: Where = Where(),
) -> int:
    """Read every byte of a patch store again and say what is missing or damaged; with --repair, put it right.

    Examples: `msdask verify cohort.zarr`; `msdask verify cohort.zarr --repair -i slides/`.

    Parameters
    ----------
    store
        patch store
    repair
        read what is broken from the slides again, and only that; the options below are for it. Masks are only needed
        where a slide has to be extracted afresh
    slides
        table or folder of the slides, where they are not in the place any more that they were extracted from
    """
    if repair:
        return _repair(store, slides, masks, where)
    opened = open_store(store)
    problems = opened.verify()
    for name, lines in problems.items():
        for line in lines:
            err.print(f"{name}: {line}", markup=False)
        out.print(f"{name}: {_complete(opened, name)} complete slides, {len(lines)} problems", markup=False)
    return 1 if any(problems.values()) else 0


def _complete(store: PatchStore, name: str) -> str:
    try:
        return str(len(store[name].slides))
    except StoreError:  # its document is lost, which is one of its problems
        return "unknown number of"


def freeze(store: str, name: str) -> int:
    """Give what is in a patch store now a name that no later run changes: PatchStore(path, at=name) reads it.

    Example: `msdask freeze cohort.zarr v1`.

    Parameters
    ----------
    store
        patch store
    name
        of the state, such as v1
    """
    frozen = open_store(store).freeze(name)
    slides = sum(map(len, frozen.sets.values()))
    out.print(f"{name}: {len(frozen.sets)} sets, {slides} slides, {frozen.hash}", markup=False)
    return 0


def _repair(store: str, slides: list[str] | None, masks: Masks, where: Where) -> int:
    from msdask.extraction.repair import repair

    with where.started() as running:
        report = repair(
            store,
            slides=slides and given_slides(slides),
            masks=masks.masks,
            labels=masks.labels,
            values=masks.values,
            **running,
        )
    for done in report.repairs:
        for line in done.problems:
            err.print(f"{done.set_name}: slide '{done.slide_id}': {line}", markup=False)
        (out if done.action != "none" else err).print(str(done), markup=False)
    out.print(report.summary(), markup=False)
    return 0 if report.is_complete else 1


def export(
    store: Path,
    *,
    output: Output,
    patch_set: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)] = None,
    slides: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    form: Annotated[Literal["png", "csv", "parquet"], Parameter(name="--format")] = "png",
    lists: str | None = None,
    every: Annotated[bool, Parameter(name="--all")] = False,
    keep: str | None = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> int:
    """Write patches as PNG files with the original's CSVs and training lists, or tables as CSV or Parquet.

    Examples: `msdask export cohort.zarr -o png --lists split`; `msdask export cohort.zarr -o tables --format parquet`.

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
    keep
        only patches that this rule on the columns of the table takes, such as "tissue > 0.9 and contrast >= 0.1"
    """
    from msdask.exports.png import export, export_table

    if every and keep is not None:
        raise SpecError("--all and --keep are two ways to say which patches: give one of them")
    taken: Keep = not every if keep is None else keep
    opened = open_store(store)
    names = patch_set or list(opened)
    if form != "png":
        for name in names:
            out.print(str(export_table(opened[name], output / f"{name}.{form}", keep=taken)), markup=False)
        return 0
    partitions: Literal[True] | str | None = True if lists == "split" else lists
    summary = export(
        opened, output, name=names, slides=slides, keep=taken, lists=partitions, threads=threads, progress=not quiet
    )
    for where, reason in summary.failures.items():
        err.print(f"failed: {where}: {reason}", markup=False)
    for line in summary.problems:
        err.print(f"warning: {line}", markup=False)
    out.print(summary.summary(), markup=False)
    return 0 if summary.is_complete else 1
