"""`msdask verify` (and repair) and `msdask export`: the commands that read a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from msdask.cli.numbers import COUNT
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
    form: Annotated[Literal["png", "jpeg", "csv", "parquet"], Parameter(name="--format")] = "png",
    quality: Annotated[int | None, COUNT] = None,
    layout: Literal["folders", "flat"] = "folders",
    lists: str | None = None,
    every: Annotated[bool, Parameter(name="--all")] = False,
    keep: str | None = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> int:
    """Write patches as images with tables and the original's training lists, or tables alone.

    Examples: `msdask export cohort.zarr -o png --lists split`; in one folder a set: `msdask export cohort.zarr -o out
    --format jpeg --layout flat`; `msdask export cohort.zarr -o tables --format parquet`.

    Parameters
    ----------
    store
        patch store
    output
        folder
    patch_set
        names of patch sets; default all
    slides
        ids of slides; default all (images only)
    form
        png: images that are the patches px by px; jpeg: smaller ones that are not; csv, parquet: one table a patch set
    quality
        of JPEG, 1 to 100; default 90, and the stored bytes as they are where the store's codec is JPEG
    layout
        folders: the original's, with its CSVs; flat: all images of a set in one folder, with one table (images only)
    lists
        also write the training lists: a folder of partitions (list_train.csv, list_valid.csv, list_test.csv), or
        "split" for the split that is stored with each slide (layout folders only)
    every
        also patches that are white or of low contrast
    keep
        only patches that this rule on the columns of the table takes, such as "tissue > 0.9 and contrast >= 0.1"
    """
    from msdask.exports.images import export

    if every and keep is not None:
        raise SpecError("--all and --keep are two ways to say which patches: give one of them")
    taken: Keep = not every if keep is None else keep
    if form in ("csv", "parquet"):
        of_images = {"--quality": quality, "--lists": lists, "--slides": slides, "--layout": layout != "folders"}
        if given := [flag for flag, value in of_images.items() if value]:
            raise SpecError(
                f"--format {form} with {' and '.join(given)}: a table is of a whole set; leave {given[0]} out"
            )
        return _export_tables(open_store(store), output, patch_set, form, taken)
    opened = open_store(store)
    partitions: Literal[True] | str | None = True if lists == "split" else lists
    summary = export(
        opened,
        output,
        name=patch_set or list(opened),
        slides=slides,
        form="jpeg" if form == "jpeg" else "png",
        quality=quality,
        layout=layout,
        keep=taken,
        lists=partitions,
        threads=threads,
        progress=not quiet,
    )
    for where, reason in summary.failures.items():
        err.print(f"failed: {where}: {reason}", markup=False)
    for line in summary.problems:
        err.print(f"warning: {line}", markup=False)
    out.print(summary.summary(), markup=False)
    return 0 if summary.is_complete else 1


def _export_tables(opened: PatchStore, output: Path, names: list[str] | None, form: str, keep: Keep) -> int:
    from msdask.exports.images import export_table
    from msdask.storage.files import check_writable

    files = {name: output / f"{name}.{form}" for name in names or list(opened)}
    sets = {name: opened[name] for name in files}
    for file in files.values():
        check_writable(file, what="table")
    for name, file in files.items():
        out.print(str(export_table(sets[name], file, keep=keep)), markup=False)
    return 0
