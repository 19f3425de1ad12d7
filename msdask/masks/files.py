"""Masks that come as files: finding them, and what each must pass before it is used."""

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
from msdask.masks.formats import MaskContent, mask_formats, read_content
from msdask.masks.formats.histoqc import HISTOQC_SUFFIX
from msdask.masks.shown import Mask
from msdask.scale import check_proportions
from msdask.storage.slide_names import names_of

__all__ = [
    "SlideShape",
    "as_tissue",
    "distinct_values",
    "find_mask",
    "format_values",
    "mask_attrs",
    "mask_file",
    "open_mask",
    "read_tissue_mask",
]

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


def read_tissue_mask(
    path: str | os.PathLike[str], *, slide: SlideShape | None = None, shape: tuple[int, int] | None = None
) -> xr.DataArray:
    """Read a tissue mask that another program made; 0 is background, the other value tissue.

    Parameters
    ----------
    path : a PNG or TIFF (a path or a URL) with at most two values, such as HistoQC's `<name>_mask_use.png`; or
        HistoQC's folder of one slide; or, with `slide` given, a folder of masks (HistoQC's output, or `<name>.png`, as
        in `find_mask`)
    slide : the slide that the mask belongs to; the mask's aspect ratio is checked against it
    shape : (height, width) px at which formats of outlines are drawn; None means 1/32 of the slide

    Returns
    -------
    mask : (y, x) bool
        True = tissue. attrs: "source" (the file), and with `slide` "slide_shape", its (height, width) at level 0.

    Raises
    ------
    MaskError
        No mask there; more than two values, or two of which none is 0; a file that names classes; or sides in another
        proportion than the slide's (by more than 1 %, apart from rounding to whole px).

    Warns
    -----
    UserWarning
        The mask is empty: no patch will be selected.
    """
    file = mask_file(path, slide)
    return as_tissue(open_mask(file, slide, shape), file, slide)


def find_mask(folder: str | os.PathLike[str], slide_path: str | os.PathLike[str]) -> Path | None:
    """The mask of a slide in a folder of masks, or None.

    The first of these that exists, with `<name>` the slide's file name with its ending, then without it:
    `<name>/<name>_mask_use.png` (HistoQC), `<name>.xml` (ASAP, ImageScope), `<name>.geojson`, `<name>.json`, both also
    with `.gz`, `<name>.png`, `<name>.tif`, `<name>.tiff`, `<name>_mask_use.png`. HistoQC's folders come first,
    whichever the name. Formats of other packages add their own. The slide itself is never its mask.

    Parameters
    ----------
    folder : HistoQC's output folder, or one of mask files
    slide_path : path or URL of the slide; it is not opened
    """
    for candidate in _candidates(Path(folder), os.fspath(slide_path)):
        if candidate.is_file() and not _is_same_file(candidate, slide_path):
            return candidate
    return None


def mask_file(given: str | os.PathLike[str], slide: SlideShape | None) -> str:
    """The file that a path stands for: itself, or the one in a folder that belongs to the slide.

    Raises
    ------
    MaskError
        There is none; says what was looked for.
    """
    path = Path(given)
    if "://" in os.fspath(given) or path.is_file():
        return os.fspath(given)
    if not path.is_dir():
        raise MaskError(
            f"mask '{path}': no such file or folder; expected a PNG or TIFF, annotations (XML, GeoJSON), or HistoQC's "
            "output folder; check the path"
        )
    if slide is not None:
        found = find_mask(path, slide.path)
        if found is not None:
            return str(found)
        looked_for = ", ".join(dict.fromkeys(str(c.relative_to(path)) for c in _candidates(path, slide.path)))
        raise MaskError(
            f"mask folder '{path}': nothing for slide {slide.name!r}; looked for {looked_for}; name the mask so, or "
            "pass its file"
        )
    masks = sorted(entry for entry in path.iterdir() if entry.name.endswith(HISTOQC_SUFFIX))
    if len(masks) == 1:
        return str(masks[0])
    what = "none" if not masks else f"{len(masks)} of them"
    raise MaskError(
        f"mask '{path}' is a folder: looked for one file *{HISTOQC_SUFFIX} (HistoQC's folder of a slide), found "
        f"{what}; pass the mask's file, or slide=... to find the slide's own in a folder of many"
    )


def open_mask(file: str, slide: SlideShape | None, shape: tuple[int, int] | None = None) -> MaskContent:
    """Read a mask file of any format, and check its proportions against the slide's.

    Raises
    ------
    MaskError
        The file is missing, cannot be read as a mask, or does not have the slide's proportions.
    """
    content = read_content(file, slide_shape=slide.shape if slide is not None else None, shape=shape)
    if slide is not None:
        check_proportions(content.values.shape, slide.shape, what=f"mask '{file}' of slide {slide.name!r}")
    return content


def as_tissue(content: MaskContent, file: str, slide: SlideShape | None) -> xr.DataArray:
    """What a file holds, as a tissue mask; see `read_tissue_mask`."""
    if content.kind == "labels":
        raise MaskError(
            f"mask '{file}': it is annotated, with classes {list(content.classes)}; expected a tissue mask; read it as "
            "a label mask: read_label_mask(path), or labels=... of extract"
        )
    found = distinct_values(content.values)
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
    mask = content.values != 0
    if not mask.any():
        warnings.warn(f"mask '{file}': empty, no pixel is tissue; no patch will be selected", UserWarning, stacklevel=3)
    return Mask(mask, dims=("y", "x"), name="tissue", attrs=mask_attrs(file, slide))


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


def _candidates(folder: Path, slide_path: str) -> Iterator[Path]:
    """Where the mask of a slide may be, in the order of preference."""
    for form in mask_formats():
        for name in names_of(slide_path):
            for place in form.places:
                yield folder / place.replace("{name}", name)


def _is_same_file(candidate: Path, slide_path: str | os.PathLike[str]) -> bool:
    return os.path.exists(slide_path) and os.path.samefile(candidate, slide_path)
