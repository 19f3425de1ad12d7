"""Files of several slides or regions: which of them is opened, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msdask.errors import SpecError

__all__ = ["RegionFacts", "choose_region", "region_properties", "region_warnings"]

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """One of the images of a file that could be opened.

    Attributes
    ----------
    name : what the file calls it, or ""
    shape : (height, width) of its finest level, px
    mpp : um/px, or None where it is not stated
    is_alike : whether it may be what somebody looks for, and not a picture beside the slide
    """

    name: str
    shape: tuple[int, int]
    mpp: float | None
    is_alike: bool = True

    def described(self, number: int) -> str:
        """In words: "1 ('image_2', 1000 x 800 px, 0.5 um/px)"."""
        name = f"{self.name!r}, " if self.name else ""
        scale = f", {self.mpp:.4g} um/px" if self.mpp else ""
        return f"{number} ({name}{self.shape[1]} x {self.shape[0]} px{scale})"


def choose_region(regions: Sequence[RegionFacts], asked: str | int | None, path: str) -> int:
    """Which region is opened: the one asked for, else the finest, and of several the largest, and of these the first.

    Parameters
    ----------
    regions : in the order of the file
    asked : name, or number in that order from 0 on
    path : of the slide, for messages

    Raises
    ------
    SpecError
        There is none of that name or number, or there are several.
    """
    if asked is None:
        alike = [i for i, region in enumerate(regions) if region.is_alike] or list(range(len(regions)))
        finest = min((mpp for i in alike if (mpp := regions[i].mpp)), default=None)

        def rank(i: int) -> tuple[bool, int]:
            mpp = regions[i].mpp
            # scales of one scan differ in their last digits
            return finest is not None and (not mpp or mpp > 1.05 * finest), -regions[i].shape[0] * regions[i].shape[1]

        return min(alike, key=rank)
    text = str(asked).strip()
    found = [i for i, region in enumerate(regions) if region.name == text]
    if not found and text.isascii() and text.isdigit() and int(text) < len(regions):
        found = [int(text)]
    if len(found) != 1:
        listed = _listed(regions, range(len(regions)))
        problem = "there are several of that name; give its number" if found else "expected the name or number of one"
        raise SpecError(f"slide {path!r}: region {asked!r}: {problem} of {listed}")
    return found[0]


def region_properties(regions: Sequence[RegionFacts], chosen: int) -> dict[str, str]:
    """What `slide.properties` says of a file's regions; nothing where there is one."""
    if len(regions) < 2:
        return {}
    words = {f"region.{i}": region.described(i).partition(" ")[2].strip("()") for i, region in enumerate(regions)}
    return {"region": str(chosen), **words}


def region_warnings(regions: Sequence[RegionFacts], chosen: int) -> tuple[str, ...]:
    """A sentence about the regions that nobody asked for and that are not opened."""
    others = [i for i, region in enumerate(regions) if i != chosen and region.is_alike]
    if not others:
        return ()
    last = others[-1]
    asked = repr(regions[last].name) if [r.name for r in regions].count(regions[last].name) == 1 else last
    asked = asked if regions[last].name else last
    return (
        f"the file holds several images; opened is {regions[chosen].described(chosen)}, the finest and of these the "
        f"largest; not opened: {_listed(regions, others)}; region={asked}, say, opens another",
    )


def _listed(regions: Sequence[RegionFacts], numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(regions[i].described(i) for i in numbers[:_SHOWN]) + more
