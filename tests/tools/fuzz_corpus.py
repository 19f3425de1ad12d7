"""The good files that fuzzing damages: small ones of every kind that msdask reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from msdask.cutting.lazy_patches import patches
from msdask.sample.slides import make_slide
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.store.patch_store import PatchStore

from .reader_files import smooth_image, write_jpeg_tiff, write_ndpi

__all__ = ["SUBJECTS", "make_corpus"]

_SCN = (
    '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="96000" '
    'sizeY="96000"><image><pixels sizeX="80" sizeY="96"><dimension sizeX="80" sizeY="96" r="0" ifd="0"/></pixels>'
    '<view sizeX="40000" sizeY="48000" offsetX="0" offsetY="0"/><scanSettings><objectiveSettings><objective>20'
    '</objective></objectiveSettings></scanSettings><device model="Leica SCN400" version="1"/></image></collection>'
    "</scn>"
)
_PHILIPS = (
    '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_MANUFACTURER" Group="0x0008">'
    'PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="DICOM_PIXEL_SPACING">"0.00025" "0.00025"</Attribute></DataObject></Array></Attribute>'
    "</DataObject>"
)


def _flat(path: Path, **options: Any) -> None:
    options = {"photometric": "rgb", **options}
    tifffile.imwrite(path, smooth_image(96, 80), resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)


def _pyramid(path: Path, **options: Any) -> None:
    image = smooth_image(256, 256)
    with tifffile.TiffWriter(path, **options) as writer:
        writer.write(image, tile=(64, 64), photometric="ycbcr", compression="jpeg", subifds=1)
        writer.write(image[::2, ::2], tile=(64, 64), photometric="rgb", compression="lzw", subfiletype=1)


def _svs(path: Path, **options: Any) -> None:
    make_slide(path, size=(520, 600), levels=(1, 4), tile=128, seed=5, threads=1, **options)


def _palette_tiff(path: Path) -> None:
    colors = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    tifffile.imwrite(path, smooth_image(96, 80)[:, :, 0], photometric="palette", colormap=colors, tile=(32, 32))


def _image(path: Path, mode: str, kind: str, **options: Any) -> None:
    Image.fromarray(smooth_image(96, 80)).convert(mode).save(path, kind, **options)


def _png16(path: Path) -> None:
    path.write_bytes(imagecodecs.png_encode(smooth_image(96, 80).astype(np.uint16) * 257))


def _labels() -> np.ndarray:
    return np.kron(np.array([[0, 50], [100, 50]], np.uint8), np.ones((24, 20), np.uint8))


def _mask_png(path: Path, mode: str) -> None:
    image = Image.fromarray(_labels())
    if mode == "P":
        image = Image.fromarray(_labels() // 50, mode="L").convert("P")
    elif mode == "1":
        image = Image.fromarray((_labels() > 0).astype(np.uint8) * 255).convert("1")
    image.save(path, "PNG")


def _csv(path: Path) -> None:
    rows = ["path,slide_id,mask,mpp,magnification,split"]
    rows += [f"slides/s{i}.svs,slide {i},masks/{i}.png,0.25{i},,train" for i in range(4)]
    path.write_text("\n".join([*rows, '"slides/a,b.svs","with ""quotes""",,,20,test']) + "\n", encoding="utf-8")


def _csv_seed(path: Path) -> None:
    path.write_text("".join(f"/data/colon/slide {i}.svs\r\n" for i in range(5)), encoding="utf-8")


def _store(path: Path, codec: Any) -> None:
    """A store of one slide, 3 shards of up to 12 patches of 32 px, with its index."""
    slide_path = path.with_name("slide.svs")
    _svs(slide_path)
    slide = open_slide(slide_path)
    lazy = patches(slide, grid(slide, magnification=20, patch_size=32))
    lazy = lazy.isel(patch=slice(30)).chunk({"patch": 12})
    lazy.attrs["cohort"] = {"split": "train"}
    store = PatchStore(path, codec=codec)
    store.write(lazy)
    store[next(iter(store))].index()


SUBJECTS: dict[str, Callable[[Path], object]] = {
    "slide-svs.tiff": _svs,
    "slide-svs-deflate.tiff": lambda path: _svs(path, compression="deflate", associated=False),
    "slide-svs-jpeg2000.tiff": lambda path: _svs(path, compression="jpeg2000"),
    "slide-pyramid.tiff": _pyramid,
    "slide-bigtiff.tiff": lambda path: _pyramid(path, bigtiff=True),
    "slide-rgb-tables.tiff": lambda path: write_jpeg_tiff(
        path, smooth_image(160, 192), photometric=2, subsampling="4:4:4", with_jfif=False, side=64
    ),
    "slide-ndpi.tiff": lambda path: write_ndpi(path, smooth_image(96, 128), blocks=4),
    "slide-scn.tiff": lambda path: _flat(path, tile=(32, 32), description=_SCN, metadata=None),
    "slide-philips.tiff": lambda path: _flat(
        path, tile=(32, 32), description=_PHILIPS, software="Philips DP v1.0", metadata=None
    ),
    "slide-ome.tiff": lambda path: _flat(
        path, ome=True, tile=(32, 32), metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    ),
    "slide-strips.tiff": lambda path: _flat(path, compression="lzw", rowsperstrip=8, predictor=True),
    "slide-planar.tiff": lambda path: tifffile.imwrite(
        path, np.moveaxis(smooth_image(96, 80), 2, 0), photometric="rgb", planarconfig="separate", compression="zlib"
    ),
    "slide-palette.tiff": _palette_tiff,
    "slide-gray16.tiff": lambda path: tifffile.imwrite(
        path, smooth_image(96, 80)[:, :, 0].astype(np.uint16) * 257, photometric="minisblack", compression="zstd"
    ),
    "slide-rgb.png": lambda path: _image(path, "RGB", "PNG"),
    "slide-palette.png": lambda path: _image(path, "P", "PNG"),
    "slide-alpha.png": lambda path: _image(path, "RGBA", "PNG"),
    "slide-16bit.png": _png16,
    "slide-plain.jpeg": lambda path: _image(path, "RGB", "JPEG", quality=90),
    "slide-progressive.jpeg": lambda path: _image(path, "L", "JPEG", progressive=True),
    "slide-plain.bmp": lambda path: _image(path, "RGB", "BMP"),
    "slide-plain.webp": lambda path: _image(path, "RGB", "WEBP", lossless=True),
    "mask-gray.png": lambda path: _mask_png(path, "L"),
    "mask-palette.png": lambda path: _mask_png(path, "P"),
    "mask-onebit.png": lambda path: _mask_png(path, "1"),
    "mask-lzw.tiff": lambda path: tifffile.imwrite(path, _labels(), compression="lzw", rowsperstrip=7),
    "mask-16bit.tiff": lambda path: tifffile.imwrite(path, _labels().astype(np.uint16), compression="zlib"),
    "table-columns.csv": _csv,
    "table-seed.csv": _csv_seed,
    "store-raw": lambda path: _store(path, "raw"),
    "store-lossless": lambda path: _store(path, "lossless"),
    "store-jpeg": lambda path: _store(path, "jpeg"),
}
"""Name -> what writes it. The part before "-" says how it is judged, the ending how it is damaged."""


def make_corpus(folder: Path, *, only: Iterable[str] = SUBJECTS) -> Path:
    """Write every good file, or some; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in only:
        SUBJECTS[name](folder / name)
    return folder
