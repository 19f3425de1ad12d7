"""segment_slide: the class of every px of a slide's tissue, as an OME-Zarr label pyramid."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.computing import Beside
from msdask.errors import SpecError
from msdask.inference.class_map import mask_hash
from msdask.inference.halving import Shard
from msdask.inference.label_file import LabelFile, open_segmentation
from msdask.inference.loading import evaluating
from msdask.inference.planned_group import Tile, Warn, warn_of_unread
from msdask.inference.segment_plan import Precision, Probabilities, SegmentPlan
from msdask.inference.segmenter import Model, Segmenter, load_segmenter
from msdask.inference.tiles import Boxes, Tiling, Tissue, cheapest_tiling, tiling
from msdask.inference.views import Batch, Views, read_views
from msdask.masks.tissue import tissue_mask
from msdask.scale import magnification_to_mpp
from msdask.selection.coverage import mask_values
from msdask.selection.positions import morton_order
from msdask.slides.region import OnBadTile
from msdask.slides.slide import Slide
from msdask.spec import format_magnification
from msdask.store.layout import check_slide_id

if TYPE_CHECKING:
    from torch import Tensor

    from msdask.models import SegmentationModel

__all__ = ["segment_slide"]

Wrote: TypeAlias = Callable[[int, int, int], object]
"""Called with a shard's number, how many there are, and the px of tissue in it, when it is written."""

THREADS = 4
"""That read by default: a disk or a server has several requests to work on."""
SHARD = 2048
"""Px a side that a shard has at most, unless a single tile is larger."""
CHUNK = 512
"""Px a side that a chunk in it has at most."""
LARGEST_TILE = 2048
"""Px a side: from there on almost nothing more is saved."""
MEMORY = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}
"""Bytes that a batch may take in the network, by kind of device; others have as much as a CPU."""


def segment_slide(
    slide: Slide | str | os.PathLike[str],
    model: Model,
    output: str | os.PathLike[str],
    *,
    mask: xr.DataArray | NDArray[Any] | None = None,
    tile: int | None = None,
    probabilities: Probabilities | None = None,
    precision: Precision = "float32",
    classes: Sequence[str] | None = None,
    slide_id: str | None = None,
    batch_size: int = 1,
    threads: int = THREADS,
    device: str | None = None,
    overwrite: bool = False,
    on_bad_tile: OnBadTile = "raise",
    wrote: Wrote | None = None,
    warn: Warn | None = None,
) -> xr.Dataset:
    """Classify every px of a slide's tissue at the scale of the model's target.

    Tiles lie side by side on a lattice that is fixed to the slide, so that each px is what the network says of it
    whatever the size of the tiles (spec section 10); only the last bits of logits differ. Of each tile the network sees
    the part that has tissue. Threads read the views of
    tiles, white outside of the slide, while the network looks at those before. What is written does not depend on the
    number of threads, and a run that was stopped goes on with the same call and leaves the same bytes.

    Parameters
    ----------
    slide : open, or a path
    model : run folder of `msdask train segmenter`, .safetensors file, segmentation model, or `Segmenter`
    output : folder ending in .ome.zarr, or URL of object storage, for the OME-Zarr 0.5 label pyramid
    mask : (y, x), not 0 = tissue, any resolution, covering the whole slide; None: `msdask.tissue_mask` finds it
    tile : px a side of a tile of the output, a multiple of the model's `lattice`; None: the size that costs least
        a px and that the memory of `MEMORY` allows
    probabilities : keep them, too, as "uint8" (0 to 255) or "float16"
    precision : that the network computes in: "float32", or "bfloat16" or "float16" where the device has them
    classes : names; None: what the model says, or numbers
    slide_id : names the slide in the result; None: its file name
    batch_size : tiles that go through the network at once
    threads : that read
    device : "cpu", "cuda" ...; None: where a given model is; a loaded one goes to a GPU if there is one
    overwrite : replace a segmentation of another slide or model at `output`
    on_bad_tile : "raise" a TileError at a tile of the slide that cannot be read; or "fill" it, which leaves the px
        under it without a class, at whichever of the model's magnifications it is read, counts tiles and warns of them
    wrote : hears of every shard that is written
    warn : is told, in a sentence, what could not be read; None: it is a UserWarning

    Returns
    -------
    found : Dataset
        label (y, x) uint8, lazy: 0 where there was no tissue to look at, k + 1 for class k; probability (class, y, x),
        lazy, where it was asked for. Coordinates y and x are centers in level-0 px, y_um and x_um the same in um.
        Attributes: slide_id, shape, mpp, mpp_used, step (level-0 px a px), model, classes, px and area_mm2 of each
        class, unread (tiles that could not be read, px of tissue under them), path and more.

    Raises
    ------
    SpecError
        An argument makes no sense, or the slide's px are larger than those that the model learnt from.
    SlideError, MissingScaleError
        The slide cannot be read, or does not say how large its pixels are.
    StoreError
        Something else is at `output`.
    MsdaskError
        The model cannot be loaded, or is no segmentation model.

    Examples
    --------
    >>> found = ms.segment_slide("a.svs", "run", "a.ome.zarr")  # doctest: +SKIP
    >>> found["label"].sel(y=slice(0, 4096), x=slice(0, 4096)).compute()  # doctest: +SKIP
    """
    _check(batch_size, threads, probabilities, precision)
    unread: set[Tile] = set()
    slide = (slide if isinstance(slide, Slide) else Slide(slide)).with_bad_tiles(on_bad_tile, unread)
    segmenter = load_segmenter(model, device=device, classes=classes)
    if mask is None:
        mask = tissue_mask(slide)
    tissue = Tissue(mask_values(mask, slide.shape, what=f"tissue mask of slide {slide.name!r}") != 0)
    plan = _plan(slide, slide_id or slide.name, segmenter, tissue, tile, batch_size, probabilities, precision)
    file = LabelFile(output, plan, overwrite=overwrite)
    if not file.is_complete:
        _Work(slide, segmenter.network, plan, file, tissue, on_bad_tile, unread).run(threads, wrote)
        file.note_unread(unread)
        file.finish(tissue_px=tissue.px(plan.grid))
    found = open_segmentation(file.path)
    warn_of_unread(slide.name, found.attrs["unread"], warn)
    return found


def _check(batch_size: int, threads: int, probabilities: str | None, precision: str) -> None:
    if batch_size < 1 or threads < 1:
        raise SpecError(f"batch_size={batch_size}, threads={threads}: expected whole numbers of at least 1")
    if probabilities is not None and probabilities not in get_args(Probabilities):
        raise SpecError(
            f"probabilities={probabilities!r}: expected None or one of {', '.join(get_args(Probabilities))}"
        )
    if precision not in get_args(Precision):
        raise SpecError(f"precision={precision!r}: expected one of {', '.join(get_args(Precision))}")


def _plan(
    slide: Slide,
    slide_id: str,
    segmenter: Segmenter,
    tissue: Tissue,
    tile: int | None,
    batch_size: int,
    probabilities: Probabilities | None,
    precision: Precision,
) -> SegmentPlan:
    network = segmenter.network
    target = magnification_to_mpp(network.magnifications[0])
    step = target / slide.mpp_used
    if step < 1 - 1e-9:
        raise SpecError(
            f"slide '{slide.path}' has {slide.mpp_used:g} um/px, which is coarser than the {target:g} um/px of "
            f"{format_magnification(network.magnifications[0])} that the model learnt from; take a model of at most "
            f"{slide.magnification:g}x, or, if the slide's resolution is wrong, give it: open_slide(..., mpp=...)"
        )
    if len(segmenter.classes) > 255:
        raise SpecError(f"the model has {len(segmenter.classes)} classes: labels of 8 bits have room for 255")
    grid = max(1, round(slide.shape[0] / step)), max(1, round(slide.shape[1] / step))
    kind = next(network.parameters()).device.type
    if tile is None:
        memory = MEMORY.get(kind, MEMORY["cpu"]) / (batch_size * (4 if precision == "float32" else 2))
        tiles = cheapest_tiling(network, tissue, grid, largest=LARGEST_TILE, values=memory, leaves_holes=kind == "cpu")
    else:
        tiles = tiling(network, tile)
    shard = tiles.tile * max(1, SHARD // tiles.tile)
    chunk = next(shard // n for n in range(1, shard + 1) if shard % n == 0 and shard // n <= CHUNK)
    return SegmentPlan(
        slide_id=check_slide_id(slide_id),
        fingerprint=slide.fingerprint(),
        shape=slide.shape,
        mpp=slide.mpp or slide.mpp_used,
        mpp_used=slide.mpp_used,
        magnifications=tuple(network.magnifications),
        step=step,
        grid=grid,
        mask=mask_hash(tissue.mask),
        model=segmenter.identity,
        classes=segmenter.classes,
        tiling=tiles,
        shard=shard,
        chunk=chunk,
        probabilities=probabilities,
        batch_size=batch_size,
        device=kind,
        precision=precision,
    )


@dataclass(frozen=True)
class _Bad:
    """What could not be read.

    Attributes
    ----------
    tiles : of the slide, up to here
    px : of one box, for each of its views that has some: (height, width) bool
    """

    tiles: frozenset[Tile]
    px: Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class _Work:
    """One slide that is segmented."""

    slide: Slide
    network: SegmentationModel
    plan: SegmentPlan
    file: LabelFile
    tissue: Tissue
    on_bad_tile: OnBadTile
    unread: set[Tile]

    def run(self, threads: int, wrote: Wrote | None) -> None:
        """Write every shard that is not there."""
        plan = self.plan
        boxes = self.tissue.boxes(plan.grid, plan.tiling.tile, plan.tiling.unit)
        at = boxes.tile // (plan.shard // plan.tiling.tile)
        by_shard = morton_order(at[:, 1], at[:, 0])
        at, boxes = at[by_shard], Boxes(boxes.tile[by_shard], boxes.first[by_shard], boxes.side[by_shard])
        first = np.flatnonzero(np.any(np.diff(at, axis=0, prepend=-1), axis=1))
        shard = np.repeat(np.arange(len(first)), np.diff(first, append=len(at)))
        wanted = self.file.begin(at[first])
        last = np.append(first[1:], len(at)) - 1
        written: deque[tuple[int, int]] = deque()
        open_shards: dict[int, Shard] = {}

        def take(i: int, labels: NDArray[np.uint8], probability: NDArray[Any] | None, bad: _Bad) -> None:
            number = int(shard[i])
            if number not in open_shards:
                open_shards[number] = self.file.empty(*at[i].tolist())
            one = open_shards[number]
            top, left = (boxes.first[i] - at[i] * plan.shard).tolist()
            one.put(top, left, *self._in_tissue(boxes.first[i], boxes.side[i], labels, probability, bad.px))
            if i == last[number]:
                del open_shards[number]
                self.file.note_unread(bad.tiles)
                self.file.write(one)
                written.append((number, int(np.count_nonzero(one.labels))))

        def tell() -> None:
            while written:
                number, px = written.popleft()
                if wrote is not None:
                    wrote(number, len(first), px)

        # What is found goes to the file while the network looks at what comes next.
        with Beside() as thread:
            for i, labels, probability, bad in self._segmented(boxes, wanted[shard], threads):
                thread.call(take, i, labels, probability, bad)
                tell()
        tell()

    def _segmented(
        self, boxes: Boxes, is_wanted: NDArray[np.bool_], threads: int
    ) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[Any] | None, _Bad]]:
        """Number, labels and probabilities of each box that is wanted, and what could not be read.

        Batches are cut from all boxes, whatever is there already: a box goes through the network beside the same
        neighbours in every run, and with views as large as theirs, so that its logits have the same last bits.
        """
        plan, size, count = self.plan, self.plan.batch_size, len(boxes.tile)
        of_side = {side: tiling(self.network, side) for side in np.unique(boxes.side).tolist()}
        batches, cut = [], []
        for rows in (slice(i, min(i + size, count)) for i in range(0, count, size)):
            if not is_wanted[rows].any():
                continue
            axes = tuple(of_side[side] for side in boxes.side[rows].max(0).tolist())
            origins = np.stack([axis.origins(boxes.first[rows, k]) for k, axis in enumerate(axes)], axis=-1)
            batches.append(Batch(rows, origins, np.stack([axis.sizes for axis in axes], axis=-1)))
            cut.append(axes)
        steps = [plan.step * ratio for ratio in plan.tiling.ratios]
        views = [Views.at(self.slide, step, self.on_bad_tile) for step in steps]
        coming = read_views(views, batches, threads=threads)
        with evaluating(self.network) as network, closing(coming):  # type: ignore[type-var]
            for axes, (batch, pixels, unread) in zip(cut, coming, strict=True):
                labels, probability = _predicted(network, pixels, axes, plan)
                self.unread.update(unread.tiles)
                for k, i in enumerate(range(batch.rows.start, batch.rows.stop)):
                    if is_wanted[i]:
                        bad = [
                            self._under(is_bad, boxes.first[i], boxes.side[i], batch.origins[k, m], m)
                            for (patch, m), is_bad in unread.px.items()
                            if patch == k
                        ]
                        found = None if probability is None else probability[k]
                        yield i, labels[k], found, _Bad(frozenset(self.unread), bad)

    def _under(
        self,
        is_bad: NDArray[np.bool_],
        first: NDArray[np.int64],
        side: NDArray[np.int64],
        origin: NDArray[np.int64],
        magnification: int,
    ) -> NDArray[np.bool_]:
        """Which px of a box lie under bad px of one of its views: (height, width) bool."""
        ratio = self.plan.tiling.ratios[magnification]
        rows, columns = (
            np.arange(begin, begin + length) // ratio - start
            for begin, length, start in zip(first.tolist(), side.tolist(), origin.tolist(), strict=True)
        )
        return is_bad[np.ix_(rows, columns)]

    def _in_tissue(
        self,
        first: NDArray[np.int64],
        side: NDArray[np.int64],
        labels: NDArray[np.uint8],
        probability: NDArray[Any] | None,
        bad: Sequence[NDArray[np.bool_]],
    ) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
        """A box's px that lie in the map, and nothing where there is no tissue or something could not be read."""
        grid = self.plan.grid
        rows, columns = (
            range(begin, min(begin + length, end))
            for begin, length, end in zip(first.tolist(), side.tolist(), grid, strict=True)
        )
        inside = self.tissue.under(grid, rows, columns)
        here = tuple(slice(0, n) for n in inside.shape)
        for is_bad in bad:
            inside = inside & ~is_bad[here]
        found = np.where(inside, labels[here], np.uint8(0))
        if probability is None:
            return found, None
        nothing = probability.dtype.type(0 if probability.dtype == np.uint8 else np.nan)
        return found, np.where(inside, probability[(slice(None), *here)], nothing)


def _predicted(
    network: SegmentationModel, pixels: Sequence[NDArray[np.uint8]], axes: Sequence[Tiling], plan: SegmentPlan
) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Labels (B, h, w) and probabilities (B, C, h, w) of views (B, H_i, W_i, 3), whose height and width `axes` give."""
    import torch

    device = next(network.parameters()).device
    begins = [axis.crop if network.is_valid else axis.crop + axis.margin for axis in axes]
    rows, columns = (slice(begin, begin + axis.tile) for begin, axis in zip(begins, axes, strict=True))
    with torch.inference_mode(), _precision(device.type, plan.precision):
        views = [torch.from_numpy(view).to(device).permute(0, 3, 1, 2) for view in pixels]
        logits: Tensor = network.forward_views(views, contexts=False).logits
        kept = logits[..., rows, columns].float()
        labels = (kept.argmax(1) + 1).to(torch.uint8).cpu().numpy()
        if plan.probabilities is None:
            return labels, None
        soft = kept.softmax(1)
        if plan.probabilities == "uint8":
            return labels, (soft * 255).round().to(torch.uint8).cpu().numpy()
        return labels, soft.half().cpu().numpy()


def _precision(device: str, precision: Precision) -> Any:
    import torch

    wanted = getattr(torch, precision)
    return torch.autocast(device, dtype=wanted, enabled=precision != "float32")
