"""`msdask ls`, `remove`, `rename` and `merge`: what is in a store, and what puts it in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from msdask.cli.store import open_store
from msdask.cli.terminal import out
from msdask.errors import SpecError

if TYPE_CHECKING:
    from msdask.store.patch_store import PatchStore

__all__ = ["ls", "merge", "print_store", "remove", "rename"]

Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]
Sets = Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)]
_SHOWN = 5


def ls(store: str, *, patch_set: Annotated[str | None, Parameter(name="--set")] = None) -> int:
    """List the patch sets of a store, or the slides of a set.

    Example: `msdask ls cohort.zarr --set grid-10x-224`.

    Parameters
    ----------
    store
        patch store
    patch_set
        list the slides of this set: state, patches or tuples, bytes, split, um/px, file
    """
    from dask.utils import format_bytes

    from msdask.progress.counting import counted

    opened = open_store(store)
    table = opened.to_frame() if patch_set is None else opened[patch_set].to_frame()
    table["bytes"] = table["bytes"].map(format_bytes)
    if patch_set is None:
        table["patches"] = [counted([pair]) for pair in zip(table["patches"], table.pop("magnifications"), strict=True)]
        table["unfinished"] = table["unfinished"].map(len)
    for name in {"kept", "labeled", "patches"} & set(table):
        table[name] = [value if isinstance(value, str) else _whole(value) for value in table[name]]
    out.print(table.fillna("").to_string(index=False), markup=False)
    return 0


def _whole(value: float) -> str:
    return "" if value != value else f"{int(value):,}"  # NaN: of a slide that is not complete


def print_store(store: PatchStore) -> int:
    """Print what a store holds, set by set, and what is missing."""
    from dask.utils import format_bytes

    from msdask.storage import places

    size = format_bytes(places.at(store.path).size_below(store.path))
    facts = [("store", store.path), ("codec", store.codec), ("on disk", size), ("sets", f"{len(store)}")]
    if frozen := store.frozen_states():
        facts.append(("frozen", ", ".join(frozen)))
    for key, value in facts:
        out.print(f"{key:<11} {value}", markup=False)
    for name, patch_set in store.items():
        out.print(f"\n{name}", markup=False)
        for key, value in patch_set.facts():
            out.print(f"  {key:<9} {value}", markup=False)
        states = patch_set.states()
        missing = [f"{slide_id} ({state})" for slide_id, state in states.items() if state != "complete"]
        if missing:
            more = f", and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            out.print(f"  {'missing':<9} {', '.join(missing[:_SHOWN])}{more}: extract again", markup=False)
    return 0


def remove(store: str, *, patch_set: Annotated[str, Parameter(name="--set")], slides: Names = None) -> int:
    """Remove a patch set, or slides of it, from a store.

    Example: `msdask remove cohort.zarr --set grid-10x-224 --slides a.svs b.svs`.

    Parameters
    ----------
    store
        patch store
    patch_set
        name of the set
    slides
        ids of slides to remove; without it the whole set is removed
    """
    open_store(store).remove(patch_set, slides=slides)
    what = "" if slides is None else f", {len(slides)} slide{'s' if len(slides) > 1 else ''}"
    out.print(f"removed: {patch_set}{what}", markup=False)
    return 0


def rename(
    store: str,
    *,
    to: str,
    patch_set: Annotated[str | None, Parameter(name="--set")] = None,
    slide: str | None = None,
) -> int:
    """Give a patch set, or a slide, of a store another name.

    Examples: `msdask rename cohort.zarr --set grid-10x-224 --to coarse`; `msdask rename cohort.zarr --slide a.svs --to
    A-1`.

    Parameters
    ----------
    store
        patch store
    to
        the new name
    patch_set
        the set to rename; with --slide, the only set in which that is renamed
    slide
        the slide to rename, in all sets that have it
    """
    opened = open_store(store)
    if slide is not None:
        opened.rename_slide(slide, to, names=None if patch_set is None else [patch_set])
    elif patch_set is not None:
        opened.rename(patch_set, to)
    else:
        raise SpecError("msdask rename: expected --set or --slide")
    out.print(f"{slide or patch_set} is {to} now", markup=False)
    return 0


def merge(
    store: str, others: list[str], *, patch_set: Sets = None, slides: Names = None, name: str | None = None
) -> int:
    """Take the slides of other stores over into a store; they stay as they are.

    Example: `msdask merge cohort.zarr part1.zarr part2.zarr`.

    Parameters
    ----------
    store
        patch store to copy to; made if it does not exist
    others
        patch stores to copy from, of the same codec
    patch_set
        names of sets; default all
    slides
        ids of slides; default all
    name
        that the set gets in the store, where one set is copied
    """
    from msdask.store.patch_store import PatchStore

    sources = [open_store(other) for other in others]
    target = PatchStore(store, codec=sources[0].codec)
    for source in sources:
        done = list(target.merge(source, names=patch_set, slides=slides, to=name).values())
        out.print(f"{source.path}: {done.count('copied')} copied, {done.count('present')} present", markup=False)
    return 0
