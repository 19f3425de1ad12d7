"""Which images of a TIFF file are the levels of a slide, which lie beside it (label, macro, thumbnail), and which are
other slides.

A page is a level of another if it shows the same, smaller: both are tiled or both are strips, of the same samples, and
some reduction gives its width and its height. What its flags say (NewSubfileType) and where it stands decide nothing,
since scanners and converters disagree on both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from msdask.readers.philips import level_sizes
from msdask.readers.tiff_xml import Described

__all__ = ["ASSOCIATED", "Images", "Listed", "Pyramid", "find_images"]

ASSOCIATED = ("label", "macro", "thumbnail")
_NAMED = re.compile(rf"(?<![a-z])({'|'.join(ASSOCIATED)})(?![a-z])")
_APERIO_SIZES = re.compile(r"(\d{1,9})x(\d{1,9})\s*(?:\[[^\]]*?(\d{1,9})x(\d{1,9})\])?[^|\]]*?->\s*(\d{1,9})x(\d{1,9})")
"""Of what and how large an image of an SVS is: 46000x32914 [0,100 46000x32893] (240x240) -> 2875x2055."""
_OTHER_SLIDE = 0.02
"""Share by which the size that an image was reduced from may differ from the slide's."""
_MACRO_FLAG, _LABEL_FLAG, _MASK_FLAG = 9, 1, 4
_MACRO_LENS, _MAP_LENS = -1.0, -2.0
"""What Hamamatsu says in place of a magnification."""
_ROUNDING = 2
"""px that a side of a level may be off: each level may be the rounded half of a rounded one."""
_LEAST_REDUCTION = 1.5
_MOST_PYRAMIDS = 256
"""Images that are told apart in a plain TIFF: what that takes grows with its square."""
_OVERVIEW_MPP = 10.0
"""um/px; an image of an SCN that is coarser shows the whole glass."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An image of the file.

    Attributes
    ----------
    page : tifffile's page, of the first plane
    name : what the file calls it, or ""
    planes : how many images of this size it is a stack of
    stack : the stack's axes and shape, for messages
    order : place in the file; of a SubIFD that of its page and its own
    """

    page: Any
    name: str = ""
    planes: int = 1
    stack: str = ""
    order: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), px."""
        return int(self.page.keyframe.imagelength), int(self.page.keyframe.imagewidth)

    @property
    def area(self) -> int:
        """Number of px."""
        return self.size[0] * self.size[1]


@dataclass(slots=True)
class Pyramid:
    """An image with its smaller levels: a slide, or a region of one.

    Attributes
    ----------
    levels : the finest first
    name : what the file calls it, or ""
    image : which of the images that the XML describes, or None
    is_alike : whether it may be what somebody looks for, such as a second piece of tissue, and not a picture beside the
        slide
    """

    levels: list[Listed]
    name: str = ""
    image: int | None = None
    is_alike: bool = True


@dataclass(slots=True)
class Images:
    """What the images of a file are.

    Attributes
    ----------
    pyramids : in the order of the file, at least one
    associated : by name, "label", "macro" or "thumbnail"
    notes : about images that are none of these, for the properties
    warnings : sentences for a person
    """

    pyramids: list[Pyramid]
    associated: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def find_images(tif: Any, described: Described, vendor: str) -> Images:
    """Sort the images of an open file.

    Parameters
    ----------
    tif : tifffile's file
    described : what the first page says in words or XML
    vendor : as of `vendor_of`
    """
    if vendor in ("aperio", "leica", "philips"):
        tif.pages.cache = True  # they are parsed once
    if vendor == "leica":
        found = _described_regions(_leica_images(tif, described), described)
    elif vendor == "ome":
        found = _described_regions(_ome_images(tif, described), described)
    else:
        # before the pages are told apart by their sizes: padded, the smallest levels of Philips are of one size
        warnings = level_sizes(list(tif.pages), described) if vendor == "philips" else []
        pages = _paged(tif) if vendor in ("aperio", "philips") else _in_series(tif)
        found = _sorted_pages(pages, vendor)
        found.warnings += warnings
    if found.pyramids and vendor == "leica" and "macro" not in found.associated:
        _take_overview(found, described)
    return found


def is_reduction(small: Listed, full: Listed) -> bool:
    """Whether an image can be the whole of another one, smaller, by its size alone."""
    (height, width), (full_height, full_width) = small.size, full.size
    if min(full_height / height, full_width / width) < _LEAST_REDUCTION:
        return False
    # 1 / reduction lies in a range by the width and in one by the height: they must meet
    lowest = max((width - _ROUNDING) / full_width, (height - _ROUNDING) / full_height)
    highest = min((width + _ROUNDING) / full_width, (height + _ROUNDING) / full_height)
    return lowest < highest


def _in_series(tif: Any) -> list[Listed]:
    """The images of tifffile's series, each level apart."""
    found: dict[int, Listed] = {}
    for series in tif.series:
        for item in _levels_of(series):
            found.setdefault(int(item.page.offset), item)
    return sorted(found.values(), key=lambda item: item.order)


def _levels_of(series: Any) -> list[Listed]:
    """The levels of a series of tifffile's that have pixels."""
    found = []
    for level in series.levels:
        pages = _pages(level)
        if pages:
            one = max(1, int(np.prod(pages[0].keyframe.shape, dtype=np.int64)))
            planes = max(len(level.pages), int(np.prod(level.shape, dtype=np.int64)) // one)
            stack = f"axes {level.axes}, shape {tuple(level.shape)}"
            found.append(Listed(pages[0], str(series.name), planes, stack, tuple(pages[0].treeindex)))
    return found


def _paged(tif: Any) -> list[Listed]:
    """The pages of a file; tiled ones of one size are a stack of focal planes."""
    pages = [page for page in tif.pages if page.imagewidth and page.imagelength]
    sizes = Counter((page.is_tiled, page.imagelength, page.imagewidth) for page in pages)
    found, seen = [], set()
    for order, page in enumerate(pages):
        key = page.is_tiled, page.imagelength, page.imagewidth
        if page.is_tiled and key in seen:
            continue
        seen.add(key)
        planes = sizes[key] if page.is_tiled else 1
        found.append(Listed(page, "", planes, f"axes Z{page.axes}, shape {(planes, *page.shape)}", (order,)))
    return found


def _sorted_pages(pages: Sequence[Listed], vendor: str) -> Images:
    """Sort images of which nothing is said but what each says of itself."""
    if not pages:
        return Images([])
    names = {item.order: _name_of(item) for item in pages}
    unnamed = [item for item in pages if not names[item.order] and not _is_mask(item)] or list(pages)
    first = max(unnamed, key=lambda item: (_is_tiled(item) and vendor != "generic", item.area))  # the first of equals
    pyramids = [Pyramid([first])]
    found = Images(pyramids)
    rest = sorted((item for item in pages if item is not first), key=lambda item: (-item.area, item.order))
    for item in rest:
        name = names[item.order]
        # an SVS's level may be called anything; a name counts for what is stored as such pictures are
        owner = None if name else next((p for p in pyramids if _is_level(item, p.levels[0])), None)
        if owner is not None:
            owner.levels.append(item)
            continue
        if not name and not _is_tiled(item) and not _is_mask(item):
            name = _unnamed_picture(item, first, vendor)
        if name:
            found.associated.setdefault(name, item.page)
        elif len(pyramids) == _MOST_PYRAMIDS:
            found.notes["other images"] = f"more than {_MOST_PYRAMIDS}; the smaller ones cannot be opened"
        elif _is_mask(item) or _is_of_another_kind(item, first):
            found.notes[f"other image {item.size[1]} x {item.size[0]}"] = "not of the slide's kind of pixels"
        else:
            is_alike = _is_tiled(item) if _is_tiled(first) else 4 * item.area >= first.area
            pyramids.append(Pyramid([item], item.name, is_alike=is_alike))
    pyramids.sort(key=lambda pyramid: pyramid.levels[0].order)
    return found


def _is_level(item: Listed, full: Listed) -> bool:
    """Whether an image is a level of another one."""
    if not _is_stored_alike(item, full) or _is_mask(item) or _is_of_another_kind(item, full):
        return False
    return is_reduction(item, full) and not _is_of_another_slide(item, full)


def _is_of_another_slide(item: Listed, full: Listed) -> bool:
    """Whether an image of an SVS says that it was reduced from another size than the slide's."""
    stated = _APERIO_SIZES.search(str(item.page.keyframe.description)[:400])
    if stated is None:
        return False
    width, height, cut_width, cut_height, own_width, own_height = (int(n) if n else 0 for n in stated.groups())
    if (own_height, own_width) != item.size:  # a converter changed the image and kept the words
        return False
    sizes = zip((cut_height or height, cut_width or width), full.size, strict=True)
    return any(abs(said / found - 1) > _OTHER_SLIDE for said, found in sizes)


def _is_stored_alike(item: Listed, full: Listed) -> bool:
    """Whether an image is stored as levels of another one are: in tiles as it is, or flagged so in a plain TIFF."""
    key = item.page.keyframe
    if 65420 in key.tags:  # Hamamatsu says which lens an image was taken with; none for pictures beside the slide
        return (key.tags.valueof(65421) or 0) > 0
    is_flagged = len(item.order) > 1 or int(key.subfiletype) & 1 == 1
    return _is_tiled(item) == _is_tiled(full) or (is_flagged and not key.is_svs)


def _is_of_another_kind(item: Listed, full: Listed) -> bool:
    a, b = item.page.keyframe, full.page.keyframe
    return bool(a.samplesperpixel != b.samplesperpixel or a.dtype != b.dtype)


def _is_tiled(item: Listed) -> bool:
    return bool(item.page.keyframe.is_tiled)


def _is_mask(item: Listed) -> bool:
    """Whether it is a transparency mask, or Hamamatsu's map of where it focused."""
    key = item.page.keyframe
    if 65420 in key.tags and key.tags.valueof(65421) == _MAP_LENS:
        return True
    return int(key.photometric) == _MASK_FLAG or int(key.subfiletype) & _MASK_FLAG != 0


def _name_of(item: Listed) -> str:
    """What the file calls an image: "label", "macro" or "thumbnail", or "" for anything else."""
    key = item.page.keyframe
    lens = key.tags.valueof(65421) if 65420 in key.tags else None
    if lens in (_MACRO_LENS, _MAP_LENS):
        return "macro" if lens == _MACRO_LENS else ""
    description = str(key.description)[:400].partition("|")[0]
    for text in (item.name, "" if description.lstrip().startswith("<") else description):
        match = _NAMED.search(text.lower())
        if match is not None:
            return match[1]
    return ""


def _unnamed_picture(item: Listed, first: Listed, vendor: str) -> str:
    """What a picture in strips beside tiled levels is, by its flag and proportions."""
    flag = int(item.page.keyframe.subfiletype)
    if not _is_tiled(first):
        return ""
    if is_reduction(item, first):
        return "thumbnail"
    if vendor != "aperio":
        return ""
    return {_MACRO_FLAG: "macro", _LABEL_FLAG: "label"}.get(flag, "thumbnail")


def _leica_images(tif: Any, described: Described) -> Iterator[tuple[int, str, list[Listed]]]:
    """(place in the XML, name, levels) of each image of an SCN."""
    for number, image in enumerate(described.leica_images):
        by_level: dict[int, list[int]] = {}
        for dimension in image.dimensions:
            by_level.setdefault(dimension.resolution, []).append(dimension.page)
        levels = []
        for resolution in sorted(by_level):
            own = [n for n in by_level[resolution] if 0 <= n < len(tif.pages)]
            if own:
                page, planes = tif.pages[own[0]], len(by_level[resolution])
                stack = f"axes CZ{page.axes}, shape {(planes, *page.shape)}"
                levels.append(Listed(page, image.name, planes, stack, (own[0],)))
        if levels:
            yield number, image.name, levels


def _ome_images(tif: Any, described: Described) -> Iterator[tuple[int | None, str, list[Listed]]]:
    """(place in the XML, name, levels) of each image of an OME-TIFF; its series stand in the order of the XML."""
    sizes = [image.size for image in described.ome_images]
    at = 0
    for series in tif.series:
        levels = _levels_of(series)
        if not levels:
            continue
        number = next((i for i in range(at, len(sizes)) if sizes[i] == levels[0].size), None)
        at = at if number is None else number + 1
        yield number, str(series.name), levels


def _described_regions(images: Iterator[tuple[int | None, str, list[Listed]]], described: Described) -> Images:
    """Sort images that the file's XML describes."""
    found = Images([])
    for number, name, levels in images:
        called = _NAMED.search(name.lower())
        if called is not None and called[1] not in found.associated:
            found.associated[called[1]] = levels[0].page
            continue
        levels = [levels[0], *(item for item in levels[1:] if is_reduction(item, levels[0]))]
        found.pyramids.append(Pyramid(levels, name, number))
    if not found.pyramids and found.associated:
        name, page = max(found.associated.items(), key=lambda item: item[1].keyframe.imagewidth)
        del found.associated[name]
        found.pyramids.append(Pyramid([Listed(page, name)], name, None))
    return found


def _take_overview(found: Images, described: Described) -> None:
    """The images of an SCN that show the whole glass are its macro, where there is any other."""
    images = described.leica_images
    overviews = [
        p
        for p in found.pyramids
        if p.image is not None
        and (images[p.image].is_whole_glass or (images[p.image].mpp or (0.0, 0.0))[0] > _OVERVIEW_MPP)
    ]
    if overviews and len(overviews) < len(found.pyramids):
        found.associated["macro"] = overviews[0].levels[0].page
        found.pyramids = [p for p in found.pyramids if p not in overviews]


def _pages(series: Any) -> list[Any]:
    """A series' pages that exist and have pixels."""
    return [
        page for page in series.pages if page is not None and page.keyframe.imagewidth and page.keyframe.imagelength
    ]
