"""Images of known scale as virtual sets: crops of tissue to learn from, and to measure with, without a store."""

from __future__ import annotations

from collections.abc import Sequence

from msdask.data.virtual import VirtualSet
from msdask.errors import SpecError
from msdask.extraction.slide_table import SlideRow, Slides, read_slides
from msdask.selection.select import grid
from msdask.slides.slide import Slide

__all__ = ["image_lattice", "image_patches"]

_SLACK = 1e-6


def image_patches(images: Slides, *, patch_size: int) -> VirtualSet:
    """Every place of some images, as a grid without gaps at the lowest of their own magnifications.

    The last patches of a row and column reach over the image's edge: use it with a `ScaleRange`, whose cuts do not.

    Parameters
    ----------
    images : as for `msdask.extract`: a table with a column mpp or magnification, a folder, paths. All of an image
        counts as tissue: for whole slides extract a store
    patch_size : px

    Raises
    ------
    MissingScaleError
        Neither the file nor the table states an image's scale.
    """
    opened = {row.slide_id: _open(row) for row in read_slides(images)}
    lowest = min(10 / slide.mpp_used for slide in opened.values())
    tables = {
        slide_id: grid(slide, magnification=lowest, patch_size=patch_size, min_tissue=0.0, inside=False)
        for slide_id, slide in opened.items()
    }
    return VirtualSet(opened, tables)


def image_lattice(
    images: Slides, *, magnifications: Sequence[float], patch_size: int, side: int = 2
) -> list[VirtualSet]:
    """Patches to measure a scale detector with: of each image and magnification about equally many, evenly spread.

    Parameters
    ----------
    images : as for `image_patches`
    magnifications : nominal ones; those above an image's own, or at which a patch does not fit into it, it lacks
    patch_size : px
    side : patches along the shorter side of an image; they overlap where the image is small

    Returns
    -------
    sets : one an image and magnification, for one `PatchDataset`

    Raises
    ------
    SpecError
        No patch fits any image.
    """
    if side < 2:
        raise SpecError(f"side={side!r}: expected at least 2 patches along a side")
    sets = []
    rows = read_slides(images)
    for row in rows:
        slide = _open(row)
        for magnification in magnifications:
            free = min(slide.shape) * slide.mpp_used * magnification / 10 - patch_size
            if magnification * slide.mpp_used > 10 * (1 + _SLACK) or free < 0:
                continue
            stride = max(1, int(free / (side - 1)))
            table = grid(slide, magnification=magnification, patch_size=patch_size, stride=stride)
            sets.append(VirtualSet({row.slide_id: slide}, {row.slide_id: table}))
    if not sets:
        raise SpecError(f"no patch of {patch_size} px at {list(magnifications)} fits any of {len(rows)} images")
    return sets


def _open(row: SlideRow) -> Slide:
    return Slide(row.path, mpp=row.mpp, magnification=row.magnification, region=row.slide_region)
