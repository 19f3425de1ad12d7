"""One small slide of every kind that msdask reads: what is written, and what OpenSlide makes of it.

Tests read each of them with both; ``docs/readers_table.py`` makes the table of docs/readers.md of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.tools.jpeg2000_files import encode_components, to_ycbcr
from tests.tools.openslide_files import write_bif, write_mrxs, write_trestle, write_vms, write_vmu
from tests.tools.reader_files import empty_tiles, smooth_image, write_jpeg_tiff, write_ndpi
from tests.tools.vendor_files import halved, philips_xml, scn_image, scn_xml, write_levels, write_svs

__all__ = ["KINDS", "Kind"]

Pixels = NDArray[np.uint8]

Agreement = Literal["all", "level 0", "regions", "none"]

SUBIFDS = "OpenSlide takes it for a generic TIFF and reads no SubIFDs: it has level 0 alone, without the scale of OME"
ENLARGED = "OpenSlide makes levels of its own, of what the JPEG decoder can reduce"
CANVAS = "OpenSlide places the regions on a canvas of the size of the glass; msdask opens one of them"
STRIPS = "OpenSlide opens no TIFF in strips"
CODEC = "OpenSlide does not have this compression"
BIG_ENDIAN = "OpenSlide 4 does not open it"
FILLED = "OpenSlide reduces the finer level by bilinear interpolation, msdask by area means"
PLAIN = "OpenSlide opens no plain pictures"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of slide.

    Attributes
    ----------
    name : the file's, with its ending
    format : in words, for the table
    write : makes the file, gives the pixels of level 0 that were written, or None where the codec loses some
    agrees : what OpenSlide must give to the pixel: sizes, scale and all levels, level 0 alone, the regions that it
        states, or nothing, since it does not open the file
    reason : for anything but "all"
    tolerance : what a value may differ from OpenSlide's; half for the rounding of alpha
    """

    name: str
    format: str
    write: Callable[[Path], Pixels | None]
    agrees: Agreement = "all"
    reason: str = ""
    tolerance: float = 0.5


def image() -> Pixels:
    """The scene of level 0: sides that are no multiples of a tile."""
    return smooth_image(600, 840)


def _svs(path: Path, **options: Any) -> Pixels | None:
    pixels = image()
    write_svs(path, pixels, **options)
    return pixels if options.get("compression", "jpeg") in (None, "lzw", "deflate") else None


def _generic(
    path: Path, *, subifds: bool = False, byteorder: Literal["<", ">"] = "<", bigtiff: bool = False, **options: Any
) -> Pixels | None:
    pixels = image()
    options = {"photometric": "rgb", "tile": (128, 128), "resolution": (20000, 20000), "resolutionunit": 3} | options
    smaller = [halved(pixels), halved(pixels, 4)]
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, subifds=2 if subifds else None, metadata=None, **options)
        for level in smaller:
            writer.write(level, subfiletype=1, metadata=None, **options)
    return pixels if options.get("compression") not in ("jpeg", "webp", "jpeg2000") else None


def _full_chroma(path: Path) -> Pixels:
    """A SVS whose tiles hold YCbCr in components of one size, without a transform of JPEG 2000's own."""
    planes = to_ycbcr(_small())
    tiles = [planes[y : y + 128, x : x + 128] for y in range(0, 256, 128) for x in range(0, 384, 128)]
    tifffile.imwrite(
        path,
        (encode_components([tile[:, :, i].copy() for i in range(3)], (128, 128)) for tile in tiles),
        shape=planes.shape,
        dtype=np.uint8,
        tile=(128, 128),
        photometric="ycbcr",
        compression="aperio_jp2000_ycbc",
        description="Aperio Image Library v11.2.1\r\n384x256 (128x128)|AppMag = 20|MPP = 0.5",
        metadata=None,
        software=False,
    )
    luma, blue, red = np.moveaxis(planes.astype(float), -1, 0)
    blue, red = blue - 128, red - 128
    rgb = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
    return np.clip(np.rint(np.dstack(rgb)), 0, 255).astype(np.uint8)


def _with_empty_tiles(path: Path) -> Pixels:
    pixels = image()
    write_svs(path, pixels, compression="lzw")
    empty_tiles(path, 2, 1, 5)
    return pixels


def _turned(path: Path) -> Pixels:
    pixels = image()
    tags = [(274, 3, 1, 6, True)]
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, extratags=tags, metadata=None)
    return np.ascontiguousarray(np.rot90(pixels, -1))


def _ome(path: Path, *, images: int = 1) -> Pixels:
    pixels = image()
    options: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate"}
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number in range(images):
            part = pixels if number == 0 else np.ascontiguousarray(pixels[:400, :400])
            metadata = {"axes": "YXS", "Name": f"region {number + 1}", **size}
            writer.write(part, subifds=1, metadata=metadata, **options)
            writer.write(halved(part), subfiletype=1, **options)
    return pixels


def _scn(path: Path, *, regions: int = 1) -> Pixels:
    pixels = image()
    glass = np.full((300, 128, 3), 235, np.uint8)
    parts = [pixels, np.ascontiguousarray(pixels[:400, :400])][:regions]
    described = [
        scn_image(f"region {i + 1}", p.shape, 500, first_page=1 + 2 * i, offset=(1 + 3 * i) * 9_000_000)
        for i, p in enumerate(parts)
    ]
    levels = [glass, *(level for part in parts for level in (part, halved(part, 4)))]
    write_levels(path, levels, scn_xml(glass.shape, described), bigtiff=True, compression=None)
    return pixels


def _philips(path: Path) -> None:
    pixels = image()
    write_levels(path, [pixels, halved(pixels), halved(pixels, 4)], philips_xml(0.00025, levels=3), is_philips=True)


def _flat(path: Path, pixels: NDArray[Any], **options: Any) -> Pixels:
    tifffile.imwrite(path, pixels, metadata=None, **options)
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels.astype(np.uint8)


def _gray(path: Path, **options: Any) -> Pixels:
    return _flat(path, image()[:, :, 0].copy(), photometric="minisblack", **options)


def _imagej(path: Path) -> Pixels:
    pixels = image()
    tifffile.imwrite(path, pixels, imagej=True, resolution=(2.0, 2.0), metadata={"unit": "micron", "axes": "YXS"})
    return pixels


def _shared_tables(path: Path) -> None:
    write_jpeg_tiff(path, _small(), photometric=6, subsampling="4:2:0", with_jfif=False)


def _ndpi(path: Path) -> Pixels:
    return write_ndpi(path, smooth_image(128, 512), blocks=8)


def _plain(path: Path, **options: Any) -> Pixels | None:
    pixels = image()
    Image.fromarray(pixels).save(path, **options)
    return pixels if path.suffix in (".png", ".bmp") else None


def _wide() -> NDArray[np.uint16]:
    return image().astype(np.uint16) * 257


def _vms(path: Path) -> Pixels:
    return write_vms(path, _small())


def _small() -> Pixels:
    return smooth_image(256, 384)


def _wrapped(write: Callable[..., object], as_list: bool = True) -> Callable[[Path], Pixels]:
    def written(path: Path) -> Pixels:
        pixels = _small()
        half = np.ascontiguousarray(pixels[::2, ::2])
        write(path, [pixels, half] if as_list else (pixels, half))
        return pixels

    return written


KINDS: tuple[Kind, ...] = (
    Kind("jpeg.svs", "SVS", _svs),
    Kind("no thumbnail.svs", "SVS without a thumbnail", partial(_svs, thumbnail=False)),
    Kind("flagged.svs", "SVS, smaller levels flagged as reduced", partial(_svs, flag=1)),
    Kind("comma.svs", "SVS, MPP with a decimal comma", partial(_svs, mpp="0,5000")),
    Kind("lzw.svs", "SVS", partial(_svs, compression="lzw")),
    Kind("33005.svs", "SVS", partial(_svs, compression="aperio_jp2000_rgb")),
    Kind("33003.svs", "SVS, YCbCr of full chroma", _full_chroma, tolerance=1),
    Kind("empty.svs", "SVS, tiles of a smaller level empty", _with_empty_tiles, "level 0", FILLED),
    Kind("one.ndpi", "NDPI", _ndpi, "level 0", ENLARGED),
    Kind("one.scn", "SCN", _scn, "regions", CANVAS),
    Kind("two.scn", "SCN of two regions", partial(_scn, regions=2), "regions", CANVAS),
    Kind("one.ome.tif", "OME-TIFF", _ome, "level 0", SUBIFDS),
    Kind("two.ome.tif", "OME-TIFF of two images", partial(_ome, images=2), "level 0", SUBIFDS),
    Kind("philips.tiff", "Philips TIFF", _philips),
    Kind("plain.tif", "TIFF", partial(_generic, compression=None)),
    Kind("lzw.tif", "TIFF", partial(_generic, compression="lzw")),
    Kind("deflate.tif", "TIFF, with a predictor", partial(_generic, compression="deflate", predictor=True)),
    Kind("zstd.tif", "TIFF", partial(_generic, compression="zstd")),
    Kind("jpeg.tif", "TIFF", partial(_generic, compression="jpeg")),
    Kind("tables.tif", "TIFF, tables of JPEG shared", _shared_tables),
    Kind("webp.tif", "TIFF", partial(_generic, compression="webp"), "none", CODEC),
    Kind("jpeg2000.tif", "TIFF", partial(_generic, compression="jpeg2000"), "none", CODEC),
    Kind("big.tif", "BigTIFF", partial(_generic, compression="lzw", bigtiff=True)),
    Kind("endian.tif", "TIFF, big-endian", partial(_generic, compression="lzw", byteorder=">"), "none", BIG_ENDIAN),
    Kind("subifds.tif", "TIFF, levels as SubIFDs", partial(_generic, subifds=True), "level 0", SUBIFDS),
    Kind("strips.tif", "TIFF", partial(_flat, pixels=image(), photometric="rgb", rowsperstrip=16), "none", STRIPS),
    Kind("imagej.tif", "ImageJ TIFF", _imagej, "none", STRIPS),
    Kind("gray.tif", "TIFF, gray", partial(_gray, tile=(128, 128))),
    Kind("sixteen.tif", "TIFF of 16 bits", partial(_flat, pixels=_wide(), photometric="rgb", tile=(128, 128))),
    Kind("turned.tif", "TIFF, orientation 6", _turned, "none", STRIPS),
    Kind(
        "bits.tif",
        "TIFF of 1 bit",
        partial(_flat, pixels=image()[:, :, 0] > 150, photometric=1, rowsperstrip=16),
        "none",
        STRIPS,
    ),
    Kind("picture.png", "PNG", _plain, "none", PLAIN),
    Kind("picture.bmp", "BMP", _plain, "none", PLAIN),
    Kind("picture.jpg", "JPEG", partial(_plain, quality=90), "none", PLAIN),
    Kind("picture.webp", "WebP", partial(_plain, quality=90), "none", PLAIN),
    Kind("a.mrxs", "MRXS", _wrapped(write_mrxs)),
    Kind("a.vmu", "VMU", _wrapped(write_vmu, as_list=False)),
    Kind("a.vms", "VMS", _vms),
    Kind("a.bif", "BIF", _wrapped(write_bif)),
    Kind("trestle.tif", "Trestle TIFF", _wrapped(write_trestle)),
)
