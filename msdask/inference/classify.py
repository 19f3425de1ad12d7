"""classify_slide: what a classifier says of a whole slide, as maps of classes, probabilities and attention."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter
from msdask.cutting.lazy_patches import planned
from msdask.errors import SpecError
from msdask.inference.class_map import MapPlan, MapRows, class_map, mask_hash
from msdask.inference.classifier import Classifier, Model, load_classifier
from msdask.inference.loading import evaluating
from msdask.inference.map_file import MapFile, read_class_map
from msdask.inference.planned_group import Tile, Warn, warn_of_unread
from msdask.inference.reading_ahead import read_ahead
from msdask.masks.tissue import tissue_mask
from msdask.selection.select import select
from msdask.slides.region import OnBadTile
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.store.layout import check_slide_id

if TYPE_CHECKING:
    from msdask.models import MultiScaleClassifier

__all__ = ["classify_slide"]

Wrote: TypeAlias = Callable[[int, int, int], object]
"""Called with a shard's number, how many there are, and the tuples in it, when it is written."""

THREADS = 4
"""That read by default: a disk or a server has several requests to work on."""


def classify_slide(
    slide: Slide | str | os.PathLike[str],
    model: Model,
    output: str | os.PathLike[str] | None = None,
    *,
    mask: xr.DataArray | NDArray[Any] | None = None,
    patch_size: int | None = None,
    stride: int | None = None,
    min_tissue: float = 0.7,
    inside: bool = True,
    allow_upsampling: bool = False,
    classes: Sequence[str] | None = None,
    slide_id: str | None = None,
    batch_size: int = 64,
    threads: int = THREADS,
    device: str | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    wrote: Wrote | None = None,
    warn: Warn | None = None,
) -> xr.Dataset:
    """Classify a slide on a grid over its tissue.

    Concentric tuples at the model's magnifications are read from the slide by threads while the network looks at those
    before. The highest magnification lies on the grid; contexts that leave the slide see white there, as in training.
    A map does not depend on the number of threads, and a run that was stopped goes on with the same call and leaves the
    same bytes.

    Parameters
    ----------
    slide : open, or a path
    model : run folder of `msdask train classifier`, .safetensors file, classifier, or what `load_classifier` gives
    output : folder ending in .ome.zarr, or URL of object storage, for an OME-Zarr 0.5 image of the probabilities with
        an image-label of the classes (0 nothing, k + 1 class k); None: nothing is written
    mask : (y, x), not 0 = tissue, any resolution, covering the whole slide; None: `msdask.tissue_mask` finds it
    patch_size : px a side; None: what the model learnt from
    stride : px at the highest magnification between patches, which is the side of a px of the map; None: `patch_size`
    min_tissue : least fraction of tissue under a patch of the highest magnification
    inside : leave out patches of the highest magnification that reach over the edge of the slide
    allow_upsampling : enlarge where the slide is coarser than the model's highest magnification
    classes : names; None: what the model says, or numbers
    slide_id : names the slide in the result; None: its file name
    batch_size : tuples that go through the network at once
    threads : that read
    device : "cpu", "cuda" ...; None: where a given model is; a loaded one goes to a GPU if there is one
    overwrite : replace a map of another slide or model at `output`
    on_bad_tile : "raise" a TileError at a tile of the slide that cannot be read; or "fill" it, which leaves every tuple
        over it without a class, in whichever magnification it lies, counts the tiles and warns of them
    wrote : hears of every shard that is written
    warn : is told, in a sentence, what could not be read; None: it is a UserWarning

    Returns
    -------
    map : Dataset
        probability (class, y, x) float32 and predicted (y, x) int16, NaN and -1 where there was no tissue to look at;
        outside (magnification, y, x) float32, the share of each patch that lies outside of the slide; attention
        (magnification, y, x) float32 of models that have it. Coordinates y and x are centers in level-0 px, y_um and
        x_um the same in um. Attributes: slide_id, shape, mpp, mpp_used, step (level-0 px), footprint, spec, model,
        classes, tuples, outside_share (mean share outside of each magnification), unread (tiles that could not be read,
        tuples over them) and more.

    Raises
    ------
    SpecError
        An argument makes no sense, the slide is coarser than the model, or no patch fits it.
    SlideError, MissingScaleError
        The slide cannot be read, or does not say how large its pixels are.
    StoreError
        Something else is at `output`.
    MsdaskError
        The model cannot be loaded, or is no classifier.

    Examples
    --------
    >>> found = ms.classify_slide("a.svs", "run", "a.ome.zarr")  # doctest: +SKIP
    >>> ms.plots.class_map(ms.open_slide("a.svs"), found)  # doctest: +SKIP
    """
    if batch_size < 1 or threads < 1:
        raise SpecError(f"batch_size={batch_size}, threads={threads}: expected whole numbers of at least 1")
    unread: set[Tile] = set()
    slide = (slide if isinstance(slide, Slide) else Slide(slide)).with_bad_tiles(on_bad_tile, unread)
    classifier = load_classifier(model, device=device, classes=classes)
    size = patch_size or classifier.patch_size
    if size is None:
        raise SpecError("patch_size=None, and the model does not say what it learnt from: give patch_size=224, say")
    scales = classifier.network.magnifications
    spec = ExtractionSpec(
        "grid" if len(scales) == 1 else "centroids",
        scales,
        size,
        stride=stride,
        min_tissue=min_tissue,
        inside=inside,
        allow_upsampling=allow_upsampling,
        tolerance=slide.tolerance,
    )
    tissue = np.asarray(tissue_mask(slide) if mask is None else mask) != 0
    cutter, table = planned(slide, select(slide, spec, mask=tissue), on_bad_tile=on_bad_tile)
    plan = _plan(slide, slide_id or slide.name, classifier, spec, table, tissue, batch_size)
    file = None if output is None else MapFile(output, plan, overwrite=overwrite)
    if file is not None and file.is_complete:
        found = read_class_map(file.path)
    else:
        found = _Work(slide, cutter, table, MapRows.of(table), classifier, plan, file, unread).done(threads, wrote)
    warn_of_unread(slide.name, found.attrs["unread"], warn)
    return found


def _plan(
    slide: Slide,
    slide_id: str,
    classifier: Classifier,
    spec: ExtractionSpec,
    table: xr.Dataset,
    tissue: NDArray[np.bool_],
    batch_size: int,
) -> MapPlan:
    rows, columns = table.attrs["grid_shape"]
    if not rows or not columns:
        raise SpecError(
            f"slide '{slide.path}' of {slide.shape[1]} x {slide.shape[0]} px is too small for a patch of "
            f"{table.attrs['footprint'][0]:g} px: take another magnification, or inside=False"
        )
    network = classifier.network
    return MapPlan(
        slide_id=check_slide_id(slide_id),
        fingerprint=table.attrs["fingerprint"],
        shape=slide.shape,
        mpp=slide.mpp or slide.mpp_used,
        mpp_used=slide.mpp_used,
        spec=spec.to_dict(),
        start=tuple(table.attrs["start"]),
        step=float(table.attrs["step"]),
        grid=(int(rows), int(columns)),
        mask=mask_hash(tissue),
        model=classifier.identity,
        classes=classifier.classes,
        batch_size=batch_size,
        device=next(network.parameters()).device.type,
        has_attention=hasattr(network, "attention"),
    )


@dataclass(frozen=True)
class _Work:
    """One slide that is classified."""

    slide: Slide
    cutter: Cutter
    table: xr.Dataset
    rows: MapRows
    classifier: Classifier
    plan: MapPlan
    file: MapFile | None
    unread: set[Tile]

    def done(self, threads: int, wrote: Wrote | None) -> xr.Dataset:
        """The map: what is written already, and the rest."""
        probability, attention = self._begun()
        is_written = np.zeros(len(self.rows.shards), bool)
        if self.file is not None:
            is_written = self.file.written(self.rows.shards)
        for shard in self._classified(~is_written, probability, attention, threads):
            if self.file is not None:
                self.file.note_unread(self.unread)
                self.file.write(self.rows.shards[shard], probability, attention)
            if wrote is not None:
                wrote(shard, len(self.rows.shards), int((self.rows.shard == shard).sum()))
        known = ~np.isnan(probability[0, self.rows.row, self.rows.column])
        unread_tuples = int(np.count_nonzero(~known))
        if self.file is not None:
            self.file.note_unread(self.unread)
            self.unread.update(self.file.unread)
            self.file.finish(probability, attention, unread_tuples=unread_tuples)
        counts = {"tiles": len(self.unread), "tuples": unread_tuples if self.unread else 0}
        return class_map(self.plan, probability, attention, counts)

    def _begun(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        if self.file is not None:
            self.file.begin()
            return self.file.read()
        plan = self.plan
        probability = np.full((len(plan.classes), *plan.grid), np.nan, np.float32)
        shape = (len(plan.magnifications), *plan.grid)
        return probability, np.full(shape, np.nan, np.float32) if plan.has_attention else None

    def _classified(
        self,
        wanted: NDArray[np.bool_],
        probability: NDArray[np.float32],
        attention: NDArray[np.float32] | None,
        threads: int,
    ) -> Iterator[int]:
        """Fill the maps in; gives the number of each shard that is wanted when all of it is there.

        Batches are cut from the whole selection, whatever is there already: a tuple goes through the network beside the
        same neighbours in every run, so that its probabilities have the same last bits.
        """
        of, count, size = self.rows.shard, len(self.rows.shard), self.plan.batch_size
        is_wanted = wanted[of] if count else np.zeros(0, bool)
        batches = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        batches = [rows for rows in batches if is_wanted[rows].any()]
        last_row = np.searchsorted(of, np.arange(len(wanted)), side="right") - 1
        x0, y0 = self.table["x0"].values, self.table["y0"].values
        coming = read_ahead(self.slide, self.cutter, x0, y0, batches, threads=threads)
        with evaluating(self.classifier.network) as network, closing(coming):  # type: ignore[type-var]
            for rows, pixels, unread in coming:
                taken = np.arange(rows.start, rows.stop)[is_wanted[rows]]
                found, looked = _predicted(network, pixels)
                self.unread.update(unread.tiles)
                over_bad = sorted({patch for patch, _ in unread.px})
                for values in (found, looked):
                    if values is not None:
                        values[over_bad] = np.nan
                at = (slice(None), self.rows.row[taken], self.rows.column[taken])
                probability[at] = found[taken - rows.start].T
                if attention is not None and looked is not None:
                    attention[at] = looked[taken - rows.start].T
                ended = np.flatnonzero(wanted & (last_row >= rows.start) & (last_row < rows.stop))
                yield from ended.tolist()


def _predicted(
    network: MultiScaleClassifier, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Probabilities (B, C) and attention (B, M) of tuples (B, M, S, S, 3)."""
    import torch

    with torch.inference_mode():
        images = torch.from_numpy(pixels).to(next(network.parameters()).device).movedim(-1, -3)
        output = network(images)
        attention = None if output.attention is None else output.attention.float().cpu().numpy()
        return output.logits.softmax(-1).float().cpu().numpy(), attention
