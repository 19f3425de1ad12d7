"""Slides as Aperio, Leica and Philips lay them out, of pixels that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

__all__ = ["halved", "philips_xml", "scn_image", "scn_xml", "write_levels", "write_svs"]

Pixels = NDArray[np.uint8]

APERIO = "Aperio Image Library v11.2.1\r\n"
_SCN = "http://www.leica-microsystems.com/scn/2010/10/01"


def halved(image: Pixels, step: int = 2) -> Pixels:
    """Every `step`-th px; the size is rounded down."""
    height, width = (side // step for side in image.shape[:2])
    return np.ascontiguousarray(image[: height * step : step, : width * step : step])


def write_svs(
    path: Path,
    image: Pixels,
    *,
    mpp: str = "0.5000",
    magnification: str = "20",
    levels: Sequence[int] = (2, 4),
    thumbnail: bool = True,
    flag: int = 0,
    pictures: bool = True,
    extra: str = "",
    compression: str | None = "jpeg",
) -> None:
    """A SVS with a label and a macro; `flag` is the NewSubfileType of its smaller levels."""
    height, width = image.shape[:2]
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    tiled = {**options, "tile": (128, 128), "compression": compression}
    with tifffile.TiffWriter(path) as writer:
        facts = f"{APERIO}{width}x{height} (128x128)|AppMag = {magnification}|MPP = {mpp}{extra}"
        writer.write(image, description=facts, **tiled)
        if thumbnail:
            writer.write(halved(image, 8), description=f"{APERIO}small", rowsperstrip=16, **options)
        for step in levels:
            writer.write(halved(image, step), description=f"{APERIO}reduced", subfiletype=flag, **tiled)
        if pictures:
            writer.write(image[:90, :80], description=f"{APERIO}label 80x90", subfiletype=1, **options)
            writer.write(image[:60, :180], description=f"{APERIO}macro 180x60", subfiletype=9, **options)


def write_levels(
    path: Path,
    levels: Sequence[Pixels],
    description: str,
    *,
    bigtiff: bool = False,
    is_philips: bool = False,
    compression: str | None = "jpeg",
    side: int = 128,
) -> None:
    """Pages of tiles, the first with a description; Philips pads them to whole tiles."""
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (side, side), "compression": compression}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for number, level in enumerate(levels):
            software: str | bool = False
            text = description if number == 0 else None
            if is_philips:
                edge = ((0, -level.shape[0] % side), (0, -level.shape[1] % side), (0, 0))
                level = np.pad(level, edge, constant_values=255)
                software, text = ("Philips DP v1.0", text) if number == 0 else (False, f"level={number}")
            writer.write(
                level, description=text, software=software, subfiletype=int(is_philips and number > 0), **options
            )


def scn_image(
    name: str,
    shape: Sequence[int],
    nm: float,
    *,
    first_page: int,
    power: str = "20",
    light: str = "brightfield",
    offset: int = 9_000_000,
    step: int = 4,
) -> str:
    """XML of one region of an SCN with two levels."""
    height, width = shape[:2]
    pages = "".join(
        f'<dimension sizeX="{width // s}" sizeY="{height // s}" r="{r}" ifd="{first_page + r}"/>'
        for r, s in enumerate((1, step))
    )
    return (
        f'<image name="{name}"><device model="SCN400"/><pixels sizeX="{width}" sizeY="{height}">{pages}</pixels>'
        f'<view sizeX="{width * nm:.0f}" sizeY="{height * nm:.0f}" offsetX="5000000" offsetY="{offset}"/>'
        f"<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>"
        f"<illuminationSource>{light}</illuminationSource></illuminationSettings></scanSettings></image>"
    )


def scn_xml(glass: Sequence[int], images: Sequence[str]) -> str:
    """XML of an SCN: the overview of the glass on page 0, then regions."""
    size = 'sizeX="26000000" sizeY="60000000"'
    overview = (
        f'<image name="overview"><pixels sizeX="{glass[1]}" sizeY="{glass[0]}"><dimension sizeX="{glass[1]}" '
        f'sizeY="{glass[0]}" r="0" ifd="0"/></pixels><view {size} offsetX="0" offsetY="0"/><scanSettings>'
        "<objectiveSettings><objective>0.6</objective></objectiveSettings><illuminationSettings><illuminationSource>"
        "brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
    collection = f'<collection name="c" {size}>{overview}{"".join(images)}</collection>'
    return f'<?xml version="1.0"?><scn xmlns="{_SCN}">{collection}</scn>'


def philips_xml(spacing: float, *, levels: int, macro: float | None = None, sign: str = ".") -> str:
    """XML of a Philips TIFF: spacings in millimetres, of so many levels, after those of a macro if there is one."""

    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}">{value}</Attribute>'

    def stated(value: float) -> str:
        text = f"&quot;{value:.8f}&quot; &quot;{value:.8f}&quot;".replace(".", sign)
        return attribute("DICOM_PIXEL_SPACING", text)

    scans = []
    if macro is not None:
        scans.append(attribute("PIM_DP_IMAGE_TYPE", "MACROIMAGE") + stated(macro))
    described = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{stated(spacing * 2**i)}</DataObject>' for i in range(levels)
    )
    sequence = f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{described}</Array></Attribute>'
    scans.append(attribute("PIM_DP_IMAGE_TYPE", "WSI") + stated(spacing) + sequence)
    objects = "".join(f'<DataObject ObjectType="DPScannedImage">{scan}</DataObject>' for scan in scans)
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f'<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>{objects}</Array></Attribute></DataObject>'
    )
