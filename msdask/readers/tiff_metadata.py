"""What a TIFF slide says of itself: pixel size, objective and other facts, by vendor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from msdask.errors import MsdaskError, SlideError
from msdask.readers.base import SlideMetadata

__all__ = ["check_xml", "read_metadata", "vendor_of"]

_MICROMETRES = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "nm": 1e-3,
    "Å": 1e-4,
    "in": 25400.0,
}
_CM, _INCH = 3, 2
_COARSEST_TAG = 20.0
"""um/px; resolution tags above it are printing defaults (72, 96, 300 dpi are 353, 265, 85), not a microscope."""
_TEXT_LIMIT = 20_000

_Found = tuple[tuple[float, float] | None, float | None, dict[str, str]]
"""(mpp x, y), objective power, properties"""


def check_xml(text: str, path: str, *, kind: str = "slide", error: type[MsdaskError] = SlideError) -> None:
    """Refuse XML that declares entities or external documents, before any parser that would expand them.

    Raises
    ------
    error
        The description is such XML.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("<"):
        return
    try:
        fromstring(text, forbid_dtd=True)
    except DefusedXmlException as found:
        raise error(f"{kind} {path!r}: its XML description declares entities ({found}); refused: remove it") from found
    except (ParseError, ValueError):
        pass  # not XML, or cut: that metadata is then absent


def read_metadata(page: Any, description: str, vendor: str, shape: tuple[int, int]) -> SlideMetadata:
    """Facts of a slide from its tags and description.

    Parameters
    ----------
    page : tifffile's page of level 0
    description : of the file's first page, where vendors put their XML
    vendor : "aperio", "ome", "hamamatsu", "leica", "philips" or "generic"
    shape : (height, width) of level 0, px: which of several images in the XML is meant

    Returns
    -------
    metadata : mpp as stored; the plain resolution tags serve where the vendor's own fields are absent
    """
    vendors = {"aperio": _aperio, "ome": _ome, "leica": _leica, "philips": _philips, "hamamatsu": _hamamatsu}
    mpp, power, properties = vendors[vendor](page, description, shape) if vendor in vendors else (None, None, {})
    origin = vendor if mpp else None
    if mpp is None:
        mpp = _from_resolution(page)
        origin = "tiff resolution" if mpp else None
    return SlideMetadata(
        mpp=mpp,
        mpp_source=origin,
        objective_power=power,
        vendor=vendor,
        properties={**_tag_properties(page), **properties},
    )


def _aperio(page: Any, description: str, shape: tuple[int, int]) -> _Found:
    pairs = (field.partition("=") for field in description.split("|")[1:])
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    size = _number(facts.get("MPP"))
    return _square(size), _number(facts.get("AppMag")), {f"aperio.{key}": value for key, value in facts.items()}


def _ome(page: Any, description: str, shape: tuple[int, int]) -> _Found:
    root = _parse(description)
    if root is None:
        return None, None, {}
    pixels = [(image, child) for image in _named(root, "Image") for child in _named(image, "Pixels")]
    size = {"SizeX": str(shape[1]), "SizeY": str(shape[0])}
    matching = [pair for pair in pixels if size.items() <= pair[1].attrib.items()]
    if not matching:
        return None, None, {}
    image, found = matching[0]
    mpp = tuple(_length(found.get(f"PhysicalSize{a}"), found.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY")
    properties = {f"ome.{key}": value for key, value in found.attrib.items()}
    if image.get("Name"):
        properties["ome.Name"] = image.attrib["Name"]
    powers = (_number(objective.get("NominalMagnification")) for objective in _named(root, "Objective"))
    return _pair(mpp[0], mpp[1]), next((power for power in powers if power), None), properties


def _leica(page: Any, description: str, shape: tuple[int, int]) -> _Found:
    root = _parse(description)
    for image in _named(root, "image") if root is not None else ():
        pixels = next(_named(image, "pixels"), None)
        view = next(_named(image, "view"), None)
        if (
            pixels is None
            or view is None
            or (pixels.get("sizeY"), pixels.get("sizeX")) != (str(shape[0]), str(shape[1]))
        ):
            continue
        nanometres = _number(view.get("sizeX")), _number(view.get("sizeY"))
        mpp = _pair(*(n / 1000 / px if n else None for n, px in zip(nanometres, (shape[1], shape[0]), strict=True)))
        objective = next(_named(image, "objective"), None)
        power = _number(objective.text) if objective is not None else None
        device = next(_named(image, "device"), None)
        properties = {f"leica.{key}": value for key, value in device.attrib.items()} if device is not None else {}
        return mpp, power, properties
    return None, None, {}


def _philips(page: Any, description: str, shape: tuple[int, int]) -> _Found:
    root = _parse(description)
    if root is None:
        return None, None, {}
    spacings = [e.text or "" for e in _named(root, "Attribute") if e.get("Name") == "DICOM_PIXEL_SPACING"]
    values = [_number(value) for value in spacings[0].replace('"', " ").split()] if spacings else []
    # DICOM order: between rows (y) first; in millimetres by the standard
    y, x = (value * 1000 if value else None for value in values) if len(values) == 2 else (None, None)
    simple = ("DICOM_MANUFACTURER", "DICOM_SOFTWARE_VERSIONS", "DICOM_ACQUISITION_DATETIME")
    properties = {
        f"philips.{e.get('Name')}": (e.text or "").strip() for e in _named(root, "Attribute") if e.get("Name") in simple
    }
    return _pair(x, y), None, properties


def _hamamatsu(page: Any, description: str, shape: tuple[int, int]) -> _Found:
    power = _number(page.tags.valueof(65421))
    scale = {_CM: 1e4, _INCH: 25400.0}.get(_unit(page))
    resolution = _ratio(page.tags.valueof(282)), _ratio(page.tags.valueof(283))
    mpp = _pair(*(scale / r if scale and r else None for r in resolution))
    return mpp, power if power and power > 0 else None, {}


def _from_resolution(page: Any) -> tuple[float, float] | None:
    scale = {_CM: 1e4, _INCH: 25400.0}.get(_unit(page))
    x, y = _ratio(page.tags.valueof(282)), _ratio(page.tags.valueof(283))
    if not (scale and x and y):
        return None
    mpp = (scale / x, scale / y)
    return mpp if max(mpp) < _COARSEST_TAG else None


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
        return _number(value[0] / value[1])
    return _number(value) if isinstance(value, int | float) else None


def _number(value: Any) -> float | None:
    """A finite number, or None where there is none to be read."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _length(value: str | None, unit: str) -> float | None:
    """A length with its unit in um."""
    number, scale = _number(value), _MICROMETRES.get(unit.strip())
    return number * scale if number is not None and scale is not None else None


def _square(size: float | None) -> tuple[float, float] | None:
    return None if size is None else (size, size)


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    """Both sizes, or the one that is there twice."""
    if x is None and y is None:
        return None
    return (x if x is not None else y, y if y is not None else x)  # type: ignore[return-value]


def _parse(text: str) -> Element | None:
    try:
        root: Element = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return None
    return root


def _named(root: Element, name: str) -> Iterator[Element]:
    """Every element of a name below `root`, whatever its namespace."""
    return (
        element for element in root.iter() if isinstance(element.tag, str) and element.tag.rpartition("}")[2] == name
    )


def vendor_of(flags: Mapping[str, bool]) -> str:
    """Vendor by tifffile's flags of the file."""
    names = {"is_svs": "aperio", "is_ndpi": "hamamatsu", "is_scn": "leica", "is_philips": "philips", "is_ome": "ome"}
    return next((vendor for flag, vendor in names.items() if flags.get(flag)), "generic")
