"""What the XML in a TIFF file says of its images: Leica's SCN, OME and Philips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from msdask.readers.quantities import read_length, read_number

__all__ = ["Described", "Dimension", "LeicaImage", "OmeImage", "PhilipsScan", "local_name", "pair"]

Scale = tuple[float, float]
"""um/px (x, y)"""

_FLUORESCENT_CONTRAST = "fluorescence"
_FLUORESCENT_LIGHT = "epifluorescence"
_FLUORESCENT_FACTS = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
_SPACING = "DICOM_PIXEL_SPACING"
_PHILIPS_FACTS = ("DICOM_MANUFACTURER", "DICOM_SOFTWARE_VERSIONS", "DICOM_ACQUISITION_DATETIME")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One page of an image of an SCN: its level, and its place in the file."""

    resolution: int
    page: int


@dataclass(frozen=True, slots=True)
class LeicaImage:
    """An image of an SCN: a region that was scanned, or the overview of the glass.

    Attributes
    ----------
    size : (height, width) of its finest level, px, or None
    is_whole_glass : whether it covers the whole collection
    illumination : its source, lower case: "brightfield", "fluorescence"
    """

    name: str
    size: tuple[int, int] | None
    dimensions: tuple[Dimension, ...]
    mpp: Scale | None
    objective_power: float | None
    is_whole_glass: bool
    illumination: str
    device: Mapping[str, str]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OmeImage:
    """An Image of OME-XML with its Pixels; `unread` is what it says of its scale that could not be read."""

    name: str
    size: tuple[int, int]
    mpp: Scale | None
    objective_power: float | None
    is_fluorescent: bool
    pixels: Mapping[str, str]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PhilipsScan:
    """The scanned image of the tissue in a Philips TIFF.

    Attributes
    ----------
    mpp : of its finest level
    spacings : of each level that is described, um/px (x, y), the finest first
    """

    mpp: Scale | None
    spacings: tuple[Scale, ...]
    properties: Mapping[str, str]
    unread: tuple[str, ...] = ()


class Described:
    """The description of a TIFF's first page; parsed when it is first asked for, and once.

    Attributes
    ----------
    is_xml : whether it begins as XML does
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_xml = text.lstrip("\ufeff \t\r\n").startswith("<")

    @cached_property
    def root(self) -> Element | None:
        """Its XML; None where it is none, or cut: that metadata is then absent.

        Raises
        ------
        DefusedXmlException
            It declares entities or external documents.
        """
        if not self.is_xml:
            return None
        try:
            root: Element = fromstring(self.text, forbid_dtd=True)
        except DefusedXmlException:
            raise
        except (ParseError, ValueError):
            return None
        return root

    @cached_property
    def leica_images(self) -> tuple[LeicaImage, ...]:
        """The images of all collections, in order."""
        root = self.root
        if root is None:
            return ()
        collections = list(_named(root, "collection")) or [root]
        return tuple(_leica_image(image, owner) for owner in collections for image in _named(owner, "image"))

    @cached_property
    def ome_images(self) -> tuple[OmeImage, ...]:
        """The images that have pixels, in order."""
        root = self.root
        if root is None:
            return ()
        objectives = {e.get("ID"): read_number(e.get("NominalMagnification")) for e in _named(root, "Objective")}
        any_power = next((power for power in objectives.values() if power), None)
        return tuple(
            _ome_image(image, pixels, objectives, any_power)
            for image in _named(root, "Image")
            for pixels in _named(image, "Pixels")
        )

    @cached_property
    def philips(self) -> PhilipsScan | None:
        """The scanned image of type WSI; without types the one of the finest spacing."""
        if self.root is None:
            return None
        scans = [
            element for element in _named(self.root, "DataObject") if element.get("ObjectType") == "DPScannedImage"
        ]
        typed = [scan for scan in scans if _attribute(scan, "PIM_DP_IMAGE_TYPE") == "WSI"]
        found = [_philips_scan(scan) for scan in typed or scans or [self.root]]
        # where no type is stated, label and macro are coarser
        best = min(found, key=lambda scan: scan.mpp[0] if scan.mpp else float("inf"))
        facts = {f"philips.{e.get('Name')}": (e.text or "").strip() for e in self._facts()}
        return PhilipsScan(best.mpp, best.spacings, facts, best.unread)

    def _facts(self) -> Iterator[Element]:
        assert self.root is not None  # asked by `philips` alone
        return (e for e in _named(self.root, "Attribute") if e.get("Name") in _PHILIPS_FACTS)


def _leica_image(image: Element, collection: Element) -> LeicaImage:
    pixels, view = next(_named(image, "pixels"), None), next(_named(image, "view"), None)
    objective, device = next(_named(image, "objective"), None), next(_named(image, "device"), None)
    light = next(_named(image, "illuminationSource"), None)
    size = _size(pixels, "sizeY", "sizeX")
    mpp: Scale | None = None
    unread: tuple[str, ...] = ()
    if view is not None and size is not None:
        nanometres = read_length(view.get("sizeX"), "nm"), read_length(view.get("sizeY"), "nm")
        mpp = pair(*(n / px if n else None for n, px in zip(nanometres, size[::-1], strict=True)))
        if mpp is None:
            unread = (f"view of {view.get('sizeX')!r} x {view.get('sizeY')!r} nm (leica)",)
    dimensions = (Dimension(_integer(e.get("r")) or 0, _integer(e.get("ifd")) or 0) for e in _named(image, "dimension"))
    return LeicaImage(
        name=image.get("name", ""),
        size=size,
        dimensions=tuple(dimensions),
        mpp=mpp,
        objective_power=read_number(objective.text) if objective is not None else None,
        is_whole_glass=view is not None and _covers(view, collection),
        illumination=(light.text or "").strip().lower() if light is not None else "",
        device={f"leica.{key}": value for key, value in device.attrib.items()} if device is not None else {},
        unread=unread,
    )


def _covers(view: Element, collection: Element) -> bool:
    """Whether a view is that of the whole collection."""
    sides = all(view.get(name) == collection.get(name) is not None for name in ("sizeX", "sizeY"))
    return sides and all(read_number(view.get(name, "0")) == 0 for name in ("offsetX", "offsetY"))


def _ome_image(
    image: Element, pixels: Element, objectives: Mapping[str | None, float | None], any_power: float | None
) -> OmeImage:
    sizes, unread = [], []
    for axis in "XY":
        stated, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        sizes.append(read_length(stated, unit) if stated is not None else None)
        if stated is not None and sizes[-1] is None:
            unread.append(f"PhysicalSize{axis} of {stated!r} {unit!r} (ome)")
    own = next((objectives.get(e.get("ID")) for e in _named(image, "ObjectiveSettings")), None)
    return OmeImage(
        name=image.get("Name", ""),
        size=_size(pixels, "SizeY", "SizeX") or (0, 0),
        mpp=pair(sizes[0], sizes[1]),
        objective_power=own or any_power,
        is_fluorescent=any(_is_fluorescent(channel) for channel in _named(pixels, "Channel")),
        pixels=dict(pixels.attrib),
        unread=tuple(unread),
    )


def _is_fluorescent(channel: Element) -> bool:
    facts = {key: value.strip().lower() for key, value in channel.attrib.items()}
    return (
        facts.get("ContrastMethod") == _FLUORESCENT_CONTRAST
        or facts.get("IlluminationType") == _FLUORESCENT_LIGHT
        or any(facts.get(name) for name in _FLUORESCENT_FACTS)
    )


def _philips_scan(scan: Element) -> PhilipsScan:
    levels = [e for e in _named(scan, "DataObject") if e.get("ObjectType") == "PixelDataRepresentation"]
    texts = [text for level in levels if (text := _attribute(level, _SPACING))]
    spacings = [spacing for text in texts if (spacing := _spacing(text)) is not None]
    spacings.sort()
    own = _attribute(scan, _SPACING) or next((_text(e) for e in _named(scan, "Attribute") if _is_spacing(e)), "")
    mpp = _spacing(own) or (spacings[0] if spacings else None)
    unread = (f"{_SPACING} of {own!r} (philips)",) if own and mpp is None else ()
    return PhilipsScan(mpp, tuple(spacings), {}, unread)


def _spacing(text: str) -> Scale | None:
    """um/px (x, y) of a DICOM pixel spacing: between rows (y) first, in millimetres by the standard."""
    values = [read_length(part, "mm") for part in text.replace('"', " ").replace("\\", " ").split()]
    y, x = values if len(values) == 2 else (None, None)
    return pair(x, y)


def _attribute(element: Element, name: str) -> str:
    """Text of an element's own Attribute of a name, not of one further below; "" where there is none."""
    own = (e for e in element if local_name(e) == "Attribute")
    return next((_text(e) for e in own if e.get("Name") == name), "")


def _is_spacing(element: Element) -> bool:
    return element.get("Name") == _SPACING


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _size(element: Element | None, height: str, width: str) -> tuple[int, int] | None:
    sides = (None, None) if element is None else (_integer(element.get(height)), _integer(element.get(width)))
    return (sides[0], sides[1]) if sides[0] and sides[1] else None


def _integer(text: str | None) -> int | None:
    digits = (text or "").strip()
    return int(digits) if len(digits) < 19 and digits.isascii() and digits.isdigit() else None


def pair(x: float | None, y: float | None) -> Scale | None:
    """Both sizes, or the one that is there twice."""
    if x is None and y is None:
        return None
    return (x if x is not None else y, y if y is not None else x)  # type: ignore[return-value]


def _named(root: Element, name: str) -> Iterator[Element]:
    """Every element of a name below `root`, whatever its namespace."""
    return (element for element in root.iter() if local_name(element) == name)


def local_name(element: Element) -> str:
    """Name of an element without its namespace; "" for comments and instructions."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
