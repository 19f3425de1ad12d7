"""Who can decode a tile and encode a patch: libraries as they are installed, and which of them msdask uses for what."""

from __future__ import annotations

import importlib.metadata
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numcodecs.lz4 import LZ4
from numcodecs.zlib import Zlib
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from PIL import Image

from msdask.spec import Codec
from msdask.store.codecs import JPEG_QUALITY, decoder, encoder

__all__ = ["Way", "decoders", "encoders", "versions"]

Pixels = NDArray[np.uint8]
ADOBE_DEFLATE, LZW, ZSTD, J2K = 8, 5, 50000, 33005
"""TIFF's numbers of compressions."""


@dataclass(frozen=True)
class Way:
    """One library's way to decode (or encode) one format.

    Attributes
    ----------
    kind : of data: "JPEG 4:2:0", ...
    name : library and function
    make : gives the work on one tile, from its pixels: it is called again and again, and returns what it makes
    is_ours : this is what msdask uses
    is_exact : it must give the pixels that went in
    """

    kind: str
    name: str
    make: Callable[[Pixels], Callable[[], Any]]
    is_ours: bool = False
    is_exact: bool = False


def versions() -> dict[str, str]:
    """Of the libraries, and of what they have in them."""
    inside = [v for v in imagecodecs.version().split(", ") if v.startswith(("libjpeg", "openjpeg", "libdeflate"))]
    inside += [v for v in imagecodecs.version().split(", ") if v.startswith(("zstd", "lz4-", "zlib"))]
    jpeg = [line.strip() for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("JPEG")]
    packages = ("simplejpeg", "opencv-python-headless", "pillow", "numcodecs", "tensorstore", "tifffile", "imagecodecs")
    found = {name: importlib.metadata.version(name) for name in packages if find_spec(_module(name))}
    found["imagecodecs"] += f" ({', '.join(inside)})"
    found["opencv-python-headless"] += f" ({', '.join(' '.join(line.split()) for line in jpeg)})"
    return found


def _module(package: str) -> str:
    return {"opencv-python-headless": "cv2", "pillow": "PIL"}.get(package, package)


def decoders() -> Iterator[Way]:
    """Everyone, format by format."""
    for name, sampling in (("JPEG 4:2:0", "420"), ("JPEG 4:4:4", "444")):
        yield from _jpeg(name, sampling)
    for name, options in (("JPEG 2000", {"level": 42}), ("JPEG 2000 lossless", {"reversible": True})):
        yield from _jpeg2000(name, options)
    yield from _deflate()
    yield from _lzw()
    yield from _zstd()
    yield from _lz4()


def _from(encode: Callable[[Pixels], bytes], decode: Callable[[bytes, Pixels], Any]) -> Any:
    """The work of decoding what a tile is encoded to."""

    def make(tile: Pixels) -> Callable[[], Any]:
        data = bytes(encode(tile))
        return lambda: decode(data, tile)

    return make


def _jpeg(kind: str, sampling: str) -> Iterator[Way]:
    def encode(tile: Pixels) -> bytes:
        return simplejpeg.encode_jpeg(tile, 85, "RGB", sampling)

    def into(data: bytes, tile: Pixels) -> Pixels:
        return simplejpeg.decode_jpeg(data, "RGB", buffer=np.empty(tile.shape, np.uint8), strict=True)

    def opencv(data: bytes, tile: Pixels) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    ours = {"is_ours": True}
    yield Way(kind, "simplejpeg", _from(encode, into), **ours)
    yield Way(kind, "imagecodecs jpeg8", _from(encode, lambda data, tile: imagecodecs.jpeg8_decode(data)))
    yield Way(kind, "OpenCV imdecode", _from(encode, opencv))
    yield Way(kind, "Pillow", _from(encode, lambda data, tile: np.asarray(Image.open(io.BytesIO(data)))))
    if find_spec("tensorstore"):
        yield Way(kind, "TensorStore jpeg", _from(encode, lambda data, tile: _tensorstore_image("jpeg", data)))


def _jpeg2000(kind: str, options: dict[str, Any]) -> Iterator[Way]:
    exact = bool(options.get("reversible"))

    def encode(tile: Pixels) -> bytes:
        return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=True, **options)

    def opencv(data: bytes, tile: Pixels) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def pillow(data: bytes, tile: Pixels) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)))

    tiff = tifffile.TIFF.DECOMPRESSORS[J2K]
    yield Way(kind, "imagecodecs jpeg2k", _from(encode, lambda data, tile: tiff(data)), is_ours=True, is_exact=exact)
    yield Way(kind, "OpenCV imdecode", _from(encode, opencv), is_exact=exact)
    yield Way(kind, "Pillow", _from(encode, pillow), is_exact=exact)
    if find_spec("glymur"):
        import glymur

        yield Way(kind, "glymur", _from(encode, lambda data, tile: glymur.Jp2k(io.BytesIO(data))[:]), is_exact=exact)


def _deflate() -> Iterator[Way]:
    kind, encode = "deflate", lambda tile: zlib.compress(tile.tobytes(), 6)
    tiff = tifffile.TIFF.DECOMPRESSORS[ADOBE_DEFLATE]
    yield Way(kind, "imagecodecs deflate", _from(encode, _sized(tiff)), is_ours=True, is_exact=True)
    for name in ("zlibng", "zlib"):
        decode = getattr(imagecodecs, f"{name}_decode")
        yield Way(kind, f"imagecodecs {name}", _from(encode, _sized(decode)), is_exact=True)
    yield Way(kind, "numcodecs zlib", _from(encode, _flat(Zlib().decode)), is_exact=True)
    yield Way(kind, "Python zlib", _from(encode, _flat(zlib.decompress)), is_exact=True)


def _lzw() -> Iterator[Way]:
    def encode(tile: Pixels) -> bytes:
        return imagecodecs.lzw_encode(tile.tobytes())

    def tiff_file(tile: Pixels) -> bytes:
        out = io.BytesIO()
        tifffile.imwrite(out, tile, compression="lzw", predictor=False, photometric="rgb", rowsperstrip=len(tile))
        return out.getvalue()

    def opencv(data: bytes, tile: Pixels) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def pillow(data: bytes, tile: Pixels) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)))

    tiff = tifffile.TIFF.DECOMPRESSORS[LZW]
    yield Way("LZW", "imagecodecs lzw", _from(encode, _sized(tiff)), is_ours=True, is_exact=True)
    yield Way("LZW", "OpenCV imdecode (TIFF)", _from(tiff_file, opencv), is_exact=True)
    yield Way("LZW", "Pillow (TIFF)", _from(tiff_file, pillow), is_exact=True)


def _zstd() -> Iterator[Way]:
    kind, encode = "zstd", lambda tile: Zstd(level=1).encode(np.ascontiguousarray(tile))
    tiff = tifffile.TIFF.DECOMPRESSORS[ZSTD]
    yield Way(kind, "imagecodecs zstd", _from(encode, _sized(tiff)), is_ours=True, is_exact=True)
    yield Way(kind, "numcodecs zstd", _from(encode, _flat(Zstd().decode)), is_ours=True, is_exact=True)
    if find_spec("tensorstore"):
        codec = {"name": "zstd", "configuration": {"level": 1}}
        yield Way(kind, "TensorStore (a Zarr chunk)", lambda tile: _tensorstore_chunk(tile, codec), is_exact=True)


def _lz4() -> Iterator[Way]:
    def encode(tile: Pixels) -> bytes:
        return LZ4().encode(np.ascontiguousarray(tile))

    lz4 = _sized(imagecodecs.lz4_decode, header=True)
    yield Way("lz4", "imagecodecs lz4", _from(encode, lz4), is_exact=True)
    yield Way("lz4", "numcodecs lz4", _from(encode, _flat(LZ4().decode)), is_exact=True)


def _flat(decode: Callable[[bytes], Any]) -> Callable[[bytes, Pixels], Any]:
    """A decoder of bytes, for pixels."""
    return lambda data, tile: np.frombuffer(decode(data), np.uint8).reshape(tile.shape)


def _sized(decode: Callable[..., Any], **options: Any) -> Callable[[bytes, Pixels], Any]:
    """One of imagecodecs that is told how many bytes come out, as tifffile tells it; it may need that to be fast."""
    return lambda data, tile: np.frombuffer(decode(data, out=tile.nbytes, **options), np.uint8).reshape(tile.shape)


def _tensorstore_image(driver: str, data: bytes) -> Any:
    """A picture from memory: TensorStore has a driver for each format."""
    import tensorstore

    context = tensorstore.Context()
    spec = {"driver": driver, "kvstore": {"driver": "memory", "path": "tile"}}
    store = tensorstore.KvStore.open(spec["kvstore"], context=context).result()
    store.write("", data).result()
    return tensorstore.open(spec, context=context).result().read().result()


def _tensorstore_chunk(tile: Pixels, codec: dict[str, Any]) -> Callable[[], Any]:
    """A chunk of an array in memory that is open, without a cache."""
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "memory", "path": "tile/"},
        "metadata": {
            "shape": list(tile.shape),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(tile.shape)}},
            "codecs": [{"name": "bytes"}, codec],
        },
    }
    array = tensorstore.open(spec, create=True).result()
    array.write(tile).result()
    return lambda: array.read().result()


def encoders() -> Iterator[Way]:
    """Encoders of a patch: the store's three codecs, and others that make the same format."""
    for codec, inside in (("raw", "a view"), ("lossless", "NumPy, numcodecs zstd 1"), ("jpeg", "simplejpeg")):
        yield Way(f"store {codec}, encode", inside, _encoding(codec), is_ours=True)
        yield Way(f"store {codec}, decode", inside, _decoding(codec), is_ours=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    yield Way(
        "store jpeg, encode",
        "imagecodecs jpeg8",
        lambda tile: lambda: imagecodecs.jpeg8_encode(tile, level=JPEG_QUALITY, subsampling="444"),
    )
    yield Way(
        "store jpeg, encode",
        "OpenCV imencode",
        lambda tile: lambda: cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), options)[1],
    )
    yield Way("store lossless, encode", "the same, imagecodecs zstd 1", _predicted_by_imagecodecs)


def _encoding(codec: Codec) -> Callable[[Pixels], Callable[[], Any]]:
    encode = encoder(codec)
    return lambda tile: lambda: encode(tile)


def _decoding(codec: Codec) -> Callable[[Pixels], Callable[[], Any]]:
    encode, decode = encoder(codec), decoder(codec)

    def make(tile: Pixels) -> Callable[[], Any]:
        data = bytes(encode(tile))
        return lambda: decode(data, tile.shape)

    return make


def _predicted_by_imagecodecs(tile: Pixels) -> Callable[[], Any]:
    """`msdask.store.codecs.encode_predicted` with another zstd."""

    def work() -> Any:
        red, green, blue = tile[..., 0], tile[..., 1], tile[..., 2]
        planes = np.stack([green, red - green, blue - green])
        planes[..., 1:] -= planes[..., :-1].copy()
        return imagecodecs.zstd_encode(planes.tobytes(), level=1)

    return work
