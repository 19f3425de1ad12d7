"""Trained models on images and slides: the scale detector, standalone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import cv2
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import MsdaskError, SlideError, SpecError
from msdask.extras import require
from msdask.inference.images import Image, is_pixels, name_of, opened, path_of
from msdask.masks.crops import look_at
from msdask.masks.tissue import tissue_from_rgb
from msdask.readers.listing import is_slide, slides_in
from msdask.selection.coverage import SummedArea
from msdask.slides.region import read_region
from msdask.slides.slide import Slide
from msdask.storage.places import is_url
from msdask.storage.tables import read_table

if TYPE_CHECKING:
    from PIL import Image as Pillow
    from torch import Tensor, nn

    from msdask.models import ScaleRegressor

__all__ = ["ScaleEstimate", "crop_origins", "estimate_scale", "estimate_scales", "load_regressor", "magnifications_of"]

Model: TypeAlias = "str | os.PathLike[str] | nn.Module"

MIN_SIDE = 48
"""Smallest side of an image that is estimated, px."""
DEFAULT_CROP = 96
MAX_CROPS = 64
MIN_TISSUE = 0.5
_MODEL_ERROR = 0.2
"""Relative error of an image's estimate on an organ that the detector never saw (docs/scale_detector.md)."""
_CROP_ERROR = 0.3
"""The same of a single crop beyond that: what the spread over several would have said."""
_OVERLAP = 4
"""Crops overlap by half along both sides: so many say about as much as one."""
_THUMBNAIL = 1024
_LATTICE = 64
"""At most so many positions a side are looked at."""


@dataclass(frozen=True, slots=True)
class ScaleEstimate:
    """The estimated scale of one image.

    Attributes
    ----------
    path : of the image; "" for an array
    magnification : median over the crops
    mpp : 10 / magnification, um/px
    spread : half the distance from the 16th to the 84th percentile of the crops, relative to the median (0.1: most
        crops agree within 10 %); NaN for a single crop
    n_crops : that show tissue, and were estimated
    uncertainty : how far off the magnification may be, relative to it: about two of three images lie within (0.2: 20 %,
        which is what a detector is wrong by on an organ that it never saw; more where crops are few or disagree, and
        where the estimate lies beyond the magnifications that the model knows)
    """

    path: str
    magnification: float
    mpp: float
    spread: float
    n_crops: int
    uncertainty: float


@overload
def estimate_scale(
    images: Slide | NDArray[Any] | Tensor | Pillow.Image | xr.DataArray,
    model: Model = ...,
    *,
    n_crops: int = ...,
    batch_size: int = ...,
    augment: bool = ...,
) -> ScaleEstimate: ...
@overload
def estimate_scale(
    images: str | os.PathLike[str],
    model: Model = ...,
    *,
    n_crops: int = ...,
    batch_size: int = ...,
    augment: bool = ...,
) -> Any: ...
@overload
def estimate_scale(
    images: Sequence[Any] | pd.DataFrame,
    model: Model = ...,
    *,
    n_crops: int = ...,
    batch_size: int = ...,
    augment: bool = ...,
) -> pd.DataFrame: ...
def estimate_scale(
    images: Any, model: Model = "default", *, n_crops: int = MAX_CROPS, batch_size: int = 128, augment: bool = True
) -> ScaleEstimate | pd.DataFrame:
    """Estimate the magnification of images that lost it, from their pixels alone.

    Parameters
    ----------
    images : one image - a file, a Slide, a PIL image, an RGB array or tensor, (H, W, 3) or (3, H, W), uint8 or floats
        from 0 to 1 - or many: a folder, a CSV of paths, a DataFrame with a column `path`, a batch (N, ...), or a
        sequence of any of these
    model : "default" (learnt from MoNuSeg, CC BY-NC-SA 4.0: not for commercial use), "free" (learnt from free data
        only, up to 20x), a file or run folder that `msdask train scale` wrote, or a ScaleRegressor
    n_crops : at most so many crops of an image are looked at, spread evenly over its tissue
    batch_size : crops that go through the network at once
    augment : average each crop's estimate over its four mirror images

    Returns
    -------
    estimate : for one image a ScaleEstimate, with `magnification`, `mpp`, `spread`, `n_crops`, `uncertainty`; for many
        a table with these and `path` and `error` (why an image has no estimate; "" where it has one), in input order

    Raises
    ------
    SlideError
        The one image cannot be read, is too small or shows no tissue (glass, flat areas, noise, no color of a stain);
        of many, such an image becomes a row with an error.
    SpecError
        The one image is none, or its pixels are not RGB; of many, a row with an error.
    MsdaskError
        The model cannot be loaded.

    Examples
    --------
    >>> import msdask as ms
    >>> ms.open_slide("lost.tif", mpp=ms.estimate_scale("lost.tif").mpp)  # doctest: +SKIP
    """
    single = isinstance(images, Slide) or is_pixels(images) or _is_file(images)
    if single:
        (row,) = estimate_scales([images], model, n_crops=n_crops, batch_size=batch_size, augment=augment)
        if isinstance(row, MsdaskError):
            raise row
        return row
    named = _listed(images)
    rows: list[dict[str, Any]] = []
    for image, found in zip(
        named, estimate_scales(named, model, n_crops=n_crops, batch_size=batch_size, augment=augment), strict=True
    ):
        if isinstance(found, ScaleEstimate):
            rows.append({**asdict(found), "error": ""})
        else:
            nothing = ScaleEstimate(path_of(image), np.nan, np.nan, np.nan, 0, np.nan)
            rows.append({**asdict(nothing), "error": str(found)})
    return pd.DataFrame(rows, columns=[*ScaleEstimate.__slots__, "error"])


def estimate_scales(
    images: Iterable[Any],
    model: Model = "default",
    *,
    n_crops: int = MAX_CROPS,
    batch_size: int = 128,
    augment: bool = True,
) -> Iterable[ScaleEstimate | MsdaskError]:
    """Estimates one by one, in the order of `images`: arrays, files or slides; see `estimate_scale`.

    Yields
    ------
    estimate : or the error, for an image that cannot be read
    """
    if n_crops < 1 or batch_size < 1:
        raise SpecError(f"n_crops={n_crops}, batch_size={batch_size}: expected whole numbers of at least 1")
    network, about = _loaded(model)
    for image in images:
        try:
            crops = _crops(image, _crop_side(about), n_crops)
        except (MsdaskError, OSError) as error:
            yield error if isinstance(error, MsdaskError) else SlideError(f"'{path_of(image)}': {error}")
            continue
        values = magnifications_of(crops, network, batch_size=batch_size, augment=augment)
        median = float(np.median(values))
        low, high = np.percentile(values, [16, 84])
        spread = float((high - low) / 2 / median) if len(values) > 1 else float("nan")
        uncertainty = _uncertainty(median, spread, len(values), about.get("magnifications"))
        yield ScaleEstimate(path_of(image), median, 10 / median, spread, len(values), uncertainty)


def _uncertainty(magnification: float, spread: float, n_crops: int, known: Sequence[float] | None) -> float:
    """How far off an estimate may be: the model's own error, what the crops disagree, how far it extrapolates."""
    disagreement = spread if n_crops > 1 else _CROP_ERROR
    beyond = 0.0
    if known is not None:
        beyond = max(0.0, magnification / max(known) - 1, min(known) / magnification - 1)
    return float(np.hypot(np.hypot(_MODEL_ERROR, disagreement / np.sqrt(max(1.0, n_crops / _OVERLAP))), beyond))


def magnifications_of(
    crops: Image, network: ScaleRegressor, *, batch_size: int = 128, augment: bool = True
) -> NDArray[np.float64]:
    """Magnification of each crop.

    Parameters
    ----------
    crops : (n, S, S, 3) uint8
    network : in evaluation mode; stays on its device
    augment : average over the four mirror images, in target space

    Returns
    -------
    magnification : (n,)
    """
    import torch

    device = next(network.parameters()).device
    found: list[NDArray[np.float64]] = []
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for first in range(0, len(crops), batch_size):
            x = torch.from_numpy(np.ascontiguousarray(crops[first : first + batch_size])).to(device).permute(0, 3, 1, 2)
            mirrors = [x, x.flip(3), x.flip(2), x.flip(2, 3)] if augment else [x]
            output = torch.stack([network(m) for m in mirrors]).mean(0)
            found.append(network.calibrated(output).double().cpu().numpy())
    network.train(was_training)
    return np.concatenate(found)


def crop_origins(
    shape: tuple[int, int], crop: int, n_crops: int, tissue: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Where to cut: positions on an even lattice (neighbours overlap by half) that have tissue, evenly thinned out.

    Parameters
    ----------
    shape : (height, width) of the image, px
    crop : side, px, at most the shorter side of the image
    n_crops : at most so many
    tissue : mask of the whole image at any resolution; None: everywhere

    Returns
    -------
    origins : (n, 2) y and x, px, in row-major order; where too little is tissue, the positions with most of it
    """
    sides = [np.unique(np.linspace(0, n - crop, _positions(n, crop)).round().astype(np.int64)) for n in shape]
    y, x = (axis.ravel() for axis in np.meshgrid(*sides, indexing="ij"))
    fraction = np.ones(len(y))
    if tissue is not None:
        scale = [t / n for t, n in zip(tissue.shape, shape, strict=True)]
        top, left = ((v * s).astype(np.int64) for v, s in zip((y, x), scale, strict=True))
        bottom = np.maximum(top + 1, ((y + crop) * scale[0]).round().astype(np.int64))
        right = np.maximum(left + 1, ((x + crop) * scale[1]).round().astype(np.int64))
        fraction = SummedArea(tissue).sums(left, top, right, bottom) / ((bottom - top) * (right - left))
    chosen = np.flatnonzero(fraction >= MIN_TISSUE)
    if not len(chosen):
        chosen = np.sort(np.argsort(-fraction, kind="stable")[:n_crops])
    if len(chosen) > n_crops:
        chosen = chosen[np.linspace(0, len(chosen) - 1, n_crops).round().astype(np.int64)]
    return np.stack([y[chosen], x[chosen]], 1)


def _positions(side: int, crop: int) -> int:
    return int(min(_LATTICE, 1 + np.ceil((side - crop) / (crop / 2))))


def load_regressor(model: Model) -> tuple[ScaleRegressor, int]:
    """The network, and the side of the crops that it was made for."""
    network, about = _loaded(model)
    return network, _crop_side(about)


def _crop_side(about: Mapping[str, Any]) -> int:
    return int(about.get("crop", DEFAULT_CROP))


def _loaded(model: Model) -> tuple[ScaleRegressor, dict[str, Any]]:
    """The network, and what is said of it."""
    require("the scale detector")
    from msdask.models import ScaleRegressor
    from msdask.models.files import load_model, load_released, released

    about: dict[str, Any] = {}
    if isinstance(model, str) and model in {r.name for r in released("scale")}:
        network, about = load_released(model)
    elif isinstance(model, (str, os.PathLike)):
        network, about = load_model(model)
    else:
        network = model
    if not isinstance(network, ScaleRegressor):
        raise SpecError(f"model of class {type(network).__name__}: the scale is estimated by a ScaleRegressor")
    return network, about


def _crops(image: Any, crop: int, n_crops: int) -> Image:
    """Crops of an image that show tissue: (n, S, S, 3) uint8, S at most `crop`."""
    source = opened(image)
    height, width = source.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise SlideError(f"{name_of(image)} has {width} x {height} px: expected at least {MIN_SIDE} a side")
    side = min(crop, height, width)
    thumbnail = source.thumbnail(_THUMBNAIL) if isinstance(source, Slide) else _smaller(source)
    # The scale is what is not known: the mask's own sizes in um are taken as if the thumbnail had 8 um/px.
    origins = crop_origins((height, width), side, n_crops, tissue_from_rgb(thumbnail, mpp=8.0)).tolist()
    if isinstance(source, Slide):
        crops = np.stack([read_region(source.reader, 0, 1, (y, y + side), (x, x + side)) for y, x in origins])
    else:
        crops = np.stack([source[y : y + side, x : x + side] for y, x in origins])
    looks = look_at(crops)
    if not looks.is_tissue.any():
        raise SlideError(
            f"{name_of(image)} shows no tissue in any of {len(crops)} crops of {side} px (found: {looks}; expected "
            "stained tissue with visible structure): there is nothing to estimate a scale from; if it is tissue, state "
            "its scale: mpp=... or magnification=..."
        )
    return crops[looks.is_tissue]


def _smaller(image: Image) -> Image:
    ratio = max(1.0, max(image.shape[:2]) / _THUMBNAIL)
    size = (max(1, round(image.shape[1] / ratio)), max(1, round(image.shape[0] / ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _is_file(images: Any) -> bool:
    """Whether this is the path of one image, not of a folder of images or a CSV."""
    if not isinstance(images, (str, os.PathLike)):
        return False
    path = os.fspath(images)
    if os.path.isdir(path) and not is_url(path):
        return is_slide(path)
    return is_url(path) or not path.lower().endswith(".csv")


def _listed(images: Any) -> list[Any]:
    if isinstance(images, pd.DataFrame):
        if "path" not in images:
            raise SpecError(f"a table with columns {list(images.columns)}: expected one named 'path'")
        return list(images["path"])
    if not isinstance(images, (str, os.PathLike)):
        return list(images)
    return listed_paths(images)


def listed_paths(images: str | os.PathLike[str]) -> list[str]:
    """Paths of the images in a folder (by name) or a CSV (in its order), or the one image itself.

    Parameters
    ----------
    images : of a folder, what `msdask.readers.slides_in` finds is taken; of a CSV, the column `path`, or the first one
        where it has no header; relative paths are relative to the CSV, and unlike in a cohort several images may have
        one name

    Raises
    ------
    SlideError
        There is no such file or folder, or no image is listed.
    """
    path = Path(images)
    if not is_url(os.fspath(images)) and not path.exists():
        raise SlideError(f"'{path}' does not exist: expected a CSV of paths, a folder of images, or an image")
    if _is_file(images):
        return [os.fspath(images)]
    if path.is_dir():
        return slides_in(path)
    found = [cell for cell in read_table(path, "path", error=SlideError).column("path") if cell]
    if not found:
        raise SlideError(f"'{path}' lists no image: expected one path a line, or a header with a column 'path'")
    return [cell if is_url(cell) else os.fspath(path.parent / cell) for cell in found]
