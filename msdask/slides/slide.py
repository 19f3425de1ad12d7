"""Slide: a whole-slide image as lazy arrays, at its stored levels or at any physical scale."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from msdask.computing import in_process, side_by_side
from msdask.errors import SpecError
from msdask.readers.base import LevelInfo, Reader
from msdask.scale import Decode, ReadPlan, Source, magnification_to_mpp, mpp_to_magnification, plan_read
from msdask.slides.opened import file_state, shared_reader
from msdask.slides.part import ReadsParts
from msdask.slides.region import OnBadTile, read_region
from msdask.slides.resample import area_mean, read_span
from msdask.slides.stated_scale import Quality, SlideScale, resolve_scale
from msdask.slides.tiled import Part, tiled
from msdask.storage.source import object_version

__all__ = ["Slide", "open_slide"]

_LEVEL_CHUNK = 2048
"""Side of a dask chunk of a stored level, px, before it is rounded to whole tiles."""
_READ_CHUNK = 2048
"""Side of what one chunk of `Slide.at` reads, px: bounds the memory of a task."""
_READ_PART = 512
"""The same of one part of `Slide.read_at`, where parts can end with tiles, so that none is decoded for two of them."""


def open_slide(
    path: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    magnification: float | None = None,
    tolerance: float = 0.05,
    strict: bool = False,
    backend: str | None = None,
    region: str | int | None = None,
) -> Slide:
    """Open a slide: reads metadata only.

    Parameters
    ----------
    path : file or URL (s3://, https://, memory:// ... through fsspec), or a folder that is one slide; the format is
        chosen by content
    mpp : um/px of level 0; overrides the file
    magnification : the same as 10 / mpp; at most one of the two
    tolerance : relative distance at which the slide's mpp counts as a nominal one (0.125, 0.25, 0.5, 1.0); 0 switches
        it off
    strict : raise MissingScaleError where the scale is doubtful, instead of warning
    backend : name of the reader to use ("tiff", "openslide", "image", or a plug-in's); None chooses
    region : which of several images in the file (SCN, OME-TIFF), by name or number from 0 on, see `Slide.properties`;
        None takes the finest, and of several the largest, and warns of the others

    Raises
    ------
    SlideError
        The file is missing, damaged or no slide; the message says which.
    UnreachableError
        It cannot be read now: no permission, no answer from its server, a disk that fails.
    MissingExtraError
        What reads its format is not installed; the message says how to.
    MissingScaleError
        With `strict`, for a doubtful scale. Without, only when a physical scale is asked of a slide that has none.
    """
    slide = Slide(
        path,
        mpp=mpp,
        magnification=magnification,
        tolerance=tolerance,
        strict=strict,
        backend=backend,
        region=region,
    )
    for sentence in slide.warnings:
        warnings.warn(f"slide '{slide.path}': {sentence}", UserWarning, stacklevel=2)
    return slide


class Slide(ReadsParts):
    """A whole-slide image; made by `open_slide`.

    Pickles as its path and what is known of it, and opens its file again when pixels are asked for: it can travel to
    the workers of a cluster. Safe to read from many threads.

    Attributes
    ----------
    path : as given
    region : name or number of the image of the file that was asked for, or None
    shape : (height, width) of level 0, px
    level_infos : shape, tile and downsample of each stored level
    mpp, mpp_used : um/px of level 0 as stored or given, and as planned with; None where unknown
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mpp: float | None = None,
        magnification: float | None = None,
        tolerance: float = 0.05,
        strict: bool = False,
        backend: str | None = None,
        region: str | int | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.tolerance = tolerance
        self._backend = backend
        self.region = region
        self._version = object_version(self.path)
        self._on_bad_tile: OnBadTile = "raise"
        self._unread: set[tuple[int, int, int]] | None = None
        self._associated: tuple[str, ...]
        reader = self.reader
        self.format: str = reader.format
        self.level_infos: tuple[LevelInfo, ...] = reader.levels
        self._associated = reader.associated
        self.vendor: str = reader.metadata.vendor
        self.objective_power: float | None = reader.metadata.objective_power
        self._found: tuple[str, ...] = reader.metadata.warnings
        self.scale: SlideScale = resolve_scale(
            reader.metadata, name=self.path, mpp=mpp, magnification=magnification, tolerance=tolerance, strict=strict
        )

    @property
    def reader(self) -> Reader:
        """The open reader of this process; shared by all slides of one path and region."""
        return shared_reader(self.path, self._backend, self.region, self._version or file_state(self.path))

    @property
    def name(self) -> str:
        """File name with its ending."""
        return PurePosixPath(self.path.replace(os.sep, "/")).name

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0, px."""
        return self.level_infos[0].shape

    @property
    def mpp(self) -> float | None:
        """um/px of level 0 as the file or the user says it."""
        return self.scale.mpp

    @property
    def mpp_used(self) -> float:
        """um/px that everything on this slide is planned with.

        Raises
        ------
        MissingScaleError
            The file does not say, and nobody else did.
        """
        return self.scale.require(self.path)

    @property
    def mpp_source(self) -> str | None:
        """Where `mpp` was read."""
        return self.scale.stated_by

    @property
    def quality(self) -> Quality:
        """How far `mpp` can be trusted."""
        return self.scale.quality

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about the scale, and what else was found that is not as usual, in sentences."""
        return self.scale.warnings + self._found

    @property
    def magnification(self) -> float:
        """10 / mpp_used."""
        return mpp_to_magnification(self.mpp_used)

    @property
    def properties(self) -> Mapping[str, str]:
        """Every other fact that the file states."""
        return self.reader.metadata.properties

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the associated images ("label", "macro", "thumbnail"); read them with `associated_image`."""
        return self._associated

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Decode an associated image: (height, width, 3) uint8."""
        if name not in self._associated:
            raise SpecError(f"slide '{self.path}': no associated image {name!r}; it has {list(self._associated)}")
        return self.reader.read_associated(name)

    @property
    def levels(self) -> tuple[da.Array, ...]:
        """Stored levels as lazy dask arrays (y, x, channel) uint8, the finest first."""
        return tuple(self._level(i) for i in range(len(self.level_infos)))

    def at(
        self, *, magnification: float | None = None, mpp: float | None = None, allow_upsampling: bool = False
    ) -> xr.DataArray:
        """The whole slide at one physical scale, lazily.

        Area averages of the coarsest level that is fine enough; the number of px is the slide's extent over the
        target's pixel size, rounded.

        Parameters
        ----------
        magnification, mpp : the scale, one of the two, in terms of `mpp_used`
        allow_upsampling : return level 0 where it is coarser than asked for, instead of refusing; see attrs["mpp"]

        Returns
        -------
        image : DataArray (y, x, channel) uint8, with attrs "mpp" (um/px), "level", "dct_scale"
            Coordinates y and x are centers in level-0 px.

        Raises
        ------
        MissingScaleError
            The slide has no scale.
        SpecError
            Neither or both scales given, or finer than the slide.
        """
        if (magnification is None) == (mpp is None):
            raise SpecError("Slide.at: give one of magnification= and mpp=")
        target = magnification_to_mpp(magnification) if magnification is not None else cast(float, mpp)
        ratio, target = self._ratio(target, allow_upsampling=allow_upsampling)
        image, plan = self._at_ratio(ratio)
        return self._wrap(image, ratio, {"mpp": target, "level": plan.level, "dct_scale": plan.dct_scale})

    def read_at(self, *, mpp: float, allow_upsampling: bool = False) -> xr.DataArray:
        """The px that `at` gives, computed in this process, without coordinates; parameters and errors are its."""
        ratio, target = self._ratio(mpp, allow_upsampling=allow_upsampling)
        plan, shape = self._plan_at(ratio), self._shape_at(ratio)
        height, width = (side / (plan.dct_scale * plan.ratio) for side in self.level_infos[plan.level].tile)
        ends_with_tiles = height.is_integer() and width.is_integer()
        # On a server a part is a request or several, and a tile at the border of two parts is asked for twice.
        is_fine = ends_with_tiles and not getattr(self.reader, "reads_ahead", False)
        parts = tiled(shape, (height, width), side=(_READ_PART if is_fine else _READ_CHUNK) / plan.ratio)
        image = np.empty((*shape, 3), np.uint8)

        def read(place: Part) -> None:
            image[slice(*place[0]), slice(*place[1])] = _read_at(self, plan, *place)

        side_by_side(read, parts)  # a graph would take ten times as long where they are few
        attrs = {"mpp": target, "level": plan.level, "dct_scale": plan.dct_scale}
        return xr.DataArray(image, dims=("y", "x", "channel"), attrs=attrs, name="image")

    def _ratio(self, mpp: float, *, allow_upsampling: bool) -> tuple[float, float]:
        """Level-0 px per px at a scale, and that scale, or level 0's where it is the coarser one and may stand in."""
        mpp_to_magnification(mpp)
        ratio = mpp / self.mpp_used
        return (1.0, self.mpp_used) if allow_upsampling and ratio < 1 else (ratio, mpp)

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """The whole slide within `max_size` px, computed: (height, width, 3) uint8. Needs no physical scale."""
        image, _ = self._at_ratio(max(1.0, max(self.shape) / max_size))
        return cast("NDArray[np.uint8]", image.compute(scheduler=in_process()))

    def to_datatree(self) -> xr.DataTree:
        """Stored levels as a DataTree: one group a level, `image` (y, x, channel), lazily."""
        groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=self._facts())}
        for i, info in enumerate(self.level_infos):
            attrs = {"downsample": info.downsample} | ({"mpp": self.mpp_used * info.downsample} if self.mpp else {})
            groups[f"/level_{i}"] = xr.Dataset(
                {"image": self._wrap(self._level(i), info.downsample, attrs)}, attrs=attrs
            )
        return xr.DataTree.from_dict(groups, name=self.name)

    def fingerprint(self) -> str:
        """SHA-256 over the file's size, directories and sampled ranges: the same anywhere, without a full read."""
        return self.reader.fingerprint()

    def with_bad_tiles(self, on_bad_tile: OnBadTile, unread: set[tuple[int, int, int]] | None = None) -> Slide:
        """The same slide, whose lazy images "raise" at a bad tile or "fill" it white; then it is added to `unread`."""
        slide = copy.copy(self)
        slide._on_bad_tile, slide._unread = on_bad_tile, unread
        return slide

    def plan_read(
        self,
        ratio: float,
        *,
        patch_size: int,
        source: Source = "coarsest",
        decode: Decode = "scaled",
        allow_upsampling: bool = False,
    ) -> ReadPlan:
        """Which level of this slide is read for one scale, and how; see `msdask.scale.plan_read`."""
        return plan_read(
            ratio,
            downsamples=[i.downsample for i in self.level_infos],
            dct_scales=[i.dct_scales for i in self.level_infos],
            patch_size=patch_size,
            source=source,
            decode=decode,
            allow_upsampling=allow_upsampling,
        )

    def _level(self, level: int) -> da.Array:
        info = self.level_infos[level]
        chunk = tuple(max(1, _LEVEL_CHUNK // t) * t if t <= _LEVEL_CHUNK else t for t in info.tile)
        return self._lazy("level", info.shape, (chunk[0], chunk[1]), _read_level, (level,))

    def _at_ratio(self, ratio: float) -> tuple[da.Array, ReadPlan]:
        """The whole slide at `ratio` level-0 px per px."""
        plan = self._plan_at(ratio)
        chunk = max(1, int(_READ_CHUNK / plan.ratio))
        return self._lazy("at", self._shape_at(ratio), (chunk, chunk), _read_at, (plan,)), plan

    def _plan_at(self, ratio: float) -> ReadPlan:
        return self.plan_read(ratio, patch_size=max(self._shape_at(ratio)))

    def _shape_at(self, ratio: float) -> tuple[int, int]:
        height, width = (max(1, round(n / ratio)) for n in self.shape)
        return height, width

    def _lazy(
        self, kind: str, shape: tuple[int, int], chunk: tuple[int, int], read: Any, args: tuple[Any, ...]
    ) -> da.Array:
        chunks = da.core.normalize_chunks((*chunk, 3), (*shape, 3), dtype=np.uint8)
        name = f"slide-{kind}-" + tokenize(self, args, shape, chunk)
        y_edges, x_edges = (np.concatenate([[0], np.cumsum(c)]).tolist() for c in chunks[:2])
        graph: dict[Any, Any] = {
            (name, i, j, 0): (read, self, *args, (y_edges[i], y_edges[i + 1]), (x_edges[j], x_edges[j + 1]))
            for i in range(len(chunks[0]))
            for j in range(len(chunks[1]))
        }
        return da.Array(HighLevelGraph.from_collections(name, graph), name, chunks, dtype=np.uint8)

    def _wrap(self, image: da.Array | NDArray[np.uint8], ratio: float, attrs: Mapping[str, Any]) -> xr.DataArray:
        y, x = ((np.arange(n) + 0.5) * ratio for n in image.shape[:2])
        coords = {"y": ("y", y, {"units": "level-0 px"}), "x": ("x", x, {"units": "level-0 px"})}
        return xr.DataArray(image, dims=("y", "x", "channel"), coords=coords, attrs=dict(attrs), name="image")

    def _facts(self) -> dict[str, Any]:
        facts = {
            "path": self.path,
            "format": self.format,
            "vendor": self.vendor,
            "height": self.shape[0],
            "width": self.shape[1],
            "mpp": self.mpp,
            "mpp_used": self.scale.mpp_used,
            "mpp_source": self.mpp_source,
            "mpp_quality": self.quality,
            "objective_power": self.objective_power,
        }
        return {key: value for key, value in facts.items() if value is not None}

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (
            "msdask.Slide",
            self.path,
            self._backend,
            self.region,
            self._version or file_state(self.path),
            self._on_bad_tile,
            self.scale,
            self.level_infos,
        )

    def __repr__(self) -> str:
        height, width = self.shape
        scale = f"{self.mpp:g} µm/px ({self.magnification:g}x, {self.mpp_source})" if self.mpp else "no scale"
        downsamples = ", ".join(f"{i.downsample:g}" for i in self.level_infos)
        return f"<Slide '{self.name}': {width} x {height} px, {scale}, {self.format}, levels {downsamples}>"

    def _repr_html_(self) -> str:
        from msdask.slides.shown import slide_html  # pictures are encoded only where they are shown

        return slide_html(self)


def _read_level(slide: Slide, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
    return read_region(slide.reader, level, 1, rows, columns, slide._on_bad_tile, slide._unread)


def _read_at(slide: Slide, plan: ReadPlan, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
    info = slide.level_infos[plan.level]
    height, width = (max(1, n // plan.dct_scale) for n in info.shape)
    ratio = plan.ratio
    y = read_span(*rows, ratio=ratio, size=height)
    x = read_span(*columns, ratio=ratio, size=width)
    read = read_region(slide.reader, plan.level, plan.dct_scale, y, x, slide._on_bad_tile, slide._unread)
    shape = rows[1] - rows[0], columns[1] - columns[0]
    return area_mean(read, origin=(y[0], x[0]), first=(rows[0], columns[0]), shape=shape, ratio=ratio)
