"""What an extraction would do, before it does anything: patches, bytes, time, and what would fail."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from dask.utils import format_bytes

from msdask.computing import side_by_side
from msdask.cutting.lazy_patches import planned
from msdask.cutting.measures import measure
from msdask.engines.plan import Plan
from msdask.errors import MsdaskError
from msdask.extraction.cohort_work import cohort_plan
from msdask.extraction.slide_job import plan_slide
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.extraction.slide_work import reason
from msdask.extraction.specs import in_order
from msdask.masks.choice import MaskChoice
from msdask.masks.labels import Values
from msdask.progress.counting import counted
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.storage import places
from msdask.store import documents
from msdask.store.codecs import encoder
from msdask.store.patch_store import PatchStore

__all__ = ["ExtractionPlan", "Probe", "SlidePlan", "plan"]

_PROBED_SLIDES = 4
_PROBED_IMAGES = 96
"""Images that are cut of each of them: at 2,000 a second that is 0.2 s of work in all."""
_CRC = 4
_TABLE_BYTES = 64
"""Of the tables, for a patch: coordinates, tissue, label, measures."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What cutting some patches took, by which the rest is estimated: cut, measured and encoded, on one thread.

    Attributes
    ----------
    patches : that were cut; tuples, where the set has several magnifications
    seconds : that one of them took
    bytes : that one of them has, encoded
    slides : they were of
    """

    patches: int
    seconds: float
    bytes: float
    slides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What would become of one slide in one patch set.

    Attributes
    ----------
    slide_id, set_name, path : which slide, for which set
    state : "to do", "present" (complete already), or "fails"
    reason : why it would fail
    patches : that would be written; tuples, where the set has several magnifications
    magnifications : of the set
    bytes : that they would take; exact to some bytes a patch for the codec "raw", else estimated by the probe
    seconds : of one thread, estimated: opening, mask and selection as they took now, patches by the probe
    warnings : about scale and mask
    """

    slide_id: str
    set_name: str
    path: str
    state: Literal["to do", "present", "fails"]
    reason: str = ""
    patches: int = 0
    magnifications: int = 1
    bytes: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """What `msdask.extract` would do with the same arguments.

    Attributes
    ----------
    slides : one a slide and set, in the order given
    probes : set -> what was measured; no entry for a set without a patch to write
    specs : set -> its spec
    engine : what it would run on, where nothing is said of that
    problem : why the store or a set would be refused; "" where it would not
    free : bytes that are free where the store would lie; None where that is not known
    """

    slides: tuple[SlidePlan, ...]
    probes: dict[str, Probe]
    specs: dict[str, ExtractionSpec]
    engine: Plan
    problem: str = ""
    free: int | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Slide id -> reason, of the slides that would fail."""
        return {s.slide_id: s.reason for s in self.slides if s.state == "fails"}

    @property
    def bytes(self) -> int:
        """Of all patches that would be written."""
        return sum(s.bytes for s in self.slides)

    @property
    def seconds(self) -> float:
        """Of one thread, for all slides."""
        return sum(s.seconds for s in self.slides)

    @property
    def wall_seconds(self) -> float:
        """The same on the cores that the run would have, if they had nothing else to do and lost nothing."""
        cores = self.engine.threads if self.engine.kind == "threads" else self.engine.workers
        return self.seconds / max(1, min(cores, os.cpu_count() or 1))

    @property
    def is_sound(self) -> bool:
        """Whether nothing would fail, and there is room."""
        return not (self.failures or self.problem or (self.free is not None and self.free < self.bytes))

    def to_frame(self) -> pd.DataFrame:
        """One row a slide and set."""
        names = ("slide_id", "set_name", "state", "reason", "patches", "magnifications", "bytes", "seconds", "path")
        return pd.DataFrame([{name: getattr(s, name) for name in names} for s in self.slides], columns=list(names))

    def summary(self) -> str:
        """What there would be, in sentences."""
        states = {state: sum(s.state == state for s in self.slides) for state in ("to do", "present", "fails")}
        lines = [
            ", ".join(f"{n} {state}" for state, n in states.items() if n)
            + f"; {counted((s.patches, s.magnifications) for s in self.slides)}, {format_bytes(self.bytes)}, "
            f"about {_duration(self.seconds)} on one thread, {_duration(self.wall_seconds)} here ({self.engine})"
        ]
        for name, probe in self.probes.items():
            size = "sizes are exact" if self.specs[name].codec == "raw" else "sizes and times are estimated from it"
            what = counted([(probe.patches, len(self.specs[name].magnifications))])
            lines.append(
                f"{name}: {what} of {', '.join(probe.slides)} were cut to measure it: {1 / probe.seconds:,.0f} a "
                f"second on one thread, {format_bytes(round(probe.bytes))} each; {size}"
            )
        if self.free is not None and self.free < self.bytes:
            lines.append(f"there is no room: {format_bytes(self.free)} are free")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<ExtractionPlan: {self.summary()}>"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary()}</p>{self.to_frame().to_html(index=False)}"


@dataclass(frozen=True)
class _Selected:
    """A slide that was opened and selected on."""

    slide: Slide
    tables: tuple[xr.Dataset, ...]
    notes: tuple[str, ...]
    seconds: float


def plan(
    slides: Slides,
    spec: ExtractionSpec | Sequence[ExtractionSpec],
    *,
    store: str | os.PathLike[str] | None = None,
    name: str | None = None,
    masks: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    values: Values | None = None,
    mask_magnification: float | None = None,
    overwrite: bool = False,
) -> ExtractionPlan:
    """What `msdask.extract` would do with these arguments; nothing is written.

    Every slide is opened, its mask read or made, and its patches selected, as `extract` does it. Of a few slides some
    patches are cut, measured and encoded: sizes and times are estimated from that.

    Parameters
    ----------
    slides, spec, name, masks, labels, values, mask_magnification, overwrite : as for `extract`
    store : where it would be written: what is complete there is no work, and what does not fit is told

    Returns
    -------
    plan : patches, bytes, seconds and reasons, one row a slide and set

    Raises
    ------
    MsdaskError
        Where `extract` would raise it before the first slide, but for a store or set that does not fit, which is
        `ExtractionPlan.problem`.

    Examples
    --------
    >>> print(ms.plan("slides.csv", spec, store="cohort.zarr").summary())  # doctest: +SKIP
    """
    rows, specs = read_slides(slides), in_order(spec, name)
    choice = MaskChoice.of(masks, labels, values, mask_magnification)
    choice.check(row.mask for row in rows)
    names = [name or s.name for s in specs]
    problem = "" if store is None else _problem(store, specs, names, overwrite)
    present = {} if store is None or problem or overwrite else _present(places.location(store), names, specs)
    found = side_by_side(lambda row: _selected(row, specs, choice, present, names), rows)
    probes = _probes(specs, names, [f for f in found if isinstance(f, _Selected)])
    planned_slides = tuple(
        _slide_plan(row, set_name, s, i, selected, probes.get(set_name), present.get((set_name, row.slide_id), False))
        for row, selected in zip(rows, found, strict=True)
        for i, (set_name, s) in enumerate(zip(names, specs, strict=True))
    )
    engine = cohort_plan(rows, specs)
    return ExtractionPlan(planned_slides, probes, dict(zip(names, specs, strict=True)), engine, problem, _free(store))


def _problem(
    store: str | os.PathLike[str], specs: Sequence[ExtractionSpec], names: Sequence[str], overwrite: bool
) -> str:
    try:
        opened = PatchStore(store, codec=specs[0].codec)
        for s, set_name in zip(specs, names, strict=True):
            opened.check_spec(set_name, s, overwrite=overwrite)
    except MsdaskError as error:
        return str(error)
    return ""


def _present(store: str, names: Sequence[str], specs: Sequence[ExtractionSpec]) -> dict[tuple[str, str], bool]:
    """(set, slide id) of the slides that are complete."""
    there = {}
    for name, spec in zip(names, specs, strict=True):
        folder = places.join(store, name)
        for slide_id in places.at(folder).folders(folder):
            try:
                attrs = documents.read_slide(places.join(folder, slide_id), spec_hash=spec.hash)
            except MsdaskError:  # a damaged slide is made anew
                continue
            there[name, slide_id] = attrs.get("state") == "complete"
    return there


def _selected(
    row: SlideRow,
    specs: Sequence[ExtractionSpec],
    masks: MaskChoice,
    present: dict[tuple[str, str], bool],
    names: Sequence[str],
) -> _Selected | str | None:
    """What would be cut; why that would fail; None where all of it is there."""
    started = time.perf_counter()
    if all(present.get((name, row.slide_id)) for name in names):
        return None
    try:
        slide, tables, notes = plan_slide(row, specs, masks)
    except Exception as error:  # as in a run: one bad slide stops nothing
        return reason(error)
    return _Selected(slide, tables, notes, time.perf_counter() - started)


def _probes(specs: Sequence[ExtractionSpec], names: Sequence[str], found: Sequence[_Selected]) -> dict[str, Probe]:
    probes = {}
    for i, (name, spec) in enumerate(zip(names, specs, strict=True)):
        with_patches = [f for f in found if f.tables[i].sizes["patch"]]
        picked = np.unique(np.linspace(0, len(with_patches) - 1, _PROBED_SLIDES).round().astype(int))
        tried = [_probe(with_patches[k], i, spec) for k in picked.tolist()] if with_patches else []
        if done := [probe for probe in tried if probe is not None]:
            count = sum(probe.patches for probe in done)
            seconds, size = sum(probe.seconds for probe in done), sum(probe.bytes for probe in done)
            probes[name] = Probe(count, seconds / count, size / count, tuple(s for p in done for s in p.slides))
    return probes


def _probe(selected: _Selected, i: int, spec: ExtractionSpec) -> Probe | None:
    """Some neighbours that are cut, measured and encoded here: seconds and bytes of all of them; None: it fails."""
    encode = encoder(spec.codec)
    try:
        cutter, table = planned(selected.slide, selected.tables[i])
        count = max(1, _PROBED_IMAGES // len(spec.magnifications))
        first = max(0, (table.sizes["patch"] - count) // 2)
        x0, y0 = (table[name].values[first : first + count] for name in ("x0", "y0"))
        started = time.perf_counter()
        images, _ = cutter.cut(selected.slide.reader, x0, y0)
        measure(images)
        size = sum(len(encode(image)) + _CRC for patch in images for image in patch)
    except (MsdaskError, OSError):  # a tile that cannot be read: the run finds it, or fills it
        return None
    return Probe(len(images), time.perf_counter() - started, float(size), (str(table.attrs["slide_id"]),))


def _slide_plan(
    row: SlideRow,
    set_name: str,
    spec: ExtractionSpec,
    i: int,
    selected: _Selected | str | None,
    probe: Probe | None,
    is_present: bool,
) -> SlidePlan:
    which = (row.slide_id, set_name, row.path)
    if is_present or selected is None:
        return SlidePlan(*which, "present", magnifications=len(spec.magnifications))
    if isinstance(selected, str):
        return SlidePlan(*which, "fails", selected, magnifications=len(spec.magnifications))
    count, scales = selected.tables[i].sizes["patch"], len(spec.magnifications)
    each = scales * (3 * spec.patch_size**2 + _CRC) if spec.codec == "raw" or probe is None else probe.bytes
    return SlidePlan(
        *which,
        "to do",
        patches=count,
        magnifications=scales,
        bytes=round(count * (each + _TABLE_BYTES)),
        seconds=selected.seconds / len(selected.tables) + (count * probe.seconds if probe is not None else 0.0),
        warnings=selected.notes,
    )


def _free(store: str | os.PathLike[str] | None) -> int | None:
    """Bytes that are free where a store would lie."""
    if store is None or places.is_url(os.fspath(store)):
        return None
    folder = places.location(store)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def _duration(seconds: float) -> str:
    """3.2 s, 12 min, 5.1 h."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
