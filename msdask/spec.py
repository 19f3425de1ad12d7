"""ExtractionSpec: everything that decides which patches are cut and how, as one frozen, hashable value."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

from msdask.errors import SpecError
from msdask.scale import Decode, Source

__all__ = ["Codec", "ExtractionSpec", "Mode", "Roi", "format_magnification", "stride_of"]

Mode = Literal["grid", "centroids"]
Codec = Literal["raw", "lossless", "jpeg"]
Roi = Literal["whole", "auto"] | tuple[float, float, float, float]

MIN_AREA_UM2 = 10_000.0
"""Pieces of tissue smaller than 100 x 100 um are specks."""
MAX_HOLE_UM2 = 7_500.0
"""Holes up to a disc of 98 um (fat cells, vessels), a third of it if ragged, belong to the tissue around them."""
_AREAS = ("min_area_um2", "max_hole_um2")
_LATER = {"min_area_um2": MIN_AREA_UM2, "max_hole_um2": MAX_HOLE_UM2, "label_maps": False}
"""Fields that specs did not have from the beginning: as they are by default they are not written, so that the spec of
an older store keeps its hash."""
MAX_PATCH_SIZE = 8192
PATCH_SIZE = 224
SEGMENTATION_SIZE = 284
"""px of a patch for segmentation: what a U-Net of depth 4 without padding turns into 70 px (HookNet's size)."""
MAX_MAGNIFICATION = 400.0


def format_magnification(magnification: float) -> str:
    """A magnification as names show it: 20.0 -> "20x", 1.25 -> "1.25x"."""
    return f"{magnification:.6g}x"


def stride_of(patch_size: int, stride: int | None, overlap: float | None) -> int:
    """The px between origins that a stride, or an overlap instead of it, means; neither: the size of a patch.

    Raises
    ------
    SpecError
        Both are given, or the overlap is no share below 1.
    """
    if overlap is None:
        return patch_size if stride is None else stride
    if stride is not None:
        raise SpecError(f"stride={stride!r}, overlap={overlap!r}: give one of them")
    if not isinstance(overlap, (float, int)) or not 0 <= overlap < 1:
        raise SpecError(f"overlap={overlap!r}: expected the share of a patch's side, from 0 to below 1")
    return max(1, round(patch_size * (1 - overlap)))


def _number(value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"expected a number, found {type(value).__name__}")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"expected a whole number, found {type(value).__name__}")
    return int(value)


def _descending(values: Any) -> tuple[float, ...]:
    return tuple(sorted(map(_number, [values] if isinstance(values, Real) else values), reverse=True))


def _fact(value: Any) -> bool:
    if isinstance(value, str) or value not in (0, 1):  # bool("False") is True
        raise TypeError("expected True or False")
    return bool(value)


@dataclass(frozen=True)
class ExtractionSpec:
    """Which patches, at which scales, and how they are stored.

    Attributes
    ----------
    mode : "grid" (one magnification) or "centroids" (tuples around the patches of the highest magnification)
    magnifications : highest first; put in that order if given otherwise
    patch_size : px of a patch's side, at every magnification; 284 is HookNet's, for segmentation
    stride : px at the (highest) target magnification between origins; None means `patch_size`: no overlap, no gap
    min_tissue : least fraction of tissue in a footprint
    min_label : least fraction of a class in a footprint for it to be the label
    unlabeled : with a label mask, "drop" patches without a label or "keep" them with label -1
    roi : "whole", "auto" (the half with more tissue where a slide carries copies) or a rectangle
        (x, y, width, height), level-0 px
    inside : footprints of the grid must lie inside the region of interest; False keeps those that reach over its edge
    pad : value of the pixels outside the slide
    source : "coarsest" level that is fine enough, or "finest": level 0 always
    decode : "scaled" lets the JPEG decoder reduce, "exact" never
    allow_upsampling : enlarge where the slide is too coarse
    tolerance : relative distance at which a slide's mpp snaps to a nominal one
    mask_mpp : um/px of tissue masks made by msdask (8.0 = 1.25x)
    codec : "raw", "lossless" or "jpeg"
    min_area_um2 : pieces of tissue smaller than this are left out of masks made by msdask, um^2
    max_hole_um2 : holes up to this size belong to the tissue in masks made by msdask, um^2, see `msdask.tissue_mask`
    label_maps : also store the label map under every patch at every magnification, for segmentation; slides need label
        masks for it

    Parameters
    ----------
    overlap : instead of `stride`, the share of a patch's side that neighbours have in common, from 0 to below 1; the
        stride is the whole number of px that is nearest to it. It is not kept: `stride` says it

    Examples
    --------
    >>> ExtractionSpec("grid", (10,), patch_size=224, overlap=0.5).stride
    112
    """

    mode: Mode
    magnifications: tuple[float, ...]
    patch_size: int = PATCH_SIZE
    stride: int | None = None
    min_tissue: float = 0.7
    min_label: float = 0.7
    unlabeled: Literal["drop", "keep"] = "drop"
    roi: Roi = "whole"
    inside: bool = True
    pad: int = 255
    source: Source = "coarsest"
    decode: Decode = "scaled"
    allow_upsampling: bool = False
    tolerance: float = 0.05
    mask_mpp: float = 8.0
    codec: Codec = "raw"
    min_area_um2: float = MIN_AREA_UM2
    max_hole_um2: float = MAX_HOLE_UM2
    label_maps: bool = False
    overlap: InitVar[float | None] = None

    def __post_init__(self, overlap: float | None) -> None:
        # Equal specs must have equal hashes: 1 and 1.0, True and 1, 224 and np.int64(224) are each written one way.
        for name in ("min_tissue", "min_label", "tolerance", "mask_mpp", *_AREAS):
            self._normalize(name, _number)
        for name in ("inside", "allow_upsampling", "label_maps"):
            self._normalize(name, _fact)
        self._normalize("patch_size", _whole_number)
        if self.stride is None or overlap is not None:
            object.__setattr__(self, "stride", stride_of(self.patch_size, self.stride, overlap))
        for name in ("stride", "pad"):
            self._normalize(name, _whole_number)
        self._normalize("magnifications", _descending)
        if not isinstance(self.roi, str):
            self._normalize("roi", lambda values: tuple(map(_number, values)))
        self._validate()

    def _normalize(self, name: str, convert: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, convert(value))
        except TypeError as error:
            raise SpecError(f"{name}={value!r}: {error}") from error

    def _validate(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise SpecError(f"{name}={getattr(self, name)!r}: expected {expected}")

        def fraction(name: str) -> None:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                refuse(
                    name, f"a fraction from 0 to 1{f' ({value / 100:g} for {value:g} %)' if 1 < value <= 100 else ''}"
                )

        def one_of(name: str, *choices: str) -> None:
            if getattr(self, name) not in choices:
                refuse(name, "one of " + ", ".join(choices))

        one_of("mode", "grid", "centroids")
        one_of("unlabeled", "drop", "keep")
        one_of("source", "coarsest", "finest")
        one_of("decode", "scaled", "exact")
        one_of("codec", "raw", "lossless", "jpeg")
        if not self.magnifications or not all(
            math.isfinite(m) and 0 < m <= MAX_MAGNIFICATION for m in self.magnifications
        ):
            refuse(
                "magnifications", f"one or more numbers above 0 and up to {MAX_MAGNIFICATION:g}, such as [20, 10, 5]"
            )
        if len(set(self.magnifications)) != len(self.magnifications):
            refuse("magnifications", "each magnification once")
        if self.mode == "grid" and len(self.magnifications) != 1:
            refuse("magnifications", "one magnification for mode 'grid' (one patch set each), or mode 'centroids'")
        if not 1 <= self.patch_size <= MAX_PATCH_SIZE:
            refuse("patch_size", f"a whole number of px from 1 to {MAX_PATCH_SIZE}")
        if self.stride is None or self.stride < 1:
            refuse("stride", "a whole number of px, at least 1 (stride = patch_size + gap)")
        fraction("min_tissue")
        fraction("min_label")
        if isinstance(self.roi, str):
            one_of("roi", "whole", "auto")
        elif len(self.roi) != 4 or not all(math.isfinite(v) for v in self.roi) or min(self.roi[2:]) <= 0:
            refuse("roi", "'whole', 'auto' or (x, y, width, height) in level-0 px")
        if not 0 <= self.pad <= 255:
            refuse("pad", "a pixel value from 0 to 255")
        if not 0 <= self.tolerance < 0.3:
            refuse("tolerance", "a relative distance from 0 to below 0.3 (beyond it nominal scales overlap)")
        if not (math.isfinite(self.mask_mpp) and self.mask_mpp > 0):
            refuse("mask_mpp", "um/px above 0, such as 8.0")
        for name in _AREAS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                refuse(name, "a finite area in um^2, 0 or more")

    @property
    def name(self) -> str:
        """Name of the patch set if none is given: "grid-10x-224", "centroids-20x-10x-5x-224"."""
        scales = "-".join(format_magnification(m) for m in self.magnifications)
        return f"{self.mode}-{scales}-{self.patch_size}"

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the compact JSON with sorted keys."""
        return self._text[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as stored in a patch set's attributes."""
        values: dict[str, Any] = json.loads(self.to_json())
        return values

    def to_json(self) -> str:
        """Compact JSON with sorted keys."""
        return self._text[0]

    @cached_property
    def _text(self) -> tuple[str, str]:
        """The JSON and its hash: a run asks for them several times a slide."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return text, hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExtractionSpec:
        """The spec that `to_dict` wrote; unknown names are refused."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(f"extraction spec has unknown fields {unknown}; expected {sorted(known)}")
        if missing := sorted({"mode", "magnifications"} - set(values)):
            raise SpecError(f"extraction spec lacks {missing}; expected at least mode and magnifications")
        items = dict(values)
        for name in ("magnifications", "roi"):
            if isinstance(items.get(name), list):
                items[name] = tuple(items[name])
        return cls(**items)
