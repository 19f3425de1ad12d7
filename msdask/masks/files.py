"""Masks that come as image files: finding them, and what each must pass before it is used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.raster import read_mask

__all__ = ["SlideShape", "distinct_values", "find_mask", "format_values", "open_mask", "read_tissue_mask"]

MAX_ASPECT_ERROR: Final = 0.01
_HISTOQC_SUFFIX: Final = "_mask_use.png"
_ENDINGS: Final = (".png", ".tif", ".tiff")
_BLOCK_PIXELS: Final = 1 << 22


class SlideShape(Protocol):
    """What a mask is checked against."""

    @property
    def path(self) -> str:
        """Path or URL."""
        ...

    @property
    def name(self) -> str:
        """File name."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0, px."""
        ...


def read_tissue_mask(path: str | os.PathLike[str], *, slide: SlideShape | None = None) -> xr.DataArray:
    """Read a tissue mask that another program made; 0 is background, the other value tissue.

    Parameters
    ----------
    path : a PNG or TIFF (a path or a URL) with at most two values, such as HistoQC's `<name>_mask_use.png`; or
        HistoQC's folder of one slide; or, with `slide` given, a folder of masks (HistoQC's output, or `<name>.png`, as
        in `find_mask`)
    slide : the slide that the mask belongs to; the mask's aspect ratio is checked against it

    Returns
    -------
    mask : (y, x) bool
        True = tissue. attrs: "source" (the file), and with `slide` "slide_shape", its (height, width) at level 0.

    Raises
    ------
    MaskError
        No mask there; more than two values, or two of which none is 0; or sides in another proportion than the slide's
        (by more than 1 %, apart from rounding to whole px).

    Warns
    -----
    UserWarning
        The mask is empty: no patch will be selected.
    """
    file = _mask_file(path, slide)
    values = open_mask(file, slide)
    found = distinct_values(values)
    if found.size > 2:
        raise MaskError(
            f"mask '{file}': {found.size} values ({format_values(found)}); expected a tissue mask with two, 0 and one "
            "other; if these are classes, read it as a label mask: read_label_mask(path, values={value: class, "
            "...}); if its edges were smoothed, threshold it and save it again"
        )
    if found.size == 2 and 0 not in found:
        raise MaskError(
            f"mask '{file}': values {format_values(found)}, none of them 0; expected 0 for background and one other "
            "value for tissue; save it so, or read it as a label mask: read_label_mask(path, values={value: class, "
            "...})"
        )
    mask = values != 0
    if not mask.any():
        warnings.warn(f"mask '{file}': empty, no pixel is tissue; no patch will be selected", UserWarning, stacklevel=2)
    return xr.DataArray(mask, dims=("y", "x"), name="tissue", attrs=mask_attrs(file, slide))


def find_mask(folder: str | os.PathLike[str], slide_path: str | os.PathLike[str]) -> Path | None:
    """The mask of a slide in a folder of masks, or None.

    The first of these that exists, with `<name>` the slide's file name with its ending, then without it:
    `<name>/<name>_mask_use.png` (HistoQC), `<name>.png`, `<name>.tif`, `<name>.tiff`. HistoQC's come first, whichever
    the name. The slide itself is never its mask.

    Parameters
    ----------
    folder : HistoQC's output folder, or one of mask files
    slide_path : path or URL of the slide; it is not opened
    """
    for candidate in _candidates(Path(folder), os.fspath(slide_path)):
        if candidate.is_file() and not _is_same_file(candidate, slide_path):
            return candidate
    return None


def open_mask(file: str, slide: SlideShape | None) -> NDArray[np.integer] | NDArray[np.bool_]:
    """Read a mask file as stored, (y, x), and check its proportions against the slide's.

    Raises
    ------
    MaskError
        The file is missing, cannot be read as a mask, or does not have the slide's proportions.
    """
    if not _is_url(file) and not os.path.isfile(file):
        what = "is a folder, expected a file" if os.path.isdir(file) else "no such file; looked for it as a PNG or TIFF"
        raise MaskError(f"mask '{file}': {what}; check the path")
    values = read_mask(file)
    if slide is not None:
        check_proportions(values.shape, slide, file)
    return values


def check_proportions(mask_shape: tuple[int, ...], slide: SlideShape, file: str) -> None:
    """Refuse a mask whose sides are not in the slide's proportion, within 1 % or the rounding of its sides to whole px.

    Raises
    ------
    MaskError
        Names both sizes.
    """
    height, width = mask_shape
    slide_height, slide_width = slide.shape
    # With sides floored, rounded or ceiled from the slide's, the cross products differ by less than a px's worth.
    difference = abs(width * slide_height - height * slide_width)
    rounding = max(slide_height, slide_width)
    if difference > max(MAX_ASPECT_ERROR * height * slide_width, rounding):
        raise MaskError(
            f"mask '{file}': {width} x {height} px (width / height {width / height:.4g}) does not fit slide "
            f"{slide.name!r} of {slide_width} x {slide_height} px ({slide_width / slide_height:.4g}); expected "
            "proportions within 1 %; check that the mask belongs to this slide and covers all of it"
        )


def mask_attrs(file: str, slide: SlideShape | None) -> dict[str, object]:
    """The attributes of a mask that was read from a file."""
    attrs: dict[str, object] = {"source": file}
    if slide is not None:
        attrs["slide_shape"] = (int(slide.shape[0]), int(slide.shape[1]))
    return attrs


def distinct_values(values: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """The values that occur in a mask, ascending."""
    if values.dtype.kind not in "bu" or values.dtype.itemsize > 2:
        return np.unique(values).astype(np.int64)
    # Counting beats sorting; in blocks, because bincount makes an 8-byte copy of what it counts.
    seen = np.zeros(1 << (8 * values.dtype.itemsize), np.bool_)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK_PIXELS):
        seen |= np.bincount(flat[start : start + _BLOCK_PIXELS], minlength=seen.size) > 0
    return np.flatnonzero(seen).astype(np.int64)


def format_values(values: NDArray[np.int64], *, limit: int = 10) -> str:
    """Up to ten values, as error messages show them: "0, 50, 100"."""
    shown = ", ".join(str(value) for value in values[:limit].tolist())
    return shown if values.size <= limit else f"{shown}, ... {values.size - limit} more"


def _is_url(path: str) -> bool:
    return "://" in path


def _mask_file(given: str | os.PathLike[str], slide: SlideShape | None) -> str:
    """The file that a path stands for: itself, or the one in a folder that belongs to the slide."""
    path = Path(given)
    if _is_url(os.fspath(given)) or path.is_file():
        return os.fspath(given)
    if not path.is_dir():
        raise MaskError(
            f"mask '{path}': no such file or folder; expected a PNG or TIFF, or HistoQC's output folder; check the path"
        )
    if slide is not None:
        found = find_mask(path, slide.path)
        if found is not None:
            return str(found)
        own = [path / f"{name}{_HISTOQC_SUFFIX}" for name in _names(slide.path)]
        for candidate in own:
            if candidate.is_file():
                return str(candidate)
        looked_for = ", ".join(str(c.relative_to(path)) for c in [*_candidates(path, slide.path), *own])
        raise MaskError(
            f"mask folder '{path}': nothing for slide {slide.name!r}; looked for {looked_for}; name the mask so, or "
            "pass its file"
        )
    masks = sorted(entry for entry in path.iterdir() if entry.name.endswith(_HISTOQC_SUFFIX))
    if len(masks) == 1:
        return str(masks[0])
    what = "none" if not masks else f"{len(masks)} of them"
    raise MaskError(
        f"mask folder '{path}': looked for one file *{_HISTOQC_SUFFIX} (HistoQC's folder of a slide), found {what}; "
        "pass the mask's file, or slide=... to find the slide's own in a folder of many"
    )


def _names(slide_path: str) -> list[str]:
    """A slide's file name with its ending and without; for .ome.tif without the .ome as well."""
    name = os.path.basename(slide_path.rstrip("/\\"))
    stem = os.path.splitext(name)[0]
    names = [name, stem, stem[:-4] if stem.lower().endswith(".ome") else stem]
    return [n for n in dict.fromkeys(names) if n]


def _candidates(folder: Path, slide_path: str) -> Iterator[Path]:
    """Where the mask of a slide may be, in the order of preference."""
    names = _names(slide_path)
    for name in names:
        yield folder / name / f"{name}{_HISTOQC_SUFFIX}"
    for name in names:
        for ending in _ENDINGS:
            yield folder / f"{name}{ending}"


def _is_same_file(candidate: Path, slide_path: str | os.PathLike[str]) -> bool:
    return os.path.exists(slide_path) and os.path.samefile(candidate, slide_path)
