"""What a TIFF slide says of itself: pixel size, objective and other facts, by vendor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from msdask.readers.base import SlideMetadata
from msdask.readers.quantities import micrometres_of, read_length, read_number
from msdask.readers.tiff_xml import Described, LeicaImage, OmeImage, pair

__all__ = ["FLUORESCENT", "read_metadata", "says_fluorescence", "vendor_of"]

_UNITS = {2: ("inch", 25400.0), 3: ("cm", 1e4), 4: ("mm", 1e3), 5: ("um", 1.0)}
"""Name and um of a ResolutionUnit. 4 and 5 are no part of the standard, but written."""
_INCH = 2
_COARSEST_TAG = 20.0
"""um/px; resolution tags above it are printing defaults (72, 96, 300 dpi are 353, 265, 85), not a microscope."""
_TEXT_LIMIT = 20_000
FLUORESCENT = (
    "the file says that it is a fluorescence image: masks, measures and models of msdask are made for brightfield, "
    "where the glass is bright"
)
_Image = TypeVar("_Image", LeicaImage, OmeImage)

_FLUORESCENCE = re.compile(r"fluorescen|(?<!plan )(?<!plan-)\bfluor\b", re.I)
"""As a scanner calls it; a Plan Fluor is an objective."""
_IMAGEJ_UNIT = re.compile(r"^unit=([^\r\n]*)", re.M)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a vendor's own fields say; `unread` is what they say of the scale that could not be read."""

    mpp: tuple[float, float] | None = None
    power: float | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    is_fluorescent: bool = False


def read_metadata(
    page: Any, described: Described, vendor: str, shape: tuple[int, int], image: int | None = None
) -> SlideMetadata:
    """Facts of a slide from its tags and description.

    Parameters
    ----------
    page : tifffile's page of level 0
    described : of the file's first page, where vendors put their XML
    vendor : "aperio", "ome", "hamamatsu", "leica", "philips" or "generic"
    shape : (height, width) of level 0, px
    image : which of several images in the XML is meant; None for the first of this shape

    Returns
    -------
    metadata : mpp as stored; the plain resolution tags serve where the vendor's own fields are absent
    """
    found = _of_vendor(page, described, vendor, shape, image)
    mpp, origin, unread = found.mpp, vendor if found.mpp else None, found.unread
    if mpp is None:
        mpp, origin, more = _from_tags(page)
        unread += more
    warnings = (FLUORESCENT,) if found.is_fluorescent else ()
    return SlideMetadata(
        mpp=mpp,
        mpp_source=origin,
        objective_power=found.power,
        vendor=vendor,
        properties={**_tag_properties(page), **found.properties},
        unread=unread,
        warnings=warnings,
    )


def _of_vendor(page: Any, described: Described, vendor: str, shape: tuple[int, int], image: int | None) -> _Found:
    """What the fields of the vendor's own say."""
    if vendor == "leica":
        return _leica(_described(described.leica_images, shape, image))
    if vendor == "ome":
        return _ome(_described(described.ome_images, shape, image))
    if vendor == "philips":
        scan = described.philips
        return _Found() if scan is None else _Found(scan.mpp, None, scan.properties, scan.unread)
    if vendor == "hamamatsu":
        return _hamamatsu(page)
    found = _aperio(described.text) if vendor == "aperio" else _Found()
    return replace(found, is_fluorescent=says_fluorescence(described.text))


def says_fluorescence(text: str) -> bool:
    """Whether a description says in its own words that the image is one of fluorescence."""
    return _FLUORESCENCE.search(text[:_TEXT_LIMIT]) is not None


def _described(images: Sequence[_Image], shape: tuple[int, int], number: int | None) -> _Image | None:
    """The image of a number, else the first of a shape."""
    if number is not None:
        return images[number]
    return next((image for image in images if image.size == shape), None)


def _aperio(description: str) -> _Found:
    pairs = (part.partition("=") for part in description.split("|")[1:])
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    size, power = read_length(facts.get("MPP")), read_number(facts.get("AppMag"))
    unread = tuple(
        f"{key} = {facts[key]!r} (aperio)"
        for key, value in (("MPP", size), ("AppMag", power))
        if facts.get(key) and value is None
    )
    properties = {f"aperio.{key}": value for key, value in facts.items()}
    return _Found(None if size is None else (size, size), power, properties, unread)


def _ome(image: OmeImage | None) -> _Found:
    if image is None:
        return _Found()
    properties = {f"ome.{key}": value for key, value in image.pixels.items()}
    if image.name:
        properties["ome.Name"] = image.name
    return _Found(image.mpp, image.objective_power, properties, image.unread, image.is_fluorescent)


def _leica(image: LeicaImage | None) -> _Found:
    if image is None:
        return _Found()
    properties = dict(image.device)
    if image.illumination:
        properties["leica.illuminationSource"] = image.illumination
    is_fluorescent = "fluor" in image.illumination
    return _Found(image.mpp, image.objective_power, properties, image.unread, is_fluorescent)


def _hamamatsu(page: Any) -> _Found:
    power = read_number(page.tags.valueof(65421))
    scale = _UNITS.get(_unit(page), ("", None))[1]
    resolution = _resolution(page)
    mpp = pair(*(scale / r if scale and r else None for r in resolution))
    filters = page.tags.valueof(65434)
    properties = {"hamamatsu.Fluorescence": str(filters)} if filters else {}
    return _Found(mpp, power if power and power > 0 else None, properties, (), bool(filters))


def _from_tags(page: Any) -> tuple[tuple[float, float] | None, str | None, tuple[str, ...]]:
    """Scale of ImageJ's unit, else of the resolution tags; where it was read; and what could not be used."""
    x, y = _resolution(page)
    if not (x and y):
        return None, None, ()
    stated = f"a resolution of {x:g} x {y:g} px"
    text = str(page.description)
    match = _IMAGEJ_UNIT.search(text) if text.startswith("ImageJ=") else None
    if match is not None and match[1].strip():
        size = micrometres_of(match[1])
        if size is not None:
            return (size / x, size / y), "imagej", ()
        return None, None, (f"{stated} per {match[1].strip()!r} (imagej)",)
    name, scale = _UNITS.get(_unit(page), ("", None))
    if scale is None and x == y == 1:  # what writers put where they know nothing
        return None, None, ()
    if scale is None:
        return None, None, (f"{stated} without a unit (tiff resolution)",)
    mpp = (scale / x, scale / y)
    if max(mpp) < _COARSEST_TAG:
        return mpp, "tiff resolution", ()
    return None, None, (f"{stated} per {name} (tiff resolution; {max(mpp):.4g} um/px is a printer's, no microscope's)",)


def _resolution(page: Any) -> tuple[float | None, float | None]:
    return _ratio(page.tags.valueof(282)), _ratio(page.tags.valueof(283))


def _tag_properties(page: Any) -> dict[str, str]:
    names = {
        270: "ImageDescription",
        271: "Make",
        272: "Model",
        305: "Software",
        306: "DateTime",
        282: "XResolution",
        283: "YResolution",
    }
    properties = {
        "tiff.Compression": _name(page.compression),
        "tiff.PhotometricInterpretation": _name(page.photometric),
    }
    for code, name in names.items():
        value = page.tags.valueof(code)
        if value is not None:
            properties[f"tiff.{name}"] = str(value)[:_TEXT_LIMIT]
    if 296 in page.tags:
        properties["tiff.ResolutionUnit"] = _name(page.tags.valueof(296))
    return properties


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _unit(page: Any) -> int:
    """ResolutionUnit; inch is the standard's default."""
    value = page.tags.valueof(296, default=_INCH)
    return int(value) if isinstance(value, int) else 0


def _ratio(value: Any) -> float | None:
    """A RATIONAL tag as a number above 0, or None."""
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return read_number(value[0] / value[1])
    return read_number(value) if isinstance(value, int | float) else None


def vendor_of(flags: Mapping[str, bool]) -> str:
    """Vendor by tifffile's flags of the file."""
    names = {"is_svs": "aperio", "is_ndpi": "hamamatsu", "is_scn": "leica", "is_philips": "philips", "is_ome": "ome"}
    return next((vendor for flag, vendor in names.items() if flags.get(flag)), "generic")
