"""Which mask a slide of a cohort gets: a file of tissue or of labels, as was said, or msdask's own tissue mask."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import xarray as xr

from msdask.errors import MaskError, SpecError
from msdask.masks.files import as_tissue, mask_file, open_mask
from msdask.masks.formats import MaskKind
from msdask.masks.label_plane import LabelPlane
from msdask.masks.labels import Values, as_labels, as_plane
from msdask.masks.tissue import tissue_mask
from msdask.scale import magnification_to_mpp
from msdask.spec import ExtractionSpec
from msdask.storage.places import is_url, local_path

__all__ = ["MaskChoice", "SlideMasks", "masks_of_slide"]

_SIZE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class MaskChoice:
    """Which masks a run reads, if not those of its table, and what they show.

    Attributes
    ----------
    folder : of masks, or None: msdask finds the tissue
    kind : what the masks show; None where nobody said: what each file says of itself, and tissue if it says nothing
    values : of label masks: mask value, or name of a class -> class
    magnification : that masks must have, or None
    """

    folder: str | None = None
    kind: MaskKind | None = None
    values: Values | None = None
    magnification: float | None = None

    @classmethod
    def of(
        cls,
        masks: str | os.PathLike[str] | None,
        labels: str | os.PathLike[str] | None = None,
        values: Values | None = None,
        magnification: float | None = None,
    ) -> MaskChoice:
        """The choice that a caller's options mean: `labels`, and a table of values, say that masks show classes.

        Raises
        ------
        SpecError
            Two folders.
        """
        if masks is not None and labels is not None:
            raise SpecError(
                f"masks='{os.fspath(masks)}' and labels='{os.fspath(labels)}': a slide gets one mask; give labels= for "
                "annotated masks, what is labeled counts as tissue, or masks= for tissue masks"
            )
        folder = masks if labels is None else labels
        kind: MaskKind | None = None if labels is None and values is None else "labels"
        return cls(None if folder is None else local_path(folder), kind, values, magnification)

    def check(self, given: Iterable[str | None] = ()) -> Self:
        """Make sure that the folder is there, before the first slide is looked at.

        Parameters
        ----------
        given : masks of the slides as their table says, None where it says none

        Returns
        -------
        choice : itself

        Raises
        ------
        MaskError
            It is not, or is a file; or masks are said to be annotated, and there are none.
        """
        if self.folder is None and self.kind == "labels" and not any(given):
            raise MaskError(
                "values= says that masks are annotated, but there are none: give labels= or masks= (a folder), or a "
                "column 'mask'"
            )
        if self.folder is None or is_url(self.folder) or os.path.isdir(self.folder):
            return self
        name = "labels" if self.kind == "labels" else "masks"
        found = "is a file" if os.path.exists(self.folder) else "there is no such folder"
        raise MaskError(f"{name}='{self.folder}': {found}; expected a folder with a mask for every slide")


class SlideMasks(NamedTuple):
    """The mask of a slide: of tissue, or of labels.

    Attributes
    ----------
    tissue, labels : one of the two
    plane : the same classes as `labels`, where they can be drawn at any scale; None: the label mask is all there is
    """

    tissue: xr.DataArray | None
    labels: xr.DataArray | None
    plane: LabelPlane | None = None


class _Slide(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def mpp_used(self) -> float: ...
    def at(self, *, mpp: float) -> xr.DataArray: ...


def masks_of_slide(slide: _Slide, given: str | None, choice: MaskChoice, *, spec: ExtractionSpec) -> SlideMasks:
    """Read the mask of a slide, or find its tissue.

    Parameters
    ----------
    slide : an open slide
    given : path of its mask, as the table of slides says; goes before the folder
    choice : where masks are and what they show
    spec : says at what um/px masks are made or drawn, and which pieces and holes masks that are made have

    Raises
    ------
    MaskError
        There is no mask where there must be one, it is of another kind or magnification than was said, or it cannot be
        read.
    """
    if given is None and choice.folder is None:
        if choice.kind == "labels":
            raise MaskError(
                f"slide '{slide.path}': values= says that masks are annotated, but it has none: give labels= or masks= "
                "(a folder), or a column 'mask'"
            )
        areas = {"min_area_um2": spec.min_area_um2, "max_hole_um2": spec.max_hole_um2}
        return SlideMasks(tissue_mask(slide, mpp=spec.mask_mpp, **areas), None)
    if given is None:
        choice.check([None])
    file = mask_file(given or choice.folder or "", slide)
    height, width = (max(1, math.ceil(side * slide.mpp_used / spec.mask_mpp)) for side in slide.shape)
    content = open_mask(file, slide, (height, width))
    if (choice.kind or content.kind) == "labels":
        labels = as_labels(content, file, slide, choice.values)
        masks = SlideMasks(None, labels, as_plane(content, file, slide, choice.values))
    else:
        masks = SlideMasks(as_tissue(content, file, slide), None)
    if choice.magnification is not None:
        _check_magnification(content.values.shape, slide, choice.magnification, file)
    return masks


def _check_magnification(shape: tuple[int, ...], slide: _Slide, magnification: float, file: str) -> None:
    ratio = magnification_to_mpp(magnification) / slide.mpp_used
    expected = tuple(side / ratio for side in slide.shape)
    if any(abs(n - e) > max(1.0, _SIZE_TOLERANCE * e) for n, e in zip(shape, expected, strict=True)):
        actual = magnification * shape[1] / expected[1]
        raise MaskError(
            f"mask '{file}' is {shape[1]} x {shape[0]} px, at {magnification:g}x it would be "
            f"{expected[1]:.0f} x {expected[0]:.0f}: it is of {actual:.3g}x; give that magnification"
        )
