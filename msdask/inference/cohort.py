"""Networks on many slides: a slide a job of an engine, and one that fails never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import pandas as pd
import xarray as xr

from msdask.engines.in_flight import run_jobs
from msdask.engines.open_engine import check_options, open_engine
from msdask.engines.plan import Work
from msdask.extraction.cohort_work import bound_here, setup_of_workers
from msdask.extraction.slide_table import SlideRow
from msdask.extraction.slide_work import SlideWork, reason, slide_work
from msdask.inference.loading import Loaded, ModelFile
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.progress.events import BlockWritten, Listener, Listeners, Outcome, RunBegun, RunDone
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.storage.files import replacing, write_file

if TYPE_CHECKING:
    from msdask.engines.open_engine import Client

__all__ = ["Hooks", "IntoFolder", "SlideFunction", "Wrote", "do_slides", "model_for"]

M = TypeVar("M")
Wrote: TypeAlias = Callable[[int, int, int], object]
"""Called with a shard's number, how many there are, and the tuples or px in it, when it is written."""


@dataclass
class Hooks:
    """What is told while a slide is worked on: at once in this process, and afterwards from another one.

    Attributes
    ----------
    shards : number, and tuples or px, of each that was written
    warnings : sentences
    """

    shards: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def wrote(self, shard: int, shards: int, count: int) -> None:
        """A shard is written."""
        self.shards.append((shard, count))

    def warn(self, message: str) -> None:
        """Something is wrong that does not stop the work."""
        self.warnings.append(message)


@dataclass
class _Live(Hooks):
    """Hooks of work in this process.

    Attributes
    ----------
    tell_shard, tell_warning : told at once
    """

    tell_shard: Callable[[int, int], object] = lambda shard, count: None
    tell_warning: Callable[[str], object] = lambda message: None

    def wrote(self, shard: int, shards: int, count: int) -> None:
        """A shard is written."""
        self.tell_shard(shard, count)

    def warn(self, message: str) -> None:
        """Something is wrong that does not stop the work."""
        self.tell_warning(message)


SlideFunction: TypeAlias = Callable[[SlideRow, M, Hooks], dict[str, Any]]
"""Does everything with one slide and a loaded model, and gives what is said of the slide in the table."""


@dataclass(frozen=True)
class _Said(Generic[M]):
    """What comes back of a slide: columns of the table, what is to be told, and the device of the network."""

    columns: dict[str, Any]
    hooks: Hooks
    device: str


@dataclass(frozen=True)
class _ModelOfRun(Generic[M]):
    """The model of a run: as it is here, and as it travels to where slides are done."""

    model: M
    travels: Loaded[M] | ModelFile[M]


def model_for(
    model: Any,
    load: Callable[..., M],
    *,
    device: str | None,
    classes: Sequence[str] | None,
    client: Client | None,
    workers: int | None,
) -> _ModelOfRun[M]:
    """Load a model in this process, so that what is wrong with it is said before any work begins.

    Parameters
    ----------
    model : as for `load`
    load : loads it, given model, device and classes
    device, classes : as for `load`
    client, workers : with one of them, workers load the model from its file; here it is on the CPU

    Raises
    ------
    SpecError
        Both are given, or workers are to have a model that is in no file.
    """
    check_options(client, workers=workers)
    if client is None and workers is None:
        here = load(model, device=device, classes=classes)
        return _ModelOfRun(here, Loaded.of(here))
    here = load(model, device="cpu", classes=classes)
    file = ModelFile.of(model, load, device=device, classes=classes)
    return _ModelOfRun(here, file)


def do_slides(
    rows: Sequence[SlideRow],
    model: Loaded[M] | ModelFile[M],
    function: SlideFunction[M],
    folder: Path,
    *,
    action: str,
    kind: str,
    count: str,
    magnifications: int = 1,
    client: Client | None = None,
    workers: int | None = None,
    listeners: Iterable[Listener],
) -> pd.DataFrame:
    """Do something with every slide; what became of them goes into ``slides.csv``.

    Without client and workers one slide after the other in this process; else slides beside each other, each whole in
    one worker, which loads the model once.

    Parameters
    ----------
    rows : the slides
    model : loaded, or the file that workers load
    function : does it with one slide; an error of it is said in the table. It travels: a function of a module, or a
        partial of one
    folder : gets the table
    action, kind : of the events: "classify" and "map", say
    count : name of the number in the table that says how much was looked at
    magnifications : of a tuple; 1 where they are px
    client, workers : as for `msdask.extract`
    listeners : hear of it

    Returns
    -------
    table : a row a slide: slide_id, path, state ("complete" or "failed"), reason, and what `function` gives
    """
    tell = Listeners(listeners)
    records: dict[int, dict[str, Any]] = {}
    devices: set[str] = set()
    is_here = client is None and workers is None

    def work(order: int, row: SlideRow) -> None:
        with slide_work(engine, tell, order, row.slide_id, (kind,)) as slide:
            shown = partial(_tell_shard, tell, row.slide_id, kind, magnifications)
            said: dict[str, Any] = {"slide_id": row.slide_id, "path": row.path, "state": "complete", "reason": ""}
            try:
                came = _done(slide, function, row, model, shown if is_here else None)
                devices.add(came.device)
                said |= came.columns
                if not is_here:
                    _tell_afterwards(came.hooks, shown, slide)
            except Exception as error:  # also a network without memory: the slides after it are smaller, or not
                said |= {"state": "failed", "reason": reason(error)}
            records[order] = said
            number = int(said.get(count, 0))
            slide.done([Outcome(row.slide_id, kind, said["state"], said["reason"], number, magnifications)])

    setup = Work(len(rows), prepare=setup_of_workers(), refusal=bound_here())
    with open_engine(client, workers=workers, threads=0 if is_here else None, jobs=len(rows), work=setup) as engine:
        tell(RunBegun(action, str(folder), (kind,), len(rows)))
        run_jobs(engine, rows, work)
        facts = {"kind": "network"} if is_here else engine.facts()
    found = pd.DataFrame([records[order] for order in sorted(records)])
    write_file(folder / "slides.csv", found.to_csv(index=False), what="table of slides")
    tell(RunDone(facts | {"device": ", ".join(sorted(devices))}))
    return found


def _done(
    slide: SlideWork,
    function: SlideFunction[M],
    row: SlideRow,
    model: Loaded[M] | ModelFile[M],
    shown: Callable[[int, int], object] | None,
) -> _Said[M]:
    hooks = Hooks() if shown is None else _Live(tell_shard=shown, tell_warning=slide.warn)
    return slide.call(f"network: {row.slide_id}", _in_worker, function, row, model, hooks)


def _in_worker(function: SlideFunction[M], row: SlideRow, model: Loaded[M] | ModelFile[M], hooks: Hooks) -> _Said[M]:
    """One slide, where its engine does it."""
    loaded = model.here()
    columns = function(row, loaded.model, hooks)
    return _Said(columns, hooks, loaded.device)


def _tell_afterwards(hooks: Hooks, shown: Callable[[int, int], object], slide: SlideWork) -> None:
    for shard, count in hooks.shards:
        shown(shard, count)
    for message in hooks.warnings:
        slide.warn(message)


def _tell_shard(
    tell: Callable[[Any], None], slide_id: str, kind: str, magnifications: int, shard: int, count: int
) -> None:
    tell(BlockWritten(slide_id, kind, shard, count, magnifications))


@dataclass(frozen=True)
class IntoFolder:
    """What every function has that does one slide of a table into a folder.

    Attributes
    ----------
    folder : gets a file a slide in folders of its own
    choice : of masks
    options : of the function that does an open slide, the same for every slide
    """

    folder: Path
    choice: MaskChoice
    options: dict[str, Any]

    def opened(self, row: SlideRow, magnifications: Sequence[float], hooks: Hooks) -> tuple[Slide, dict[str, Any]]:
        """A slide of the table, and the options for it: its mask, where the table or a folder has one, its name."""
        slide = Slide(row.path, mpp=row.mpp, magnification=row.magnification, region=row.slide_region)
        slide = slide.with_bad_tiles(self.options["on_bad_tile"])
        mask = None
        if row.mask is not None or self.choice.folder is not None:
            spec = ExtractionSpec("centroids", tuple(magnifications))
            found = masks_of_slide(slide, row.mask, self.choice, spec=spec)
            mask = found.tissue if found.tissue is not None else found.labels
        told = {"wrote": hooks.wrote, "warn": hooks.warn}
        return slide, {**self.options, "mask": mask, "slide_id": row.slide_id, **told}

    def draw(self, slide: Slide, slide_id: str, found: xr.Dataset, **options: Any) -> None:
        """The classes of a slide over it, as `msdask.plots.class_map` draws them, into ``overlays/<slide>.png``."""
        from msdask.plots.maps import class_map  # matplotlib takes a second, which a single map need not wait for

        with replacing(self.folder / "overlays" / f"{slide_id}.png", what="figure") as part:
            class_map(slide, found, **options).savefig(part, format="png", bbox_inches="tight")
