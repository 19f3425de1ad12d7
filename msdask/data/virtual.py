"""VirtualSet: a patch set of coordinates only, its pixels read from the slides when they are streamed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.cutting.cutter import Cutter
from msdask.cutting.lazy_patches import planned
from msdask.cutting.tile_cache import TileCache
from msdask.data.cached_reader import CachedReader, HalvedReader
from msdask.data.scales import ScaledCut
from msdask.errors import SpecError
from msdask.extraction.slide_job import plan_slide
from msdask.extraction.slide_table import Slides, read_slides
from msdask.masks.choice import MaskChoice
from msdask.masks.labels import Values
from msdask.readers.base import Reader
from msdask.scale import footprint, plan_read
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.storage import places
from msdask.store import layout
from msdask.store.integrity import check_same_file
from msdask.store.patch_set import PatchSet
from msdask.store.reading_threads import reading_pool

__all__ = ["VirtualSet"]

_BLOCK_ROWS = 64
"""Patches of a block: neighbours on the slide, whose tiles are decoded once."""
_PATCHES_A_TASK = 8
_HALVED_PX = 2**24
"""Images of one level up to this size are cut from their halvings at other scales."""
DEFAULT_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class _VirtualSlide:
    """One slide: how its patches are read, and their table."""

    slide: Slide
    cutter: Cutter
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    label: NDArray[np.int16]
    tissue: NDArray[np.float32]
    keep: NDArray[np.bool_]
    cohort: Mapping[str, Any]


class VirtualSet:
    """Patches that are read from their slides when they are asked for: a stored set's pixels, and nothing written.

    For trying out selections, for sets that are too large to store, and for scales that change with every draw
    (``PatchDataset(..., scale=ScaleAugment(...))``). What a cache of tiles saves depends on the order: shuffle by
    blocks (`msdask.data.loader` does), never single patches. Brightness and contrast are not measured, so `keep` is
    True for every patch unless it comes from a stored set.

    Parameters
    ----------
    slides : by slide id
    selections : by slide id: tables from `msdask.grid`, `msdask.centroids` or `msdask.select`, all of one spec
    cohort : by slide id: facts such as {"split": "train"}
    cache_bytes : budget for decoded tiles of all slides, in each process
    name : of the set; made from the spec by default

    Raises
    ------
    SpecError
        Selections of different specs, or without a slide.

    Examples
    --------
    >>> tuples = ms.centroids(slide, tissue, magnifications=[20, 10, 5])  # doctest: +SKIP
    >>> ms.data.loader(VirtualSet({"a": slide}, {"a": tuples}), batch_size=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        slides: Mapping[str, Slide],
        selections: Mapping[str, xr.Dataset],
        *,
        cohort: Mapping[str, Mapping[str, Any]] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        name: str | None = None,
    ) -> None:
        if not selections:
            raise SpecError("VirtualSet: no selection given")
        if missing := sorted(set(selections) - set(slides)):
            raise SpecError(f"VirtualSet: selections of {missing}, but no such slides are given")
        self._cache = TileCache(cache_bytes)
        self._slides: dict[str, _VirtualSlide] = {}
        specs: dict[str, ExtractionSpec] = {}
        for slide_id in sorted(selections):
            reader, table = planned(slides[slide_id], selections[slide_id])
            specs[slide_id] = ExtractionSpec.from_dict(table.attrs["spec"])
            count = table.sizes["patch"]
            keep = table["keep"].values if "keep" in table else np.ones(count, bool)
            x0, y0, label, tissue = (table[n].values for n in ("x0", "y0", "label", "tissue"))
            facts = dict((cohort or {}).get(slide_id, {}))
            self._slides[slide_id] = _VirtualSlide(slides[slide_id], reader, x0, y0, label, tissue, keep, facts)
        self.spec = next(iter(specs.values()))
        self.magnifications, self.patch_size = self.spec.magnifications, self.spec.patch_size
        if odd := sorted(i for i, spec in specs.items() if spec.hash != self.spec.hash):
            raise SpecError(f"VirtualSet: the selections of {odd[:5]} were made with another spec than the others")
        self.name = name or self.spec.name

    @classmethod
    def plan(
        cls,
        slides: Slides,
        spec: ExtractionSpec,
        *,
        masks: str | os.PathLike[str] | None = None,
        labels: str | os.PathLike[str] | None = None,
        values: Values | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> VirtualSet:
        """What `msdask.extract` would cut, without cutting it.

        Parameters
        ----------
        slides, spec, masks, labels, values : as for `msdask.extract`
        cache_bytes : budget for decoded tiles
        """
        choice = MaskChoice.of(masks, labels, values)
        opened, tables, cohort = {}, {}, {}
        for row in read_slides(slides):
            opened[row.slide_id], (tables[row.slide_id],), _ = plan_slide(row, [spec], choice)
            cohort[row.slide_id] = row.facts
        return cls(opened, tables, cohort=cohort, cache_bytes=cache_bytes)

    @classmethod
    def of(
        cls,
        patch_set: PatchSet,
        *,
        slides: Mapping[str, str | os.PathLike[str]] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> VirtualSet:
        """The patches of a stored set, read from their slides.

        Parameters
        ----------
        patch_set : its coordinates, labels and verdicts are taken
        slides : path of each slide whose file has moved
        cache_bytes : budget for decoded tiles

        Raises
        ------
        StoreError
            A slide's file is another one than the set was made from.
        """
        opened, tables, cohort = {}, {}, {}
        for slide_id in patch_set.slides:
            attrs, path = patch_set.attrs(slide_id), places.join(patch_set.path, slide_id)
            digests = attrs.get("digests", {})
            source = (slides or {}).get(slide_id, attrs["source"])
            region = attrs.get("slide_region")
            slide = Slide(source, mpp=attrs["mpp"], tolerance=patch_set.spec.tolerance, region=region)
            otherwise = "give the right one as slides={...}, or extract it again with overwrite"
            stored = f"slide '{slide_id}' of '{patch_set.name}'"
            check_same_file(stored, attrs, slide.fingerprint(), slide.path, otherwise=otherwise)
            columns = {
                n: layout.read_variable(path, n, digest=digests.get(n)) for n in ("x0", "y0", "label", "tissue", "keep")
            }
            opened[slide_id] = slide
            tables[slide_id] = xr.Dataset(
                columns,
                attrs={"spec": patch_set.spec.to_dict(), "shape": attrs["shape"], "mpp_used": attrs["mpp_used"]},
            )
            cohort[slide_id] = attrs.get("cohort", {})
        return cls(opened, tables, cohort=cohort, cache_bytes=cache_bytes, name=patch_set.name)

    @property
    def slides(self) -> list[str]:
        """Ids of the slides, sorted."""
        return list(self._slides)

    @property
    def cache(self) -> TileCache:
        """The decoded tiles of this process."""
        return self._cache

    def index(self) -> xr.Dataset:
        """Columns of all patches, as `PatchSet.index` gives them."""
        parts = list(self._slides.values())
        named = ["" if (split := p.cohort.get("split")) is None else str(split) for p in parts]
        splits = sorted(set(named) - {""})
        counts = [len(p.keep) for p in parts]
        split = [splits.index(name) if name else -1 for name in named]
        columns = {
            "slide": np.repeat(np.arange(len(parts), dtype=np.int32), counts),
            "row": np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
            "x0": np.concatenate([p.x0[:, 0] for p in parts]),
            "y0": np.concatenate([p.y0[:, 0] for p in parts]),
            "label": np.concatenate([p.label[:, 0] for p in parts]),
            "tissue": np.concatenate([p.tissue for p in parts]),
            "keep": np.concatenate([p.keep for p in parts]),
            "split": np.repeat(np.asarray(split, np.int16), counts),
        }
        data = {name: ("patch", values) for name, values in columns.items()}
        return xr.Dataset(data, attrs={"slides": self.slides, "splits": splits})

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """Facts of a slide: source, mpp, mpp_used, cohort."""
        part = self._slides[slide_id]
        slide = part.slide
        return {"source": slide.path, "mpp": slide.mpp, "mpp_used": slide.mpp_used, "cohort": dict(part.cohort)}

    def labels(self, slide_id: str) -> NDArray[np.int16]:
        """(patch, magnification) int16, 0-based class, -1 none."""
        return self._slides[slide_id].label

    def label_pixels(self, slide_id: str, column: int) -> NDArray[np.uint32]:
        """A virtual set has no label maps."""
        raise SpecError(f"virtual set '{self.name}' has no label maps: store the set with them to balance their px")

    def scale_limits(self, slide_id: str) -> tuple[float, float]:
        """The lowest magnification at which a patch fits into a slide, and the slide's own."""
        part = self._slides[slide_id]
        own = 10.0 / (part.slide.mpp or part.slide.mpp_used)
        return own * part.cutter.patch_size / min(part.slide.shape), own

    def open(self, slide_id: str, names: Sequence[str]) -> int:
        """See `msdask.data.patches.Patches`."""
        if list(names) != ["image"]:
            raise SpecError(f"virtual set '{self.name}' has no {list(names)[1:]}: store the set to stream label maps")
        return _BLOCK_ROWS

    def begin(
        self,
        slide_id: str,
        name: str,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        *,
        places: NDArray[np.int64],
        columns: Sequence[int],
    ) -> list[Future[None]]:
        """See `msdask.data.patches.Patches`."""
        part, wanted = self._slides[slide_id], list(columns)
        plans, footprints = part.cutter.plans, part.cutter.footprints
        reader = replace(
            part.cutter, plans=tuple(plans[c] for c in wanted), footprints=tuple(footprints[c] for c in wanted)
        )

        def read(which: NDArray[np.intp]) -> None:
            at = np.ix_(rows[which], np.asarray(wanted, np.int64))
            out[places[which]] = reader.cut(self._reader(part), part.x0[at], part.y0[at])[0]

        return self._submit(rows, read)

    def begin_scaled(self, slide_id: str, cuts: Sequence[ScaledCut]) -> list[Future[None]]:
        """Begin to cut images of a slide, each at a magnification of its own; they are there when the futures are done.

        Magnifications above the slide's own are enlarged, as whoever drew them wants.
        """
        part = self._slides[slide_id]
        exact = self._reader(part)
        # Where the place is random, half a px of a halving beside it does not matter.
        is_small = len(part.slide.level_infos) == 1 and math.prod(part.slide.shape) <= _HALVED_PX
        nearby = HalvedReader(part.slide.path, part.slide.reader, self._cache.decoded) if is_small else exact

        def read(which: NDArray[np.intp]) -> None:
            for i in which.tolist():
                self._cut(part, exact if cuts[i].point is None else nearby, cuts[i])

        return self._submit(np.asarray([cut.row for cut in cuts], np.int64), read)

    def _cut(self, part: _VirtualSlide, levels: Reader, cut: ScaledCut) -> None:
        slide, size = part.slide, max(cut.out.shape[:2])
        target_mpp, mpp = 10.0 / cut.magnification, slide.mpp or slide.mpp_used
        plan = plan_read(
            target_mpp / mpp,
            downsamples=[i.downsample for i in levels.levels],
            dct_scales=[i.dct_scales for i in levels.levels],
            patch_size=size,
            source=self.spec.source,
            decode=self.spec.decode,
            allow_upsampling=True,
        )
        side, patch_side = footprint(size, target_mpp=target_mpp, slide_mpp=mpp), part.cutter.footprints[cut.column]
        origin = []
        for axis, values in enumerate((part.y0, part.x0)):
            start, extent = float(values[cut.row, cut.column]), slide.shape[axis]
            if cut.point is None:
                origin.append(start + (patch_side - side) / 2)
            else:  # the point is at the share of the cut's side that it is at in the slide: the cut stays inside
                point = (start + cut.point[axis] * min(patch_side, extent - start)) / extent
                origin.append(point * max(0.0, extent - side))
        y0, x0 = (np.rint([[v]]).astype(np.int32) for v in origin)
        reader = replace(part.cutter, plans=(plan,), footprints=(side,), patch_size=size)
        height, width = cut.out.shape[:2]
        cut.out[...] = reader.cut(levels, x0, y0)[0][0, 0, :height, :width]

    def _reader(self, part: _VirtualSlide) -> Reader:
        return CachedReader(part.slide.path, part.slide.reader, self._cache.decoded)

    @staticmethod
    def _submit(rows: NDArray[np.int64], read: Callable[[NDArray[np.intp]], None]) -> list[Future[None]]:
        """Rows that are neighbours go into one task."""
        order = np.argsort(rows, kind="stable")
        pool = reading_pool()
        return [pool.submit(read, order[i : i + _PATCHES_A_TASK]) for i in range(0, len(order), _PATCHES_A_TASK)]

    def __repr__(self) -> str:
        count = sum(len(part.keep) for part in self._slides.values())
        return f"<VirtualSet '{self.name}': {count} patches on {len(self._slides)} slides>"
